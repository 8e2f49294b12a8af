import dataclasses

import numpy as np
import pytest

from vgsplus.report import table2
from vgsplus.report.paper import VARIANTS
from vgsplus.report.results import Repeat


def test_the_table_holds_nine_rows_and_the_untrained_features(results):
    table = table2.table2(results).set_index("features")
    assert table.index.tolist() == [*VARIANTS, "untrained", "log-Mel"]
    errors = results.variants[0].abx[-1].errors
    assert table.loc["W2V2", "within"] == pytest.approx(100 * errors["within"][2], abs=1e-4)
    assert table.loc["W2V2", "across as published"] == pytest.approx(150 * errors["across"][2], abs=1e-4)
    assert table.loc["(VGS+, VGS)", "paper across"] == 6.02
    assert table.loc["(VGS+, VGS)", "paper across layer"] == 9
    assert (table.loc["W2V2", "within layer"], table.loc["untrained", "within layer"]) == (2, 2)
    assert table.loc["untrained", "across"] == 26
    assert table.loc["untrained", "across layer"] == 1
    assert np.isnan(table.loc["log-Mel", "paper within"])


def test_the_lowest_error_of_a_variant_is_marked_and_no_baseline(results):
    lower = dataclasses.replace(results.abx.baselines[-1], errors={"within": 0.001, "across": 0.001})
    task = dataclasses.replace(results.abx, baselines=(lower,))
    rows = table2.table_rows(dataclasses.replace(results, abx=task))
    assert [row.name for row in rows if row.best["within"]] == ["W2V2"]
    assert rows[-1].ours["within"] == "0.10"
    assert rows[0].ours["within"].endswith(" (2)")


def test_a_partial_run_has_dashes(partial):
    rows = {row.name: row for row in table2.table_rows(partial)}
    assert rows["VGS"].ours["within"] == rows["VGS"].published["across"] == "–"
    assert rows["VGS"].paper["within"] == "4.82 (4)"


def test_every_error_of_every_seed_has_a_row(results):
    again = dataclasses.replace(results, repeats=(Repeat(seed=7, variants=results.variants[:1]),))
    table = table2.every_error(again)
    assert len(table) == (9 + 1) * 3 * 2 * 2 * 3 + 3 * 2
    assert sorted(table["seed"].dropna().unique()) == [0, 7]
    assert table["error"].between(0, 1).all()


def test_panels_show_layers_and_the_best_by_epoch(results):
    layers, epochs = table2.layer_panels(results), table2.epoch_panels(results)
    assert [panel.axis for panel in (*layers, *epochs)] == ["layer", "layer", "epoch", "epoch"]
    line = layers[0].lines[0]
    assert line.epochs == (1.0, 2.0, 3.0)
    assert min(line.values) == line.values[1]
    best = epochs[0].lines[0]
    assert best.epochs == (20, 45, 70)
    assert best.values[-1] == pytest.approx(line.values[1])
    assert table2.layer_panels(dataclasses.replace(results, variants=())) == ()
