import dataclasses
import io
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from vgsplus.report import tables
from vgsplus.report.page import render, write_report
from vgsplus.report.paper import PAPER, TITLES, phases_of
from vgsplus.report.results import Repeat, ScorePoint
from vgsplus.schedule import VARIANTS as SCHEDULES
from vgsplus.schedule import variant_title


def printed(results, width):
    stream = io.StringIO()
    tables.print_tables(results, Console(file=stream, width=width))
    return stream.getvalue()


def test_the_papers_variants_are_those_that_can_be_trained_in_its_order():
    assert tuple(variant_title(key) for key in SCHEDULES) == TITLES
    assert [phases_of(name) for name in TITLES] == [
        (bases[0].upper(), bases[-1].upper()) for bases in SCHEDULES.values()
    ]


def test_table1_has_nine_rows_in_the_papers_order_and_ours_beside_the_papers(results):
    frame = tables.table1(results)
    assert tuple(frame["variant"]) == TITLES
    row = frame[frame["variant"] == "(W2V2, VGS)"].iloc[0]
    scores = next(v for v in results.variants if v.name == "(W2V2, VGS)").retrieval["test"]
    assert row["test speech_to_image R@1"] == pytest.approx(
        100 * scores.speech_to_image.recall[1].value, abs=1e-3
    )
    assert row["test image_to_speech R@10 low"] == pytest.approx(
        100 * scores.image_to_speech.recall[10].low, abs=1e-3
    )
    assert row["paper speech_to_image R@10"] == PAPER.loc["(W2V2, VGS)", "speech_to_image R@10"] == 74.9
    assert not frame.isna().any().any()


def test_a_partial_run_has_all_rows_and_gaps(partial):
    frame = tables.table1(partial).set_index("variant")
    assert len(frame) == 9
    ours = [column for column in frame if column.startswith("test ")]
    assert frame.loc["VGS", ours].isna().all()
    assert frame.loc["VGS+", ours].notna().all()
    rows = tables.recalls(partial, "test")
    assert rows.index.tolist() == [*TITLES, tables.CHANCE]
    missing = rows["speech_to_image R@1"].isna()
    assert set(rows.index[missing]) == set(TITLES) - {"W2V2", "VGS+", "(W2V2, VGS+)"}
    assert {tables.percent(rows.loc["VGS", f"speech_to_image R@{k}"]) for k in (1, 5, 10)} == {tables.DASH}


def test_every_test_set_has_its_columns(two_test_sets):
    columns = set(tables.table1(two_test_sets))
    assert {"test_recordings speech_to_image R@5", "test_images image_to_speech R@5 high"} <= columns


def test_the_best_of_a_column_is_marked_and_nothing_else(results):
    page = render(results)
    rows = re.findall(r"<tr[^>]*>(?:(?!</tr>).)*</tr>", page[page.index("<tbody>") :], re.DOTALL)[:9]
    cells = [re.findall(r"<td( class=\"best\")?>([\d.]+)", row) for row in rows]
    for column in zip(*cells, strict=True):
        best = max(float(value) for _, value in column)
        assert {float(value) for marked, value in column if marked} == {best}
    assert len(cells[0]) == 6


def test_curves_hold_every_point_once(partial):
    frame = tables.curves(partial)
    losses = [p for v in partial.variants for p in v.losses]
    values = sum(len(p.terms) for p in losses)
    recalls = sum(
        len(p.speech_to_image) + len(p.image_to_speech) for v in partial.variants for p in v.recalls
    )
    assert len(frame) == values + recalls
    assert set(frame["metric"]) >= {"L_AV", "L_AUD", "speech_to_image R@1"}
    w2v2 = frame[frame["variant"] == "W2V2"]
    assert "L_AV" not in set(w2v2["metric"])


def test_curves_tell_additional_speech_apart(partial):
    variant = partial.variants[0]
    point = dataclasses.replace(variant.losses[0], terms={"ssl": 3.0, "additional_speech/ssl": 2.0})
    heard = dataclasses.replace(variant, losses=(point,), recalls=())
    frame = tables.curves(dataclasses.replace(partial, variants=(heard,)))
    assert dict(zip(frame["metric"], frame["value"], strict=True)) == {"L_AUD": 3.0, "L_AUD additional": 2.0}


