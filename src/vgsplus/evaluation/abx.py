"""ABX errors: how often a phone is nearer to another phone than to itself (the paper's Table II).

A and X are tokens of one phone, B of another; the error is the share of triples in which X is nearer to B,
ties counting half. Within speakers all three are by one speaker; across speakers X is by another speaker than
A and B. In context they also share the preceding and the following phone. Tokens are compared by dynamic time
warping over the angles between frames, divided by the length of the path. Averages are taken over contexts
(and speakers of X), then over speakers, then over ordered pairs of phones, as in the ZeroSpeech challenges.

fastabx builds and scores the cells. Its environment variable `FASTABX_WITH_LIBRILIGHT_BUG` has no effect: the
frames of a token are sliced here (`TokenFrames`), so that both protocols can be computed in one process.

Shape letters: T frames of a file, D dimensions, N selected frames, n tokens.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl
import torch
from fastabx import Dataset, EmptyTaskError, InMemoryAccessor, Score, Subsampler, Task
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchdtw import dtw_batch

from vgsplus.corpora.items import Items
from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.evaluation.abx_items import read_items
from vgsplus.evaluation.hidden_states import check_finite
from vgsplus.files import nfc

CONDITIONS = ("within", "across")
CONTEXTS = ("within", "any")
PUBLISHED_GROUP, PUBLISHED_SPEAKERS, PUBLISHED_SEED = 10, 5, 0
"""Libri-Light's limits (tokens of A, B or X in a cell; speakers of X for one pair), and fastabx's seed."""
ANGLE_RESOLUTION = 2.0**24
"""Angles are rounded to 1 / ANGLE_RESOLUTION half-turns, so that their sums are exact."""
COSINE_TOLERANCE = 1 - 1e-12
"""Cosine above which frames are equal; rounding errors over a thousand dimensions are smaller."""
HALF = Fraction(1, 2)
HIGHEST_RATE = 10**6
"""Frames per second; higher than the sampling rate of any sound, and far from overflow."""


def score(
    features: Mapping[str, NDArray[np.floating] | Tensor],
    item: str | Path,
    frame_rate: float | Fraction = 50.0,
    conditions: Sequence[str] = CONDITIONS,
    *,
    context: str = "within",
    as_published: bool = False,
) -> dict[str, float]:
    """Return the ABX errors of features.

    Args:
        features: {file id: (T, D)}, frame t centred at (t + 1/2) / frame_rate seconds; compared in float32.
        item: an ABX item file (see `corpora.items`).
        frame_rate: frames per second.
        conditions: "within" speakers, "across" speakers, or both.
        context: "within" to require the same preceding and following phone (triphones), "any" to ignore them.
        as_published: whether to score as Libri-Light's program does: without the last frame of every token
            (tokens of one frame are skipped), with at most 10 tokens of A, B and X in a cell and 5 speakers
            of X.

    Returns:
        {condition: error in [0, 1]}; chance is 0.5.

    Raises:
        CorpusError: all faults of the item file, each with its line; items without contexts for
            context "within".
        VgsplusError: features that are not real numbers (T, D), not finite, of different widths or too short
            for the items; an unknown condition or context; items with nothing to compare.
    """
    items = read_items(item, conditions=_check_names(conditions, CONDITIONS))
    spans = frame_spans(items, frame_rate)
    scorer = AbxScorer(items, spans, conditions, context=context, as_published=as_published)
    tokens = TokenFrames(items, spans)
    # Item files and file systems may differ in the Unicode form of names.
    names = {nfc(name): name for name in features} | {name: name for name in features}
    names |= {file: names[nfc(file)] for file in tokens.files if file not in names and nfc(file) in names}
    if absent := [indices[0] for file, indices in items.by_file().items() if file not in names]:
        firsts = [items.tokens[index] for index in absent]
        raise CorpusError(
            [f"{items.where(token)}: there are no features of {token.file}." for token in firsts]
        )
    selected = []
    for file in tokens.files:
        frames = _as_frames(features[names[file]], file)
        selected.append(check_finite(frames[tokens.select(file, len(frames))], f"Features of {file}"))
    if len(widths := {frames.shape[1] for frames in selected}) > 1:
        raise VgsplusError(f"Features differ in width: {', '.join(map(str, sorted(widths)))} dimensions.")
    return scorer.errors(torch.cat(selected), tokens)


def _as_frames(values: NDArray[np.floating] | Tensor, file: str) -> Tensor:
    try:
        frames = values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise VgsplusError(f"Features of {file} must be real numbers ({error}).") from None
    if frames.is_complex():
        raise VgsplusError(f"Features of {file} must be real numbers, not complex ones.")
    if frames.ndim != 2 or not frames.shape[1]:
        raise VgsplusError(f"Features of {file} must be (T, D), not {tuple(frames.shape)}.")
    return frames.float()


class AbxScorer:
    """The comparisons of an item file, made once and scored on any features of one frame rate.

    Arguments and errors as in `score`; `spans` are the items' `frame_spans`.
    """

    def __init__(
        self,
        items: Items,
        spans: NDArray[np.int64],
        conditions: Sequence[str] = CONDITIONS,
        *,
        context: str = "within",
        as_published: bool = False,
    ) -> None:
        _check_names(conditions, CONDITIONS)
        _check_names([context], CONTEXTS)
        if context == "within" and not items.has_contexts:
            raise CorpusError(
                f"{items.path}: its header names no contexts, which comparisons within contexts require. "
                "Add the columns prev-phone and next-phone, or context; or compare in any context "
                "(--context any)."
            )
        self.as_published = as_published
        # Libri-Light drops the last frame of every token, so nothing is left of tokens of a single frame.
        self._used = np.flatnonzero(spans[:, 1] - spans[:, 0] > as_published)
        if not len(self._used):
            raise VgsplusError(
                f"{items.path}: every token has a single frame, which the published protocol drops."
            )
        used = [items.tokens[index] for index in self._used]
        labels = {
            "#phone": [token.phone for token in used],
            "prev-phone": [token.previous for token in used],
            "next-phone": [token.following for token in used],
            "speaker": [token.speaker for token in used],
        }
        self._labels = pl.DataFrame(labels, schema=dict.fromkeys(labels, pl.String))
        self._tasks = {name: self._task(items, name, context) for name in conditions}

    def errors(self, frames: Tensor, tokens: "TokenFrames") -> dict[str, float]:
        """Return {condition: error} of the selected frames (N, D), scored on their device."""
        slices = tokens.slices[self._used]
        if self.as_published:
            # A token truncated at the end of its file has already lost its last frame; one truncated at the
            # start to a single frame keeps that.
            ends = slices[:, 1] - ~tokens.truncated[self._used]
            slices[:, 1] = np.maximum(ends, slices[:, 0] + 1)
        accessor = InMemoryAccessor(dict(enumerate(map(tuple, slices.tolist()))), frames, frames.device)
        errors = {}
        for name, (task, levels) in self._tasks.items():
            copied = copy.copy(task)  # the scorer keeps no features
            copied.dataset = Dataset(self._labels, accessor)
            scored = Score(copied, angular_distance, alignment=dtw_distance, progress=False)
            errors[name] = scored.collapse(levels=levels)
        return errors

    def _task(self, items: Items, condition: str, context: str) -> tuple[Task, list[str | tuple[str, ...]]]:
        """Return fastabx's task of a condition, and the columns over which scores are averaged, in order."""
        neighbours = ["prev-phone", "next-phone"] if context == "within" else []
        by, across = [*neighbours, "speaker"], []
        if condition == "across":
            by, across = neighbours, ["speaker"]
        limits = (PUBLISHED_GROUP, PUBLISHED_SPEAKERS, PUBLISHED_SEED)
        frames = torch.zeros(len(self._labels), 1)  # cells are made from the labels alone
        accessor = InMemoryAccessor({n: (n, n + 1) for n in range(len(frames))}, frames, frames.device)
        try:
            task = Task(
                Dataset(self._labels, accessor),
                on="#phone",
                by=by,
                across=across,
                subsampler=Subsampler(*limits) if self.as_published else None,
            )
        except EmptyTaskError:
            same = " between the same phones" if context == "within" else ""
            who = "one of them twice" if condition == "within" else "one of which another speaker says too"
            raise VgsplusError(
                f"{items.path}: there is nothing to compare {condition} speakers: no speaker says two "
                f"phones{same}, {who}. Add tokens, or choose another condition or context."
            ) from None
        return task, [*([("next-phone", "prev-phone")] if neighbours else []), "speaker"]


