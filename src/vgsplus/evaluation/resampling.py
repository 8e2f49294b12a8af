"""Resampling of whole rows, for intervals around what is computed from their sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

BLOCK_DRAWS = 1 << 20  # rows drawn at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A share in [0, 1] and its 95 % interval."""

    value: float
    low: float
    high: float


def resampled_sums(
    columns: NDArray[np.float64], replicates: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Column sums (replicates, C) of N rows drawn with replacement from columns (N, C), in bounded memory."""
    n = len(columns)
    sums = np.empty((replicates, columns.shape[1]))
    for start, stop in spans(replicates, BLOCK_DRAWS // n):
        drawn = generator.integers(n, size=(stop - start, n)) + np.arange(stop - start)[:, None] * n
        weights = np.bincount(drawn.ravel(), minlength=(stop - start) * n).reshape(-1, n)
        sums[start:stop] = weights @ columns
    return sums


def resampled_shares(
    hits: NDArray[np.integer],
    totals: NDArray[np.integer],
    *,
    replicates: int,
    seed: int,
    level: float = 0.95,
) -> list[Estimate]:
    """Shares of hits (N, C) in totals (N, C), an estimate a column, with intervals from resampling the rows.

    Intervals are percentiles. A share of 0 or 1 has no width; few rows make intervals that are too narrow.

    Args:
        hits: what counts, by row.
        totals: out of how many, at least 1 everywhere.
        replicates: draws of N rows with replacement.
        seed: of the draws.
        level: coverage aimed at.
    """
    columns = np.concatenate([hits, totals], axis=1).astype(np.float64)
    sums = resampled_sums(columns, replicates, np.random.default_rng([seed, 0]))
    found, out_of = np.split(sums, 2, axis=1)
    lows, highs = np.quantile(found / out_of, [(1 - level) / 2, (1 + level) / 2], axis=0)
    values = hits.sum(axis=0) / totals.sum(axis=0)
    return [
        Estimate(value=float(value), low=float(low), high=float(high))
        for value, low, high in zip(values, lows, highs, strict=True)
    ]


def spans(total: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive blocks of at most `size`, at least 1, that cover `total`."""
    step = max(1, size)
    return ((start, min(start + step, total)) for start in range(0, total, step))
