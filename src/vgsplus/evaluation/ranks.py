"""Ranks of the right answers in both directions of retrieval, counted in tiles of the scores.

A tile holds the scores of some images with some captions. It is a part of a given matrix, or is computed from
embeddings when it is needed, so that memory holds one tile.

Captions are sorted by their images, so that the scores of captions with their own images are in tiles along a
diagonal. A first pass over these tiles finds the score of each caption with its own image, and the highest
such score of each image. A second pass over all tiles counts the competitors in both directions. A tile is
computed by the same product in both passes, so that its values are equal bit for bit and ties are exact.

Shape letters: N images, M captions, D embedding; n images and m captions of a tile.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vgsplus.errors import VgsplusError

type Tiles = Callable[[slice, NDArray[np.int64]], NDArray[np.floating]]
"""Returns the scores (n, m) of the images of a slice with captions by their columns (m,)."""

TILE_SCORES = 1 << 22
"""Scores in a tile: 16 MB."""
ASPECT = 4
"""Ratio of captions to images in a tile; test sets have about five captions per image."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranks:
    """The rank, from 1, of the right answer of every query.

    Attributes:
        speech_to_image: (M,) int64, rank of each caption's own image among all images.
        image_to_speech: (N,) int64, rank of each image's best own caption among the captions of other images.
        image_of_caption: (M,) int64, index of each caption's image.
    """

    speech_to_image: NDArray[np.int64]
    image_to_speech: NDArray[np.int64]
    image_of_caption: NDArray[np.int64]


def rank_matrix(
    similarity: NDArray[np.floating] | Tensor,
    image_ids: Sequence[Hashable],
    caption_image_ids: Sequence[Hashable],
) -> Ranks:
    """Rank the right answer of every query in a matrix, which is not copied.

    Args:
        similarity: (N, M) scores, images by captions, higher is closer.
        image_ids: N distinct ids, one per row.
        caption_image_ids: M ids, the image of the caption of each column.

    Raises:
        VgsplusError: shapes and ids that do not fit together, an id without a match, nothing to rank, NaN.
    """
    if isinstance(similarity, torch.Tensor):
        similarity = similarity.detach().cpu()
        similarity = (similarity if similarity.dtype == torch.float64 else similarity.float()).numpy()
    scores = np.asarray(similarity)
    if scores.ndim != 2:
        raise VgsplusError(f"The similarity matrix must be (pictures, captions), not {scores.shape}.")
    if scores.dtype not in (np.float16, np.float32, np.float64):
        scores = scores.astype(np.float64)
    rows = match_captions(scores.shape, image_ids, caption_image_ids)
    return count_ranks(tiles_of_matrix(scores), rows, len(scores), TILE_SCORES)


def rank_embeddings(
    images: Tensor, speech: Tensor, image_ids: Sequence[Hashable], caption_image_ids: Sequence[Hashable]
) -> Ranks:
    """Rank the right answer of every query by dot products, computed a tile at a time.

    Takes images (N, D) and speech (M, D), float tensors on the CPU. Ids and errors are as in `rank_matrix`.
    """
    rows = match_captions((len(images), len(speech)), image_ids, caption_image_ids)
    return count_ranks(tiles_of_embeddings(images, speech), rows, len(images), TILE_SCORES)


def tiles_of_matrix(scores: NDArray[np.floating]) -> Tiles:
    """Return the tiles of scores (N, M)."""
    return lambda rows, columns: np.take(scores[rows], columns, axis=1)


def tiles_of_embeddings(images: Tensor, speech: Tensor) -> Tiles:
    """Return the tiles of the dot products of images (N, D) with speech (M, D)."""

    def product(rows: slice, columns: NDArray[np.int64]) -> NDArray[np.floating]:
        scores: NDArray[np.floating] = (images[rows] @ speech[torch.from_numpy(columns)].T).numpy()
        return scores

    return product


