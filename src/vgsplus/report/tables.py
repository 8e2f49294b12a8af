"""Table I's shape out of results: for the page, for the terminal, and as CSV; learning curves as CSV."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from vgsplus.evaluation.retrieval import DIRECTIONS, KS
from vgsplus.report.paper import PAPER, VARIANTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from vgsplus.evaluation.resampling import Estimate
    from vgsplus.evaluation.retrieval import DirectionScores
    from vgsplus.report.results import PhaseResult, RecallPoint, Results, Variant

DASH = "\N{EN DASH}"
ARROWS = {"speech_to_image": "speech → image", "image_to_speech": "image → speech"}
PAPER_KS = (1, 10)
CHANCE = "Chance"
WIDE = 110  # columns of a terminal that has room for intervals


@dataclass(frozen=True, slots=True)
class Cell:
    """A recall as text: the value in percent, its interval, and whether no variant has a higher one."""

    value: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A row of Table I: our recalls at `KS` and the paper's at `PAPER_KS`, by direction."""

    name: str
    trained: bool
    ours: dict[str, tuple[Cell, ...]]
    paper: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class TimeRow:
    """A phase that was run once, and the variants that came out of it."""

    phase: PhaseResult
    variants: tuple[str, ...]


def percent(share: float) -> str:
    """A share as percent: one decimal, two below 1 %."""
    return f"{100 * share:.2f}" if 0 < share < 0.00995 else f"{100 * share:.1f}"


def interval(estimate: Estimate) -> str:
    """The interval of an estimate in percent, its ends joined by a dash."""
    return f"{percent(estimate.low)}{DASH}{percent(estimate.high)}"


def duration(seconds: float) -> str:
    """A time span in the two units that matter: "2 d 4 h", "3 h 20 min", "1 min 5 s", "8.2 s"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    days, hours, minutes = whole // 86_400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def label(test_set: str) -> str:
    """A test set's name as a person would write it."""
    return test_set.replace("_", " ")


def ordered(results: Results) -> tuple[Variant, ...]:
    """The variants that there are: the paper's in its order, then any others."""
    place = {name: index for index, name in enumerate(VARIANTS)}
    return tuple(sorted(results.variants, key=lambda variant: place.get(variant.name, len(place))))


def table_rows(results: Results, test_set: str) -> tuple[Row, ...]:
    """The nine rows, then one for each variant that is not the paper's, then chance where it is known."""
    scored = {v.name: v.retrieval[test_set] for v in results.variants if test_set in v.retrieval}
    names = [*VARIANTS, *(v.name for v in ordered(results) if v.name not in PAPER)]
    best = {
        (direction, k): max(
            (_value(scores.side(direction), k) for scores in scored.values()), default=math.nan
        )
        for direction in DIRECTIONS
        for k in KS
    }

    def cell(name: str, direction: str, k: int) -> Cell:
        if name not in scored or k not in scored[name].side(direction).recall:
            return Cell(DASH)
        estimate = scored[name].side(direction).recall[k]
        return Cell(percent(estimate.value), interval(estimate), estimate.value == best[direction, k] > 0)

    rows = [
        Row(name, name in scored, {d: tuple(cell(name, d, k) for k in KS) for d in DIRECTIONS}, _paper(name))
        for name in names
    ]
    if scored:
        chance = {
            direction: tuple(
                Cell(percent(shares[k]) if k in shares else DASH)
                for k in KS
                for shares in [next(iter(scored.values())).side(direction).chance]
            )
            for direction in DIRECTIONS
        }
        rows.append(Row(CHANCE, True, chance, _paper(CHANCE)))
    return tuple(rows)


def table1(results: Results) -> pd.DataFrame:
    """Nine rows; columns "<test set> <direction> R@k", low, high and the paper's, in percent."""
    trained = {variant.name: variant for variant in results.variants}
    rows = []
    for name in VARIANTS:
        row: dict[str, object] = {"variant": name}
        for test_set in results.test_sets:
            scores = trained[name].retrieval.get(test_set) if name in trained else None
            for direction in DIRECTIONS:
                for k in KS:
                    estimate = scores.side(direction).recall.get(k) if scores else None
                    column = f"{test_set} {direction} R@{k}"
                    for suffix, field in (("", "value"), (" low", "low"), (" high", "high")):
                        row[column + suffix] = round(100 * getattr(estimate, field), 4) if estimate else None
        for direction in DIRECTIONS:
            for k in PAPER_KS:
                row[f"paper {direction} R@{k}"] = getattr(PAPER[name], direction)[k]
        rows.append(row)
    return pd.DataFrame(rows)


