import json

import numpy as np
import pytest
from helpers import captions_of, open_valid
from PIL import Image
from typer.testing import CliRunner

from vgsplus.audio import write_wav
from vgsplus.cli import app
from vgsplus.corpora.sources.lists import find_lists
from vgsplus.corpora.sources.places import LIST_NAMES, prepare_places
from vgsplus.errors import CorpusError
from vgsplus.regions.pixel_grid import PIXEL_GRID

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

    def prepare(self, **options):
        given = {
            "lists": find_lists([self.root / "metadata"], LIST_NAMES),
            "audio_root": self.root,
            "features": [self.features],
            "dtype": "float32",
        }
        return prepare_places(self.root / "out" / "c", **(given | options))

    def corpus(self):
        return open_valid(self.root / "out" / "c")


@pytest.fixture
def places(tmp_path, detected):
    return Places(tmp_path, detected)


def test_a_corpus_is_prepared_with_the_splits_of_2020(places):
    summary = places.prepare()
    assert captions_of(summary) == {"train": 2, "validation": 1, "validation_unseen": 1}
    corpus = places.corpus()
    places.detected.assert_in(corpus, ALL_IMAGES)
    caption = corpus.captions("validation")[0]
    assert caption.id == "A2WQT33K6LD9Z5-GSUN_42132D45B3DF142544343E029936AC60"
    assert (caption.text, caption.num_samples) == ("a photo of runway", 4800)
    assert corpus.audio_path(caption) == places.wav(2)


@pytest.mark.parametrize("folder", [".", "metadata"])
def test_a_store_that_cuts_names_is_read_by_the_names_beside_it(places, folder):
    store = places.root / "places_imgfeat" / "train_2020.hdf5"
    store.parent.mkdir()
    places.detected.write_store(store)
    with pytest.raises(CorpusError, match=r"truncated to 27 bytes\. Put train_2020_imgid2idex\.json"):
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
    places.detected.assert_in(places.corpus(), ALL_IMAGES)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"uttid": "x", "wav": "y"}, r"train_2020\.json: entry 3: lacks speaker, image; lacks asr_text"),
        (entry(ALL_IMAGES[0]) | {"uttid": "a b"}, "has a blank in uttid 'a b'"),
        (entry(ALL_IMAGES[0]) | {"uttid": "b", "image": "../x.jpg"}, "is not a picture of Places"),
        (entry(ALL_IMAGES[0]) | {"speaker": [1]}, r"has speaker = '\[1\]', which is not text"),
    ],
)
def test_faults_are_told_with_their_entry(places, item, message):
    places.write_list("train", [*(entry(image) for image in IMAGES["train"]), item])
    with pytest.raises(CorpusError, match=message):
        places.prepare()


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
    assert corpus.info["provenance"]["regions"] == PIXEL_GRID
    features, _ = corpus.regions(ALL_IMAGES)
    assert features.shape == (4, 36, 224)
    assert len(np.unique(features[:, 0, 0])) == len(ALL_IMAGES)


def test_of_two_releases_one_is_chosen(places):
    (places.root / "metadata" / "train.json").touch()
    folders = [places.root, places.root / "metadata"]
    with pytest.raises(CorpusError, match=r"train\.json, train_2020\.json\. Choose one with --train"):
        find_lists(folders, LIST_NAMES)
    assert set(find_lists(folders, LIST_NAMES, {"train"})) == {"validation", "validation_unseen"}
