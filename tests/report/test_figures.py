import dataclasses
import math
import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from vgsplus.report import figures
from vgsplus.report.paper import TITLES


def test_spread_keeps_gap_order_and_ends():
    rng = np.random.default_rng(0)
    for _ in range(50):
        wanted = rng.random(9).tolist()
        placed = figures.spread(wanted, 0.08, 0.0, 1.0)
        assert [*np.argsort(placed)] == [*np.argsort(wanted)]
        assert np.diff(sorted(placed)).min() >= 0.08 - 1e-9
        assert min(placed) >= 0
        assert max(placed) <= 1 + 1e-9


def test_spread_leaves_alone_what_is_apart_and_shares_what_does_not_fit():
    assert figures.spread([0.9, 0.1, 0.5], 0.2, 0, 1) == pytest.approx([0.9, 0.1, 0.5])
    assert figures.spread([0.5, 0.5], 0.2, 0, 1) == pytest.approx([0.4, 0.6])
    assert figures.spread([0.5] * 5, 0.9, 0, 1) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert figures.spread([], 0.1, 0, 1) == []


def test_the_nine_lines_differ_in_colour_or_dashes():
    styles = [figures._style(figures.Line(name, (), ())) for name in TITLES]
    assert len({(str(style["color"]), str(style["linestyle"])) for style in styles}) == 9


def test_loss_panels_hold_the_lines_that_have_a_loss(results):
    av, aud = figures.loss_panels(results, "validation")
    assert {line.name for line in av.lines} == set(TITLES) - {"W2V2"}
    assert {line.name for line in aud.lines} == set(TITLES) - {"VGS"}
    assert av.switches == aud.switches == (20.0,)
    starts = {line.name: line.x[0] for line in av.lines}
    assert (starts["VGS"], starts["(W2V2, VGS)"]) == (1, 21)


def test_additional_speech_has_a_panel_of_its_own(partial):
    variant = partial.variants[0]
    losses = tuple(
        dataclasses.replace(point, terms=point.terms | {"additional_speech/ssl": 2 * point.terms["ssl"]})
        for point in variant.losses
        if "ssl" in point.terms
    )
    heard = dataclasses.replace(partial, variants=(dataclasses.replace(variant, losses=losses),))
    own, additional = figures.loss_panels(heard, "validation")
    assert "additional speech" in additional.title
    assert additional.lines[0].y == pytest.approx([2 * value for value in own.lines[0].y])


def test_every_term_of_the_loss_has_a_panel_under_its_name(partial):
    variant = partial.variants[1]
    losses = tuple(dataclasses.replace(p, terms=p.terms | {"vicreg_term": 0.5}) for p in variant.losses)
    changed = dataclasses.replace(partial, variants=(dataclasses.replace(variant, losses=losses),))
    assert figures.loss_terms(changed) == ("grounding", "ssl", "vicreg_term")
    (panel,) = figures.loss_panels(changed, "validation", ["vicreg_term"])
    assert panel.title == "vicreg term"
    assert set(panel.lines[0].y) == {0.5}


def test_points_of_an_epoch_are_averaged_and_what_a_log_axis_cannot_show_left_out(partial):
    variant = partial.variants[1]
    base = dataclasses.replace(variant.losses[0], split="train")
    points = [(19.5, 4.0), (20.0, 2.0), (20.5, 0.0), (21.0, math.inf), (21.5, 1.0)]
    losses = tuple(dataclasses.replace(base, epoch=e, terms={"grounding": v}) for e, v in points)
    changed = dataclasses.replace(partial, variants=(dataclasses.replace(variant, losses=losses),))
    (panel,) = figures.loss_panels(changed, "train")
    assert panel.lines[0].x == (20.0, 21.5)
    assert panel.lines[0].y == (3.0, 1.0)


def test_a_run_of_few_epochs_keeps_its_points_where_they_are(partial):
    variant = partial.variants[1]
    base = dataclasses.replace(variant.losses[0], split="validation")
    losses = tuple(dataclasses.replace(base, epoch=e, terms={"grounding": 4 - e}) for e in (0.8, 1.6, 2.4))
    changed = dataclasses.replace(partial, variants=(dataclasses.replace(variant, losses=losses),))
    (panel,) = figures.loss_panels(changed, "validation")
    assert panel.lines[0].x == (0.8, 1.6, 2.4)
    assert panel.lines[0].y == pytest.approx((3.2, 2.4, 1.6))


def test_recall_panels_show_percent_at_the_largest_k_up_to_ten(partial):
    speech, _ = figures.recall_panels(partial, "validation")
    assert speech.title.startswith("R@10")
    last = partial.variants[-1].recalls[-1]
    assert speech.lines[-1].y[-1] == pytest.approx(100 * last.speech_to_image[10])
    assert figures.recall_panels(partial, "elsewhere") == ()


def test_an_svg_is_ok_formed_follows_the_scheme_and_keeps_its_ids_apart(results):
    panel = figures.loss_panels(results, "validation")[0]
    first, second = figures.svg(panel, "one"), figures.svg(panel, "two")
    ids = [set(re.findall(r'id="([^"]+)"', text)) for text in (first, second)]
    assert not ids[0] & ids[1]
    assert set(re.findall(r"url\(#([^)]+)\)", first)) <= ids[0]
    ET.fromstring(first)
    assert not re.search(r"#[0-9a-f]{6}\b", first), "a colour that does not follow the scheme"
    assert "var(--fig-vgs)" in first
    assert figures.svg(panel, "one") == first
    for line in panel.lines:
        assert line.name in first


def test_a_run_of_one_point_and_a_flat_line_can_be_drawn():
    single = figures.Panel("one", (figures.Line("VGS", (1.0,), (2.0,)),), (), log=True)
    flat = figures.Panel("flat", (figures.Line("mine", (1.0, 2.0), (0.0, 0.0)),), (), log=False, chance=0.1)
    for panel in (single, flat):
        assert figures.svg(panel, "x").startswith("<svg")
    assert figures.png([single, flat]).startswith(b"\x89PNG")


def test_abx_panels_show_layers_and_the_best_by_epoch(results):
    layers, epochs = figures.abx_panels(results, "layer"), figures.abx_panels(results, "epoch")
    assert [panel.axis for panel in (*layers, *epochs)] == ["layer", "layer", "epoch", "epoch"]
    line = layers[0].lines[0]
    assert line.x == (1.0, 2.0, 3.0)
    assert min(line.y) == line.y[1]
    best = epochs[0].lines[0]
    assert best.x == (20, 45, 70)
    assert best.y[-1] == pytest.approx(line.y[1])
    assert figures.abx_panels(dataclasses.replace(results, variants=()), "layer") == ()