def angular_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return the angles (n, m, S, T) between frames of x (n, S, D) and y (m, T, D): arccos(cosine) / π.

    In float64 and rounded, so that equal frames are at angle 0 and equal means of angles are equal: in
    float32, ties between tokens of different lengths are decided by rounding errors. A frame of zeros is at
    a right angle to everything.
    """
    (n, s, width), (m, t, _) = x.shape, y.shape
    left = F.normalize(x.reshape(-1, width).double(), dim=1)
    right = F.normalize(y.reshape(-1, width).double(), dim=1)
    cosines = left @ right.T
    cosines.masked_fill_(cosines > COSINE_TOLERANCE, 1).masked_fill_(cosines < -COSINE_TOLERANCE, -1)
    turns = cosines.acos_().mul_(ANGLE_RESOLUTION / math.pi).round_().div_(ANGLE_RESOLUTION)
    lattice = turns.view(n, s, m, t).transpose(1, 2)
    # If all tokens are single frames, fastabx does not call `dtw_distance`, and requires float32.
    return lattice.float() if s == t == 1 else lattice


def dtw_distance(distances: Tensor, lengths_x: Tensor, lengths_y: Tensor, *, symmetric: bool) -> Tensor:
    """Return the mean angle (n, m) along the cheapest warping path through distances (n, m, S, T)."""
    return dtw_batch(distances, lengths_x, lengths_y, symmetric=symmetric).float()


def _check_names(names: Sequence[str], choices: Sequence[str]) -> Sequence[str]:
    if not names or (unknown := [name for name in names if name not in choices]):
        raise VgsplusError(
            f"Choose from {', '.join(choices)}; got {', '.join(unknown) if names else 'nothing'}."
        )
    return names


# ---- frames of tokens --------------------------------------------------------------------------------------


def frame_spans(items: Items, frame_rate: float | Fraction) -> NDArray[np.int64]:
    """Return the frames (n, 2) as [start, end) of each token: those centred between its onset and offset.

    Frame t is centred at (t + 1/2) / frame_rate seconds. Times are computed as fractions, so that no rounding
    moves a frame on an edge.

    Raises:
        VgsplusError: the rate is not a positive number, or too high.
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
                f"{float(rate):g} frames a second. Remove the line."
                for token in short
            ]
        )
    return spans


