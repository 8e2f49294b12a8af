import dataclasses
import io

import pytest
from rich.console import Console

from vgsplus.report import tables
from vgsplus.report.paper import PAPER, VARIANTS, phases_of
from vgsplus.schedule import VARIANTS as SCHEDULES
from vgsplus.schedule import variant_title


def printed(results, width):
    stream = io.StringIO()
    tables.print_table(results, Console(file=stream, width=width))
    return stream.getvalue()


def test_the_papers_variants_are_those_that_can_be_trained_in_its_order():
    assert tuple(variant_title(key) for key in SCHEDULES) == VARIANTS
    assert [phases_of(name) for name in VARIANTS] == [
        (bases[0].upper(), bases[-1].upper()) for bases in SCHEDULES.values()
    ]


def test_table1_has_nine_rows_in_the_papers_order_and_ours_beside_the_papers(results):
    frame = tables.table1(results)
    assert tuple(frame["variant"]) == VARIANTS
    row = frame[frame["variant"] == "(W2V2, VGS)"].iloc[0]
    scores = next(v for v in results.variants if v.name == "(W2V2, VGS)").retrieval["test"]
    assert row["test speech_to_image R@1"] == pytest.approx(
        100 * scores.speech_to_image.recall[1].value, abs=1e-3
    )
    assert row["test image_to_speech R@10 low"] == pytest.approx(
        100 * scores.image_to_speech.recall[10].low, abs=1e-3
    )
    assert row["paper speech_to_image R@10"] == PAPER["(W2V2, VGS)"].speech_to_image[10] == 74.9
    assert not frame.isna().any().any()


def test_a_partial_run_has_all_rows_and_gaps(partial):
    frame = tables.table1(partial).set_index("variant")
    assert len(frame) == 9
    ours = [column for column in frame if column.startswith("test ")]
    assert frame.loc["VGS", ours].isna().all()
    assert frame.loc["VGS+", ours].notna().all()
    rows = tables.table_rows(partial, "test")
    assert [row.name for row in rows] == [*VARIANTS, tables.CHANCE]
    assert {row.name for row in rows if not row.trained} == set(VARIANTS) - {"W2V2", "VGS+", "(W2V2, VGS+)"}
    assert {cell.value for cell in rows[1].ours["speech_to_image"]} == {tables.DASH}


def test_every_test_set_has_its_columns(two_test_sets):
    columns = set(tables.table1(two_test_sets))
    assert {"test_recordings speech_to_image R@5", "test_images image_to_speech R@5 high"} <= columns


def test_the_best_of_a_column_is_marked_and_nothing_else(results):
    rows = tables.table_rows(results, "test")
    for direction in ("speech_to_image", "image_to_speech"):
        for place in range(3):
            cells = [row.ours[direction][place] for row in rows[:-1]]
            best = max(float(cell.value) for cell in cells)
            assert {float(cell.value) for cell in cells if cell.best} == {best}


def test_curves_hold_every_point_once(partial):
    frame = tables.curves(partial)
    losses = [p for v in partial.variants for p in v.losses]
    values = sum((p.grounding is not None) + (p.ssl is not None) for p in losses)
    recalls = sum(
        len(p.speech_to_image) + len(p.image_to_speech) for v in partial.variants for p in v.recalls
    )
    assert len(frame) == values + recalls
    assert set(frame["metric"]) >= {"L_AV", "L_AUD", "speech_to_image R@1"}
    w2v2 = frame[frame["variant"] == "W2V2"]
    assert "L_AV" not in set(w2v2["metric"])


def test_curves_tell_additional_speech_apart(partial):
    variant = partial.variants[0]
    point = dataclasses.replace(variant.losses[0], grounding=None, ssl=3.0, additional_ssl=2.0)
    heard = dataclasses.replace(variant, losses=(point,), recalls=())
    frame = tables.curves(dataclasses.replace(partial, variants=(heard,)))
    assert dict(zip(frame["metric"], frame["value"], strict=True)) == {"L_AUD": 3.0, "L_AUD additional": 2.0}


def test_shared_pretraining_is_counted_once(results):
    rows = tables.time_rows(results)
    shared = [row for row in rows if row.phase.shared]
    assert {row.phase.name: row.variants for row in shared} == {
        "w2v2": ("(W2V2, VGS+)", "(W2V2, VGS)"),
        "vgs": ("(VGS, VGS+)", "(VGS, W2V2)"),
        "vgs+": ("(VGS+, W2V2)", "(VGS+, VGS)"),
    }
    assert len(rows) == 3 + 3 + 6
    assert sum(row.phase.epochs for row in rows) == 3 * 70 + 3 * 20 + 6 * 50


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_table_fits_and_holds_all_rows(results, width):
    text = printed(results, width)
    assert max(map(len, text.splitlines())) <= width
    assert all(f"{name} " in text for name in (*VARIANTS, tables.CHANCE))
    assert "…" not in text
    assert "32.3/74.9" in text


def test_intervals_need_a_wide_terminal(results):
    estimate = results.variants[1].retrieval["test"].speech_to_image.recall[10]
    assert tables.interval(estimate) in printed(results, 140)
    assert tables.interval(estimate) not in printed(results, 80)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.0"), (0.0002, "0.02"), (0.00994, "0.99"), (0.00996, "1.0"), (0.4056, "40.6"), (1, "100.0")],
)
def test_percent(share, text):
    assert tables.percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.24, "8.2 s"), (59.7, "1 min 0 s"), (65, "1 min 5 s"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")],
)
def test_duration(seconds, text):
    assert tables.duration(seconds) == text
