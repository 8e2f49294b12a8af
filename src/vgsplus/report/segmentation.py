"""Tables of words found in speech."""

import math
from collections.abc import Sequence

import pandas as pd
from rich.table import Table

from vgsplus.evaluation.segmentation.boundaries import ALL_HEADS
from vgsplus.evaluation.segmentation.evaluate import SegmentationRow
from vgsplus.report.tables import BEST, DASH, terminal_table

SCORES = {
    "precision": "P",
    "recall": "R",
    "f1": "F1",
    "over_segmentation": "OS",
    "r_value": "R-value",
    "word_f1": "word F1",
}
"""{column of segmentation.csv: heading in the terminal}."""
RANKED = ("f1", "r_value", "word_f1")


def segmentation_table(rows: Sequence[SegmentationRow], *, collar: float, threshold: float) -> pd.DataFrame:
    """Return the scores of boundaries and words as fractions, a row for each `Segmentation`.

    The threshold is NaN but for attention.
    """
    return pd.DataFrame(
        {
            "method": row.segmentation.method,
            "layer": row.segmentation.layer,
            "heads": row.segmentation.heads,
            "threshold": threshold if row.segmentation.heads else math.nan,
            "collar": collar,
            "precision": row.counts.boundaries.precision,
            "recall": row.counts.boundaries.recall,
            "f1": row.counts.boundaries.f1,
            "over_segmentation": row.counts.boundaries.over_segmentation,
            "r_value": row.counts.boundaries.r_value,
            "word_precision": row.counts.words.precision,
            "word_recall": row.counts.words.recall,
            "word_f1": row.counts.words.f1,
        }
        for row in rows
    )


def segmentation_terminal(table: pd.DataFrame, title: str) -> Table:
    """Return the scores in percent: of baselines, of each layer by all heads, its best head and minimum cut.

    A star marks the highest score of the layers; baselines have none.
    """
    attention = table[table["method"] == "attention"]
    single = attention[attention["heads"] != ALL_HEADS]
    best_heads = set(single.groupby("layer")["r_value"].idxmax())
    best = {column: table[table["layer"] != ""][column].max() for column in RANKED}
    texts = []
    for index, row in table.iterrows():
        if row["heads"] not in ("", ALL_HEADS) and index not in best_heads:
            continue
        scores = [
            f"{100 * row[column]:.1f}" + (BEST if row["layer"] and row[column] == best.get(column) else " ")
            for column in SCORES
        ]
        texts.append([row["method"], row["layer"] or DASH, row["heads"] or DASH, *scores])
    collar = table["collar"].iloc[0]
    caption = (
        f"In percent; the collar is {1000 * collar:g} ms. Of each layer: all heads together, and the head "
        f"with the highest R-value on these sounds. {BEST} the highest of all layers and heads."
    )
    return terminal_table(["method", "layer", "heads", *SCORES.values()], texts, title, caption)
