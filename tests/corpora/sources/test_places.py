import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vgsplus.audio import write_wav
from vgsplus.cli import app
from vgsplus.corpora import Corpus, validate
from vgsplus.corpora.sources.places import find_lists, prepare_places
from vgsplus.errors import CorpusError

# Names that agree in their first 27 bytes, as those of one category do.
IMAGES = {
    "train": ["a/amusement_park/gsun_42132aaa45b3df14.jpg", "a/amusement_park/gsun_42132bbb45b3df14.jpg"],
    "validation": ["r/runway/gsun_42132d45b3df142544343e029936ac60.jpg"],
    "validation_unseen": ["h/harbor/gsun_c9cfb47553f1594e4a60f3977c8aa75e.jpg"],
}
FILES = {"train": "train_2020", "validation": "dev_seen_2020", "validation_unseen": "dev_unseen_2020"}
ALL_IMAGES = [image for images in IMAGES.values() for image in images]


def entry(image, wav=None, speaker="A2WQT33K6LD9Z5"):
    name = image.split("/")[-1].removesuffix(".jpg").upper()
    return {
        "uttid": f"{speaker}-{name}",
        "speaker": speaker,
        "asr_text": f"a photo of {image.split('/')[1]}",
        "wav": wav or f"wavs/296/utterance_{ALL_IMAGES.index(image)}.wav",
        "image": image,
    }


class Places:
    """PlacesAudio in small, its splits of 2020."""

    def __init__(self, root, detected):
        self.root = root
        (root / "metadata").mkdir()
        (root / "wavs" / "296").mkdir(parents=True)
        for split, images in IMAGES.items():
            self.write_list(split, [entry(image) for image in images])
        for index in range(len(ALL_IMAGES)):
            write_wav(self.wav(index), np.sin(np.arange(4800, dtype=np.float32)))
        self.detected = detected(ALL_IMAGES)
        self.features = root / "train_2020_obj36.tsv"
        self.detected.write_tsv(self.features)

    def wav(self, index):
        return self.root / "wavs" / "296" / f"utterance_{index}.wav"

    def write_list(self, split, entries):
        content = {
            "image_base_path": "/home/x/images",
            "audio_base_path": "/home/x/PlacesAudio_400k_distro",
            "data": entries,
        }
        path = self.root / "metadata" / f"{FILES[split]}.json"
        path.write_text(json.dumps(content, indent=4))

    def add(self, split, item):
        self.write_list(split, [*(entry(image) for image in IMAGES[split]), item])

    def prepare(self, **options):
        given = {
            "lists": find_lists(self.root),
            "audio_root": self.root,
            "features": [self.features],
            "dtype": "float32",
        }
        return prepare_places(self.root / "out" / "c", **(given | options))

    def corpus(self):
        corpus = Corpus.open(self.root / "out" / "c")
        assert validate(corpus.root) == []
        return corpus


@pytest.fixture
def places(tmp_path, detected):
    return Places(tmp_path, detected)


def assert_features(places):
    corpus = places.corpus()
    for image in ALL_IMAGES:
        features, _ = corpus.regions([image])
        np.testing.assert_array_equal(features[0], places.detected.sorted_features(image))


def test_a_corpus_is_prepared_with_the_splits_of_2020(places):
    summary = places.prepare()
    assert {split: count.captions for split, count in summary.kept.items()} == {
        "train": 2,
        "validation": 1,
        "validation_unseen": 1,
    }
    assert_features(places)
    corpus = places.corpus()
    caption = corpus.captions("validation")[0]
    assert caption.id == "A2WQT33K6LD9Z5-GSUN_42132D45B3DF142544343E029936AC60"
    assert (caption.text, caption.num_samples) == ("a photo of runway", 4800)
    assert corpus.audio_path(caption) == places.wav(2)


@pytest.mark.parametrize("folder", [".", "metadata"])
def test_a_store_that_cuts_names_is_read_by_the_names_beside_it(places, folder):
    store = places.root / "places_imgfeat" / "train_2020.hdf5"
    store.parent.mkdir()
    places.detected.write_store(store)
    with pytest.raises(CorpusError, match=r"cut to 27 bytes\. Put train_2020_imgid2idex\.json"):
        places.prepare(features=[store])
    names = store.parent if folder == "." else places.root / folder
    rows = {image: row for row, image in enumerate(ALL_IMAGES)}
    path = names / "train_2020_imgid2idex.json"
    path.write_text(json.dumps(rows | {ALL_IMAGES[0]: 3, ALL_IMAGES[3]: 0}))
    with pytest.raises(CorpusError, match="its names are not those of"):
        places.prepare(features=[store])
    path.unlink()
    (names / "train_2020_imgid2idex.json").write_text(json.dumps(rows) + "\n")
    places.prepare(features=[store])
    assert_features(places)


