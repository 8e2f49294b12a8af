import importlib
import io
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from helpers import TINY_VISION
from PIL import Image
from torch.utils.data import DataLoader

from vgsplus import audio
from vgsplus.corpora import Corpus
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.embeddings import embed_split
from vgsplus.evaluation.mteb import MtebEncoder
from vgsplus.evaluation.retrieval import recall
from vgsplus.models.config import PixelConfig
from vgsplus.models.vision_transformer import VISION_TRANSFORMERS
from vgsplus.regions.images import square_pixels
from vgsplus.regions.pixel_grid import grid_regions

SMALLER = {"shared_layers": 1, "ssl_layers": 0, "feature_dim": 224}
SOUNDS = SimpleNamespace(name="Sounds", modalities=["audio"])
PICTURES = SimpleNamespace(name="Pictures", modalities=["image"])
BOTH = SimpleNamespace(name="Both", modalities=["audio", "image"])
PICTURES_IN_ALL, TAKES = 8, 2
UNKNOWN = (
    "date",
    "domains",
    "task_subtypes",
    "license",
    "annotations_creators",
    "dialect",
    "sample_creation",
)
"""What mteb asks of a task and does not use."""


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(**SMALLER)


@pytest.fixture(scope="module")
def encoder(model):
    return MtebEncoder(model)


