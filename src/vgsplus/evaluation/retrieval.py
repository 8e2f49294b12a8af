"""Retrieval between speech and images (the paper's Table I).

Speech-to-image: the rank of every caption's own image among all images. Image-to-speech: the rank of the best
of an image's own captions among the captions of all other images, so that an image counts as found if any of
its captions is in the top k.

Ties: a competitor whose score equals that of the right answer ranks ahead of it, in both directions. A model
that gives everything the same score is therefore last.

Intervals are percentiles of a bootstrap over images, each drawn with all of its captions, because the
captions of an image are correlated. They cover the choice of queries among these candidates, not the
variation between training runs. A share of 0 or 1 has an interval of zero width, and with few images
intervals are too narrow.

Shape letters: N images, M captions, D embedding, K values of k.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vgsplus.audio import SAMPLE_RATE
from vgsplus.corpora import Caption
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.embeddings import SplitEmbeddings
from vgsplus.evaluation.ranks import Ranks, rank_embeddings, rank_matrix

KS = (1, 5, 10)
DIRECTIONS = ("speech_to_image", "image_to_speech")
COVERAGE = 0.95
REPLICATES = 2000
BLOCK_DRAWS = 1 << 20
"""Rows that the bootstrap draws at a time."""
GALLERY_IMAGES = 5
"""Images stored for each caption of a gallery."""
QUARTERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A share in [0, 1] and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectionScores:
    """One direction of retrieval: recall at each k, the median rank and the recall of a random ranking."""

    recall: dict[int, Estimate]
    median_rank: float
    chance: dict[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalScores:
    """Both directions over a test set of `images` images and `captions` spoken captions."""

    images: int
    captions: int
    speech_to_image: DirectionScores
    image_to_speech: DirectionScores

    def direction(self, direction: str) -> DirectionScores:
        """Return the scores of one of `DIRECTIONS`."""
        return {"speech_to_image": self.speech_to_image, "image_to_speech": self.image_to_speech}[direction]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalResult:
    """The scores of a split, and {caption id: ids of the first images} for some of its captions."""

    split: str
    scores: RetrievalScores
    retrieved: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartScores:
    """Speech-to-image retrieval with a part of the captions as queries.

    The part is a speaker, or "quarter 1" to "quarter 4". It has `captions` captions of `images` images,
    `shortest` to `longest` seconds long. Intervals of the recall {k: recall} are from a bootstrap over these
    images.
    """

    name: str
    captions: int
    images: int
    shortest: float
    longest: float
    recall: dict[int, Estimate]
    median_rank: float


# ---- scores -----------------------------------------------------------------------------------------------


def recall(
    similarity: NDArray[np.floating] | torch.Tensor,
    image_ids: Sequence[Hashable],
    caption_image_ids: Sequence[Hashable],
    ks: Sequence[int] = KS,
) -> dict[str, dict[int, float]]:
    """Return the recall at k in both directions (Table I).

    Args:
        similarity: (N, M) scores, images by captions, higher is closer.
        image_ids: N distinct ids, one per row.
        caption_image_ids: M ids, the image of the caption of each column.
        ks: values of k.

    Returns:
        {"speech_to_image": {k: recall}, "image_to_speech": {k: recall}}, in [0, 1].

    Raises:
        VgsplusError: shapes and ids that do not fit together, an id without a match, nothing to rank, NaN.
    """
    ranks, checked = rank_matrix(similarity, image_ids, caption_image_ids), _check_ks(ks)
    return {
        direction: {k: float(np.mean(getattr(ranks, direction) <= k)) for k in checked}
        for direction in DIRECTIONS
    }


def score(
    ranks: Ranks, ks: Sequence[int] = KS, *, replicates: int = REPLICATES, seed: int = 0
) -> RetrievalScores:
    """Compute recalls at `ks` with intervals, median ranks and chance from the ranks of a test set.

    The bootstrap draws `replicates` times N images, from `seed`.
    """
    recalls, random = bootstrap(ranks, ks, replicates=replicates, seed=seed), chance(ranks, ks)
    speech, image = (
        DirectionScores(
            recall=recalls[direction],
            median_rank=float(np.median(getattr(ranks, direction))),
            chance=random[direction],
        )
        for direction in DIRECTIONS
    )
    return RetrievalScores(
        images=len(ranks.image_to_speech),
        captions=len(ranks.speech_to_image),
        speech_to_image=speech,
        image_to_speech=image,
    )


def chance(ranks: Ranks, ks: Sequence[int] = KS) -> dict[str, dict[int, float]]:
    """Return the exact expected recall of a random ranking, {direction: {k: share}}.

    From speech to image it is k / N; from image to speech, for an image with c of the M captions,
    1 - C(M - c, k) / C(M, k), averaged over the images.
    """
    images, captions = len(ranks.image_to_speech), len(ranks.speech_to_image)
    sizes = Counter(np.bincount(ranks.image_of_caption, minlength=images).tolist())

    def any_of_own(k: int) -> float:
        missed = sum(n * (math.comb(captions - c, k) / math.comb(captions, k)) for c, n in sizes.items())
        return 1 - missed / images

    checked = _check_ks(ks)
    return {
        "speech_to_image": {k: min(k, images) / images for k in checked},
        "image_to_speech": {k: any_of_own(min(k, captions)) for k in checked},
    }


def bootstrap(
    ranks: Ranks, ks: Sequence[int] = KS, *, replicates: int = REPLICATES, seed: int = 0
) -> dict[str, dict[int, Estimate]]:
    """Return recall with intervals, {direction: {k: estimate}}; arguments as in `score`."""
    groups = {
        "speech_to_image": ranks.image_of_caption,
        "image_to_speech": np.arange(len(ranks.image_to_speech)),
    }
    return {
        direction: _resample(getattr(ranks, direction), groups[direction], ks, replicates, seed)
        for direction in DIRECTIONS
    }


def breakdown(
    captions: Sequence[Caption],
    ranks: Ranks,
    by: Literal["speaker", "length"],
    ks: Sequence[int] = KS,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> tuple[PartScores, ...]:
    """Score speech-to-image retrieval of each speaker or length; images of the entire split compete.

    Args:
        captions: M captions of a split.
        ranks: their ranks, in this order.
        by: "speaker", sorted by decreasing number of captions, or "length", quarters sorted by increasing
            length; captions of equal length are in one quarter, so quarters may differ in size or be empty.
        ks: values of k.
        replicates: number of bootstrap replicates.
        seed: seed of the bootstrap.

    Raises:
        VgsplusError: no k, or one below 1.
    """
    seconds = np.array([caption.num_samples for caption in captions]) / SAMPLE_RATE
    if by == "speaker":
        names, group = np.unique([caption.speaker for caption in captions], return_inverse=True)
        order = np.argsort(-np.bincount(group), kind="stable")
    else:
        names = np.array([f"quarter {n + 1}" for n in range(QUARTERS)])
        edges = np.quantile(seconds, np.arange(1, QUARTERS) / QUARTERS)
        group = np.searchsorted(edges, seconds, side="left")
        order = np.unique(group)

    parts = []
    for n in order:
        members = group == n
        own_ranks, lengths = ranks.speech_to_image[members], seconds[members]
        images, image = np.unique(ranks.image_of_caption[members], return_inverse=True)
        parts.append(
            PartScores(
                name=str(names[n]),
                captions=len(own_ranks),
                images=len(images),
                shortest=float(lengths.min()),
                longest=float(lengths.max()),
                recall=_resample(own_ranks, image, ks, replicates, seed),
                median_rank=float(np.median(own_ranks)),
            )
        )
    return tuple(parts)


def _check_ks(ks: Sequence[int]) -> tuple[int, ...]:
    if not ks or any(k < 1 for k in ks):
        raise VgsplusError(f"Recall needs one k or several, each at least 1; got {tuple(ks)}.")
    return tuple(ks)


def _resample(
    ranks: NDArray[np.int64], images: NDArray[np.int64], ks: Sequence[int], replicates: int, seed: int
) -> dict[int, Estimate]:
    """Return {k: recall} of Q queries, from their ranks (Q,) and images (Q,), which are numbers below N."""
    checked = _check_ks(ks)
    hits = np.stack([ranks <= k for k in checked], axis=1)
    return dict(zip(checked, bootstrap_means(hits, images, replicates=replicates, seed=seed), strict=True))


def bootstrap_means(
    values: NDArray[np.generic], groups: NDArray[np.int64], *, replicates: int = REPLICATES, seed: int = 0
) -> list[Estimate]:
    """Return means with 95 % intervals, percentiles of a bootstrap over groups with all of their values.

    Args:
        values: (Q, C) shares, of which each column is averaged.
        groups: (Q,) numbers from 0 to N - 1, each with one value or more.
        replicates: number of bootstrap replicates.
        seed: seed of the bootstrap.

    Returns:
        C estimates.
    """
    sums = [np.bincount(groups, weights=column) for column in values.T]
    columns = np.stack([*sums, np.bincount(groups)], axis=1)
    n, totals = len(columns), np.empty((replicates, columns.shape[1]))
    generator = np.random.default_rng([seed, 0])
    step = max(1, BLOCK_DRAWS // n)
    for start in range(0, replicates, step):
        count = min(step, replicates - start)
        drawn = generator.integers(n, size=(count, n)) + np.arange(count)[:, None] * n
        weights = np.bincount(drawn.ravel(), minlength=count * n).reshape(-1, n)
        totals[start : start + count] = weights @ columns
    levels = [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]
    lows, highs = np.quantile(totals[:, :-1] / totals[:, -1:], levels, axis=0)
    return [
        Estimate(value=float(value), low=float(low), high=float(high))
        for value, low, high in zip(values.mean(axis=0), lows, highs, strict=True)
    ]


# ---- a split ----------------------------------------------------------------------------------------------


def rank_split(embedded: SplitEmbeddings) -> Ranks:
    """Rank the right answers of an embedded split by dot products."""
    caption_image_ids = [caption.image for caption in embedded.captions]
    return rank_embeddings(embedded.images, embedded.speech, embedded.image_ids, caption_image_ids)


def evaluate(
    embedded: SplitEmbeddings,
    ks: Sequence[int] = KS,
    *,
    replicates: int = REPLICATES,
    gallery: int = 200,
    seed: int = 0,
) -> RetrievalResult:
    """Score the retrieval of an embedded split by dot products, over all of its images and captions.

    Also returns the first images of `gallery` captions, drawn from `seed`. Other arguments are as in `score`.
    """
    ranks = rank_split(embedded)
    scores = score(ranks, ks, replicates=replicates, seed=seed)
    count = min(gallery, scores.captions)
    drawn = np.sort(np.random.default_rng([seed, 1]).choice(scores.captions, size=count, replace=False))
    similarity = (embedded.images @ embedded.speech[torch.from_numpy(drawn)].T).numpy()
    retrieved = {
        embedded.captions[column].id: tuple(embedded.image_ids[row] for row in top)
        for column, top in zip(drawn, top_images(similarity, ranks.image_of_caption[drawn]), strict=True)
    }
    return RetrievalResult(split=embedded.split, scores=scores, retrieved=retrieved)


def top_images(
    similarity: NDArray[np.floating], rows: NDArray[np.int64], count: int = GALLERY_IMAGES
) -> NDArray[np.int64]:
    """Return the rows (M, count) of the highest scores per column; among ties the right row is last."""
    order = np.lexsort((rows[None, :] == np.arange(len(similarity))[:, None], -similarity), axis=0)
    return np.ascontiguousarray(order[:count].T)
