"""What all lists of captions of images have in common; the sources' own tests are about their files."""

import shutil

import numpy as np
import pytest
from PIL import Image

from vgsplus.audio import write_wav
from vgsplus.corpora import Corpus, validate
from vgsplus.corpora.format import CaptionEntry
from vgsplus.corpora.sources.lists import ListSource, find_lists, prepare_lists
from vgsplus.errors import CorpusError
from vgsplus.regions.published import stem_key

IMAGES = ["a.jpg", "b.jpg", "c.jpg"]


def entry(number, **changes):
    name = f"u{number}"
    own = {"origin": f"x.json: entry {number}", "audio": f"{name}.wav", "id": name, "split": "train"}
    return CaptionEntry(**(own | {"image": IMAGES[number % 3], "text": "a dog"} | changes))


class Lists:
    """Three captions of three images."""

    def __init__(self, root, detected):
        self.root = root
        (root / "wavs").mkdir()
        (root / "images").mkdir()
        self.entries = [entry(number) for number in range(3)]
        for number, image in enumerate(IMAGES):
            write_wav(root / f"wavs/u{number}.wav", np.sin(np.arange(4800, dtype=np.float32)))
            Image.new("RGB", (40, 30), (60 * number, 0, 0)).save(root / "images" / image)
        self.detected = detected(IMAGES)
        self.features = root / "features.tsv"
        self.detected.write_tsv(self.features)

    def prepare(self, *more, **options):
        given = {"audio_root": self.root / "wavs", "features": [self.features], "dtype": "float32"}
        return prepare_lists(
            ListSource("x", "X", "none", images="X's images", image_key=stem_key),
            [*self.entries, *more],
            self.root / "out/c",
            files={"train": self.root / "x.json"},
            **(given | options),
        )

    def prepare_grid(self, **options):
        return self.prepare(**{"features": (), "image_root": self.root / "images"} | options)


@pytest.fixture
def lists(tmp_path, detected):
    return Lists(tmp_path, detected)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (entry(3, id="u0"), r"entry 3: the uttid u0 repeats that of x\.json: entry 0"),
        (entry(3, audio="u0.wav"), r"entry 3: the wav u0\.wav repeats that of x\.json: entry 0"),
        (entry(3, split="test"), r"entry 3: a\.jpg is in the split 'train' already"),
        (entry(3, image="../a.jpg"), r"entry 3: '\.\./a\.jpg' is not a picture of X's images"),
        (entry(3, image=""), "entry 3: '' is not a picture of X's images"),
        (entry(3), r"entry 3: .*/wavs/u3\.wav: there is no such sound file"),
        (entry(3, problem="unknown speaker"), r"entry 3: u3\.wav: unknown speaker"),
        (entry(4, audio="copy.wav", image="d.jpg"), r"d\.jpg: no file of --features holds its regions"),
        ("x.json: entry 3: lacks uttid", "^x.json: entry 3: lacks uttid$"),
    ],
)
def test_a_fault_is_told_with_its_entry_and_leaves_no_corpus(lists, more, message):
    shutil.copy(lists.root / "wavs/u0.wav", lists.root / "wavs/copy.wav")
    with pytest.raises(CorpusError, match=message):
        lists.prepare(more)
    assert not (lists.root / "out/c").exists()


def test_faulty_captions_are_skipped_and_counted_on_request(lists):
    (lists.root / "wavs/u1.wav").write_bytes(b"RIFF")
    shutil.copy(lists.root / "wavs/u0.wav", lists.root / "wavs/u6.wav")
    shutil.copy(lists.root / "wavs/u0.wav", lists.root / "wavs/u8.wav")
    del lists.detected.records[IMAGES[2]]
    lists.detected.write_tsv(lists.features)
    more = [
        entry(3),
        entry(4, id="u0", audio="u6.wav", image=IMAGES[0]),
        entry(5, audio="u0.wav", image=IMAGES[0]),
    ]
    more += [entry(7, problem="unknown speaker"), entry(8)]
    summary = lists.prepare(*more, skip_faulty=True)
    assert summary.skipped == {
        "cannot be read as sound": 1,
        "picture without regions": 2,
        "there is no such sound file": 1,
        "unknown speaker": 1,
        "repeated uttid": 1,
        "repeated wav": 1,
    }
    corpus = Corpus.open(lists.root / "out/c")
    assert [caption.id for caption in corpus.captions("train")] == ["u0"]
    assert validate(corpus.root) == []


