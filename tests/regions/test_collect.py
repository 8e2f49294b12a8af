import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from vgsplus.errors import CorpusError
from vgsplus.regions import collect, published
from vgsplus.regions.collect import collect_regions
from vgsplus.regions.published import COLUMNS, coco_number
from vgsplus.regions.store import RegionStore

NUMBERS = (9, 25, 30, 42, 61, 71)
"""COCO images of the captions; the files also hold number 88."""
REGIONS = 3


def image_name(number):
    return f"train2014/COCO_train2014_{number:012d}.jpg"


class Data:
    """Two obj36 TSV files."""

    def __init__(self, root, detected):
        self.root = root
        self.files = [root / "a.tsv", root / "b.tsv"]
        self.folder = root / "out"
        self.images = {number: image_name(number) for number in NUMBERS}
        self.detected = detected([image_name(number)[10:-4] for number in (*NUMBERS, 88)])
        self.records = dict(zip((*NUMBERS, 88), self.detected.records.values(), strict=True))
        self.write()

    def write(self, change=lambda cells: cells):
        self.detected.records = self.records
        self.detected.write_tsv(*self.files, change=change)

    def collect(self, files=None, *, dtype="float32", partial=False):
        """The collected store, images without regions, and the number of other records."""
        given = {"image_key": coco_number, "dtype": dtype, "partial": partial}
        return collect_regions(files or self.files, self.images, self.folder, **given)

    def assert_collected(self, files=None):
        path, missing, others = self.collect(files)
        assert (missing, others) == ({}, 1)
        self.assert_rows(path)

    def assert_rows(self, path):
        with RegionStore(path) as store:
            assert store.image_ids == tuple(self.images.values())
            features, boxes = store.read(range(len(NUMBERS)))
        size = np.float32([200, 100, 200, 100])
        for row, number in enumerate(NUMBERS):
            record = self.records[number]
            np.testing.assert_array_equal(features[row], record["features"][[1, 2, 0]])
            np.testing.assert_allclose(boxes[row], record["boxes"][[1, 2, 0]] / size, atol=1e-6)


@pytest.fixture
def data(tmp_path, detected):
    return Data(tmp_path, detected)


def test_regions_are_collected_by_falling_confidence(data):
    data.assert_collected()


def test_the_published_store_gives_the_same(data):
    records = list(data.records.values())[::-1]
    with h5py.File(data.root / "x.hdf5", "w") as file:
        names = [record["img_id"] for record in records]
        file.create_dataset("img_id", data=names, dtype=h5py.string_dtype("utf-8", 27))
        for name in set(COLUMNS) - {"img_id", "num_boxes"}:
            file[name] = np.stack([record[name] for record in records])
    data.assert_collected([data.root / "x.hdf5"])


def test_a_store_of_ours_gives_the_same(data):
    records = list(data.records.values())[::-1]
    size = np.float32([200, 100, 200, 100])
    with h5py.File(data.root / "regions.h5", "w") as file:
        names = [f"pictures/{record['img_id']}.jpg" for record in records]
        file.create_dataset("image_ids", data=names, dtype=h5py.string_dtype("utf-8"))
        file["features"] = np.stack([record["features"][[1, 2, 0]] for record in records])
        file["boxes"] = np.clip([record["boxes"][[1, 2, 0]] / size for record in records], 0, 1)
    data.assert_collected([data.root / "regions.h5"])
    with h5py.File(data.root / "regions.h5", "r+") as file:
        file["boxes"][1, 0] = 2
    with pytest.raises(CorpusError, match=r"regions\.h5: row 1: .*outside \[0, 1\]"):
        data.collect([data.root / "regions.h5"])


