"""The report of a sweep: every measure at every grid point, and how far each point is behind the best.

Intervals are of the mean over seeds, by Student's t. The points behind the best are compared with it seed by
seed, because runs from the same seed share their initial weights and batches.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pandas as pd

from vgsplus.files import atomic_folder
from vgsplus.report.claims import interval_of_mean
from vgsplus.report.page import FOLDER, PAGE, page_environment
from vgsplus.report.tables import DASH, write_csv

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


TABLE, TEXT = "sweep.csv", "sweep.md"

type Point = tuple[tuple[str, str], ...]
"""A grid point: (setting, value) in the order of the command."""


@dataclass(frozen=True)
class Measure:
    """A number of every run.

    Attributes:
        name: for headings and sentences, such as "recall on test".
        unit: "%", or empty.
        higher_is_better: whether the highest value is the best.
        by_point: {grid point: values in the order of the seeds}, without points that it was not measured for.
    """

    name: str
    unit: str
    higher_is_better: bool
    by_point: Mapping[Point, tuple[float, ...]]


@dataclass(frozen=True)
class Row:
    """A grid point in the table of a measure.

    Attributes:
        point: the grid point.
        by_seed: value for each seed.
        interval: 95 % interval of the mean; None with one seed.
        behind: mean by which the best point is better, 0 for itself.
        behind_interval: 95 % interval of `behind`; None with one seed and for the best.
        verdict: "best"; "worse", if the interval of `behind` is above 0; else "undecided".
    """

    point: Point
    by_seed: tuple[float, ...]
    interval: tuple[float, float] | None
    behind: float
    behind_interval: tuple[float, float] | None
    verdict: str

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.by_seed)


def title(point: Point) -> str:
    """Return the name of a grid point in tables."""
    return ", ".join(f"{key} = {value}" for key, value in point)


def compare(measure: Measure) -> tuple[Row, ...]:
    """Return a row per grid point, the best first."""
    sign = 1 if measure.higher_is_better else -1
    ranked = sorted(measure.by_point, key=lambda point: -sign * statistics.fmean(measure.by_point[point]))
    best = measure.by_point[ranked[0]]
    rows = []
    for place, point in enumerate(ranked):
        values = measure.by_point[point]
        behind = [sign * (top - value) for top, value in zip(best, values, strict=True)]
        interval = interval_of_mean(behind) if place else None
        verdict = "best" if not place else "worse" if interval and interval[0] > 0 else "undecided"
        rows.append(Row(point, values, interval_of_mean(values), statistics.fmean(behind), interval, verdict))
    return tuple(rows)


def headline(measure: Measure) -> str:
    """Return in words which grid point is the best, and whether it is better than the next."""
    first, *others = compare(measure)
    unit, points = (" %", " points") if measure.unit == "%" else ("", "")
    value = f"{_number(first.mean)}{unit}{_brackets(first.interval)}"
    text = f"{title(first.point)} has the best {measure.name}: {value}."
    if not others:
        return text
    second = others[0]
    lead = f"Next is {title(second.point)}, behind by {_number(second.behind)}{points}"
    if second.behind_interval is None:
        return (
            f"{text} {lead}. With one seed, it is unknown whether seeds differ as much; --seeds 3 shows it."
        )
    ends = lead + _brackets(second.behind_interval)
    if second.verdict == "worse":
        return f"{text} {ends}: more than the seeds explain."
    level = sum(row.verdict == "undecided" for row in others)
    return (
        f"{text} {ends}: no more than the seeds explain. {level} of {len(others)} others are level with it."
    )


# ---- tables -----------------------------------------------------------------------------------------------


def table(measures: Sequence[Measure]) -> pd.DataFrame:
    """Return a row per measure and grid point, the best point of a measure first."""
    rows = []
    for measure in measures:
        for row in compare(measure):
            low, high = row.interval or (math.nan, math.nan)
            behind_low, behind_high = row.behind_interval or (math.nan, math.nan)
            rows.append(
                {
                    "measure": measure.name,
                    "unit": measure.unit,
                    **dict(row.point),
                    "seeds": len(row.by_seed),
                    "mean": row.mean,
                    "low": low,
                    "high": high,
                    "behind": row.behind,
                    "behind low": behind_low,
                    "behind high": behind_high,
                    "verdict": row.verdict,
                    "by seed": " ".join(f"{value:.6g}" for value in row.by_seed),
                }
            )
    return pd.DataFrame(rows).round(6)


HEADINGS = ("mean", "95 %", "behind the best", "95 %", "verdict")


def _cells(row: Row) -> tuple[str, ...]:
    """Return the texts of `HEADINGS`."""
    behind = "" if row.verdict == "best" else _number(row.behind)
    return (_number(row.mean), _ends(row.interval), behind, _ends(row.behind_interval), row.verdict)


def _number(value: float) -> str:
    text = f"{value:.2f}" if abs(value) >= 0.1 else f"{0 if abs(value) < 1e-9 else value:.3g}"
    return text.replace("-", "−")


def _ends(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{_number(interval[0])} to {_number(interval[1])}"


def _brackets(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({_ends(interval)})"


def _heading(measure: Measure) -> str:
    return f"{measure.name[:1].upper()}{measure.name[1:]}" + (f" ({measure.unit})" if measure.unit else "")


def _markdown(heading: str, measures: Sequence[Measure]) -> str:
    lines = [f"# {heading}", "", headline(measures[0]), ""]
    for measure in measures:
        keys = [key for key, _ in next(iter(measure.by_point))]
        columns = [*keys, *HEADINGS]
        lines += [f"## {_heading(measure)}", "", _line(columns), _line(["---"] * len(columns))]
        lines += [_line([*(value for _, value in row.point), *_cells(row)]) for row in compare(measure)]
        lines.append("")
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") or DASH for cell in cells) + " |"


# ---- files ------------------------------------------------------------------------------------------------


def write_sweep(
    out: Path, config: str, corpus: str, seeds: Sequence[int], measures: Sequence[Measure]
) -> Path:
    """Write `out`/report: index.html, sweep.md and sweep.csv; an earlier report is replaced.

    Args:
        out: folder of the sweep.
        config: name of its configuration.
        corpus: name of the corpus.
        seeds: the seeds of every point.
        measures: at least one, the first of which is that of the headline.

    Returns:
        The path of index.html.

    Raises:
        OSError: the report cannot be written.
    """
    heading = f"Sweep of {config} on {corpus}"
    page = page_environment().get_template("sweep.html.j2")
    points = len({point for measure in measures for point in measure.by_point})
    with atomic_folder(out / FOLDER, replace=True) as folder:
        write_csv(table(measures), folder / TABLE)
        (folder / TEXT).write_text(_markdown(heading, measures), encoding="utf-8")
        text = page.render(
            heading=heading,
            headline=headline(measures[0]),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            facts={"Grid points": points, "Seeds": ", ".join(map(str, seeds)), "Corpus": corpus},
            headings=HEADINGS,
            measures=[
                (_heading(measure), [key for key, _ in next(iter(measure.by_point))], _page_rows(measure))
                for measure in measures
            ],
            single=len(seeds) == 1,
        )
        (folder / PAGE).write_text(text, encoding="utf-8")
    return out / FOLDER / PAGE


def _page_rows(measure: Measure) -> list[tuple[list[str], tuple[str, ...], str]]:
    """Return the settings of each row, its cells and the values of the seeds."""
    return [
        ([value for _, value in row.point], _cells(row), ", ".join(map(_number, row.by_seed)))
        for row in compare(measure)
    ]
