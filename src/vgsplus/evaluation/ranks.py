"""Where the right answer of every query ranks, out of tiles of the scores.

A tile holds the scores of some pictures with some captions. It may be cut from a matrix or be a product of
embeddings that is made when it is asked for, so that nothing larger than a tile need exist.

Captions are taken in the order of their pictures: the tiles that hold captions beside their own pictures lie
along a diagonal. They come first and give every caption's own score and every picture's best; then each tile
comes once and its competitors are counted for both directions. A tile is always made by the same call, whose
numbers are the same bits, so that a score equals itself and ties are what they are in the matrix.

Shape letters: N pictures, M captions, D embedding, n and m of them in a tile.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from vgsplus.errors import VgsplusError

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

type Tiles = Callable[[slice, NDArray[np.int64]], NDArray[np.floating]]
"""Gives the scores (n, m) of the pictures of a slice with captions by their columns (m,)."""

ASPECT = 4  # captions to a picture in a tile: test sets have about five a picture


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranks:
    """The rank of the right answer of every query, from 1: what every number of retrieval is made from.

    `speech_to_image` is (M,), `image_to_speech` is (N,), and `image_of_caption` (M,) is the row of each
    caption's picture; all int64.
    """

    speech_to_image: NDArray[np.int64]
    image_to_speech: NDArray[np.int64]
    image_of_caption: NDArray[np.int64]


def tiles_of_matrix(scores: NDArray[np.floating]) -> Tiles:
    """The tiles of scores (N, M)."""
    return lambda rows, columns: np.take(scores[rows], columns, axis=1)


def tiles_of_embeddings(images: Tensor, speech: Tensor) -> Tiles:
    """The tiles of the dot products of images (N, D) with speech (M, D), computed when asked for."""

    def product(rows: slice, columns: NDArray[np.int64]) -> NDArray[np.floating]:
        scores: NDArray[np.floating] = (images[rows] @ speech[torch.from_numpy(columns)].T).numpy()
        return scores

    return product


def count_ranks(tiles: Tiles, image_of_caption: NDArray[np.int64], pictures: int, tile_scores: int) -> Ranks:
    """Rank the right answers by counting the competitors at or above each: no sort, memory for one tile.

    Args:
        tiles: of N pictures and M captions; of at most 64-bit floats.
        image_of_caption: (M,) the row of each caption's picture; every picture has a caption.
        pictures: N.
        tile_scores: about how many scores a tile holds.

    Raises:
        VgsplusError: a score is NaN.
    """
    order = np.argsort(image_of_caption, kind="stable")
    height = max(1, math.isqrt(tile_scores // ASPECT))
    row_spans = _even_spans(pictures, height)
    column_spans = _even_spans(len(order), ASPECT * height)

    own = np.empty(len(order))
    best = np.full(pictures, -np.inf)
    for columns in (order[span] for span in column_spans):
        rows = image_of_caption[columns]
        for span in row_spans:
            if span.start <= rows[-1] and rows[0] < span.stop:
                mine = (span.start <= rows) & (rows < span.stop)
                own[columns[mine]] = _checked(tiles(span, columns))[
                    rows[mine] - span.start, mine.nonzero()[0]
                ]
    np.maximum.at(best, image_of_caption, own)

    ahead_of_picture = np.zeros(len(order), dtype=np.int64)
    ahead_of_caption = np.zeros(pictures, dtype=np.int64)
    for columns in (order[span] for span in column_spans):
        for span in row_spans:
            tile = _checked(tiles(span, columns))
            right, first = own[columns].astype(tile.dtype), best[span].astype(tile.dtype)
            ahead_of_picture[columns] += np.count_nonzero(tile >= right, axis=0)
            ahead_of_caption[span] += np.count_nonzero(tile >= first[:, None], axis=1)
    # The right picture counted itself; the captions of a picture are no competitors of each other.
    siblings = np.bincount(image_of_caption[own >= best[image_of_caption]], minlength=pictures)
    return Ranks(
        speech_to_image=ahead_of_picture,
        image_to_speech=ahead_of_caption - siblings + 1,
        image_of_caption=image_of_caption,
    )


def _even_spans(total: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` that cover `total` and differ by one at most.

    A last tile of one row or column would be a product of another kind, which rounds equal scores apart.
    """
    count = -(-total // size)
    edges = [total * index // count for index in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _checked(tile: NDArray[np.floating]) -> NDArray[np.floating]:
    if np.isnan(tile.min()):  # a minimum is NaN where anything is
        raise VgsplusError("The similarity matrix holds NaN: the embeddings behind it are not finite.")
    return tile


def match_captions(
    shape: tuple[int, ...], image_ids: Sequence[Hashable], caption_image_ids: Sequence[Hashable]
) -> NDArray[np.int64]:
    """The row of each caption's picture (M,), once everything fits together.

    Raises:
        VgsplusError: a shape other than (N, M), an id that comes twice or without a match, nothing to rank.
    """
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