def test_small_parts_in_processes_give_the_same(data, monkeypatch):
    monkeypatch.setattr(published, "TSV_PART_BYTES", 400)
    monkeypatch.setattr(collect.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(collect, "WORTH_PROCESSES", 1)
    data.assert_collected()


@pytest.mark.parametrize("size", [1, 7, 333])
def test_a_line_belongs_to_one_part(data, monkeypatch, size):
    monkeypatch.setattr(published, "TSV_PART_BYTES", size)
    found = [image for part in published.split_file(data.files[1]) for _, image, _ in part.records()]
    assert found == [record["img_id"] for record in list(data.records.values())[3:]]


# Resuming


def watch_parts(monkeypatch, allowed=None):
    """The parts that are written from now on; after `allowed` of them Ctrl-C is pressed."""
    monkeypatch.setattr(collect.os, "cpu_count", lambda: 1)
    write_part, written = collect.write_part, []

    def watched(part, *arguments):
        if len(written) == allowed:
            raise KeyboardInterrupt
        written.append(part)
        return write_part(part, *arguments)

    monkeypatch.setattr(collect, "write_part", watched)
    return written


def test_an_interrupted_collection_is_resumed(data, monkeypatch):
    with monkeypatch.context() as patch:
        first = watch_parts(patch, allowed=1)
        with pytest.raises(KeyboardInterrupt):
            data.collect()
    second = watch_parts(monkeypatch)
    data.assert_collected()
    assert [part.path for part in first + second] == data.files


STOPPED_AFTER_A_PART = """
import multiprocessing, sys, time
from pathlib import Path
from vgsplus.progress import Progress
from vgsplus.regions import collect, published

class Stop(Progress):
    def update(self, stage, *_):
        print(*(process.pid for process in multiprocessing.active_children()), flush=True)
        time.sleep(600)

if __name__ == "__main__":
    published.TSV_PART_BYTES, collect.os.cpu_count, collect.WORTH_PROCESSES = 400, lambda: 2, 1
    root = Path(sys.argv[1])
    images = {number: f"train2014/COCO_train2014_{number:012d}.jpg" for number in (9, 25, 30, 42, 61, 71)}
    collect.collect_regions(
        [root / "a.tsv", root / "b.tsv"],
        images,
        root / "out",
        image_key=published.coco_number,
        dtype="float32",
        partial=False,
        progress=Stop(),
    )
"""


def test_a_killed_collection_leaves_no_process_and_is_resumed(data, monkeypatch):
    script = data.root / "killed.py"
    script.write_text(STOPPED_AFTER_A_PART)
    with subprocess.Popen([sys.executable, script, data.root], stdout=subprocess.PIPE, text=True) as killed:
        workers = [int(pid) for pid in killed.stdout.readline().split()]
        killed.kill()
    assert len(workers) == 2
    wait_until(lambda: not any(is_running(pid) for pid in workers))
    monkeypatch.setattr(published, "TSV_PART_BYTES", 400)
    written = watch_parts(monkeypatch)
    data.assert_collected()
    parts = [part for path in data.files for part in published.split_file(path)]
    assert written == parts[-len(written) :]
    assert len(written) < len(parts)


def is_running(pid):
    """Whether a process runs; one that has ended and waits to be collected does not."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(holds, seconds=30):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "has not come about"
        time.sleep(0.05)


def test_after_an_image_without_regions_nothing_is_read_again(data, monkeypatch):
    del data.records[61]
    data.write()
    with pytest.raises(CorpusError, match=r"000000000061\.jpg: no file of --features holds its regions"):
        data.collect()
    monkeypatch.setattr(collect, "write_part", lambda *_: pytest.fail("a part was read again"))
    path, missing, _ = data.collect(partial=True)
    assert list(missing) == [image_name(61)]
    with RegionStore(path) as store:
        assert image_name(61) not in store.image_ids
        features, _ = store.read([4])
    np.testing.assert_array_equal(features[0], data.records[71]["features"][[1, 2, 0]])


# Faults


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": "AAA*"}, r"b\.tsv:1: image .*42: features is not valid base64"),
        ({"objects_conf": np.ones(2, np.float32)}, r"b\.tsv:1: .*objects_conf holds 8 bytes; expected 12"),
        (
            {"features": np.ones(7, np.float32)},
            "holds 7 numbers, which is not a multiple of 3 boxes",
        ),
        ({"features": np.ones((3, 6), np.float32)}, r"shape \(3, 6\), most have \(3, 5\)"),
        ({"num_boxes": 0}, "num_boxes is 0"),
        ({"num_boxes": "many"}, "num_boxes is 'many', not an integer"),
        ({"features": np.full((3, 5), np.nan, np.float32)}, "features holds values that are not finite"),
        ({"boxes": np.tile(np.float32([0, 0, 210, 50]), (3, 1))}, "lies outside the picture of 200 x 100"),
        ({"boxes": np.tile(np.float32([50, 0, 20, 50]), (3, 1))}, "a box ends before it starts"),
        ({"img_h": 0}, "the picture is 200 x 0 pixels"),
        ({"img_id": "dog"}, r"b\.tsv:1: img_id 'dog' is not the name of an image such as 9"),
        ({"img_id": image_name(9)[10:-4]}, r"b\.tsv:1: image .* is also in .*a\.tsv:1"),
    ],
)
def test_a_faulty_record_is_reported_with_its_line_and_leaves_nothing(data, change, message):
    data.records[42] |= change
    data.write()
    with pytest.raises(CorpusError, match=message):
        data.collect()
    assert not data.folder.exists()


def test_a_small_overshoot_is_clipped(data):
    data.records[42]["boxes"] = np.tile(np.float32([-0.5, 0, 200.5, 100]), (3, 1))
    data.write()
    with RegionStore(data.collect()[0]) as store:
        _, boxes = store.read([3])
    np.testing.assert_array_equal(boxes[0, 0], [0, 0, 1, 1])


def test_a_truncated_last_line_is_a_fault(data):
    data.records.pop(88)
    data.write()
    path = data.files[1]
    path.write_bytes(path.read_bytes().rsplit(b"\t", 2)[0])
    with pytest.raises(CorpusError, match=r"b\.tsv:3: .*has 8 of 10 columns; the file ends here"):
        data.collect()


def test_values_beyond_float16_are_a_fault(data):
    data.records[42]["features"] *= np.float32(1e6)
    data.write()
    with pytest.raises(CorpusError, match="beyond float16; use --dtype float32"):
        data.collect(dtype="float16")


def test_a_store_with_numbers_for_names_or_cut_short_is_named(data):
    store, records = data.root / "x.hdf5", list(data.records.values())
    with h5py.File(store, "w") as file:
        file["img_id"] = np.arange(len(records))
        for name in set(COLUMNS) - {"img_id", "num_boxes"}:
            file[name] = np.stack([record[name] for record in records])
    with pytest.raises(CorpusError, match=r"x\.hdf5: its img_id are int64, not text"):
        data.collect([store])
    store.write_bytes(store.read_bytes()[: store.stat().st_size // 2])
    with pytest.raises(CorpusError, match=r"x\.hdf5: cannot be read"):
        data.collect([store])


@pytest.mark.parametrize("name", ["features", "boxes"])
def test_a_store_whose_bytes_were_changed_is_refused(data, name):
    store = data.root / "store.h5"
    with h5py.File(store, "w") as file:
        for key in ("img_h", "img_w", "objects_conf", "boxes", "features"):
            values = np.stack([np.asarray(record[key]) for record in data.records.values()])
            file.create_dataset(key, data=values, chunks=values.shape, compression="gzip")
        file["img_id"] = np.array([record["img_id"] for record in data.records.values()], "S40")
        place = file[name].id.get_chunk_info(0).byte_offset
    content = bytearray(store.read_bytes())
    content[place : place + 8] = b"\xff" * 8
    store.write_bytes(content)
    with pytest.raises(CorpusError, match=r"store\.h5: .*cannot be read"):
        data.collect([store])


def test_swapped_height_and_width_are_suggested(data):
    for record in data.records.values():
        record["boxes"] = np.tile(np.float32([0, 0, 190, 90]), (REGIONS, 1))
    data.write(lambda cells: [cells[0], cells[2], cells[1], *cells[3:]])
    with pytest.raises(CorpusError, match=r"a\.tsv:1: image .*9: the box .* may have been swapped"):
        data.collect()


def fewer(record, regions=2):
    arrays = ("objects_id", "objects_conf", "attrs_id", "attrs_conf", "boxes", "features")
    return record | {name: record[name][:regions] for name in arrays} | {"num_boxes": regions}


def test_an_odd_first_record_is_the_one_at_fault_and_can_be_skipped(data):
    data.records[9] = fewer(data.records[9])
    data.write()
    with pytest.raises(CorpusError) as error:
        data.collect()
    (fault,) = error.value.faults
    where, what = "a.tsv:1: image COCO_train2014_000000000009", "shape (2, 5), most have (3, 5)"
    assert fault.endswith(f"{where}: has features of {what}")
    _, missing, _ = data.collect(partial=True)
    assert list(missing) == [image_name(9)]


@pytest.mark.parametrize("partial", [False, True])
def test_a_broken_line_before_the_good_one_is_the_one_at_fault(data, partial):
    good = data.files[0].read_bytes()
    cells = good.partition(b"\r\n")[0].split(b"\t")
    data.files[0].write_bytes(b"\t".join([*cells[:-1], b"AAA*"]) + b"\r\n" + good)
    if partial:
        path, missing, _ = data.collect(partial=True)
        assert not missing
        data.assert_rows(path)
        return
    with pytest.raises(CorpusError) as error:
        data.collect()
    (fault,) = error.value.faults
    assert "a.tsv:1: image COCO_train2014_000000000009: features is not valid base64" in fault


@pytest.mark.parametrize("partial", [False, True])
def test_an_image_with_two_good_records_is_a_fault_with_both_lines(data, partial):
    with data.files[1].open("ab") as file:
        file.write(data.files[0].read_bytes().partition(b"\r\n")[0] + b"\r\n")
    with pytest.raises(CorpusError, match=r"b\.tsv:5: image .*9\.jpg is also in .*a\.tsv:1"):
        data.collect(partial=partial)


# Variants of the format


def base64_cells(change):
    return lambda row: [*row[:3], *map(change, row[3:7]), row[7], *map(change, row[8:])]


@pytest.mark.parametrize(
    "change",
    [
        base64_cells(lambda cell: b"b'" + cell + b"'"),
        base64_cells(lambda cell: cell.rstrip(b"=")),
        base64_cells(lambda cell: cell.replace(b"+", b"-").replace(b"/", b"_")),
        lambda row: [row[0], row[1] + b".0", row[2] + b".0", *row[3:]],
        lambda row: [row[0].rsplit(b"_", 1)[1].lstrip(b"0"), *row[1:]],
    ],
    ids=["bytes", "unpadded", "url-safe", "float", "numeric"],
)
def test_files_as_other_programs_write_them_are_read(data, change):
    data.write(change)
    data.assert_collected()


def test_a_header_is_skipped_and_counts_as_a_line(data):
    header = "\t".join(COLUMNS).encode() + b"\n"
    data.files[0].write_bytes(header + data.files[0].read_bytes())
    data.assert_collected()
    data.records[9]["num_boxes"] = 0
    data.write()
    data.files[0].write_bytes(header + data.files[0].read_bytes())
    with pytest.raises(CorpusError, match=r"a\.tsv:2: .* num_boxes is 0"):
        data.collect()


def test_the_six_columns_of_bottom_up_attention_stay_in_their_order(data):
    # image_id, image_w, image_h, num_boxes, boxes, features: the width comes first
    data.write(lambda row: [str(coco_number(row[0].decode())).encode(), row[2], row[1], *row[7:]])
    with RegionStore(data.collect()[0]) as store:
        features, boxes = store.read(range(len(NUMBERS)))
    for row, number in enumerate(NUMBERS):
        np.testing.assert_array_equal(features[row], data.records[number]["features"])
        np.testing.assert_allclose(
            boxes[row], data.records[number]["boxes"] / np.float32([200, 100, 200, 100]), atol=1e-6
        )


def test_coco_images_are_known_by_their_number():
    assert {coco_number(name) for name in (image_name(391), "COCO_val2014_000000000391", "391")} == {391}
    assert coco_number("dog") is None
