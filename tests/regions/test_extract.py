import hashlib
import json
import os
import shutil

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.files import lock_file
from vgsplus.progress import Progress
from vgsplus.regions.extract import extract_folder
from vgsplus.regions.store import RegionStore, provenance_of

PICTURES = 7


class Mean:
    """Two regions: a picture's mean colour, and that times `factor`."""

    def __init__(self, factor=2.0):
        self.provenance = {"model": "mean", "factor": factor}
        self.factor = factor
        self.extracted = 0

    def prepare(self, picture):
        return torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32)).mean((0, 1))

    def extract(self, pictures):
        self.extracted += len(pictures)
        colours = torch.stack(list(pictures))
        boxes = torch.tensor([[0, 0, 1, 1], [0, 0, 0.5, 0.5]]).expand(len(pictures), 2, 4)
        return torch.stack([colours, colours * self.factor], dim=1), boxes


class InterruptAt(Progress):
    def __init__(self, done):
        self.done = done

    def update(self, stage, done, *_):
        if (stage, done) == ("regions", self.done):
            raise KeyboardInterrupt


@pytest.fixture
def folder(tmp_path):
    pictures = tmp_path / "pictures"
    (pictures / "more").mkdir(parents=True)
    for number in range(PICTURES):
        place = pictures / ("more" if number % 2 else ".") / f"p{number}.png"
        Image.new("RGB", (6, 4), (number, 10 * number, 90)).save(place)
    (pictures / "notes.txt").write_text("no picture")
    return pictures


def test_every_image_has_a_row_and_the_store_its_provenance(folder, tmp_path):
    out = tmp_path / "out" / "regions.h5"
    assert extract_folder(folder, out, Mean(), batch_size=3) == ((PICTURES, 2, 3), [])
    with h5py.File(out) as file:
        ids = list(file["image_ids"].asstr()[:])
        assert ids == sorted(ids)
        assert file["features"].dtype == np.float16
        for row, image_id in enumerate(ids):
            number = int(image_id[-5])
            expected = np.array([number, 10 * number, 90], np.float32)
            np.testing.assert_array_equal(file["features"][row], np.stack([expected, 2 * expected]))
        assert json.loads(file.attrs["provenance"])["model"] == "mean"
    assert [path.name for path in out.parent.iterdir()] == ["regions.h5"]


def test_an_interrupted_extraction_resumes_to_the_same_bytes(folder, tmp_path):
    whole, parts = tmp_path / "whole.h5", tmp_path / "parts.h5"
    extract_folder(folder, whole, Mean(), batch_size=2)

    with pytest.raises(KeyboardInterrupt):
        extract_folder(folder, parts, Mean(), batch_size=2, progress=InterruptAt(4))
    assert not parts.exists()
    with (tmp_path / ".parts.h5.writing" / "resume.jsonl").open("ab") as journal:
        journal.write(b"2")  # a kill while a line was written
    again = Mean()
    extract_folder(folder, parts, again, batch_size=2)
    assert again.extracted == PICTURES - 4
    assert parts.read_bytes() == whole.read_bytes()


def test_another_model_starts_anew(folder, tmp_path):
    out = tmp_path / "out.h5"

    with pytest.raises(KeyboardInterrupt):
        extract_folder(folder, out, Mean(), batch_size=2, progress=InterruptAt(2))
    other = Mean(factor=3.0)
    extract_folder(folder, out, other, batch_size=2)
    assert other.extracted > PICTURES  # and one picture to learn the shape
    with h5py.File(out) as file:
        np.testing.assert_array_equal(file["features"][:, 1], 3 * file["features"][:, 0])


def test_images_that_cannot_be_decoded_are_listed_at_once_or_skipped(folder, tmp_path):
    out = tmp_path / "out.h5"
    for name in ("a.jpg", "z.png"):
        (folder / name).write_bytes(b"no picture")
    extractor = Mean()
    with pytest.raises(CorpusError) as raised:
        extract_folder(folder, out, extractor)
    assert [fault.split(": ")[0] for fault in raised.value.faults] == [
        str(folder / "a.jpg"),
        str(folder / "z.png"),
    ]
    assert extractor.extracted == 0
    shape, skipped = extract_folder(folder, out, extractor, skip_faulty=True)
    assert (shape[0], len(skipped)) == (PICTURES, 2)
    assert "a.jpg" in skipped[0]


def test_an_existing_file_stays(folder, tmp_path):
    out = tmp_path / "out.h5"
    out.write_text("mine")
    with pytest.raises(VgsplusError, match="exists"):
        extract_folder(folder, out, Mean())
    assert out.read_text() == "mine"
    extract_folder(folder, out, Mean(), overwrite=True)
    assert h5py.is_hdf5(out)


def test_values_beyond_float16_are_refused(folder, tmp_path):
    with pytest.raises(CorpusError, match="--dtype float32"):
        extract_folder(folder, tmp_path / "out.h5", Mean(factor=1e4))
    extract_folder(folder, tmp_path / "out.h5", Mean(factor=1e4), dtype="float32")


def test_another_process_that_writes_is_named(folder, tmp_path):
    with (
        lock_file(tmp_path / ".out.h5.lock"),
        pytest.raises(VgsplusError, match=rf"out\.h5: process {os.getpid()} on .* is writing it"),
    ):
        extract_folder(folder, tmp_path / "out.h5", Mean())
    extract_folder(folder, tmp_path / "out.h5", Mean())
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "out.h5"}


def test_a_device_without_memory_suggests_smaller_batches(folder, tmp_path):
    class Full(Mean):
        def extract(self, pictures):
            if len(pictures) > 1:
                raise torch.OutOfMemoryError
            return super().extract(pictures)

    with pytest.raises(VgsplusError, match="--batch-size"):
        extract_folder(folder, tmp_path / "out.h5", Full())


def test_an_image_is_found_by_its_contents(folder, tmp_path):
    out = tmp_path / "out.h5"
    extract_folder(folder, out, Mean())
    digest = hashlib.sha256((folder / "p2.png").read_bytes()).hexdigest()
    with RegionStore(out) as store:
        features, boxes = store.find("moved/elsewhere.png", digest)
        assert features[0].tolist() == [2, 20, 90]
        assert boxes.shape == (2, 4)
        assert store.find("p2.png", "0" * 64) is None
    shutil.copy(out, tmp_path / "theirs.h5")
    with h5py.File(tmp_path / "theirs.h5", "r+") as file:
        del file["sha256"]
    with RegionStore(tmp_path / "theirs.h5") as store:
        assert store.find("p2.png", "0" * 64)[0][0].tolist() == [2, 20, 90]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("boxes"), "lacks boxes"),
        (lambda file: file.create_dataset("boxes2", data=file.pop("boxes")[:, :1]), "lacks boxes"),
        (lambda file: file.attrs.update(provenance="{"), "is not JSON"),
    ],
)
def test_an_incomplete_store_is_refused(folder, tmp_path, change, message):
    out = tmp_path / "out.h5"
    extract_folder(folder, out, Mean())
    with h5py.File(out, "r+") as file:
        change(file)
    with pytest.raises(CorpusError, match=message):
        assert provenance_of(RegionStore(out).path)
