import json
import re

import numpy as np
import pytest
from helpers import captions_of, open_valid
from PIL import Image
from typer.testing import CliRunner

from vgsplus.audio import write_wav
from vgsplus.cli import app
from vgsplus.corpora.sources.flickr8k import prepare_flickr8k
from vgsplus.errors import CorpusError

NAMES = {
    "train": ["1000268201_693b08cb0e", "1001773457_577c3a7d70"],
    "dev": ["1002674143_1b742ab4b8"],
    "test": ["1003163366_44323f5815"],
}
OUTSIDE = "1007129816_e794419615"
ALL_NAMES = [name for names in NAMES.values() for name in names]
IMAGES = [f"{name}.jpg" for name in ALL_NAMES]
TAKES = 2


class Flickr8k:
    """The corpus in small: two captions a picture, one picture of no split."""

    def __init__(self, root, detected):
        self.root = root
        self.audio, self.text = root / "flickr_audio", root / "Flickr8k_text"
        (self.audio / "wavs").mkdir(parents=True)
        self.text.mkdir()
        spoken = [(name, take) for name in [*ALL_NAMES, OUTSIDE] for take in range(TAKES)]
        self.captions = [f"{name}_{take}.wav {name}.jpg #{take}" for name, take in spoken]
        self.speakers = [f"{name}_{take}.wav {take + 1}" for name, take in spoken]
        for name, take in spoken:
            write_wav(self.wav(name, take), np.sin(np.arange(4800, dtype=np.float32)))
        tokens = [f"{name}.jpg#{take}\tA child {take} climbs , {name} ." for name, take in spoken]
        (self.text / "Flickr8k.token.txt").write_text("\n".join(tokens) + "\n")
        for split, names in NAMES.items():
            self.list(split).write_text("".join(f"{name}.jpg\n" for name in names))
        self.detected = detected(IMAGES)
        self.features = root / "flickr8k_obj36.tsv"
        self.detected.write_tsv(self.features)

    def wav(self, name, take):
        return self.audio / "wavs" / f"{name}_{take}.wav"

    def list(self, split):
        return self.text / f"Flickr_8k.{split}Images.txt"

    def write_audio_lists(self):
        (self.audio / "wav2capt.txt").write_text("\n".join(self.captions) + "\n")
        (self.audio / "wav2spk.txt").write_text("\n".join(self.speakers) + "\n")

    def prepare(self, **options):
        self.write_audio_lists()
        given = {"audio": self.audio, "text": self.text, "features": [self.features], "dtype": "float32"}
        return prepare_flickr8k(self.root / "out" / "c", **(given | options))

    def corpus(self):
        return open_valid(self.root / "out" / "c")

    def karpathy(self):
        splits = {"train": "train", "dev": "val", "test": "test"}
        images = [
            {
                "sentids": list(range(TAKES)),
                "imgid": index,
                "sentences": [
                    {"tokens": ["a"], "raw": f"A child {take} climbs , {name} .", "imgid": index, "sentid": 0}
                    for take in range(TAKES)
                ],
                "split": splits[split],
                "filename": f"{name}.jpg",
            }
            for split, names in NAMES.items()
            for index, name in enumerate(names)
        ]
        path = self.root / "dataset_flickr8k.json"
        path.write_text(json.dumps({"images": images, "dataset": "flickr8k"}))
        return path


@pytest.fixture
def flickr(tmp_path, detected):
    return Flickr8k(tmp_path, detected)


def test_a_corpus_is_prepared_and_pictures_of_no_split_are_left_out(flickr):
    summary = flickr.prepare()
    assert captions_of(summary) == {"train": 4, "validation": 2, "test": 2}
    assert summary.skipped == {"picture of no split": 2}
    corpus = flickr.corpus()
    caption = corpus.captions("train")[1]
    assert caption.id == "1000268201_693b08cb0e_1"
    assert caption.text == "A child 1 climbs , 1000268201_693b08cb0e ."
    assert (caption.speaker, caption.image) == ("2", "1000268201_693b08cb0e.jpg")
    assert corpus.audio_path(caption) == flickr.wav(ALL_NAMES[0], 1)
    flickr.detected.assert_in(corpus, IMAGES)


