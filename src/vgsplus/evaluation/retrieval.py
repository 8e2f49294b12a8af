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
from vgsplus.evaluation.embeddings import embed_split
from vgsplus.evaluation.ranks import (
    Ranks,
    count_ranks,
    match_captions,
    tiles_of_embeddings,
    tiles_of_matrix,
)
from vgsplus.evaluation.resampling import Estimate, resampled_shares

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from vgsplus.corpora import Corpus
    from vgsplus.evaluation.embeddings import SplitEmbeddings
    from vgsplus.models.vgsplus import VGSPlus

KS = (1, 5, 10)
DIRECTIONS = ("speech_to_image", "image_to_speech")
BLOCK_SCORES = 1 << 22  # scores made and compared at once: 16 MB
SHOWN = 5  # pictures kept for each caption of a gallery


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

    Competitors at or above the right score are counted in tiles of the matrix, which is not copied.
    """
    scores = _scores(similarity)
    rows = match_captions(scores.shape, image_ids, caption_image_ids)
    return count_ranks(tiles_of_matrix(scores), rows, len(scores), BLOCK_SCORES)


def rank_embeddings(
    images: Tensor, speech: Tensor, image_ids: Sequence[Hashable], caption_image_ids: Sequence[Hashable]
) -> Ranks:
    """Rank the right answer of every query by dot products, in memory for `BLOCK_SCORES` of them.

    Args:
        images: (N, D) float tensor on the CPU.
        speech: (M, D), likewise.
        image_ids: as in `recall`.
        caption_image_ids: as in `recall`.

    Raises:
        VgsplusError: as in `recall`.
    """
    rows = match_captions((len(images), len(speech)), image_ids, caption_image_ids)
    return count_ranks(tiles_of_embeddings(images, speech), rows, len(images), BLOCK_SCORES)


def rank_split(embedded: SplitEmbeddings) -> Ranks:
    """Rank the right answers of an embedded split; errors as in `recall`."""
    spoken_of = [caption.image for caption in embedded.captions]
    return rank_embeddings(embedded.images, embedded.speech, embedded.image_ids, spoken_of)


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
    rows = match_captions((len(image_ids), len(caption_image_ids)), image_ids, caption_image_ids)
    return _chance(rows, len(image_ids), ks)


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
    checked = check_ks(ks)
    hits = np.concatenate([_hits(found, k) for k in checked], axis=1)  # (N, 2 K)
    captions_of = np.bincount(found.image_of_caption, minlength=len(hits))
    totals = np.tile(np.stack([captions_of, np.ones_like(captions_of)], axis=1), len(checked))
    shares = resampled_shares(hits, totals, replicates=replicates, seed=seed, level=level)
    return {
        direction: dict(zip(checked, shares[d :: len(DIRECTIONS)], strict=True))
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
    return score_ranks(found, ks, replicates=replicates, seed=seed)


def score_ranks(
    found: Ranks, ks: Sequence[int] = KS, *, replicates: int = 2000, seed: int = 0
) -> RetrievalScores:
    """Recalls with intervals, median ranks and chance of known ranks; arguments as in `bootstrap`."""
    recalls = bootstrap(found, ks, replicates=replicates, seed=seed)
    medians = median_rank(found)
    pictures, captions = len(found.image_to_speech), len(found.speech_to_image)
    random = _chance(found.image_of_caption, pictures, ks)
    speech, image = (
        DirectionScores(recall=recalls[d], median_rank=medians[d], chance=random[d]) for d in DIRECTIONS
    )
    return RetrievalScores(images=pictures, captions=captions, speech_to_image=speech, image_to_speech=image)


def evaluate(
    model: VGSPlus,
    corpus: Corpus,
    split: str,
    *,
    ks: Sequence[int] = KS,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    pad_to_max: bool = False,
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
        pad_to_max: as in `embed_split`.
        precision: dtype of autocast, None for none.
        replicates: bootstrap replicates.
        gallery: for how many captions the first pictures are kept, drawn by the seed and not by success.
        seed: of the bootstrap and of that draw.

    Raises:
        VgsplusError: as `embed_split` and `recall`.
    """
    embedded = embed_split(
        model,
        corpus,
        split,
        batch_size=batch_size,
        device=device,
        pad_to_max=pad_to_max,
        precision=precision,
    )
    found = rank_split(embedded)
    scores = score_ranks(found, ks, replicates=replicates, seed=seed)
    count = min(gallery, scores.captions)
    drawn = np.sort(np.random.default_rng([seed, 1]).choice(scores.captions, size=count, replace=False))
    similarity = (embedded.images @ embedded.speech[torch.from_numpy(drawn)].T).numpy()
    retrieved = {
        embedded.captions[column].id: tuple(embedded.image_ids[row] for row in top)
        for column, top in zip(drawn, top_images(similarity, found.image_of_caption[drawn]), strict=True)
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
    known = scores.dtype in (np.float16, np.float32, np.float64)
    return scores if known else scores.astype(np.float64)


def _chance(
    image_of_caption: NDArray[np.int64], pictures: int, ks: Sequence[int]
) -> dict[str, dict[int, float]]:
    captions = len(image_of_caption)
    sizes = Counter(np.bincount(image_of_caption, minlength=pictures).tolist())

    def any_of_own(k: int) -> float:
        missed = sum(n * (math.comb(captions - c, k) / math.comb(captions, k)) for c, n in sizes.items())
        return 1 - missed / pictures

    checked = check_ks(ks)
    return {
        "speech_to_image": {k: min(k, pictures) / pictures for k in checked},
        "image_to_speech": {k: any_of_own(min(k, captions)) for k in checked},
    }


def check_ks(ks: Sequence[int]) -> tuple[int, ...]:
    """The numbers of first answers that count, as they are.

    Raises:
        VgsplusError: there is none, or one below 1.
    """
    if not ks or any(k < 1 for k in ks):
        raise VgsplusError(f"Recall needs one k or several, each at least 1; got {tuple(ks)}.")
    return tuple(ks)


def _shares(found: NDArray[np.int64], ks: Sequence[int]) -> dict[int, float]:
    return {k: float(np.count_nonzero(found <= k) / len(found)) for k in check_ks(ks)}


def _hits(found: Ranks, k: int) -> NDArray[np.int64]:
    """Hits (N, 2) of each picture: of its captions, and of itself."""
    pictures = len(found.image_to_speech)
    of_captions = np.bincount(found.image_of_caption[found.speech_to_image <= k], minlength=pictures)
    return np.stack([of_captions, (found.image_to_speech <= k).astype(np.int64)], axis=1)
