"""Speech-to-image retrieval of parts of a split: by speaker, and by length of caption.

Every caption is still ranked among all pictures of the split, so that the parts add up to the whole.

Shape letters: M captions, Q captions of a part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vgsplus.audio import SAMPLE_RATE
from vgsplus.evaluation.resampling import Estimate, resampled_shares
from vgsplus.evaluation.retrieval import KS, check_ks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vgsplus.corpora import Caption
    from vgsplus.evaluation.ranks import Ranks

QUARTERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PartScores:
    """Retrieval of a part of the captions.

    Attributes:
        name: of the speaker, or "quarter 1" to "quarter 4".
        captions: in the part.
        images: that its captions speak of.
        shortest: seconds of its shortest caption.
        longest: seconds of its longest caption.
        recall: of its captions at each k, with intervals from resampling these pictures.
        median_rank: of the right picture.
    """

    name: str
    captions: int
    images: int
    shortest: float
    longest: float
    recall: dict[int, Estimate]
    median_rank: float


def by_speaker(
    captions: Sequence[Caption],
    found: Ranks,
    ks: Sequence[int] = KS,
    *,
    replicates: int = 2000,
    seed: int = 0,
) -> tuple[PartScores, ...]:
    """The captions of each speaker, the speaker with most captions first.

    Args:
        captions: M captions of a split.
        found: their ranks, in this order.
        ks: how many of the first answers count.
        replicates: bootstrap replicates.
        seed: of the bootstrap.

    Raises:
        VgsplusError: impossible ks.
    """
    lengths = _lengths(captions)
    speakers, speaker = np.unique([caption.speaker for caption in captions], return_inverse=True)
    most_first = np.argsort(-np.bincount(speaker), kind="stable")
    return tuple(
        _score(str(speakers[n]), speaker == n, lengths, found, ks, replicates=replicates, seed=seed)
        for n in most_first
    )


def by_length(
    captions: Sequence[Caption],
    found: Ranks,
    ks: Sequence[int] = KS,
    *,
    replicates: int = 2000,
    seed: int = 0,
) -> tuple[PartScores, ...]:
    """The shortest quarter of the captions, the next and so on; arguments and errors as in `by_speaker`.

    Captions of equal length are in one quarter, so that quarters differ in size and may be left out.
    """
    lengths = _lengths(captions)
    edges = np.quantile(lengths, np.arange(1, QUARTERS) / QUARTERS)
    quarter = np.searchsorted(edges, lengths, side="left")
    return tuple(
        _score(f"quarter {n + 1}", quarter == n, lengths, found, ks, replicates=replicates, seed=seed)
        for n in np.unique(quarter)
    )


def _lengths(captions: Sequence[Caption]) -> NDArray[np.float64]:
    """The length of each caption (M,) in seconds."""
    return np.array([caption.num_samples for caption in captions]) / SAMPLE_RATE


def _score(
    name: str,
    part: NDArray[np.bool_],
    lengths: NDArray[np.float64],
    found: Ranks,
    ks: Sequence[int],
    *,
    replicates: int,
    seed: int,
) -> PartScores:
    """The scores of the captions where `part` (M,) is true."""
    checked = check_ks(ks)
    ranks = found.speech_to_image[part]  # (Q,)
    _, image = np.unique(found.image_of_caption[part], return_inverse=True)
    totals = np.bincount(image)
    hits = np.stack([np.bincount(image[ranks <= k], minlength=len(totals)) for k in checked], axis=1)
    shares = resampled_shares(hits, np.tile(totals[:, None], len(checked)), replicates=replicates, seed=seed)
    return PartScores(
        name=name,
        captions=len(ranks),
        images=len(totals),
        shortest=float(lengths[part].min()),
        longest=float(lengths[part].max()),
        recall=dict(zip(checked, shares, strict=True)),
        median_rank=float(np.median(ranks)),
    )
