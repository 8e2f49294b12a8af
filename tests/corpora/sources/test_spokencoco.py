import base64
import json
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from vgsplus.audio import write_wav
from vgsplus.corpora import Corpus, validate
from vgsplus.corpora.sources.spokencoco import find_lists, prepare_spokencoco, read_list, training_list
from vgsplus.errors import CorpusError
from vgsplus.regions import collect, published
from vgsplus.regions.published import COLUMNS, coco_number

REGIONS, DIM = 3, 5
NUMBERS = {"train": (9, 25, 30), "validation": (42,), "test": (61, 71)}


def image_name(number):
    folder = "train2014" if number < 40 else "val2014"
    return f"{folder}/COCO_{folder}_{number:012d}.jpg"


def spoken(number, take):
    name = f"m1-X_{number}_{take}"
    return {"text": f"A DOG {take}", "speaker": "m1", "uttid": name, "wav": f"wavs/{name}.wav"}


def detection(number):
    """A picture of 200 x 100 pixels whose regions are not in the order of their confidence."""
    rng = np.random.default_rng(number)
    low = rng.uniform(0, 45, (REGIONS, 2))
    return {
        "img_id": image_name(number).split("/")[1][:-4],
        "img_h": 100,
        "img_w": 200,
        "objects_id": np.arange(REGIONS, dtype=np.int64),
        "objects_conf": np.float32([0.2, 0.9, 0.5]),
        "attrs_id": np.arange(REGIONS, dtype=np.int64),
        "attrs_conf": np.full(REGIONS, 0.5, np.float32),
        "num_boxes": REGIONS,
        "boxes": np.hstack([low, low + 50]).astype(np.float32),
        "features": rng.random((REGIONS, DIM)).astype(np.float32),
    }


def line_of(record):
    cells = [record[name] for name in COLUMNS]
    texts = [base64.b64encode(c).decode() if isinstance(c, np.ndarray) else str(c) for c in cells]
    return ("\t".join(texts) + "\r\n").encode()


class Data:
    """SpokenCOCO in small: lists, sounds, two TSV files with one picture of no caption."""

    def __init__(self, root):
        self.root = root
        (root / "wavs").mkdir()
        for split, numbers in NUMBERS.items():
            entries = [
                {"image": image_name(number), "captions": [spoken(number, take) for take in range(2)]}
                for number in numbers
            ]
            self.list(split).write_text(json.dumps({"info": {"year": 2020}, "data": entries}))
            for entry in entries:
                for caption in entry["captions"]:
                    write_wav(root / caption["wav"], np.sin(np.arange(4800, dtype=np.float32)))
        numbers = [*sum(NUMBERS.values(), ()), 88]
        self.records = {number: detection(number) for number in numbers}
        self.write_features()

    def list(self, split):
        return self.root / f"{split}.json"

    def write_features(self):
        lines = [line_of(record) for record in self.records.values()]
        (self.root / "a.tsv").write_bytes(b"".join(lines[:3]))
        (self.root / "b.tsv").write_bytes(b"".join(lines[3:]))

    def prepare(self, **options):
        given = {
            "lists": {split: self.list(split) for split in NUMBERS},
            "audio_root": self.root,
            "features": [self.root / "a.tsv", self.root / "b.tsv"],
            "dtype": "float32",
        }
        return prepare_spokencoco(self.root / "out" / "c", **(given | options))


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path)


def assert_regions(corpus, data):
    for number in sum(NUMBERS.values(), ()):
        record = data.records[number]
        features, boxes = corpus.regions([image_name(number)])
        np.testing.assert_array_equal(features[0], record["features"][[1, 2, 0]])
        size = np.float32([200, 100, 200, 100])
        np.testing.assert_allclose(boxes[0], record["boxes"][[1, 2, 0]] / size, atol=1e-6)


def test_a_corpus_is_prepared_with_its_regions_sorted(data):
    summary = data.prepare()
    corpus = Corpus.open(data.root / "out" / "c")
    assert {split: count.captions for split, count in summary.kept.items()} == {
        "train": 6,
        "validation": 2,
        "test": 4,
    }
    assert_regions(corpus, data)
    assert validate(corpus.root) == []
    caption = corpus.captions("train")[1]
    assert (caption.id, caption.text, caption.num_samples) == ("m1-X_9_1", "A DOG 1", 4800)
    assert corpus.audio_path(caption) == data.root / "wavs" / "m1-X_9_1.wav"
    assert corpus.info["regions_of_no_caption"] == 1
    assert [path.name for path in (data.root / "out").iterdir()] == ["c"]