def test_short_and_empty_sounds_and_images_of_no_split_are_always_skipped(lists):
    write_wav(lists.root / "wavs/u1.wav", np.ones(100, np.float32))
    write_wav(lists.root / "wavs/u2.wav", np.zeros(0, np.float32))
    summary = lists.prepare(entry(3, split=None, problem="picture of no split"))
    assert summary.skipped == {"holds no samples": 1, "picture of no split": 1, "shorter than 0.25 s": 1}


def test_sounds_of_another_rate_are_told_with_their_entry(lists):
    data = bytearray((lists.root / "wavs/u0.wav").read_bytes())
    data[24:28] = (8000).to_bytes(4, "little")
    (lists.root / "wavs/u0.wav").write_bytes(data)
    with pytest.raises(CorpusError, match=r"entry 0: .*u0\.wav: 8000 Hz"):
        lists.prepare()


def test_without_features_the_regions_are_a_grid(lists):
    lists.prepare_grid()
    corpus = Corpus.open(lists.root / "out/c")
    features, _ = corpus.regions(IMAGES)
    assert features.shape == (3, 36, 224)
    assert len(np.unique(features[:, 0, 0])) == len(IMAGES)
    assert validate(corpus.root) == []
    (lists.root / "images/b.jpg").write_bytes(b"no picture")
    with pytest.raises(CorpusError, match="cannot be read as a picture"):
        lists.prepare_grid(overwrite=True)
    summary = lists.prepare_grid(overwrite=True, skip_faulty=True)
    assert summary.skipped == {"picture without regions": 1}
    (lists.root / "images/b.jpg").unlink()
    with pytest.raises(CorpusError, match=r"images/b\.jpg: there is no such picture"):
        lists.prepare_grid(overwrite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": ()}, "or the folder of the pictures with --images"),
        ({"audio_root": "absent"}, "absent: there is no such folder, the folder of the wavs"),
        ({"image_root": "absent"}, "absent: there is no such folder, the folder of the pictures"),
        ({"features": ["absent.tsv"]}, r"absent\.tsv: there is no such file of region features"),
    ],
)
def test_absent_inputs_are_told_before_anything_is_read(lists, options, message):
    paths = {
        name: [lists.root / path for path in value] if name == "features" else lists.root / value
        for name, value in options.items()
    }
    with pytest.raises(CorpusError, match=message):
        lists.prepare(**paths)
    assert not (lists.root / "out").exists()


def test_features_of_other_images_are_refused(lists, detected):
    detected(["x.jpg"]).write_tsv(lists.features)
    with pytest.raises(CorpusError, match=r"features\.tsv: hold no image of the captions"):
        lists.prepare()
    assert list((lists.root / "out").iterdir()) == []


def test_empty_lists_are_refused(lists):
    lists.entries = []
    with pytest.raises(CorpusError, match=r"x\.json: hold no captions"):
        lists.prepare()


def test_of_two_lists_of_a_split_one_is_chosen(tmp_path):
    for name in ("train.json", "train_2020.json", "val.json", "other.json"):
        (tmp_path / name).touch()
    patterns = {"train": r"train(_2020)?\.json", "validation": r"val\.json"}
    with pytest.raises(CorpusError, match=r"train\.json, train_2020\.json\. Choose one with --train"):
        find_lists([tmp_path], patterns)
    assert find_lists([tmp_path], patterns, {"train"}) == {"validation": tmp_path / "val.json"}