class TokenFrames:
    """Select the frames of each file that tokens need, once each, and locate the tokens among them.

    Args:
        items: the item file.
        spans: its `frame_spans`.
        frame_shift: number of frames to subtract from `spans` (see `receptive_field_shift`).
        tolerance: number of frames that may be missing at the end of a file; tokens there are truncated.

    Attributes:
        files: the files of the items, in their order.
        slices: (n, 2) int64, [start, end) of each token among the selected frames; valid once `select` was
            called for every file.
        truncated: (n,) bool, whether a token lost frames at the end of its file.
    """

    def __init__(
        self, items: Items, spans: NDArray[np.int64], *, frame_shift: int = 0, tolerance: int = 1
    ) -> None:
        self.items, self.tolerance = items, tolerance
        self.slices = np.zeros_like(spans)
        self.truncated = np.zeros(len(spans), dtype=np.bool_)
        self._spans = spans - frame_shift
        self._tokens_of = items.by_file()
        self.files = tuple(self._tokens_of)
        self._selected = 0

    def select(self, file: str, num_frames: int) -> NDArray[np.int64]:
        """Return the indices of the frames, of `num_frames`, that the tokens of a file need.

        Call it once per file; `slices` refers to the selected frames in the order of the calls.

        Raises:
            VgsplusError: a token ends after the frames.
        """
        indices = np.array(self._tokens_of[file])
        starts, ends = self._spans[indices].T
        # An encoder without padding has no frames centred near the edges of a sound.
        starts, clipped = np.maximum(starts, 0), np.minimum(ends, num_frames)
        wrong = (ends - num_frames > self.tolerance) | (clipped <= starts)
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            token = self.items.tokens[indices[first]]
            raise VgsplusError(
                f"{self.items.where(token)}: {token.onset} to {token.offset} s needs frames "
                f"{starts[first]} to {ends[first] - 1} of {file}, but there are features for {num_frames}. "
                "Check the frame rate, and that the features are of this complete sound."
            )
        needed = np.zeros(num_frames, dtype=np.bool_)
        for start, end in zip(starts, clipped, strict=True):
            needed[start:end] = True
        order = np.cumsum(needed) - 1 + self._selected
        self.slices[indices, 0], self.slices[indices, 1] = order[starts], order[clipped - 1] + 1
        self.truncated[indices] = ends > num_frames
        self._selected += int(needed.sum())
        return np.flatnonzero(needed)
