"""Retrieval between speech and pictures (the paper's Table I).

Speech-to-image asks, for every caption, where its own picture ranks among all pictures; image-to-speech asks,
for every picture, where the best of its own captions ranks among the captions of all other pictures, so that
a picture is found when any of its captions is in the top k.

Ties: a competitor whose score equals that of the right answer counts as ranked ahead of it, in both
directions alike. A model that gives everything the same score is therefore last, never lucky.

Shape letters: N pictures, M captions, D embedding.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from vgsplus.errors import VgsplusError
from vgsplus.evaluation.embedding import embed_split
from vgsplus.evaluation.resampling import Estimate, resampled_sums, spans

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

    from vgsplus.corpora.format import Corpus
    from vgsplus.evaluation.embedding import JointModel

KS = (1, 5, 10)
DIRECTIONS = ("speech_to_image", "image_to_speech")
BLOCK_SCORES = 1 << 22  # scores compared at once
SHOWN = 5  # pictures kept for each caption of a gallery


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranks:
    """The rank of the right answer of every query, from 1: what every number below is made from.

    `speech_to_image` is (M,), `image_to_speech` is (N,), and `image_of_caption` (M,) is the row of each
    caption's picture; all int64.
    """

    speech_to_image: NDArray[np.int64]
    image_to_speech: NDArray[np.int64]
    image_of_caption: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectionScores:
    """One direction of retrieval: recall at each k, the median rank and the recall of a random ranking."""

    recall: dict[int, Estimate]
    median_rank: float
    chance: dict[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalScores:
    """Both directions over a test set of `images` pictures and `captions` spoken captions."""

    images: int
    captions: int
    speech_to_image: DirectionScores
    image_to_speech: DirectionScores

    def side(self, direction: str) -> DirectionScores:
        """The scores of one of `DIRECTIONS`."""
        return {"speech_to_image": self.speech_to_image, "image_to_speech": self.image_to_speech}[direction]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalResult:
    """What `evaluate` found: the scores, and {caption id: ids of the first pictures} for some captions."""

    split: str
    scores: RetrievalScores
    retrieved: dict[str, tuple[str, ...]]


def recall(
    similarity: NDArray[np.floating] | torch.Tensor,
    image_ids: Sequence[Hashable],
    caption_image_ids: Sequence[Hashable],
    ks: Sequence[int] = KS,
) -> dict[str, dict[int, float]]:
    """Recall at k in both directions (Table I).

    Args:
        similarity: (N, M) scores, pictures by captions, higher is closer.
        image_ids: N distinct picture ids, one a row.
        caption_image_ids: M ids, the picture each column's caption speaks of.
        ks: how many of the first answers count.

    Returns:
        {"speech_to_image": {k: share}, "image_to_speech": {k: share}}.

    Raises:
        VgsplusError: shapes and ids that do not fit together, an id without a match, nothing to rank, NaN.
    """
    found = ranks(similarity, image_ids, caption_image_ids)
    return {direction: _shares(getattr(found, direction), ks) for direction in DIRECTIONS}


def ranks(
    similarity: NDArray[np.floating] | torch.Tensor,
    image_ids: Sequence[Hashable],
    caption_image_ids: Sequence[Hashable],
) -> Ranks:
    """Rank the right answer of every query; arguments and errors as in `recall`.

    One pass over blocks of rows that counts the competitors at or above the right score: no sort, and memory
    for one block beside the matrix.
    """
    scores = _scores(similarity)
    rows = _match(scores.shape, image_ids, caption_image_ids)
    own = scores[rows, np.arange(len(rows))]
    _refuse_nan(own)
    best = np.full(len(scores), -np.inf)
    np.maximum.at(best, rows, own)
    best_of_row = best.astype(scores.dtype)
    ahead_of_picture = np.zeros(len(rows), dtype=np.int64)
    ahead_of_caption = np.empty(len(scores), dtype=np.int64)
    for start, stop in spans(len(scores), BLOCK_SCORES // len(rows)):
        block = scores[start:stop]
        _refuse_nan(block)
        ahead_of_picture += np.count_nonzero(block >= own, axis=0)
        ahead_of_caption[start:stop] = np.count_nonzero(block >= best_of_row[start:stop, None], axis=1)
    # The right picture counted itself; the captions of a picture are no competitors of each other.
    siblings = np.bincount(rows[own >= best_of_row[rows]], minlength=len(scores))
    return Ranks(
        speech_to_image=ahead_of_picture,
        image_to_speech=ahead_of_caption - siblings + 1,
        image_of_caption=rows,
    )


def median_rank(found: Ranks) -> dict[str, float]:
    """Median rank of the right answer, by direction."""
    return {direction: float(np.median(getattr(found, direction))) for direction in DIRECTIONS}


def chance(
    image_ids: Sequence[Hashable], caption_image_ids: Sequence[Hashable], ks: Sequence[int] = KS
) -> dict[str, dict[int, float]]:
    """Expected recall of a random ranking, exactly; returns and raises as `recall`.

    Speech-to-image k / N; image-to-speech, for a picture with c of the M captions, 1 - C(M - c, k) / C(M, k),
    averaged over the pictures.
    """
    rows = _match((len(image_ids), len(caption_image_ids)), image_ids, caption_image_ids)
    pictures, captions = len(image_ids), len(rows)
    sizes = Counter(np.bincount(rows, minlength=pictures).tolist())

    def any_of_own(k: int) -> float:
        missed = sum(n * (math.comb(captions - c, k) / math.comb(captions, k)) for c, n in sizes.items())
        return 1 - missed / pictures

    checked = _check_ks(ks)
    return {
        "speech_to_image": {k: min(k, pictures) / pictures for k in checked},
        "image_to_speech": {k: any_of_own(min(k, captions)) for k in checked},
    }


def bootstrap(
    found: Ranks, ks: Sequence[int] = KS, *, replicates: int = 2000, seed: int = 0, level: float = 0.95
) -> dict[str, dict[int, Estimate]]:
    """Recall with percentile intervals from resampling pictures, each with all of its captions.

    The captions of one picture are alike, so pictures are what is drawn. The intervals cover the choice of
    queries out of this candidate set, not the luck of a training run; a recall of 0 or 1 has no width.

    Args:
        found: ranks of a test set.
        ks: how many of the first answers count.
        replicates: draws of N pictures with replacement.
        seed: of the draws.
        level: coverage aimed at.
    """
    checked = _check_ks(ks)
    captions_of = np.bincount(found.image_of_caption, minlength=len(found.image_to_speech))
    hits = np.stack([_hits(found, k) for k in checked], axis=1)  # (N, K, 2)
    totals = np.stack([captions_of, np.ones_like(captions_of)], axis=1)  # (N, 2)
    columns = np.concatenate([hits.reshape(len(hits), -1), totals], axis=1).astype(np.float64)
    sums = resampled_sums(columns, replicates, np.random.default_rng([seed, 0]))
    shares = sums[:, :-2].reshape(-1, len(checked), 2) / sums[:, None, -2:]  # (replicates, K, 2)
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2], axis=0)
    values = hits.sum(axis=0) / totals.sum(axis=0)
    return {
        direction: {
            k: Estimate(value=float(values[i, d]), low=float(low[i, d]), high=float(high[i, d]))
            for i, k in enumerate(checked)
        }
        for d, direction in enumerate(DIRECTIONS)
    }


def score(
    similarity: NDArray[np.floating] | torch.Tensor,
    image_ids: Sequence[Hashable],
    caption_image_ids: Sequence[Hashable],
    ks: Sequence[int] = KS,
    *,
    replicates: int = 2000,
    seed: int = 0,
) -> RetrievalScores:
    """Recalls with intervals, median ranks and chance in one; arguments and errors as in `recall`."""
    found = ranks(similarity, image_ids, caption_image_ids)
    recalls = bootstrap(found, ks, replicates=replicates, seed=seed)
    medians = median_rank(found)
    random = chance(image_ids, caption_image_ids, ks)
    speech, image = (
        DirectionScores(recall=recalls[d], median_rank=medians[d], chance=random[d]) for d in DIRECTIONS
    )
    return RetrievalScores(
        images=len(image_ids), captions=len(caption_image_ids), speech_to_image=speech, image_to_speech=image
    )


def evaluate(
    model: JointModel,
    corpus: Corpus,
    split: str,
    *,
    ks: Sequence[int] = KS,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    replicates: int = 2000,
    gallery: int = 200,
    seed: int = 0,
) -> RetrievalResult:
    """Embed a split and score its retrieval by dot products (both directions, every picture and caption).

    Args:
        model: a model that already is on `device`; its train/eval modes are left as they were.
        corpus: a prepared corpus with pictures.
        split: name of a split.
        ks: how many of the first answers count.
        batch_size: captions, or pictures, in one pass.
        device: where the batches go.
        precision: dtype of autocast, None for none.
        replicates: bootstrap replicates.
        gallery: for how many captions the first pictures are kept, drawn by the seed and not by success.
        seed: of the bootstrap and of that draw.

    Raises:
        VgsplusError: as `embed_split` and `recall`.
    """
    embedded = embed_split(model, corpus, split, batch_size=batch_size, device=device, precision=precision)
    similarity = (embedded.images @ embedded.speech.T).numpy()
    spoken_of = [caption.image for caption in embedded.captions]
    scores = score(similarity, embedded.image_ids, spoken_of, ks, replicates=replicates, seed=seed)
    count = min(gallery, len(spoken_of))
    drawn = np.sort(np.random.default_rng([seed, 1]).choice(len(spoken_of), size=count, replace=False))
    rows = _match(similarity.shape, embedded.image_ids, spoken_of)[drawn]
    retrieved = {
        embedded.captions[column].id: tuple(embedded.image_ids[row] for row in top)
        for column, top in zip(drawn, top_images(similarity[:, drawn], rows), strict=True)
    }
    return RetrievalResult(split=split, scores=scores, retrieved=retrieved)


def top_images(
    similarity: NDArray[np.floating], rows: NDArray[np.int64], count: int = SHOWN
) -> NDArray[np.int64]:
    """Rows (M, count) of the pictures ranked first for each column, best first, ties as everywhere here."""
    order = np.lexsort((rows[None, :] == np.arange(len(similarity))[:, None], -similarity), axis=0)
    return np.ascontiguousarray(order[:count].T)


def _scores(similarity: NDArray[np.floating] | torch.Tensor) -> NDArray[np.floating]:
    if isinstance(similarity, torch.Tensor):
        similarity = similarity.detach().cpu()
        similarity = (similarity if similarity.dtype == torch.float64 else similarity.float()).numpy()
    scores = np.asarray(similarity)
    if scores.ndim != 2:
        raise VgsplusError(f"The similarity matrix must be (pictures, captions), not {scores.shape}.")
    return scores if scores.dtype.kind == "f" else scores.astype(np.float64)


def _refuse_nan(scores: NDArray[np.floating]) -> None:
    if np.isnan(scores).any():
        raise VgsplusError("The similarity matrix holds NaN: the embeddings behind it are not finite.")


def _match(
    shape: tuple[int, ...], image_ids: Sequence[Hashable], caption_image_ids: Sequence[Hashable]
) -> NDArray[np.int64]:
    """The row of each caption's picture (M,), once everything fits together."""
    images, spoken_of = _plain(image_ids), _plain(caption_image_ids)
    if shape != (len(images), len(spoken_of)):
        counts = f"{len(images)} pictures and {len(spoken_of)} captions"
        raise VgsplusError(f"The similarity matrix is {shape}, but there are ids of {counts}.")
    if not images or not spoken_of:
        raise VgsplusError("There is nothing to rank: no pictures or no captions.")
    row_of = {image: row for row, image in enumerate(images)}
    if len(row_of) != len(images):
        twice = next(image for image, times in Counter(images).items() if times > 1)
        raise VgsplusError(
            f"Picture {twice!r} has several rows in the similarity matrix; each needs exactly one."
        )
    unknown = next((image for image in spoken_of if image not in row_of), None)
    if unknown is not None:
        raise VgsplusError(
            f"A caption speaks of picture {unknown!r}, which is not among the pictures ranked."
        )
    silent = row_of.keys() - set(spoken_of)
    if silent:
        first = next(image for image in images if image in silent)
        raise VgsplusError(f"{len(silent)} pictures have no caption to be found by, the first is {first!r}.")
    return np.array([row_of[image] for image in spoken_of], dtype=np.int64)


def _plain(ids: Sequence[Hashable]) -> list[Hashable]:
    # Elements of a tensor hash by identity and would never match.
    return ids.tolist() if isinstance(ids, torch.Tensor | np.ndarray) else list(ids)


def _check_ks(ks: Sequence[int]) -> tuple[int, ...]:
    if not ks or any(k < 1 for k in ks):
        raise VgsplusError(f"Recall needs one k or several, each at least 1; got {tuple(ks)}.")
    return tuple(ks)


def _shares(found: NDArray[np.int64], ks: Sequence[int]) -> dict[int, float]:
    return {k: float(np.count_nonzero(found <= k) / len(found)) for k in _check_ks(ks)}


def _hits(found: Ranks, k: int) -> NDArray[np.int64]:
    """Hits (N, 2) of each picture: of its captions, and of itself."""
    pictures = len(found.image_to_speech)
    of_captions = np.bincount(found.image_of_caption[found.speech_to_image <= k], minlength=pictures)
    return np.stack([of_captions, (found.image_to_speech <= k).astype(np.int64)], axis=1)