def test_float16_is_the_default_and_unrolled_lists_give_the_same(data):
    data.prepare()
    lines = (data.root / "out" / "c" / "captions.jsonl").read_bytes()
    for split in NUMBERS:
        entries = json.loads(data.list(split).read_text())["data"]
        unrolled = [{"image": e["image"], "caption": c} for e in entries for c in e["captions"]]
        data.list(split).write_text(json.dumps({"data": unrolled}, indent=1))
    lists = {split: data.list(split) for split in NUMBERS}
    files = [data.root / "a.tsv", data.root / "b.tsv"]
    root = data.root / "half"
    prepare_spokencoco(root, lists=lists, audio_root=data.root, features=files)
    assert (root / "captions.jsonl").read_bytes() == lines
    with h5py.File(root / "regions.h5") as file:
        assert file["features"].dtype == np.float16


def test_the_store_gives_the_same_corpus(data):
    records = list(data.records.values())[::-1]
    with h5py.File(data.root / "x.hdf5", "w") as file:
        names = [record["img_id"] for record in records]
        file.create_dataset("img_id", data=names, dtype=h5py.string_dtype("utf-8", 27))
        for name in set(COLUMNS) - {"img_id", "num_boxes"}:
            file[name] = np.stack([record[name] for record in records])
    data.prepare(features=[data.root / "x.hdf5"])
    assert_regions(Corpus.open(data.root / "out" / "c"), data)


def test_a_file_of_regions_gives_the_same_corpus(data):
    records = [data.records[number] for number in [*data.records][::-1]]
    size = np.float32([200, 100, 200, 100])
    with h5py.File(data.root / "regions.h5", "w") as file:
        names = [f"pictures/{record['img_id']}.jpg" for record in records]
        file.create_dataset("image_ids", data=names, dtype=h5py.string_dtype("utf-8"))
        file["features"] = np.stack([record["features"][[1, 2, 0]] for record in records])
        file["boxes"] = np.clip([record["boxes"][[1, 2, 0]] / size for record in records], 0, 1)
        file.attrs["provenance"] = json.dumps({"model": "a detector"})
    data.prepare(features=[data.root / "regions.h5"])
    corpus = Corpus.open(data.root / "out" / "c")
    assert_regions(corpus, data)
    assert corpus.info["provenance"]["regions"] == [{"model": "a detector"}]
    with h5py.File(data.root / "regions.h5", "r+") as file:
        file["boxes"][1, 0] = 2
    with pytest.raises(CorpusError, match=r"regions\.h5: row 1: .*outside \[0, 1\]"):
        data.prepare(features=[data.root / "regions.h5"], overwrite=True)