@pytest.mark.parametrize(
    ("split", "item", "message"),
    [
        (
            "train",
            {"uttid": "x", "wav": "y"},
            r"train_2020\.json: entry 3: lacks speaker, image; lacks asr_text",
        ),
        ("train", entry(ALL_IMAGES[0]), "entry 3: the uttid .*AAA45B3DF14 has come before"),
        ("validation", entry(ALL_IMAGES[0], speaker="B"), "entry 2: .* is in the split 'train' already"),
        ("train", entry(ALL_IMAGES[0]) | {"uttid": "a b"}, "has a blank in uttid 'a b'"),
        ("train", entry(ALL_IMAGES[0]) | {"uttid": "b", "image": "../x.jpg"}, "is no picture of Places"),
        (
            "train",
            entry(ALL_IMAGES[0], "wavs/296/z.wav", "B"),
            "entry 3: .*/wavs/296/z.wav: there is no such sound file",
        ),
        (
            "train",
            entry(ALL_IMAGES[0], "wavs/296/other.wav", "B") | {"image": "a/b/x.jpg"},
            "a/b/x.jpg: no file of --features holds its regions",
        ),
        ("train", entry(ALL_IMAGES[0], speaker="B"), r"entry 3: the wav .* has come before \(.*entry 1\)"),
        (
            "train",
            entry(ALL_IMAGES[0]) | {"speaker": [1]},
            r"has speaker = '\[1\]', which is no text",
        ),
    ],
)
def test_faults_are_told_with_their_entry(places, split, item, message):
    places.add(split, item)
    shutil.copy(places.wav(0), places.root / "wavs/296/other.wav")
    with pytest.raises(CorpusError, match=message):
        places.prepare()


def test_a_wrong_rate_is_told_with_its_entry(places):
    data = bytearray(places.wav(0).read_bytes())
    data[24:28] = (8000).to_bytes(4, "little")
    places.wav(0).write_bytes(data)
    with pytest.raises(CorpusError, match=r"entry 1: .*utterance_0\.wav: 8000 Hz"):
        places.prepare()


def test_faulty_captions_are_left_out_and_counted_where_asked(places):
    places.add("train", entry(ALL_IMAGES[0]))
    places.wav(3).unlink()
    del places.detected.records[ALL_IMAGES[1]]
    places.detected.write_tsv(places.features)
    assert places.prepare(skip_faulty=True).skipped == {
        "there is no such sound file": 1,
        "picture without regions": 1,
        "uttid that has come before": 1,
    }
    assert [caption.image for caption in places.corpus().captions("train")] == ALL_IMAGES[:1]


def test_a_caption_that_the_recogniser_left_empty_has_no_text(places):
    places.write_list("validation", [entry(IMAGES["validation"][0]) | {"asr_text": " "}])
    places.prepare()
    assert places.corpus().captions("validation")[0].text is None


def test_pictures_alone_are_described_by_a_grid(places):
    images = places.root / "images"
    for shade, image in enumerate(ALL_IMAGES):
        (images / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (60 * shade, 0, 0)).save(images / image)
    result = CliRunner().invoke(
        app,
        [
            *("data", "places", str(places.root / "out" / "c")),
            *("--root", str(places.root), "--images", str(images)),
        ],
    )
    assert result.exit_code == 0, result.output
    corpus = places.corpus()
    features, _ = corpus.regions(ALL_IMAGES)
    assert features.shape == (4, 36, 224)
    assert len(np.unique(features[:, 0, 0])) == len(ALL_IMAGES)
    (images / ALL_IMAGES[1]).write_bytes(b"no picture")
    with pytest.raises(CorpusError, match="cannot be read as a picture"):
        places.prepare(features=(), image_root=images, overwrite=True)
    summary = places.prepare(features=(), image_root=images, overwrite=True, skip_faulty=True)
    assert summary.skipped == {"picture without regions": 1}


def test_without_regions_or_pictures_nothing_is_read(places):
    with pytest.raises(CorpusError, match="or the pictures with --images"):
        places.prepare(features=())


def test_features_of_other_pictures_are_refused(places, detected):
    detected(["x/x/x.jpg"]).write_tsv(places.features)
    with pytest.raises(CorpusError, match=r"obj36\.tsv: hold no image of the captions"):
        places.prepare()
    assert list((places.root / "out").iterdir()) == []


def test_of_two_releases_one_is_chosen(places):
    (places.root / "metadata" / "train.json").touch()
    with pytest.raises(CorpusError, match=r"train\.json, train_2020\.json\. Choose one with --train"):
        find_lists(places.root)
    assert set(find_lists(places.root, besides={"train"})) == {"validation", "validation_unseen"}
