import json

import h5py
import numpy as np
import pytest
from helpers import captions_of, open_valid

from vgsplus.audio import write_wav
from vgsplus.corpora import Corpus
from vgsplus.corpora.sources.lists import entries_of, find_lists
from vgsplus.corpora.sources.spokencoco import LIST_NAMES, prepare_spokencoco, training_list
from vgsplus.errors import CorpusError
from vgsplus.regions import collect
from vgsplus.regions.store import RegionStore, create_store

NUMBERS = {"train": (9, 25, 30), "validation": (42,), "test": (61, 71)}


def image_name(number):
    folder = "train2014" if number < 40 else "val2014"
    return f"{folder}/COCO_{folder}_{number:012d}.jpg"


IMAGES = [image_name(number) for numbers in NUMBERS.values() for number in numbers]


def detected_name(number):
    return image_name(number).split("/")[1][:-4]


def spoken(number, take):
    name = f"m1-X_{number}_{take}"
    return {"text": f"A DOG {take}", "speaker": "m1", "uttid": name, "wav": f"wavs/{name}.wav"}


class Data:
    """SpokenCOCO in small: lists, sounds, two TSV files with one picture of no caption."""

    def __init__(self, root, detected):
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
        self.detected = detected([detected_name(number) for number in numbers])
        self.write_features()

    def list(self, split):
        return self.root / f"{split}.json"

    def write_features(self):
        self.detected.write_tsv(self.root / "a.tsv", self.root / "b.tsv")

    def prepare(self, **options):
        given = {
            "lists": {split: self.list(split) for split in NUMBERS},
            "audio_root": self.root,
            "features": [self.root / "a.tsv", self.root / "b.tsv"],
            "dtype": "float32",
        }
        return prepare_spokencoco(self.root / "out" / "c", **(given | options))


@pytest.fixture
def data(tmp_path, detected):
    return Data(tmp_path, detected)


def test_a_corpus_is_prepared_with_its_regions_sorted(data):
    summary = data.prepare()
    corpus = open_valid(data.root / "out" / "c")
    assert captions_of(summary) == {"train": 6, "validation": 2, "test": 4}
    data.detected.assert_in(corpus, IMAGES)
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


@pytest.mark.parametrize(
    ("split", "entry", "message"),
    [
        ("train", {"image": "dog.jpg", "captions": [spoken(9, 7)]}, "'dog.jpg' is not a picture of MS-COCO"),
        ("train", {"image": image_name(9)}, 'neither a "caption" nor'),
        ("train", {"image": image_name(9), "caption": {"text": "A"}}, "lacks speaker, uttid, wav"),
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
        ('{"data": [{"image": "a', "truncated"),
        ('{"data": [{"image": "a"}', "truncated"),
        ("[]", 'has no list "data"'),
        ('{"info": 1}', 'has no list "data"'),
        ("", "truncated|no list"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(CorpusError, match=message):
        list(entries_of(path))


def test_lists_are_found_by_name_unless_two_are_there(tmp_path):
    for name in ("SpokenCOCO_train.json", "SpokenCOCO_val_unrolled_karpathy.json", "SpokenCOCO_ids.json"):
        (tmp_path / name).touch()
    assert {split: path.name for split, path in find_lists([tmp_path], LIST_NAMES).items()} == {
        "train": "SpokenCOCO_train.json",
        "validation": "SpokenCOCO_val_unrolled_karpathy.json",
    }
    (tmp_path / "SpokenCOCO_train_karpathy.json").touch()
    with pytest.raises(CorpusError, match="Choose one with --train"):
        find_lists([tmp_path], LIST_NAMES)
    assert set(find_lists([tmp_path], LIST_NAMES, {"train"})) == {"validation"}


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


def test_a_picture_twice_in_karpathys_list_is_a_fault(data):
    images = [{"cocoid": 9, "split": "train"}, {"cocoid": 9, "split": "train"}]
    (data.root / "k.json").write_text(json.dumps({"images": images}))
    with pytest.raises(CorpusError, match="image 2: the picture 9 is in image 1 already"):
        data.prepare(karpathy=data.root / "k.json")


def test_the_provenance_of_regions_is_kept_and_their_faults_are_fatal(data):
    store = data.root / "regions.h5"
    create_store(store, IMAGES, (3, 5), "float32", provenance={"model": "a detector"})
    features, boxes = np.zeros((3, 5), np.float32), np.tile(np.float32([0, 0, 1, 1]), (3, 1))
    with RegionStore(store, writable=True) as opened:
        for row in range(len(IMAGES)):
            opened.write(row, features, boxes)
    data.prepare(features=[store])
    assert Corpus.open(data.root / "out/c").info["provenance"]["regions"] == [{"model": "a detector"}]
    with h5py.File(store, "r+") as file:
        file["boxes"][1, 0] = 2
    with pytest.raises(CorpusError, match=r"regions\.h5: row 1: .*outside \[0, 1\]"):
        data.prepare(features=[store], overwrite=True)


def test_images_without_regions_are_a_fault_and_what_was_read_is_reused(data, monkeypatch):
    del data.detected.records[detected_name(61)]
    data.write_features()
    with pytest.raises(CorpusError, match=r"000000000061\.jpg: no file of --features holds its regions"):
        data.prepare()
    monkeypatch.setattr(collect, "write_part", lambda *_: pytest.fail("a part was read again"))
    assert data.prepare(skip_faulty=True).skipped["picture without regions"] > 0


def test_a_faulty_record_leaves_nothing(data):
    data.detected.records[detected_name(42)]["num_boxes"] = 0
    data.write_features()
    with pytest.raises(CorpusError, match=r"b\.tsv:1: .* num_boxes is 0"):
        data.prepare()
    assert list((data.root / "out").iterdir()) == []
