"""ABX errors: how often a phone is nearer to another phone than to itself (the paper's Table II).

A and X are tokens of one phone, B of another; the error is the share of triples in which X is nearer to B,
ties counting half. Within speakers all three are by one speaker, across speakers X is by another than A and
B. In context they also share the phones before and behind. Tokens are compared by dynamic time warping of the
angles between frames, normalised by the length of the path. Averages go over contexts (and speakers of X),
then over speakers, then over ordered pairs of phones, as in the ZeroSpeech challenges.

fastabx makes the cells and scores them. Its `FASTABX_WITH_LIBRILIGHT_BUG`, a setting of the whole process, is
never read: slices are cut here (`abx_frames`), so that both protocols can be computed side by side.

Shape letters: T frames of a file, D dimensions, N kept frames, n tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from fastabx import Dataset, EmptyTaskError, InMemoryAccessor, Score, Subsampler, Task
from torch import Tensor
from torch.nn import functional as F
from torchdtw import dtw_batch

from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.evaluation.abx_frames import FrameTable, check_finite, frame_spans
from vgsplus.evaluation.abx_items import read_items
from vgsplus.files import nfc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from fractions import Fraction
    from pathlib import Path

    from numpy.typing import NDArray

    from vgsplus.evaluation.abx_items import Items

CONDITIONS = ("within", "across")
CONTEXTS = ("within", "any")
PUBLISHED_GROUP, PUBLISHED_SPEAKERS, PUBLISHED_SEED = 10, 5, 0
"""Libri-Light's limits: tokens of A, B or X in a cell, speakers of X for one pair; and fastabx's seed."""
STEPS = 2.0**24
"""Angles are rounded to 1 / STEPS half-turns, so that their sums are exact."""
ALIKE = 1 - 1e-12
"""Cosine above which frames count as equal: the rounding errors of a thousand dimensions stay below it."""


def score(
    features: Mapping[str, NDArray[np.floating] | Tensor],
    item: str | Path,
    frame_rate: float | Fraction = 50.0,
    conditions: Sequence[str] = CONDITIONS,
    *,
    context: str = "within",
    as_published: bool = False,
) -> dict[str, float]:
    """ABX errors of features.

    Args:
        features: {file id: (T, D)}, frame t centred at (t + 1/2) / frame_rate seconds; compared in float32.
        item: an ABX item file (see `corpora.items`).
        frame_rate: frames a second.
        conditions: "within" speakers, "across" speakers, or both.
        context: "within" for equal phones before and behind (triphones), "any" to ignore these.
        as_published: as Libri-Light's program: without the last frame of every token (tokens of one frame
            fall out), with at most 10 tokens of A, B and X in a cell and 5 speakers of X.

    Returns:
        {condition: error in [0, 1]}; chance is 0.5.

    Raises:
        CorpusError: faults of the item file, all at once, each with its line; items without contexts for
            context "within".
        VgsplusError: features that are no real numbers (T, D), not finite, of different widths or too short
            for the items; an unknown condition or context; items of which no comparison can be made.
    """
    items = read_items(item, conditions=_known(conditions, CONDITIONS))
    spans = frame_spans(items, frame_rate)
    comparisons = Comparisons(items, spans, conditions, context=context, as_published=as_published)
    table = FrameTable(items, spans)
    # Lists and file systems differ in the Unicode form of names.
    names = {nfc(name): name for name in features} | {name: name for name in features}
    names |= {file: names[nfc(file)] for file in table.files if file not in names and nfc(file) in names}
    if absent := [indices[0] for file, indices in items.by_file().items() if file not in names]:
        firsts = [items.tokens[index] for index in absent]
        raise CorpusError(
            [f"{items.where(token)}: there are no features of {token.file}." for token in firsts]
        )
    kept = []
    for file in table.files:
        frames = _frames(features[names[file]], file)
        kept.append(check_finite(frames[table.keep(file, len(frames))], file))
    if len(widths := {frames.shape[1] for frames in kept}) > 1:
        raise VgsplusError(f"Features differ in width: {', '.join(map(str, sorted(widths)))} dimensions.")
    return comparisons.errors(torch.cat(kept), table)


def _frames(values: NDArray[np.floating] | Tensor, file: str) -> Tensor:
    """Features as a float32 tensor (T, D); raises VgsplusError where they are none."""
    try:
        frames = values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise VgsplusError(f"Features of {file} must be real numbers ({error}).") from None
    if frames.is_complex():
        raise VgsplusError(f"Features of {file} must be real numbers, not complex ones.")
    if frames.ndim != 2 or not frames.shape[1]:
        raise VgsplusError(f"Features of {file} must be (T, D), not {tuple(frames.shape)}.")
    return frames.float()


class Comparisons:
    """What an item file asks to compare, made once and scored on any features of one frame rate.

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
        _known(conditions, CONDITIONS)
        _known([context], CONTEXTS)
        if context == "within" and not items.has_contexts:
            raise CorpusError(
                f"{items.path}: its header names no contexts, and phones are to be compared within contexts. "
                "Add the columns prev-phone and next-phone, or context; or compare in any context "
                "(--context any)."
            )
        self.as_published = as_published
        # One frame less leaves nothing of a single frame; Libri-Light leaves such tokens out.
        self._used = np.flatnonzero(spans[:, 1] - spans[:, 0] > as_published)
        if not len(self._used):
            raise VgsplusError(
                f"{items.path}: every token has a single frame, which the published protocol drops."
            )
        self._labels = _labels(items, self._used)
        self._tasks = {name: self._task(items, name, context) for name in conditions}

    def errors(self, frames: Tensor, table: FrameTable) -> dict[str, float]:
        """{condition: error} of the kept frames (N, D), scored on the device where they are."""
        places = table.places[self._used]
        if self.as_published:
            # A token cut at the end of its file has lost its last frame already; one cut at the start to a
            # single frame keeps that.
            ends = places[:, 1] - ~table.cut[self._used]
            places[:, 1] = np.maximum(ends, places[:, 0] + 1)
        accessor = InMemoryAccessor(dict(enumerate(map(tuple, places.tolist()))), frames, frames.device)
        errors = {}
        for name, (task, levels) in self._tasks.items():
            task.dataset = Dataset(self._labels, accessor)
            scored = Score(task, angles, alignment=warp, progress=False)
            errors[name] = scored.collapse(levels=levels)
            task.dataset = self._without_features()
        return errors

    def _task(self, items: Items, condition: str, context: str) -> tuple[Task, list[str | tuple[str, ...]]]:
        around = ["prev-phone", "next-phone"] if context == "within" else []
        by, across = [*around, "speaker"], []
        if condition == "across":
            by, across = around, ["speaker"]
        limits = (PUBLISHED_GROUP, PUBLISHED_SPEAKERS, PUBLISHED_SEED)
        try:
            task = Task(
                self._without_features(),
                on="#phone",
                by=by,
                across=across,
                subsampler=Subsampler(*limits) if self.as_published else None,
            )
        except EmptyTaskError:
            what = "share the phones around them, " if context == "within" else ""
            who = "by one speaker, one of them " + ("twice" if condition == "within" else "by another too")
            raise VgsplusError(
                f"{items.path}: holds nothing to compare {condition} speakers: no two phones {what}are "
                f"spoken {who}. Give it more tokens, or score another condition or context."
            ) from None
        return task, [*([("next-phone", "prev-phone")] if around else []), "speaker"]

    def _without_features(self) -> Dataset:
        places = {index: (index, index + 1) for index in range(len(self._labels))}
        return Dataset(
            self._labels, InMemoryAccessor(places, torch.zeros(len(places), 1), torch.device("cpu"))
        )