def sound(samples, rate=16_000, seed=0):
    rng = np.random.default_rng(seed)
    tone = np.sin(np.arange(samples) / rate * 2 * np.pi * rng.uniform(100, 900))
    return {"array": (tone + rng.normal(0, 0.3, samples)).astype(np.float32) * 0.3, "sampling_rate": rate}


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, size=(3, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((40 + seed, 30), Image.Resampling.NEAREST)


def loader(rows, size=2):
    """As mteb makes them."""
    return DataLoader(rows, batch_size=size, collate_fn=list)


def encoded(encoder, column, items, size=2, task=BOTH):
    return encoder.encode(
        loader([{"id": str(n), column: item} for n, item in enumerate(items)], size),
        task_metadata=task,
        hf_split="test",
        hf_subset="default",
        prompt_type="query",
        batch_size=size,
        show_progress_bar=False,
    )


def embed_sounds(model, signals):
    """The model's own embeddings of 16 kHz signals, one at a time."""
    with torch.no_grad():
        return torch.cat(
            [
                model.embed_speech(
                    torch.from_numpy(audio.normalise(signal))[None], torch.tensor([len(signal)])
                )
                for signal in signals
            ]
        )


def embed_images(model, pictures):
    with torch.no_grad():
        return torch.cat(
            [
                model.embed_image(*(torch.from_numpy(array)[None] for array in grid_regions(p)))
                for p in pictures
            ]
        )


class Untouchable:
    """The rows of an input that must not be asked for."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise AssertionError("work began")


# ---- without mteb -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7])
def test_sounds_keep_their_order_and_do_not_depend_on_their_batch(encoder, model, size):
    sounds = [sound(samples, seed=n) for n, samples in enumerate([9000, 400, 16_000, 5000, 12_345])]
    vectors = encoded(encoder, "audio", sounds, size)
    assert (vectors.dtype, vectors.requires_grad) == (torch.float32, False)
    torch.testing.assert_close(
        vectors, embed_sounds(model, [s["array"] for s in sounds]), rtol=1e-4, atol=1e-5
    )
    assert torch.pdist(vectors).min() > 1e-3


def test_pictures_keep_their_order_and_become_grid_cells(encoder, model):
    pictures = [picture(n) for n in range(5)]
    vectors = encoded(encoder, "image", pictures)
    torch.testing.assert_close(vectors, embed_images(model, pictures), rtol=1e-4, atol=1e-5)
    assert torch.pdist(vectors).min() > 1e-3


def test_other_rates_are_resampled_and_channels_averaged(encoder, model):
    high, low = sound(30_000, rate=48_000, seed=1), sound(6000, rate=8000, seed=2)
    left, right = sound(9000, seed=3)["array"], sound(9000, seed=4)["array"]
    stereo = {"array": np.stack([left, right]), "sampling_rate": 16_000}
    as_list = {"array": left.tolist(), "sampling_rate": 16_000}
    vectors = encoded(encoder, "audio", [high, low, stereo, as_list], size=4)
    signals = [
        *(audio.resample(s["array"], s["sampling_rate"]) for s in (high, low)),
        (left + right) / 2,
        left,
    ]
    torch.testing.assert_close(vectors, embed_sounds(model, signals), rtol=1e-4, atol=1e-5)


def test_the_first_ten_seconds_are_used(encoder, model):
    long = sound(170_000)
    vectors = encoded(encoder, "audio", [long])
    torch.testing.assert_close(vectors, embed_sounds(model, [long["array"][:160_000]]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(vectors, embed_sounds(model, [long["array"]]), rtol=1e-3)


def test_a_prepared_corpus_embeds_alike(tiny_corpus, make_model):
    corpus = Corpus.open(tiny_corpus)
    model = make_model(**SMALLER | {"feature_dim": 12})
    split = embed_split(model, corpus, "test")
    sounds = [
        {"array": audio.read(corpus.audio_path(caption)), "sampling_rate": 16_000}
        for caption in split.captions
    ]
    vectors = encoded(MtebEncoder(model), "audio", sounds, task=SOUNDS)
    torch.testing.assert_close(vectors, split.speech, rtol=1e-4, atol=1e-5)


def test_modes_are_left_as_they_were(make_model):
    model = make_model(**SMALLER).train()
    model.image.eval()
    encoder = MtebEncoder(model)
    first = encoded(encoder, "audio", [sound(8000)])
    assert torch.equal(first, encoded(encoder, "audio", [sound(8000)])), "dropout was on"
    assert (model.training, model.speech.training, model.image.training) == (True, True, False)


def test_similarity_is_the_dot_product(encoder):
    a, b = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), np.array([[1, 1], [10, 0]], dtype=np.float32)
    assert encoder.similarity(a, b).tolist() == [[7, 30], [2, 0]]
    assert encoder.similarity(a[0], b).tolist() == [[7, 30]]
    assert encoder.similarity_pairwise(a, b).tolist() == [7, 0]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"array": [0.1]}, "is not an array with a sampling_rate"),
        ({"array": ["a"], "sampling_rate": 16_000}, "is not an array with a sampling_rate"),
        ({"array": None, "sampling_rate": 16_000}, r"samples \(\) at 16000 Hz"),
        ({"array": [], "sampling_rate": 16_000}, r"samples \(0,\) at 16000 Hz"),
        ({"array": [[[0.1]]], "sampling_rate": 16_000}, r"samples \(1, 1, 1\)"),
        ({"array": [0.1] * 9000, "sampling_rate": 0}, "at 0 Hz"),
        ({"array": [0.1] * 9000, "sampling_rate": math.inf}, "is not an array with a sampling_rate"),
        ({"array": [[0.1, -0.1] * 9000, [-0.1, 0.1] * 9000], "sampling_rate": 16_000}, "cancel each other"),
    ],
)
def test_a_value_that_is_not_a_sound_is_refused(encoder, item, message):
    with pytest.raises(VgsplusError, match=message):
        encoded(encoder, "audio", [item])


def test_a_picture_cut_short_is_refused(encoder):
    file = io.BytesIO()
    picture(0).save(file, "PNG")
    cut = Image.open(io.BytesIO(file.getvalue()[:-60]))
    with pytest.raises(VgsplusError, match=r"A picture of the mteb task .* cannot be read"):
        encoded(encoder, "image", [cut])


@pytest.mark.parametrize("modality", ["text", "video"])
def test_a_task_of_other_modalities_is_refused_before_work(encoder, modality):
    task = SimpleNamespace(name="Odd", modalities=["audio", modality])
    with pytest.raises(
        VgsplusError, match=rf"Odd needs {modality}.*spoken captions and pictures.*SpokenCOCO"
    ):
        encoder.encode(loader(Untouchable()), task_metadata=task, show_progress_bar=False)


@pytest.mark.parametrize(
    ("row", "held"),
    [
        ({"audio": sound(8000), "image": picture(0)}, "audio and image"),
        ({"text": "a frog"}, "text"),
        ({"image": picture(0), "text": "a frog"}, "image and text"),
        ({"id": "1"}, "none"),
    ],
)
def test_fused_and_foreign_inputs_are_refused(encoder, row, held):
    with pytest.raises(VgsplusError, match=rf"Both is made of {held}.*each by itself"):
        encoder.encode(loader([row]), task_metadata=BOTH, show_progress_bar=False)


def test_a_model_of_other_features_is_refused_before_work_unless_the_task_has_no_pictures(make_model):
    encoder = MtebEncoder(make_model(**SMALLER | {"feature_dim": 2048}))
    with pytest.raises(VgsplusError, match=r"of 2048 values.*returns 224.*`regions`.*detector"):
        encoder.encode(loader(Untouchable()), task_metadata=BOTH, show_progress_bar=False)
    assert encoded(encoder, "audio", [sound(8000)], task=SOUNDS).shape == (1, 8)


def test_regions_of_ones_own_reach_the_model(make_model):
    def mean_colour(image):
        colour = np.asarray(image.convert("RGB"), dtype=np.float32).mean(axis=(0, 1)) / 255
        return np.tile(colour, (2, 1)), np.tile(np.float32([0, 0, 1, 1]), (2, 1))

    model = make_model(**SMALLER | {"feature_dim": 3})
    vectors = encoded(MtebEncoder(model, regions=mean_colour), "image", [picture(0), picture(1)])
    features, boxes = (torch.from_numpy(array)[None] for array in mean_colour(picture(1)))
    with torch.no_grad():
        torch.testing.assert_close(vectors[1:], model.embed_image(features, boxes), rtol=1e-4, atol=1e-5)


def test_a_model_that_reads_pictures_needs_no_regions(make_model, monkeypatch):
    monkeypatch.setitem(VISION_TRANSFORMERS, "tiny", TINY_VISION)
    model = make_model(**SMALLER, image=PixelConfig(backbone="tiny", weights=None))
    vectors = encoded(MtebEncoder(model), "image", [picture(0), picture(1)])
    pixels = torch.from_numpy(square_pixels(picture(1), TINY_VISION.side))[None]
    with torch.no_grad():
        torch.testing.assert_close(vectors[1:], model.embed_image(pixels), rtol=1e-4, atol=1e-5)


def test_regions_that_do_not_fit_together_are_refused(model):
    def as_many_as_pixels_high(image):
        return np.zeros((image.height, 224), np.float32), np.zeros((image.height, 4), np.float32)

    def without_boxes(image):
        return grid_regions(image)[0], np.zeros((0, 4), np.float32)

    pictures = [Image.new("RGB", (9, 9)), Image.new("RGB", (9, 8))]
    with pytest.raises(VgsplusError, match=r"\(8, 224\).*\(9, 224\)"):
        encoded(MtebEncoder(model, regions=as_many_as_pixels_high), "image", pictures)
    with pytest.raises(VgsplusError, match=r"boxes \(0, 4\).*\(36, 4\)"):
        encoded(MtebEncoder(model, regions=without_boxes), "image", pictures)


def test_sounds_that_cannot_be_used_are_refused(encoder):
    with pytest.raises(VgsplusError, match=r"399 samples at 16 kHz.*at least 400"):
        encoded(encoder, "audio", [sound(8000), sound(399)])
    broken = sound(8000)
    broken["array"][5] = np.nan
    with pytest.raises(VgsplusError, match="samples that are not finite"):
        encoded(encoder, "audio", [broken])


def test_a_diverged_model_is_named(make_model):
    model = make_model(**SMALLER)
    model.image.cls.data.fill_(torch.nan)
    with pytest.raises(VgsplusError, match=r"Embeddings of the mteb task Pictures.*not finite"):
        encoded(MtebEncoder(model), "image", [picture(0)], task=PICTURES)


def test_a_model_without_grounding_and_a_name_without_organisation_are_refused(model, make_model):
    with pytest.raises(VgsplusError, match="grounded"):
        MtebEncoder(make_model(grounded=False))
    for name in ("model", "vgsplus/", "/model"):
        with pytest.raises(VgsplusError, match="organisation/model"):
            MtebEncoder(model, name=name)


def test_without_mteb_the_extra_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb.models", None)
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(VgsplusError, match=r"extra 'mteb'"):
        _ = MtebEncoder(model).mteb_model_meta


# ---- with mteb --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mteb():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield pytest.importorskip("mteb", reason="the extra mteb is not installed (docs/mteb.md)")


@pytest.fixture(scope="module")
def datasets(mteb):
    """What mteb holds data in."""
    assert mteb
    return importlib.import_module("datasets")


@pytest.fixture(scope="module")
def material():
    """Sounds of several rates and lengths by id, pictures by id, and the picture of each sound."""
    pictures = {f"p{n}": picture(n) for n in range(PICTURES_IN_ALL)}
    sounds = {
        f"s{n}-{take}": sound(8000 + 500 * n, rate=(16_000, 24_000)[take], seed=10 * n + take)
        for take in range(TAKES)
        for n in range(PICTURES_IN_ALL)
    }
    return sounds, pictures, {name: f"p{name[1 : name.index('-')]}" for name in sounds}


def as_floats(datasets, sounds):
    return datasets.Dataset.from_dict({"id": list(sounds), "audio": list(sounds.values())})


def as_files(datasets, sounds):
    """In the encoding of mteb's own data, which torchcodec decodes, in the process that opened it only."""
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError):
        pytest.skip("torchcodec or the FFmpeg that it needs is not installed")
    files = []
    for item in sounds.values():
        file = io.BytesIO()
        soundfile.write(file, item["array"], item["sampling_rate"], format="WAV", subtype="FLOAT")
        files.append({"bytes": file.getvalue(), "path": None})
    table = datasets.Dataset.from_dict({"id": list(sounds), "audio": files})
    return table.cast_column("audio", datasets.Audio())