def count_ranks(tiles: Tiles, image_of_caption: NDArray[np.int64], images: int, tile_scores: int) -> Ranks:
    """Rank the right answers without sorting, by counting the competitors that score at least as high.

    Args:
        tiles: of N images and M captions, floats of at most 64 bits.
        image_of_caption: (M,) int64, index of each caption's image; every image has a caption.
        images: N.
        tile_scores: approximate number of scores in a tile.

    Raises:
        VgsplusError: a score is NaN.
    """
    order = np.argsort(image_of_caption, kind="stable")
    height = max(1, math.isqrt(tile_scores // ASPECT))
    row_spans = _even_spans(images, height)
    column_spans = _even_spans(len(order), ASPECT * height)

    own = np.empty(len(order))
    best = np.full(images, -np.inf)
    for columns in (order[span] for span in column_spans):
        rows = image_of_caption[columns]
        for span in row_spans:
            if span.start <= rows[-1] and rows[0] < span.stop:
                inside = (span.start <= rows) & (rows < span.stop)
                tile = _check_tile(tiles(span, columns))
                own[columns[inside]] = tile[rows[inside] - span.start, inside.nonzero()[0]]
    np.maximum.at(best, image_of_caption, own)

    ahead_of_image = np.zeros(len(order), dtype=np.int64)
    ahead_of_caption = np.zeros(images, dtype=np.int64)
    for columns in (order[span] for span in column_spans):
        for span in row_spans:
            tile = _check_tile(tiles(span, columns))
            own_scores, best_scores = own[columns].astype(tile.dtype), best[span].astype(tile.dtype)
            # Ties count against the right answer: a competitor with an equal score ranks ahead of it.
            ahead_of_image[columns] += np.count_nonzero(tile >= own_scores, axis=0)
            ahead_of_caption[span] += np.count_nonzero(tile >= best_scores[:, None], axis=1)
    # The right image counted itself, which makes its rank start at 1; captions of one image do not compete.
    siblings = np.bincount(image_of_caption[own >= best[image_of_caption]], minlength=images)
    return Ranks(
        speech_to_image=ahead_of_image,
        image_to_speech=ahead_of_caption - siblings + 1,
        image_of_caption=image_of_caption,
    )


def _even_spans(total: int, size: int) -> list[slice]:
    """Split `total` into consecutive slices of at most `size` whose lengths differ by at most one.

    Otherwise the last tile could be a single row or column, whose product is rounded differently, so that
    equal scores would differ.
    """
    count = -(-total // size)
    edges = [total * index // count for index in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _check_tile(tile: NDArray[np.floating]) -> NDArray[np.floating]:
    if np.isnan(tile.min()):  # a minimum is NaN if any value is
        raise VgsplusError("The similarity matrix holds NaN: the embeddings are not finite.")
    return tile


def match_captions(
    shape: tuple[int, ...], image_ids: Sequence[Hashable], caption_image_ids: Sequence[Hashable]
) -> NDArray[np.int64]:
    """Check that ids fit a matrix of shape (N, M) and return the row of each caption's image (M,)."""
    images, caption_images = _as_list(image_ids), _as_list(caption_image_ids)
    if shape != (len(images), len(caption_images)):
        counts = f"{len(images)} pictures and {len(caption_images)} captions"
        raise VgsplusError(f"The similarity matrix is {shape}, but there are ids of {counts}.")
    if not images or not caption_images:
        raise VgsplusError("There is nothing to rank: no pictures or no captions.")
    row_of = {image: row for row, image in enumerate(images)}
    if len(row_of) != len(images):
        twice = next(image for image, times in Counter(images).items() if times > 1)
        raise VgsplusError(
            f"Picture {twice!r} has several rows in the similarity matrix; each needs exactly one."
        )
    for image in caption_images:
        if image not in row_of:
            raise VgsplusError(f"A caption has the picture {image!r}, which is not among those ranked.")
    if without := row_of.keys() - set(caption_images):
        first = next(image for image in images if image in without)
        raise VgsplusError(f"{len(without)} pictures have no caption, the first of them is {first!r}.")
    return np.array([row_of[image] for image in caption_images], dtype=np.int64)


def _as_list(ids: Sequence[Hashable]) -> list[Hashable]:
    # Elements of a tensor are hashed by identity and would never match.
    return ids.tolist() if isinstance(ids, torch.Tensor | np.ndarray) else list(ids)
