"""The figure of where in a picture and when in a sound a model finds what they share."""

import dataclasses
import io

import numpy as np
import pytest
import soundfile
import torch
from helpers import TINY_MODEL
from PIL import Image

from vgsplus.cli import main
from vgsplus.evaluation.pointing.localise import heat_map
from vgsplus.interop.pretrained import PretrainedModel
from vgsplus.regions.pixel_grid import PIXEL_GRID, grid_boxes
from vgsplus.report.pointing import MOMENTS, moments


def test_the_heat_map_shows_the_highest_region_of_each_pixel_and_none_of_negative_scores():
    grid = heat_map(grid_boxes(2), np.array([4.0, 1.0, -3.0, 0.0]), 6, 4)
    np.testing.assert_array_equal(grid, [[1, 1, 1, 0.25, 0.25, 0.25]] * 2 + [[0] * 6] * 2)
    overlapping = np.array([[0, 0, 1, 1], [0.5, 0, 1, 1], [0.5, 0, 1, 0.5]])
    found = heat_map(overlapping, np.array([2.0, 4.0, 1.0]), 2, 2)
    np.testing.assert_array_equal(found, [[0.5, 1], [0.5, 1]])
    assert not heat_map(grid_boxes(2), np.full(4, -1.0), 4, 4).any()
    assert heat_map(grid_boxes(2), np.array([4.0, 1, 0, 0]), 2, 2, highest=8.0).tolist() == [
        [0.5, 0.125],
        [0, 0],
    ]


def test_moments_are_the_highest_ones_apart_and_in_order():
    times = np.arange(0.02, 4, 0.04)
    scores = np.stack([np.sin(3 * times), np.zeros_like(times)], axis=1)
    chosen = moments(times, scores)
    assert len(chosen) == MOMENTS
    assert chosen == sorted(chosen)
    assert np.diff(times[chosen]).min() >= 0.3 - 1e-9
    assert scores[:, 0].argmax() in chosen
    assert moments(np.array([0.1]), np.zeros((1, 4))) == [0]


@pytest.fixture(scope="module")
def work(tmp_path_factory, save_run):
    """A saved model, a run without grounding, a sound, one too short, a picture, and a text."""
    root = tmp_path_factory.mktemp("explain")
    torch.manual_seed(0)
    model = PretrainedModel(dataclasses.replace(TINY_MODEL, feature_dim=224))
    model.about = {"regions": PIXEL_GRID}
    model.save_pretrained(root / "model")
    save_run(PretrainedModel(dataclasses.replace(TINY_MODEL, grounded=False)), root / "ungrounded")
    noise = np.random.default_rng(0).normal(0, 0.1, 22_050)
    soundfile.write(root / "a.wav", noise, 22_050)
    soundfile.write(root / "short.wav", noise[:200], 16_000)
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 50, 4), dtype=np.uint8)).save(
        root / "a.png"
    )
    (root / "text.png").write_text("no picture")
    return root


def explain(work, model="model", sound="a.wav", picture="a.png", out="out/figure.png"):
    with pytest.raises(SystemExit) as ended:
        main(["explain", *(str(work / name) for name in (model, sound, picture)), "--out", str(work / out)])
    return ended.value.code


@pytest.mark.parametrize("out", ["out/figure.png", "figure.PDF", "figure.svg"])
def test_the_command_writes_a_figure_in_the_format_of_its_name(work, out):
    assert explain(work, out=out) == 0
    content = (work / out).read_bytes()
    if out.endswith("png"):
        image = Image.open(io.BytesIO(content))
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(image.width * image.height)) > 100
    else:
        assert content[:5] in (b"%PDF-", b"<?xml")


FAULTS = {
    "a figure of another kind": (
        {"out": "figure.jpg"},
        "figure.jpg: its name must end with .png, .pdf, .svg",
    ),
    "no such sound": ({"sound": "b.wav"}, "b.wav: there is no such sound file"),
    "a short sound": ({"sound": "short.wav"}, "200 samples at 16 kHz"),
    "no picture": ({"picture": "text.png"}, "text.png: cannot be read as a picture"),
    "no grounding": ({"model": "ungrounded"}, "without grounding modules"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told_and_nothing_is_written(work, fault, capsys):
    changes, message = FAULTS[fault]
    before = sorted(work.rglob("*"))
    assert explain(work, **({"out": "new/figure.png"} | changes)) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(work.rglob("*")) == before