def test_shared_pretraining_is_counted_once(results):
    rows = tables.times(results)
    shared = rows[rows["shared"]]
    assert dict(zip(shared["name"], shared["variants"], strict=True)) == {
        "w2v2": ["(W2V2, VGS+)", "(W2V2, VGS)"],
        "vgs": ["(VGS, VGS+)", "(VGS, W2V2)"],
        "vgs+": ["(VGS+, W2V2)", "(VGS+, VGS)"],
    }
    assert len(rows) == 3 + 3 + 6
    assert rows["epochs"].sum() == 3 * 70 + 3 * 20 + 6 * 50


def test_the_table_holds_nine_rows_and_the_untrained_features(results):
    table = tables.table2(results).set_index("features")
    assert table.index.tolist() == [*TITLES, "untrained", "log-Mel"]
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
    changed = dataclasses.replace(results, abx=task)
    table = tables.table2(changed).set_index("features")
    assert tables.error_text(table.loc["log-Mel"], "within") == "0.10"
    assert tables.error_text(table.loc["W2V2"], "within").endswith(" (2)")
    marked = re.findall(r'<tr>\s*<th scope="row">(?:(?!</tr>).)*?\(lowest\)', render(changed), re.DOTALL)
    assert len(marked) == 1
    assert "W2V2</th>" in marked[0]


def test_a_partial_run_has_dashes(partial):
    table = tables.table2(partial).set_index("features")
    texts = {column: tables.error_text(table.loc["VGS"], column) for column in table if "layer" not in column}
    assert texts["within"] == texts["across as published"] == "–"
    assert texts["paper within"] == "4.82 (4)"


def test_every_error_of_every_seed_has_a_row(results):
    again = dataclasses.replace(results, repeats=(Repeat(seed=7, variants=results.variants[:1]),))
    table = tables.abx_errors(again)
    assert len(table) == (9 + 1) * 3 * 2 * 2 * 3 + 3 * 2
    assert sorted(table["seed"].dropna().unique()) == [0, 7]
    assert table["error"].between(0, 1).all()


def test_further_scores_have_a_table(partial, tmp_path):
    scored = tuple(
        dataclasses.replace(
            variant,
            scores=tuple(ScorePoint(epoch=e, scores={"err/a": n / 8, "acc": n / 4 + e}) for e in (1.0, 2.0)),
        )
        for n, variant in enumerate(partial.variants)
    )
    changed = dataclasses.replace(partial, variants=scored, lower_is_better=("err/",))
    assert tables.further_scores(changed)["acc"].tolist() == [2.0, 2.25, 2.5]
    assert "Further scores" in printed(changed, 80)
    page = write_report(changed, tmp_path).read_text()
    section = page[page.index('<section id="scores">') : page.index('<section id="claims">')]
    assert re.findall(r'class="best">([^<]+)', section) == ["0", "2.5"]
    assert "Further scores by epoch" in page
    assert pd.read_csv(tmp_path / "report" / "scores.csv")["err/a"].tolist() == [0, 0.125, 0.25]
    curves = pd.read_csv(tmp_path / "report" / "curves.csv")
    assert curves["metric"].eq("acc").sum() == 6


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_table_fits_and_holds_all_rows(results, width):
    text = printed(results, width)
    assert max(map(len, text.splitlines())) <= width
    assert all(f"{name} " in text for name in (*TITLES, tables.CHANCE))
    assert "…" not in text
    assert "32.3/74.9" in text


def test_intervals_need_a_wide_terminal(results):
    estimate = results.variants[1].retrieval["test"].speech_to_image.recall[10]
    text = tables.interval(100 * estimate.low, 100 * estimate.high)
    assert text in printed(results, 140)
    assert text not in printed(results, 80)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.0"), (0.0002, "0.02"), (0.00994, "0.99"), (0.00996, "1.0"), (0.4056, "40.6"), (1, "100.0")],
)
def test_percent(share, text):
    assert tables.percent(100 * share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.24, "8.2 s"), (59.7, "1 min 0 s"), (65, "1 min 5 s"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")],
)
def test_duration(seconds, text):
    assert tables.duration(seconds) == text
