"""Which moments of a sound and regions of a picture make up their similarity, and whether they are right."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import CAPTION, TINY_MODEL, TINY_VISION
from PIL import Image

from vgsplus.audio import SAMPLE_RATE, load_any, normalise
from vgsplus.cli import main
from vgsplus.corpora import Corpus
from vgsplus.corpora.sources.toy.corpus import prepare_toy
from vgsplus.errors import AudioError, CorpusError, VgsplusError
from vgsplus.evaluation.pointing.evaluate import ALL_WORDS, METHODS, _word_shares, evaluate, regions_on
from vgsplus.evaluation.pointing.localise import WINDOW, region_shares, window_shares, window_times
from vgsplus.evaluation.pointing.words import read_named_objects
from vgsplus.evaluation.retrieval import Estimate
from vgsplus.interop.pretrained import PretrainedModel, PublishedPretrainedModel
from vgsplus.models.config import PixelConfig
from vgsplus.models.vision_transformer import VISION_TRANSFORMERS
from vgsplus.regions.pixel_grid import PIXEL_GRID, grid_boxes

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def make(cls=PretrainedModel, **changes):
    torch.manual_seed(0)
    model = cls(dataclasses.replace(TINY_MODEL, **{"feature_dim": 224} | changes)).eval()
    model.about = {"regions": PIXEL_GRID}
    return model


def noise(seconds, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * SAMPLE_RATE)).astype(np.float32)


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def only_region(region, squash):
    """An embedding of the features of one region alone, by a linear map or a squashed one."""
    weight = torch.randn(224, 8, generator=torch.Generator().manual_seed(0))

    def embed(features, boxes):
        values = features[:, region] @ weight
        return values.tanh() if squash else values + boxes[:, 0].sum(-1, keepdim=True)

    return embed


def moments(waveforms, _num_samples):
    """An embedding that is the energy of eight parts of a sound."""
    return torch.stack([part.square().sum(-1) for part in waveforms.tensor_split(8, dim=-1)], dim=-1)


@pytest.mark.parametrize("squash", [False, True])
def test_a_model_that_sees_one_region_and_hears_one_moment_points_to_both(squash, monkeypatch):
    model = make()
    monkeypatch.setattr(model.image, "forward", only_region(17, squash))
    monkeypatch.setattr(model, "embed_speech", lambda *given: moments(*given) * (torch.arange(8) == 2))
    found = model.localise(noise(4), picture())
    others = [region for region in range(36) if region != 17]
    assert found.scores[:, others].abs().max() == found.region_scores[others].abs().max() == 0
    assert found.region_scores[17] != 0
    sounding = (found.times > 1 - WINDOW / 2) & (found.times < 1.5 + WINDOW / 2)
    assert found.scores[~sounding].abs().max() < 1e-4 < found.scores[sounding, 17].abs().min()


def test_shares_of_a_model_that_adds_up_regions_and_moments_sum_to_its_embedding(monkeypatch):
    model = make()
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        model.image, "forward", lambda features, boxes: features.sum(1) @ weight + boxes.sum((1, 2))[:, None]
    )
    features, boxes = torch.randn(1, 5, 4), torch.rand(1, 5, 4)
    whole, shares, found = region_shares(model, (features, boxes))
    mean = features.mean(1, keepdim=True).expand_as(features)
    torch.testing.assert_close(shares.sum(0), whole - model.image(mean, boxes)[0], **CLOSE)
    assert torch.equal(found, boxes[0])
    monkeypatch.setattr(model, "embed_speech", moments)
    signal = noise(3.6)
    complete, silenced = window_shares(model, signal, np.arange(12) * WINDOW + WINDOW / 2)
    torch.testing.assert_close(silenced.sum(0), complete, **CLOSE)  # windows side by side


@pytest.mark.parametrize("cls", [PretrainedModel, PublishedPretrainedModel])
def test_scores_are_differences_of_similarities(cls):
    model = make(cls, padding=cls.padding)
    sound, image = noise(1.3), picture()
    found = model.localise(sound, image, step=0.1)
    assert found.scores.shape == (13, 36)
    assert found.boxes.shape == (36, 4)
    speech, shown = model.encode_speech(sound), model.encode_image(image)
    assert found.similarity == pytest.approx(model.similarity(speech, shown).item(), rel=1e-4)
    normalised = (sound - sound.mean()) / sound.std()
    for moment in (0, 6, 12):
        silent = normalised.copy()
        centre = float(found.times[moment]) * SAMPLE_RATE
        silent[max(0, round(centre - 2400)) : round(centre + 2400)] = 0
        with torch.no_grad():
            other = model.embed_speech(torch.from_numpy(silent)[None], torch.tensor([len(silent)]))
        torch.testing.assert_close(found.time_scores[moment], ((speech - other) @ shown.T)[0, 0], **CLOSE)
    assert found.times.tolist() == pytest.approx([0.05 + 0.1 * n for n in range(13)])


def test_scores_do_not_depend_on_how_many_moments_are_computed_together(monkeypatch):
    model, sound = make().train(), noise(0.9)
    together = model.localise(sound, picture(), step=0.1)
    monkeypatch.setattr("vgsplus.evaluation.pointing.localise.BATCH_SAMPLES", 1)
    alone = model.localise(sound, picture(), step=0.1)
    torch.testing.assert_close(together.scores, alone.scores, **CLOSE)
    assert model.training
    assert not together.scores.requires_grad


def test_a_sound_has_moments_at_its_start_and_end_however_short_it_is():
    assert window_times(SAMPLE_RATE, 0.25).tolist() == [0.125, 0.375, 0.625, 0.875]
    assert window_times(800, 0.25).tolist() == [0.025]
    assert make().localise(noise(0.026), picture()).scores.shape == (1, 36)


def test_a_model_that_reads_pixels_has_its_patches_as_regions(monkeypatch):
    monkeypatch.setitem(VISION_TRANSFORMERS, "tiny", TINY_VISION)
    found = make(image=PixelConfig(backbone="tiny", weights=None)).localise(noise(0.5), picture())
    assert found.scores.shape[1] == len(found.boxes) == 9


def test_what_cannot_be_localised_is_told_before_the_model_runs(monkeypatch, tmp_path):
    with pytest.raises(VgsplusError, match="without grounding modules"):
        make(grounded=False).localise(noise(1), picture())
    monkeypatch.setattr(PretrainedModel, "embed_speech", lambda *_: pytest.fail("the model ran"))
    model = make()
    with pytest.raises(AudioError, match="one frame needs 400"):
        model.localise(noise(0.01), picture())
    with pytest.raises(CorpusError, match=r"a\.png: there is no such picture"):
        model.localise(noise(1), tmp_path / "a.png")
    with pytest.raises(VgsplusError, match="must be positive, not 0 s"):
        model.localise(noise(1), picture(), step=0)
    model.about = {}
    with pytest.raises(VgsplusError, match="pass regions="):
        model.localise(noise(1), picture())


# ---- the pointing game -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpora") / "toy"
    prepare_toy(root, train_images=1, validation_images=1, test_images=6)
    return root


def objects_in(root, split="test"):
    captions = {caption.id: caption for caption in Corpus.open(root).captions(split)}
    return read_named_objects(root / f"{split}.boxes", captions)


def test_a_model_that_knows_the_objects_is_right_and_one_that_knows_others_is_not(toy, monkeypatch):
    objects, corpus, module = objects_in(toy), Corpus.open(toy), "vgsplus.evaluation.pointing.evaluate"
    images = sorted({named.caption.image for named in objects})
    shapes = sorted({named.word for named in objects})
    boxes = {(named.caption.image, named.word): named.boxes for named in objects}
    monkeypatch.setattr(
        f"{module}._word_shares",
        lambda _m, _c, words: iter(torch.eye(len(shapes))[[shapes.index(named.word) for named in words]]),
    )
    monkeypatch.setattr(f"{module}.corpus_picture", lambda _m, _c, image: [image])

    def shares(_model, image):
        (image,) = image
        on = [regions_on(grid_boxes(), boxes.get((image, shape), ())) for shape in shapes]
        return None, torch.from_numpy(np.stack(on, axis=1)).float(), torch.from_numpy(grid_boxes())

    monkeypatch.setattr(f"{module}.region_shares", shares)
    rows = evaluate(make(), corpus, objects)
    by_method = {row.method: row.accuracy for row in rows if row.word == ALL_WORDS}
    assert by_method["model"] == Estimate(value=1, low=1, high=1)
    assert by_method["other captions"].value < 0.6
    expected = np.mean([regions_on(grid_boxes(), named.boxes).mean() for named in objects])
    assert by_method["chance"].value == pytest.approx(expected) == pytest.approx(0.1, abs=0.06)
    assert by_method["largest region"].value == pytest.approx(expected)  # all cells are of one size
    assert by_method["chance"].low < by_method["chance"].value < by_method["chance"].high
    words = [row for row in rows if row.word != ALL_WORDS]
    assert sum(row.tokens for row in words) == rows[0].tokens == len(objects)
    assert rows[0].pictures == len(images)


def test_regions_lie_on_an_object_by_their_centres_or_cover_most_of_a_small_one():
    grid = grid_boxes(2)
    assert regions_on(grid, [(0.2, 0.2, 0.8, 0.3)]).tolist() == [True, True, False, False]
    assert regions_on(grid, [(0.3, 0.3, 0.6, 0.6)]).tolist() == [True, False, False, False]
    assert regions_on(grid, [(0.3, 0.3, 0.6, 0.6), (0.7, 0.7, 0.8, 0.8)]).tolist() == [
        True,
        False,
        False,
        True,
    ]
    assert not regions_on(np.array([[0, 0, 0.1, 0.1]]), [(0.5, 0.5, 0.6, 0.6)]).any()


def test_shares_of_words_are_those_of_localise(toy):
    corpus, model = Corpus.open(toy), make()
    first, *_ = objects = objects_in(toy)
    found = _word_shares(model, corpus, objects[:3])
    sound = normalise(load_any(corpus.audio_path(first.caption)))
    step = (first.offset - first.onset) / round((first.offset - first.onset) / 0.04)
    times = np.arange(first.onset + step / 2, first.offset, step)
    torch.testing.assert_close(next(found), window_shares(model, sound, times)[1].mean(0), **CLOSE)
    assert len(list(found)) == 2


def test_the_command_writes_a_table_with_an_accuracy_of_each_method_and_word(toy, save_run, tmp_path, capsys):
    run = save_run(make(), tmp_path / "run")
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", "pointing", *map(str, (run, "--corpus", toy, "--out", tmp_path))])
    table = pd.read_csv(tmp_path / "pointing.csv")
    assert list(table["method"][:5]) == list(METHODS)
    assert table["accuracy"].between(0, 1).all()
    assert (table["low"] <= table["accuracy"]).all()
    assert "other captions" in capsys.readouterr().out


HEADER = "#file onset offset word x1 y1 x2 y2"
FAULTS = {
    "another header": (["file onset"], r"x\.boxes:1: the header must be: #file onset offset word x1"),
    "no words": ([HEADER], "x.boxes: holds no words, only a header"),
    "a column too few": ([HEADER, "u 0 0.1 cat 0 0 1"], "x.boxes:2: has 7 columns, the header names 8"),
    "an unknown caption": ([HEADER, "v 0 0.1 cat 0 0 1 1"], "x.boxes:2: the caption v is not in this split"),
    "no picture": ([HEADER, "w 0 0.1 cat 0 0 1 1"], "x.boxes:2: the caption w has no picture"),
    "times in no order": ([HEADER, "u 0.2 0.1 cat 0 0 1 1"], "x.boxes:2: onset 0.2 and offset 0.1 must be"),
    "a time that is no number": ([HEADER, "u 0 nan cat 0 0 1 1"], "x.boxes:2: onset 0 and offset nan must"),
    "a time after the end": (
        [HEADER, "u 0 1.3 cat 0 0 1 1"],
        "x.boxes:2: .* offset 1.3 must be .* of 1.000 s",
    ),
    "a box in pixels": ([HEADER, "u 0 1 cat 0 0 90 80"], "x.boxes:2: the box 0 0 90 80 must be x1 y1 x2 y2"),
    "a box of width and height": (
        [HEADER, "u 0 1 cat 0.5 0.5 0.2 0.2"],
        "x.boxes:2: the box 0.5 0.5 0.2 0.2",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_table_of_boxes(fault, tmp_path):
    lines, message = FAULTS[fault]
    (tmp_path / "x.boxes").write_text("\n".join(lines) + "\n")
    captions = {
        "u": dataclasses.replace(CAPTION, id="u", image="a.png", num_samples=SAMPLE_RATE),
        "w": dataclasses.replace(CAPTION, id="w"),
    }
    with pytest.raises(CorpusError, match=message):
        read_named_objects(tmp_path / "x.boxes", captions)


def test_what_cannot_point_is_told_before_the_model_runs(toy, tiny_corpus, save_run, tmp_path, capsys):
    for name, changes, corpus, message in (
        ("a", {"grounded": False}, toy, "without grounding modules, which points to nothing"),
        ("b", {"feature_dim": 9}, toy, "its regions have 224 features, but the model takes 9"),
        ("c", {}, tiny_corpus, "test.boxes: there is no such file"),
        ("d", {}, None, "config.yaml"),
    ):
        run = save_run(make(**changes), tmp_path / name)
        given = [] if corpus is None else ["--corpus", str(corpus)]
        with pytest.raises(SystemExit, match="1"):
            main(["evaluate", "pointing", str(run), *given])
        assert message in capsys.readouterr().err