def angles(x: Tensor, y: Tensor) -> Tensor:
    """Angles (n, m, S, T) between frames of x (n, S, D) and y (m, T, D), in half-turns: arccos(cosine) / π.

    In float64 and rounded, so that equal frames are at angle 0 and equal means of angles are equal: in
    float32, ties between tokens of different lengths are decided by rounding errors. A frame of zeros is at
    a right angle to everything.
    """
    (n, s, width), (m, t, _) = x.shape, y.shape
    left = F.normalize(x.reshape(-1, width).double(), dim=1)
    right = F.normalize(y.reshape(-1, width).double(), dim=1)
    cosines = left @ right.T
    cosines.masked_fill_(cosines > ALIKE, 1).masked_fill_(cosines < -ALIKE, -1)
    turns = cosines.acos_().mul_(STEPS / math.pi).round_().div_(STEPS)
    lattice = turns.view(n, s, m, t).transpose(1, 2)
    # fastabx aligns nothing where all tokens are single frames, and reduces float32 only.
    return lattice.float() if s == t == 1 else lattice


def warp(distances: Tensor, lengths_x: Tensor, lengths_y: Tensor, *, symmetric: bool) -> Tensor:
    """Mean angle (n, m) along the best path of dynamic time warping through distances (n, m, S, T)."""
    return dtw_batch(distances, lengths_x, lengths_y, symmetric=symmetric).float()


def _labels(items: Items, used: NDArray[np.int64]) -> pl.DataFrame:
    tokens = [items.tokens[index] for index in used]
    columns = {
        "#phone": [token.phone for token in tokens],
        "prev-phone": [token.previous for token in tokens],
        "next-phone": [token.following for token in tokens],
        "speaker": [token.speaker for token in tokens],
    }
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


def _known(names: Sequence[str], choices: Sequence[str]) -> Sequence[str]:
    if not names or (unknown := [name for name in names if name not in choices]):
        raise VgsplusError(
            f"Choose from {', '.join(choices)}; got {', '.join(unknown) if names else 'nothing'}."
        )
    return names