def curves(results: Results) -> pd.DataFrame:
    """Every loss and recall during training, one value a row."""
    columns = ["variant", "split", "phase", "epoch", "step", "metric", "value"]
    rows = [row for variant in ordered(results) for row in _curve_rows(variant)]
    return pd.DataFrame(rows, columns=columns).astype({"phase": "Int64", "step": "Int64"})


def time_rows(results: Results) -> tuple[TimeRow, ...]:
    """Every phase that was run, shared ones once, in the order of the variants."""
    users: dict[tuple[str, str], list[str]] = {}
    phases: dict[tuple[str, str], PhaseResult] = {}
    for variant in ordered(results):
        for phase in variant.phases:
            run = (phase.name, "" if phase.shared else variant.name)
            phases.setdefault(run, phase)
            users.setdefault(run, []).append(variant.name)
    return tuple(TimeRow(phase, tuple(users[run])) for run, phase in phases.items())


def print_table(results: Results, console: Console) -> None:
    """Table I's shape for the terminal, one table for each test set, the paper's numbers beside ours.

    A narrow terminal gets the paper's k alone, without intervals.
    """
    narrow = console.width < WIDE
    ks = [k for k in KS if k in PAPER_KS or not narrow]
    for test_set in results.test_sets:
        title = f"Recall in % on {label(test_set)}{'' if narrow else ', below it the 95 % interval'}"
        table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("Variant", no_wrap=True)
        for direction in DIRECTIONS:
            heading = ARROWS[direction].replace(" →", "\n→")
            table.add_column(f"{heading}\nR@{ks[0]}", justify="right", no_wrap=True)
            for k in ks[1:]:
                table.add_column(f"\n\nR@{k}", justify="right", no_wrap=True)
            paper = "/".join(f"R@{k}" for k in PAPER_KS)
            table.add_column(f"\npaper\n{paper}", justify="right", style="dim", no_wrap=True)
        for row in table_rows(results, test_set):
            cells: list[str] = []
            for direction in DIRECTIONS:
                ours = dict(zip(KS, row.ours[direction], strict=True))
                cells += [_terminal(ours[k], narrow=narrow) for k in ks]
                cells.append("/".join(row.paper[direction]))
            if row.name == CHANCE:
                table.add_section()
            table.add_row(row.name, *cells, style=None if row.trained else "dim")
        console.print(table)


def _terminal(cell: Cell, *, narrow: bool) -> str:
    value = f"[bold]{cell.value}[/]" if cell.best else cell.value
    return f"{value}\n[dim]{cell.interval}[/]" if cell.interval and not narrow else value


def _value(scores: DirectionScores, k: int) -> float:
    return scores.recall[k].value if k in scores.recall else -math.inf


def _paper(name: str) -> dict[str, tuple[str, ...]]:
    if name not in PAPER:
        return dict.fromkeys(DIRECTIONS, (DASH,) * len(PAPER_KS))
    return {d: tuple(f"{getattr(PAPER[name], d)[k]:.1f}" for k in PAPER_KS) for d in DIRECTIONS}


def _curve_rows(variant: Variant) -> Iterator[tuple[object, ...]]:
    for point in variant.losses:
        for metric, value in (
            ("L_AV", point.grounding),
            ("L_AUD", point.ssl),
            ("L_AUD additional", point.additional_ssl),
        ):
            if value is not None:
                yield variant.name, point.split, point.phase, point.epoch, point.step, metric, value
    for recall in variant.recalls:
        for metric, value in _recall_values(recall):
            yield variant.name, recall.test_set, None, recall.epoch, None, metric, value


def _recall_values(point: RecallPoint) -> Iterator[tuple[str, float]]:
    for direction in DIRECTIONS:
        for k, share in getattr(point, direction).items():
            yield f"{direction} R@{k}", share
