"""From the times of ABX tokens to frames: which frames a token takes, and which frames are worth keeping."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import torch

from vgsplus.errors import CorpusError, VgsplusError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from vgsplus.evaluation.abx_items import Items

HALF = Fraction(1, 2)
HIGHEST_RATE = 10**6
"""Frames a second; above all sampling rates of sound, and far below what overflows."""


def check_finite(frames: Tensor, file: str) -> Tensor:
    """The frames (T, D) of a file as they are.

    Raises:
        VgsplusError: some are not finite.
    """
    if not bool(torch.isfinite(frames).all()):
        raise VgsplusError(f"Features of {file} are not finite. A model that gives such has diverged.")
    return frames


def frame_spans(items: Items, frame_rate: float | Fraction) -> NDArray[np.int64]:
    """The frames (n, 2) as [start, end) of each token: those whose centres lie from its onset to its offset.

    Frame t is centred at (t + 1/2) / frame_rate seconds. Times are computed as fractions, so that no rounding
    moves a frame that lies on an edge.

    Raises:
        VgsplusError: the rate is not a positive number, or too high to be one of frames.
        CorpusError: tokens too short to hold the centre of a frame, with their lines.
    """
    if not (math.isfinite(frame_rate) and 0 < frame_rate <= HIGHEST_RATE):
        raise VgsplusError(
            f"The frame rate must be a positive number of frames a second, {HIGHEST_RATE:,} at most, not "
            f"{frame_rate}."
        )
    rate = frame_rate if isinstance(frame_rate, Fraction) else Fraction(str(frame_rate))
    spans = np.array(
        [
            (
                math.ceil(Fraction(token.onset) * rate - HALF),
                math.floor(Fraction(token.offset) * rate - HALF) + 1,
            )
            for token in items.tokens
        ]
    )
    short = [items.tokens[index] for index in np.flatnonzero(spans[:, 1] <= spans[:, 0])]
    if short:
        raise CorpusError(
            [
                f"{items.where(token)}: {token.onset} to {token.offset} s holds the centre of no frame at "
                f"{float(rate):g} frames a second. Leave the line out."
                for token in short
            ]
        )
    return spans


class FrameTable:
    """Which frames of each file the tokens need, and where each token lies among the frames that are kept.

    Tokens overlap, so frames are kept once and tokens refer to them.

    Args:
        items: the item file. spans: its `frame_spans`.
        lead: frames by which the features lag behind those of `spans`.
        missing: frames that features may lack at the end of a file; tokens there are cut.

    Attributes:
        places: (n, 2) int64, [start, end) of each token among the kept frames, once every file was kept.
        cut: (n,) bool, tokens that lost frames at the end of their file.
    """

    def __init__(self, items: Items, spans: NDArray[np.int64], *, lead: int = 0, missing: int = 1) -> None:
        self.items, self.missing = items, missing
        self.places = np.zeros_like(spans)
        self.cut = np.zeros(len(spans), dtype=np.bool_)
        self._spans = spans - lead
        self._tokens_of = items.by_file()
        self._kept = 0

    @property
    def files(self) -> tuple[str, ...]:
        """The files that tokens name."""
        return tuple(self._tokens_of)

    def keep(self, file: str, num_frames: int) -> NDArray[np.int64]:
        """The frames of a file of `num_frames` that its tokens need, which the caller keeps in this order.

        Raises:
            VgsplusError: a token ends behind the frames.
        """
        indices = np.array(self._tokens_of[file])
        starts, ends = self._spans[indices].T
        # What the first frames of an encoder hear starts behind the start of the sound: nothing is lost but
        # the frames that it never makes.
        starts, clipped = np.maximum(starts, 0), np.minimum(ends, num_frames)
        wrong = (ends - num_frames > self.missing) | (clipped <= starts)
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            token = self.items.tokens[indices[first]]
            raise VgsplusError(
                f"{self.items.where(token)}: {token.onset} to {token.offset} s needs frames "
                f"{starts[first]} to {ends[first] - 1} of {file}, but there are features for {num_frames}. "
                "Check the frame rate, and that the features are of this sound, whole."
            )
        needed = np.zeros(num_frames, dtype=np.bool_)
        for start, end in zip(starts, clipped, strict=True):
            needed[start:end] = True
        order = np.cumsum(needed) - 1 + self._kept
        self.places[indices, 0], self.places[indices, 1] = order[starts], order[clipped - 1] + 1
        self.cut[indices] = ends > num_frames
        self._kept += int(needed.sum())
        return np.flatnonzero(needed)