def test_karpathys_json_gives_the_same_corpus(flickr):
    flickr.prepare()
    lines = (flickr.root / "out" / "c" / "captions.jsonl").read_bytes()
    flickr.prepare(text=flickr.karpathy(), overwrite=True)
    assert (flickr.root / "out" / "c" / "captions.jsonl").read_bytes() == lines


def test_the_store_and_names_without_endings_are_matched(flickr, detected):
    flickr.detected.write_store(flickr.root / "a.hdf5")
    flickr.prepare(features=[flickr.root / "a.hdf5"])
    whole = flickr.corpus().regions(IMAGES)[0]
    detected(ALL_NAMES).write_tsv(flickr.features)
    flickr.prepare(overwrite=True)
    np.testing.assert_array_equal(flickr.corpus().regions(IMAGES)[0], whole)


def test_known_faults_of_the_corpus_are_told_or_left_out(flickr):
    flickr.speakers[0] = flickr.speakers[0].split()[0]
    flickr.wav(ALL_NAMES[0], 1).write_bytes(b"")
    write_wav(flickr.wav(ALL_NAMES[2], 0), np.zeros(0, np.float32))
    with pytest.raises(CorpusError) as raised:
        flickr.prepare()
    first, second = (fault.split("wav2capt.txt")[1] for fault in raised.value.faults)
    assert first == ":1: 1000268201_693b08cb0e_0.wav: unknown speaker"
    assert re.match(r":2: .*/1000268201_693b08cb0e_1.wav: cannot be read as sound", second)
    assert flickr.prepare(skip_faulty=True).skipped == {
        "cannot be read as sound": 1,
        "holds no samples": 1,
        "picture of no split": 2,
        "unknown speaker": 1,
    }
    assert len(flickr.corpus().captions("train")) == 2


def test_faults_of_the_lists_are_told_with_their_line(flickr):
    flickr.captions.append("a.wav b.jpg")
    with pytest.raises(CorpusError, match=r"wav2capt\.txt:11: expected a wav, a picture and a #number"):
        flickr.prepare()
    flickr.captions[-1] = flickr.captions[0]
    with pytest.raises(CorpusError, match=r"wav2capt\.txt:11: the uttid 1000268201_693b08cb0e_0 repeats"):
        flickr.prepare()
    flickr.captions.pop()
    with flickr.list("test").open("a") as file:
        file.write(IMAGES[0])
    with pytest.raises(CorpusError, match=r"testImages\.txt:2: .* is in the split 'train' already"):
        flickr.prepare()
    flickr.list("test").unlink()
    with pytest.raises(CorpusError, match=r"testImages\.txt: there is no such file"):
        flickr.prepare()


def test_faults_of_karpathys_json_are_told(flickr):
    path = flickr.karpathy()
    content = json.loads(path.read_text())
    content["images"][1].pop("split")
    path.write_text(json.dumps(content))
    with pytest.raises(CorpusError, match=r"dataset_flickr8k\.json: image 2: lacks"):
        flickr.prepare(text=path)
    path.write_text("{}")
    with pytest.raises(CorpusError, match='has no list "images"'):
        flickr.prepare(text=path)


def test_pictures_alone_are_described_by_a_grid(flickr):
    images = flickr.root / "Flicker8k_Dataset"
    images.mkdir()
    for image in IMAGES:
        Image.new("RGB", (40, 30), "red").save(images / image)
    flickr.write_audio_lists()
    result = CliRunner().invoke(
        app,
        [
            *("data", "flickr8k", str(flickr.root / "out" / "c"), "--audio", str(flickr.audio)),
            *("--text", str(flickr.text), "--images", str(images)),
        ],
    )
    assert result.exit_code == 0, result.output
    assert flickr.corpus().regions(IMAGES)[0].shape == (4, 36, 224)