def test_small_parts_in_processes_give_the_same_corpus(data, monkeypatch):
    monkeypatch.setattr(published, "TSV_PART_BYTES", 400)
    monkeypatch.setattr(collect.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(collect, "WORTH_PROCESSES", 1)
    data.prepare()
    assert_regions(Corpus.open(data.root / "out" / "c"), data)


@pytest.mark.parametrize("size", [1, 7, 333])
def test_a_line_belongs_to_one_part(data, monkeypatch, size):
    monkeypatch.setattr(published, "TSV_PART_BYTES", size)
    found = [image for part in published.split_file(data.root / "b.tsv") for _, image, _ in part.records()]
    assert found == [record["img_id"] for record in list(data.records.values())[3:]]


def test_an_interrupted_preparation_goes_on(data, monkeypatch):
    monkeypatch.setattr(collect.os, "cpu_count", lambda: 1)
    write_part, seen = collect.write_part, []

    def interrupted(part, *arguments):
        if seen:
            raise KeyboardInterrupt
        seen.append(part.path.name)
        return write_part(part, *arguments)

    monkeypatch.setattr(collect, "write_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.prepare()
    assert not (data.root / "out" / "c").exists()

    def noted(part, *arguments):
        seen.append(part.path.name)
        return write_part(part, *arguments)

    monkeypatch.setattr(collect, "write_part", noted)
    data.prepare()
    assert seen == ["a.tsv", "b.tsv"]
    assert_regions(Corpus.open(data.root / "out" / "c"), data)


STOPPED_AFTER_A_PART = """
import multiprocessing, sys, time
from pathlib import Path
from vgsplus.progress import Progress
from vgsplus.regions import collect, published
from vgsplus.corpora.sources.spokencoco import prepare_spokencoco

class Stop(Progress):
    def update(self, stage, *_):
        if stage == "regions":
            print(*(process.pid for process in multiprocessing.active_children()), flush=True)
            time.sleep(600)

if __name__ == "__main__":
    published.TSV_PART_BYTES, collect.os.cpu_count, collect.WORTH_PROCESSES = 400, lambda: 2, 1
    root = Path(sys.argv[1])
    lists = {split: root / f"{split}.json" for split in ("train", "validation", "test")}
    files = [root / "a.tsv", root / "b.tsv"]
    prepare_spokencoco(
        root / "out" / "c", lists=lists, audio_root=root, features=files, dtype="float32", progress=Stop()
    )
"""


def test_a_killed_preparation_leaves_no_process_and_goes_on(data, monkeypatch):
    script = data.root / "killed.py"
    script.write_text(STOPPED_AFTER_A_PART)
    with subprocess.Popen([sys.executable, script, data.root], stdout=subprocess.PIPE, text=True) as killed:
        workers = [int(pid) for pid in killed.stdout.readline().split()]
        killed.kill()
    assert len(workers) == 2
    wait_until(lambda: not any(is_running(pid) for pid in workers))

    monkeypatch.setattr(published, "TSV_PART_BYTES", 400)
    monkeypatch.setattr(collect.os, "cpu_count", lambda: 1)
    write_part, written = collect.write_part, []

    def noted(part, *arguments):
        written.append(part)
        return write_part(part, *arguments)

    monkeypatch.setattr(collect, "write_part", noted)
    data.prepare()
    parts = [part for name in ("a.tsv", "b.tsv") for part in published.split_file(data.root / name)]
    assert written == parts[-len(written) :]
    assert len(written) < len(parts)
    assert_regions(Corpus.open(data.root / "out" / "c"), data)


def is_running(pid):
    """Whether a process runs; one that has ended and waits to be collected does not."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(holds, seconds=30):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "has not come about"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": "AAA*"}, r"b\.tsv:1: image .*42: features is not valid base64"),
        ({"objects_conf": np.ones(2, np.float32)}, r"b\.tsv:1: .*objects_conf holds 8 bytes; expected 12"),
        ({"features": np.ones(7, np.float32)}, "features holds 7 numbers, which 3 boxes cannot share"),
        ({"features": np.ones((3, 6), np.float32)}, r"shape \(3, 6\), those of most are \(3, 5\)"),
        ({"num_boxes": 0}, "num_boxes is 0"),
        ({"num_boxes": "many"}, "num_boxes is 'many', not an integer"),
        ({"features": np.full((3, 5), np.nan, np.float32)}, "features holds values that are not finite"),
        ({"boxes": np.tile(np.float32([0, 0, 210, 50]), (3, 1))}, "lies outside the picture of 200 x 100"),
        ({"boxes": np.tile(np.float32([50, 0, 20, 50]), (3, 1))}, "a box ends before it starts"),
        ({"img_h": 0}, "the picture is 200 x 0 pixels"),
        ({"img_id": "dog"}, r"b\.tsv:1: img_id 'dog' is not the name of an image such as 9"),
        ({"img_id": image_name(9)[10:-4]}, r"b\.tsv:1: image .* is there already: .*a\.tsv:1"),
    ],
)
def test_a_faulty_record_is_told_with_its_line_and_leaves_nothing(data, change, message):
    data.records[42] |= change
    data.write_features()
    with pytest.raises(CorpusError, match=message):
        data.prepare()
    assert list((data.root / "out").iterdir()) == []


def test_a_small_overshoot_is_clipped(data):
    data.records[42]["boxes"] = np.tile(np.float32([-0.5, 0, 200.5, 100]), (3, 1))
    data.write_features()
    data.prepare()
    _, boxes = Corpus.open(data.root / "out" / "c").regions([image_name(42)])
    np.testing.assert_array_equal(boxes[0, 0], [0, 0, 1, 1])


def test_a_truncated_last_line_is_a_fault(data):
    data.records.pop(88)
    data.write_features()
    path = data.root / "b.tsv"
    path.write_bytes(path.read_bytes().rsplit(b"\t", 2)[0])
    with pytest.raises(CorpusError, match=r"b\.tsv:3: .*has 8 of 10 columns; the file breaks off here"):
        data.prepare()


def test_float16_refuses_what_it_cannot_hold(data):
    data.records[42]["features"] *= np.float32(1e6)
    data.write_features()
    with pytest.raises(CorpusError, match="beyond float16; ask for --dtype float32"):
        data.prepare(dtype="float16")


def test_captions_without_sound_or_regions_are_refused_or_left_out(data):
    (data.root / "wavs" / "m1-X_9_0.wav").unlink()
    (data.root / "wavs" / "m1-X_9_1.wav").write_bytes(b"RIFF")
    with pytest.raises(
        CorpusError, match=r"train\.json: entry 1: .*/wavs/m1-X_9_0\.wav: there is no such sound file"
    ) as raised:
        data.prepare()
    assert len(raised.value.faults) == 2
    del data.records[61]
    data.write_features()
    summary = data.prepare(skip_faulty=True)
    assert summary.skipped == {
        "there is no such sound file": 1,
        "cannot be read as sound": 1,
        "picture without regions": 2,
    }
    corpus = Corpus.open(data.root / "out" / "c")
    assert len(corpus.captions("test")) == 2
    assert validate(corpus.root) == []


def test_an_image_without_regions_is_a_fault(data):
    del data.records[61]
    data.write_features()
    with pytest.raises(CorpusError, match=r"000000000061\.jpg: no file of --features holds its regions"):
        data.prepare()


def test_after_that_fault_what_was_read_is_not_read_again(data, monkeypatch):
    del data.records[61]
    data.write_features()
    with pytest.raises(CorpusError, match="holds its regions"):
        data.prepare()
    monkeypatch.setattr(collect, "write_part", lambda *_: pytest.fail("a part was read again"))
    assert data.prepare(skip_faulty=True).skipped["picture without regions"] > 0


def test_a_store_with_numbers_for_names_or_cut_short_is_named(data):
    store, records = data.root / "x.hdf5", list(data.records.values())
    with h5py.File(store, "w") as file:
        file["img_id"] = np.arange(len(records))
        for name in set(COLUMNS) - {"img_id", "num_boxes"}:
            file[name] = np.stack([record[name] for record in records])
    with pytest.raises(CorpusError, match=r"x\.hdf5: its img_id are int64, not text"):
        data.prepare(features=[store])
    store.write_bytes(store.read_bytes()[: store.stat().st_size // 2])
    with pytest.raises(CorpusError, match=r"x\.hdf5: cannot be read as HDF5"):
        data.prepare(features=[store])


def test_pictures_alone_are_described_by_a_grid(data):
    images = [image_name(number) for number in sum(NUMBERS.values(), ())]
    for image in images:
        path = data.root / "images" / image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), "red").save(path)
    data.prepare(features=(), image_root=data.root / "images")
    corpus = Corpus.open(data.root / "out" / "c")
    assert corpus.regions(images)[0].shape == (6, 36, 224)
    assert validate(corpus.root) == []


def test_short_sounds_are_left_out(data):
    write_wav(data.root / "wavs" / "m1-X_9_0.wav", np.ones(100, np.float32))
    assert data.prepare().skipped == {"shorter than 0.25 s": 1}


@pytest.mark.parametrize(
    ("split", "entry", "message"),
    [
        ("test", {"image": image_name(9), "captions": [spoken(9, 7)]}, "is in the split 'train' already"),
        ("train", {"image": image_name(9), "captions": [spoken(9, 0)]}, "uttid m1-X_9_0 has come before"),
        ("train", {"image": "dog.jpg", "captions": [spoken(9, 7)]}, "'dog.jpg' is no picture of MS-COCO"),
        ("train", {"image": image_name(9)}, 'neither a "caption" nor'),
        ("train", {"image": image_name(9), "caption": {"text": "A"}}, "lacks speaker, uttid, wav"),
        (
            "train",
            {"image": image_name(9), "captions": [spoken(9, 0) | {"uttid": "z"}]},
            "the wav .* has come",
        ),
        (
            "train",
            {"image": image_name(9), "caption": spoken(9, 7) | {"speaker": True}},
            "has speaker = 'True'",
        ),
        (
            "train",
            {"image": image_name(9), "caption": spoken(9, 7) | {"wav": {}}},
            "has wav = '{}', which is no",
        ),
        ("train", {"captions": []}, r"train\.json: entry 4: names no \"image\""),
    ],
)
def test_faults_of_the_lists_are_told_with_their_entry(data, split, entry, message):
    content = json.loads(data.list(split).read_text())
    content["data"].append(entry)
    data.list(split).write_text(json.dumps(content))
    with pytest.raises(CorpusError, match=message):
        data.prepare()


def test_karpathys_splits_count_where_they_are_given(data):
    splits = {9: "restval", 25: "test", 30: "val", 42: "train", 61: "test"}
    images = [{"cocoid": number, "split": split, "sentences": []} for number, split in splits.items()]
    (data.root / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": images}))
    summary = data.prepare(karpathy=data.root / "dataset_coco.json")
    corpus = Corpus.open(data.root / "out" / "c")
    found = {split: {c.image for c in corpus.captions(split)} for split in corpus.splits}
    assert found == {
        "train": {image_name(9), image_name(42)},
        "validation": {image_name(30)},
        "test": {image_name(25), image_name(61)},
    }
    assert summary.skipped == {"picture of no split": 2}


def test_a_file_of_other_splits_is_refused(data):
    images = [{"cocoid": 9, "split": "train"}, {"cocoid": "9", "split": "train"}, {"cocoid": 25}]
    (data.root / "dataset_coco.json").write_text(json.dumps({"images": images}))
    with pytest.raises(CorpusError, match=r'image 2: lacks a "cocoid".*\n.*image 3: lacks'):
        data.prepare(karpathy=data.root / "dataset_coco.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": [{"image": "a', "breaks off"),
        ('{"data": [{"image": "a"}', "breaks off"),
        ("[]", 'has no list "data"'),
        ('{"info": 1}', 'has no list "data"'),
        ("", "breaks off|no list"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(CorpusError, match=message):
        list(read_list(path, "train"))


def test_pictures_are_known_by_their_number():
    assert {coco_number(name) for name in (image_name(391), "COCO_val2014_000000000391", "391")} == {391}
    assert coco_number("dog") is None


def test_lists_are_found_by_name_unless_two_are_there(tmp_path):
    for name in ("SpokenCOCO_train.json", "SpokenCOCO_val_unrolled_karpathy.json", "SpokenCOCO_ids.json"):
        (tmp_path / name).touch()
    assert {split: path.name for split, path in find_lists(tmp_path).items()} == {
        "train": "SpokenCOCO_train.json",
        "validation": "SpokenCOCO_val_unrolled_karpathy.json",
    }
    (tmp_path / "SpokenCOCO_train_karpathy.json").touch()
    with pytest.raises(CorpusError, match="Choose one with --train"):
        find_lists(tmp_path)
    assert set(find_lists(tmp_path, besides={"train"})) == {"validation"}


def test_training_lists_are_told_apart_by_their_size():
    assert "Karpathy" in training_list(113_287)
    assert "the published runs' list" in training_list(118_285)
    assert "like none" in training_list(1000)


# ---- as people have them ----------------------------------------------------------------------------------


def test_numbers_may_name_a_speaker_and_lists_begin_with_a_byte_order_mark(data):
    for split in NUMBERS:
        content = json.loads(data.list(split).read_text())
        for entry in content["data"]:
            for caption in entry["captions"]:
                caption["speaker"] = 12
        data.list(split).write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    data.prepare()
    assert {c.speaker for c in Corpus.open(data.root / "out/c").captions("train")} == {"12"}


def cells(record):
    return line_of(record).rstrip(b"\r\n").split(b"\t")


def rewrite(data, change):
    """Both files, each record's cells changed."""
    lines = [b"\t".join(change(cells(record))) + b"\n" for record in data.records.values()]
    (data.root / "a.tsv").write_bytes(b"".join(lines[:3]))
    (data.root / "b.tsv").write_bytes(b"".join(lines[3:]))


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
def test_region_files_as_other_programs_write_them_are_read(data, change):
    rewrite(data, change)
    data.prepare()
    assert_regions(Corpus.open(data.root / "out/c"), data)


def test_a_header_is_passed_over_and_counts_as_a_line(data):
    header = "\t".join(COLUMNS).encode() + b"\n"
    (data.root / "a.tsv").write_bytes(header + (data.root / "a.tsv").read_bytes())
    data.prepare()
    assert_regions(Corpus.open(data.root / "out/c"), data)
    data.records[9]["num_boxes"] = 0
    data.write_features()
    (data.root / "a.tsv").write_bytes(header + (data.root / "a.tsv").read_bytes())
    with pytest.raises(CorpusError, match=r"a\.tsv:2: .* num_boxes is 0"):
        data.prepare(overwrite=True)


def test_the_six_columns_of_bottom_up_attention_stay_in_their_order(data):
    # image_id, image_w, image_h, num_boxes, boxes, features: the width comes first
    rewrite(data, lambda row: [str(coco_number(row[0].decode())).encode(), row[2], row[1], *row[7:]])
    data.prepare()
    corpus = Corpus.open(data.root / "out/c")
    for number in sum(NUMBERS.values(), ()):
        features, boxes = corpus.regions([image_name(number)])
        np.testing.assert_array_equal(features[0], data.records[number]["features"])
        np.testing.assert_allclose(
            boxes[0], data.records[number]["boxes"] / np.float32([200, 100, 200, 100]), atol=1e-6
        )


def fewer(record, regions=2):
    arrays = ("objects_id", "objects_conf", "attrs_id", "attrs_conf", "boxes", "features")
    return record | {name: record[name][:regions] for name in arrays} | {"num_boxes": regions}


def test_an_odd_first_record_is_the_one_at_fault_and_can_be_left_out(data):
    data.records[9] = fewer(data.records[9])
    data.write_features()
    with pytest.raises(CorpusError) as error:
        data.prepare()
    (fault,) = error.value.faults
    where, what = "a.tsv:1: image COCO_train2014_000000000009", "shape (2, 5), those of most are (3, 5)"
    assert fault.endswith(f"{where}: has features of {what}")
    summary = data.prepare(skip_faulty=True)
    assert summary.skipped == {"picture without regions": 2}
    assert summary.kept["train"].images == 2


@pytest.mark.parametrize("skip_faulty", [False, True])
def test_a_broken_line_before_the_good_one_is_the_one_at_fault(data, skip_faulty):
    broken = line_of(data.records[9] | {"features": "AAA*"})
    (data.root / "a.tsv").write_bytes(broken + (data.root / "a.tsv").read_bytes())
    if skip_faulty:
        assert not data.prepare(skip_faulty=True).skipped
        assert_regions(Corpus.open(data.root / "out/c"), data)
        return
    with pytest.raises(CorpusError) as error:
        data.prepare()
    (fault,) = error.value.faults
    assert "a.tsv:1: image COCO_train2014_000000000009: features is not valid base64" in fault


@pytest.mark.parametrize("skip_faulty", [False, True])
def test_a_picture_with_two_good_records_is_a_fault_with_both_lines(data, skip_faulty):
    with (data.root / "b.tsv").open("ab") as file:
        file.write(line_of(data.records[9]))
    with pytest.raises(CorpusError, match=r"b\.tsv:5: image .*9\.jpg is there already: .*a\.tsv:1"):
        data.prepare(skip_faulty=skip_faulty)


def test_a_picture_twice_in_karpathys_list_is_a_fault(data):
    images = [{"cocoid": 9, "split": "train"}, {"cocoid": 9, "split": "train"}]
    (data.root / "k.json").write_text(json.dumps({"images": images}))
    with pytest.raises(CorpusError, match="image 2: the picture 9 is in image 1 already"):
        data.prepare(karpathy=data.root / "k.json")


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
        data.prepare(features=[store])


def test_height_and_width_that_were_swapped_are_told_as_such(data):
    for record in data.records.values():
        record["boxes"] = np.tile(np.float32([0, 0, 190, 90]), (REGIONS, 1))
    rewrite(data, lambda row: [row[0], row[2], row[1], *row[3:]])
    with pytest.raises(CorpusError, match=r"a\.tsv:1: image .*9: the box .* may have been swapped"):
        data.prepare()
