"""The measure of the semantic test of Khorrami and Räsänen (2024), from similarities.

A spoken word of category c is compared with all M pictures: the own ones, which show c, and the q others. An
own picture p has the rank r(p) among itself and the others; own pictures do not compete with each other. The
published score of a word is the mean of

    D(p) = (number of other pictures less similar to the word than p) / (M - 1)

over its own pictures, and that of a set the mean over its recordings. This is taken from their program, not
from the text of their paper (arXiv:2406.05259): `measure_3` of semtest.py in the public repository
khazarkhorrami/visual-familiarity, which also rounds every D to three decimals. The maximum is q / (M - 1):
0.988 with their 1,600 pictures, 20 of each category. `score` divides by q instead,

    1 - (r(p) - 1) / q,

the probability that an own picture is more similar to the word than another one: chance is 0.5 and the
maximum 1, whatever the sizes of the categories.

Ties count against the model, as in retrieval: of equally similar pictures the others come first.

Intervals are percentiles of a bootstrap over words, each drawn with all of its recordings; that of a word is
over its recordings. They cover the choice of these, not that of the pictures or the training.

Shape letters: N recordings of spoken words, M pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from vgsplus.errors import VgsplusError
from vgsplus.evaluation.retrieval import REPLICATES, Estimate, bootstrap_means

CHANCE = 0.5
"""Expected score of similarities at random."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SemanticScores:
    """Scores of the recordings of spoken words, and of the set.

    Attributes:
        rank: (N,) mean rank of the own pictures, from 1.
        score: (N,) mean over the own pictures, in [0, 1].
        published: (N,) the same, divided by M - 1 instead of the number of other pictures.
        mean: mean score of all recordings, with its interval.
        published_mean: that of `published`.
        published_chance: expected published mean of similarities at random; the maximum is twice that.
        by_word: mean score of each word, with its interval, in ASCII order of the words.
    """

    rank: NDArray[np.float64]
    score: NDArray[np.float64]
    published: NDArray[np.float64]
    mean: Estimate
    published_mean: Estimate
    published_chance: float
    by_word: dict[str, Estimate]


def semantic_scores(
    similarity: NDArray[np.floating] | torch.Tensor,
    own: NDArray[np.bool_],
    words: Sequence[str],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> SemanticScores:
    """Score spoken words by their similarities to pictures.

    Args:
        similarity: (N, M), recordings by pictures, higher is closer.
        own: (N, M), whether a picture shows what the word names.
        words: N words, by which recordings are drawn together in the bootstrap.
        replicates: number of bootstrap replicates.
        seed: seed of the bootstrap.

    Raises:
        VgsplusError: shapes that do not fit together, no recordings, NaN, or a recording for which all
            pictures are own ones, or none.
    """
    values = np.asarray(similarity.detach().cpu() if isinstance(similarity, torch.Tensor) else similarity)
    if values.ndim != 2 or values.shape != own.shape or len(values) != len(words) or not len(words):
        raise VgsplusError(
            f"Similarities {values.shape}, own pictures {own.shape} and {len(words)} words do not match."
        )
    if np.isnan(values).any():
        raise VgsplusError("The similarities hold NaN: the embeddings are not finite.")
    number_own = own.sum(axis=1)
    others = own.shape[1] - number_own
    if wrong := [word for word, n, q in zip(words, number_own, others, strict=True) if not (n and q)]:
        raise VgsplusError(
            f"The word {wrong[0]!r} needs pictures of its own and others to compare them with."
        )
    # Mean number of other pictures that are less similar than an own one.
    below = np.array(
        [
            np.searchsorted(np.sort(row[~mask]), row[mask], side="left").mean()
            for row, mask in zip(values, own, strict=True)
        ]
    )
    score, published = below / others, below / (own.shape[1] - 1)
    names, word = np.unique(np.asarray(words, dtype=object), return_inverse=True)
    bootstrap = partial(bootstrap_means, replicates=replicates, seed=seed)
    mean, published_mean = bootstrap(np.stack([score, published], axis=1), word)
    return SemanticScores(
        rank=1 + others - below,
        score=score,
        published=published,
        mean=mean,
        published_mean=published_mean,
        published_chance=CHANCE * float(np.mean(others / (own.shape[1] - 1))),
        by_word={
            str(name): bootstrap(score[word == n, None], np.arange(np.sum(word == n)))[0]
            for n, name in enumerate(names)
        },
    )