def local_task(mteb, datasets, category, material, held):
    """A retrieval task in memory: sounds ask for pictures (a2i) or pictures for sounds (i2a)."""
    sounds, pictures, picture_of = material
    by_sound = {name: {image: 1} for name, image in picture_of.items()}
    by_picture = {
        image: {name: 1 for name, spoken_of in picture_of.items() if spoken_of == image} for image in pictures
    }
    columns = {"id": list(pictures), "image": list(pictures.values())}
    shown = datasets.Dataset.from_dict(
        columns, features=datasets.Features(id=datasets.Value("string"), image=datasets.Image())
    )
    spoken = held(datasets, sounds)

    class Local(mteb.abstasks.retrieval.AbsTaskRetrieval):
        metadata = mteb.abstasks.task_metadata.TaskMetadata(
            name=f"Local{category.upper()}Retrieval",
            description="Sounds and pictures made in memory.",
            reference=None,
            dataset={"path": "local/none", "revision": "1"},
            type="Any2AnyRetrieval",
            category=category,
            modalities=["audio", "image"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="hit_rate_at_1",
            bibtex_citation="",
            **dict.fromkeys(UNKNOWN),
        )

        def load_data(self, **_):
            queries, corpus, relevant = (
                (spoken, shown, by_sound) if category == "a2i" else (shown, spoken, by_picture)
            )
            split = {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "top_ranked": None}
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Local()


@pytest.mark.parametrize("held", [as_floats, as_files])
@pytest.mark.parametrize(("category", "direction"), [("a2i", "speech_to_image"), ("i2a", "image_to_speech")])
def test_mteb_finds_the_recall_that_we_find(mteb, datasets, model, material, category, direction, held):
    sounds, pictures, picture_of = material
    result = mteb.evaluate(
        MtebEncoder(model),
        local_task(mteb, datasets, category, material, held),
        encode_kwargs={"batch_size": 3, "show_progress_bar": False},
        cache=None,
        co2_tracker=False,
        num_proc=2,  # sounds must be decoded by the loader's processes
        show_progress_bar=False,
    )
    [scores] = result.task_results[0].scores["test"]

    signals = [
        s["array"] if s["sampling_rate"] == 16_000 else audio.resample(s["array"], s["sampling_rate"])
        for s in sounds.values()
    ]
    similarity = embed_images(model, pictures.values()) @ embed_sounds(model, signals).T
    expected = recall(similarity, list(pictures), list(picture_of.values()), ks=(1, 3, 5))[direction]
    assert {k: scores[f"hit_rate_at_{k}"] for k in (1, 3, 5)} == pytest.approx(expected, abs=1e-5)
    assert 0 < expected[3] < expected[5] < 1, "the case tells nothing"
    assert scores["main_score"] == scores["hit_rate_at_1"]


def test_mteb_accepts_the_encoder_whose_revision_depends_on_its_weights(mteb, model, make_model):
    encoder = MtebEncoder(model, name="lab/first")
    assert isinstance(encoder, mteb.models.EncoderProtocol)
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.embed_dim, meta.modalities) == ("lab/first", 8, ["audio", "image"])
    assert type(meta).model_validate(meta.model_dump()) == meta
    same, other = (MtebEncoder(make_model(seed, **SMALLER)).mteb_model_meta.revision for seed in (0, 1))
    assert meta.revision == same != other
    assert MtebEncoder(make_model(**SMALLER, padding="published")).mteb_model_meta.revision != same


@pytest.mark.parametrize(
    "name",
    [
        "SpokenCOCOA2IRetrieval",
        "SpokenCOCOI2ARetrieval",
        "COCOModalEquivA2IHumanRetrieval",
        "COCOModalEquivI2AHumanRetrieval",
        "FlickrAudioToImageRetrieval",
        "FlickrImageToAudioRetrieval",
    ],
)
def test_the_tasks_that_the_page_names_exist_and_can_be_run(mteb, encoder, name):
    task = mteb.get_task(name)
    assert set(task.metadata.modalities) == {"audio", "image"}
    assert encoded(encoder, "audio", [sound(8000)], task=task.metadata).shape == (1, 8)
