"""Tables of the pointing game."""

from collections.abc import Sequence

import pandas as pd
from rich.table import Table

from vgsplus.evaluation.pointing.evaluate import ALL_WORDS, PointingRow
from vgsplus.report.tables import interval, percent, terminal_table


def pointing_table(rows: Sequence[PointingRow]) -> pd.DataFrame:
    """Return the share of words that each method gets right, as a fraction with its interval."""
    return pd.DataFrame(
        {
            "method": row.method,
            "word": row.word,
            "tokens": row.tokens,
            "pictures": row.pictures,
            "accuracy": row.accuracy.value,
            "low": row.accuracy.low,
            "high": row.accuracy.high,
        }
        for row in rows
    )


def pointing_terminal(rows: Sequence[PointingRow], title: str) -> Table:
    """Return the accuracies in percent, of all words, then of each word by the model."""
    texts = [
        [
            row.method if row.word == ALL_WORDS else f"  {row.word}",
            f"{row.tokens}",
            percent(100 * row.accuracy.value),
            interval(100 * row.accuracy.low, 100 * row.accuracy.high),
        ]
        for row in rows
    ]
    caption = (
        "In percent, with 95 % intervals over pictures; below the baselines, the model by word. Other "
        "captions: the words of all other pictures in the place of each."
    )
    return terminal_table(["method", "words", "on the object", "interval"], texts, title, caption)
