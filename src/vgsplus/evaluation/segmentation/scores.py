"""Scores of a segmentation of speech into words.

A boundary, or a word by its start and end, is found if it is within a collar of one of the reference; each
counts for one of the other side at most. With hits, found and reference summed over all sounds:

    precision P = hits / found, recall R = hits / reference, F1 = 2 P R / (P + R)
    over-segmentation OS = found / reference - 1, which is R / P - 1
    R-value = 1 - (|r1| + |r2|) / 2 with r1 = √((1 - R)² + OS²), r2 = (R - 1 - OS) / √2

as by Räsänen, Laine and Altosaar (Interspeech 2009), who propose the R-value because recall, and with it F1,
rises with the number of boundaries at random places. The edges of an utterance are no boundaries, as by Peng
and Harwath (Interspeech 2022): neither the first start and last end of the reference, nor those of the words
found. Words are found if both their start and their end are, the edges included.

Shape letters: n rows of the reference, m rows found, k times of a row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDING = 1e-6
"""Seconds by which a collar is exceeded by the rounding of times, such as 0.35 - 0.3."""


@dataclass(slots=True)
class Counts:
    """Numbers of boundaries, or words: of the reference, found, and found within the collar."""

    reference: int = 0
    found: int = 0
    hits: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.reference + other.reference, self.found + other.found, self.hits + other.hits)

    @property
    def precision(self) -> float:
        """Share of those found that are hits; 0 if none was found."""
        return self.hits / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        """Share of the reference that are hits; NaN without a reference."""
        return self.hits / self.reference if self.reference else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN without a reference."""
        total = self.found + self.reference
        return 2 * self.hits / total if self.reference else math.nan

    @property
    def over_segmentation(self) -> float:
        """Return found / reference - 1, -1 if none was found; NaN without a reference."""
        return self.found / self.reference - 1 if self.reference else math.nan

    @property
    def r_value(self) -> float:
        """R-value, 1 for a perfect segmentation; NaN without a reference."""
        r1 = math.hypot(1 - self.recall, self.over_segmentation)
        r2 = (self.recall - 1 - self.over_segmentation) / math.sqrt(2)
        return 1 - (abs(r1) + abs(r2)) / 2


@dataclass(slots=True)
class SegmentationCounts:
    """Counts of inner boundaries and of words, which add up over sounds."""

    boundaries: Counts = field(default_factory=Counts)
    words: Counts = field(default_factory=Counts)

    def __add__(self, other: "SegmentationCounts") -> "SegmentationCounts":
        return SegmentationCounts(self.boundaries + other.boundaries, self.words + other.words)


def count_hits(reference: ArrayLike, found: ArrayLike, collar: float) -> Counts:
    """Count the most pairs of a row of each that differ by `collar` seconds at most in each time.

    Args:
        reference: (n, k), every column ascending.
        found: (m, k), every column ascending.
        collar: in seconds.
    """
    wanted, given = np.asarray(reference, dtype=np.float64), np.asarray(found, dtype=np.float64)
    counts, limit = Counts(len(wanted), len(given)), collar + ROUNDING
    row = column = 0
    # As all columns ascend, a row that is too early for one is too early for all that follow it.
    while row < len(wanted) and column < len(given):
        difference = given[column] - wanted[row]
        if (np.abs(difference) <= limit).all():
            counts.hits += 1
            row, column = row + 1, column + 1
        elif (difference < -limit).any():
            column += 1
        else:
            row += 1
    return counts


def compare(
    words: Sequence[tuple[float, float]], boundaries: Sequence[float], collar: float, gap: float
) -> SegmentationCounts:
    """Compare the words of a sound with those found between boundaries.

    Args:
        words: start and end of each word of the reference in seconds, in order, at least one.
        boundaries: in seconds, ascending; each word found lasts from one to the next.
        collar: in seconds.
        gap: seconds between two words up to which end and start are one boundary, midway; those of a longer
            pause are two.
    """
    edges: NDArray[np.float64] = np.asarray(words, dtype=np.float64)
    inner: list[float] = []
    for end, start in zip(edges[:-1, 1], edges[1:, 0], strict=True):
        inner += [(end + start) / 2] if start - end <= gap + ROUNDING else [end, start]
    found = np.asarray(boundaries, dtype=np.float64)
    return SegmentationCounts(
        count_hits(np.asarray(inner)[:, None], found[1:-1, None], collar),
        count_hits(edges, np.stack([found[:-1], found[1:]], axis=1), collar),
    )
