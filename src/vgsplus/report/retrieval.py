"""Retrieval of one run as tables to look at and as CSV files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from vgsplus.errors import VgsplusError
from vgsplus.evaluation.retrieval import DIRECTIONS
from vgsplus.report.results import write_whole
from vgsplus.report.tables import ARROWS, DASH, interval, percent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vgsplus.evaluation.breakdown import PartScores
    from vgsplus.evaluation.retrieval import RetrievalScores

SCORES, BY_SPEAKER, BY_LENGTH = "retrieval.csv", "by_speaker.csv", "by_length.csv"


def retrieval_table(scores: RetrievalScores) -> Table:
    """Recalls in percent with intervals and chance, a row a k, and the median rank of each direction."""
    table = Table(
        "direction",
        "k",
        "recall",
        "95 %",
        "chance",
        "median rank",
        title=f"Recall in %, {scores.captions} captions of {scores.images} pictures",
    )
    for direction in DIRECTIONS:
        side = scores.side(direction)
        for k, share in side.recall.items():
            first = k == next(iter(side.recall))
            table.add_row(
                ARROWS[direction] if first else "",
                str(k),
                percent(share.value),
                interval(share),
                percent(side.chance[k]),
                f"{side.median_rank:g}" if first else "",
            )
    return table


def part_table(parts: Sequence[PartScores], title: str) -> Table:
    """Recalls from speech to image in percent, their intervals below them, and median ranks, a row a part."""
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("captions of", overflow="fold")
    for heading in ("count", "seconds", *(f"R@{k}" for k in parts[0].recall), "median\nrank"):
        table.add_column(heading, justify="right", no_wrap=True)
    for part in parts:
        table.add_row(
            part.name,
            str(part.captions),
            f"{part.shortest:.2f}{DASH}{part.longest:.2f}",
            *(f"{percent(share.value)}\n{interval(share)}" for share in part.recall.values()),
            f"{part.median_rank:g}",
        )
    return table


def write_retrieval(
    scores: RetrievalScores,
    by_speaker: Sequence[PartScores],
    by_length: Sequence[PartScores],
    folder: Path,
) -> None:
    """Write retrieval.csv, by_speaker.csv and by_length.csv into a folder, each whole or not at all.

    Shares are in [0, 1], lengths in seconds.

    Raises:
        VgsplusError: a file cannot be written.
    """
    rows = [
        {
            "direction": direction,
            "k": k,
            "recall": share.value,
            "low": share.low,
            "high": share.high,
            "chance": scores.side(direction).chance[k],
            "median rank": scores.side(direction).median_rank,
        }
        for direction in DIRECTIONS
        for k, share in scores.side(direction).recall.items()
    ]
    tables = {
        SCORES: pd.DataFrame(rows),
        BY_SPEAKER: _parts(by_speaker, "speaker"),
        BY_LENGTH: _parts(by_length, "length"),
    }
    try:
        for name, table in tables.items():
            write_whole(folder / name, table.to_csv(index=False).encode())
    except OSError as error:
        raise VgsplusError(f"{folder}: cannot be written ({error}). Choose another folder.") from None


def _parts(parts: Sequence[PartScores], heading: str) -> pd.DataFrame:
    rows = []
    for part in parts:
        row: dict[str, object] = {
            heading: part.name,
            "captions": part.captions,
            "pictures": part.images,
            "shortest": part.shortest,
            "longest": part.longest,
        }
        for k, share in part.recall.items():
            row |= {f"R@{k}": share.value, f"R@{k} low": share.low, f"R@{k} high": share.high}
        rows.append(row | {"median rank": part.median_rank})
    return pd.DataFrame(rows)
