import errno
import subprocess
import sys

import h5py
import numpy as np
import pytest

from vgsplus.errors import CorpusError
from vgsplus.regions.store import RegionAppender, RegionStore, create_store, provenance_of

IDS = ["a.png", "b.png", "more/c.png"]


def regions(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return rng.random((3, 5), np.float32).astype(dtype), np.tile(np.float32([0, 0, 0.5, 1]), (3, 1))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_are_written_in_any_order(tmp_path, dtype):
    path = tmp_path / "regions.h5"
    create_store(path, IDS, (3, 5), dtype, sha256=["0", "1", "2"], provenance={"model": "a test"})
    with RegionStore(path, writable=True) as store:
        for row in (2, 0, 1):
            store.write(row, *regions(row))
    with RegionStore(path) as store:
        assert (store.image_ids, store.shape, store.dtype) == (tuple(IDS), (3, 3, 5), dtype)
        assert provenance_of(path) == {"model": "a test"}
        features, boxes = store.read([1, 2, 1])
        expected = [regions(row)[0].astype(dtype) for row in (1, 2, 1)]
        np.testing.assert_array_equal(features, expected)
        np.testing.assert_array_equal(boxes[0], regions(1)[1])
        np.testing.assert_array_equal(store.find("x", "2")[0], expected[1])
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["features"][1:], expected[:2])


def test_appended_rows_give_the_same_file(tmp_path):
    create_store(tmp_path / "a.h5", IDS, (3, 5), "float16")
    appender = RegionAppender(tmp_path / "b.h5", regions(0, np.float16)[0])
    with RegionStore(tmp_path / "a.h5", writable=True) as store:
        for row in range(3):
            store.write(row, *regions(row))
            appender.append(*regions(row, np.float16))
    appender.complete(IDS)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]


def test_a_row_of_another_shape_or_beyond_the_type_is_refused(tmp_path):
    create_store(tmp_path / "a.h5", IDS, (3, 5), "float16")
    with RegionStore(tmp_path / "a.h5", writable=True) as store:
        features, boxes = regions(0)
        with pytest.raises(ValueError, match=r"shape \(3, 4\), most have \(3, 5\)"):
            store.write(0, features[:, :4], boxes)
        with pytest.raises(ValueError, match="beyond float16; use --dtype float32"):
            store.write(0, features * 1e6, boxes)


def test_a_file_that_is_cut_off_while_open_is_an_error(tmp_path):
    path = tmp_path / "a.h5"
    create_store(path, IDS, (3, 5), "float32")
    with RegionStore(path, remedy="Do it again.") as store, path.open("r+b") as file:
        file.truncate(100)
        with pytest.raises(CorpusError, match=r"a\.h5: is truncated in row 2\. Do it again\."):
            store.read([2])


FULL = """
import sys
from pathlib import Path
from vgsplus.regions.store import create_store
try:
    create_store(Path(sys.argv[1]) / "a.h5", ["x" * 50] * int(sys.argv[2]), (3, 5), "float32")
except OSError as error:
    sys.exit(error.errno)
"""


@pytest.mark.parametrize("images", [9_000, 50_000])
def test_a_full_disk_is_an_error_before_any_row_is_written(tmp_path, images):
    """9,000 images and their rows need 2 MB, the ids of 50,000 alone more than 2 MB, which HDF5 writes."""
    mount = f'mount -t tmpfs -o size=2m none "{tmp_path}"'
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    command = f'{mount} && exec "{sys.executable}" -c \'{FULL}\' "{tmp_path}" {images}'
    assert subprocess.run(["unshare", "-rm", "sh", "-c", command], check=False).returncode == errno.ENOSPC
