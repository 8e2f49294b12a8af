from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import CAPTION

from vgsplus.errors import VgsplusError
from vgsplus.evaluation import ranks, retrieval
from vgsplus.evaluation.embeddings import SplitEmbeddings
from vgsplus.evaluation.ranks import (
    count_ranks,
    rank_embeddings,
    rank_matrix,
    tiles_of_embeddings,
    tiles_of_matrix,
)
from vgsplus.evaluation.retrieval import evaluate, rank_split, score

FIELDS = ("speech_to_image", "image_to_speech", "image_of_caption")


def random_case(seed, pictures=23, extra=60, dim=3):
    """Embeddings of small whole numbers, whose products are exact, so that ties are everywhere."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.concatenate([np.arange(pictures), rng.integers(pictures, size=extra)]))
    images, speech = (
        torch.from_numpy(rng.integers(-2, 3, size=(count, dim)).astype(np.float32))
        for count in (pictures, len(rows))
    )
    return images, speech, rows


def by_definition(scores, rows):
    """Ranks straight from the definition: one and the competitors that score as much or more."""
    to_image = [
        1 + sum(scores[other, c] >= scores[rows[c], c] for other in range(len(scores)) if other != rows[c])
        for c in range(len(rows))
    ]
    to_speech = [
        1 + sum(scores[row, rows != row] >= scores[row, rows == row].max()) for row in range(len(scores))
    ]
    return to_image, to_speech


def check(found, expected, rows):
    assert found.speech_to_image.tolist() == expected[0]
    assert found.image_to_speech.tolist() == expected[1]
    assert found.image_of_caption.tolist() == rows.tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [1, 4, 37, 256, 1 << 20])
def test_matrix_and_embeddings_rank_alike_in_tiles_of_any_size(seed, size):
    images, speech, rows = random_case(seed)
    matrix = (images @ speech.T).numpy()
    expected = by_definition(matrix, rows)
    check(count_ranks(tiles_of_matrix(matrix), rows, len(images), size), expected, rows)
    check(count_ranks(tiles_of_embeddings(images, speech), rows, len(images), size), expected, rows)


def test_the_cases_hold_ties_with_the_right_answer():
    images, speech, rows = random_case(0)
    scores = (images @ speech.T).numpy()
    own = scores[rows, np.arange(len(rows))]
    assert ((scores == own).sum(axis=0) > 1).any()
    best = np.array([scores[row, rows == row].max() for row in range(len(images))])
    assert any((scores[row, rows != row] == best[row]).any() for row in range(len(images)))


@pytest.mark.parametrize("size", [1, 64, 1 << 20])
def test_where_everything_scores_alike_everything_is_last(size):
    images, speech, rows = random_case(1)
    found = count_ranks(tiles_of_embeddings(images * 0 + 1, speech * 0 + 1), rows, len(images), size)
    assert set(found.speech_to_image) == {len(images)}
    assert found.image_to_speech.tolist() == (len(rows) - np.bincount(rows) + 1).tolist()


@pytest.mark.parametrize("size", [1, 64, 1 << 20])
def test_a_caption_said_twice_ties_only_where_it_is_of_another_picture(size):
    images = torch.eye(3)
    speech = torch.tensor([[9.0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 9, 0], [0, 0, 9]])
    found = count_ranks(tiles_of_embeddings(images, speech), np.array([0, 0, 1, 2, 2]), 3, size)
    assert found.image_to_speech.tolist() == [1, 2, 1]
    assert found.speech_to_image.tolist() == [1, 1, 1, 3, 1]


def test_a_picture_of_very_many_captions_spans_tiles():
    rng = np.random.default_rng(5)
    rows = np.concatenate([np.full(300, 4), np.arange(9)])
    scores = rng.integers(30, size=(9, len(rows))).astype(np.float32)
    check(count_ranks(tiles_of_matrix(scores), rows, 9, 64), by_definition(scores, rows), rows)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble, np.int32])
def test_every_kind_of_number_is_compared_as_it_is(dtype):
    scores = np.array([[1000, 1001, 3], [1001, 1000, 2], [0, 1, 1000]]).astype(dtype)
    scores[0, 2] = scores[2, 2]
    check(rank_matrix(scores, range(3), range(3)), by_definition(scores, np.arange(3)), np.arange(3))


@pytest.mark.parametrize("infinite", [np.inf, -np.inf])
def test_infinite_scores_are_ranked(infinite):
    scores = np.array([[1, 2, infinite], [infinite, 0, 1], [3, infinite, 1]])
    check(rank_matrix(scores, range(3), range(3)), by_definition(scores, np.arange(3)), np.arange(3))


@pytest.mark.parametrize("place", [(0, 0), (22, 5), (11, 82)])
def test_a_nan_in_any_tile_is_refused(place):
    images, speech, rows = random_case(2)
    scores = (images @ speech.T).numpy()
    scores[place] = np.nan
    with pytest.raises(VgsplusError, match="NaN"):
        count_ranks(tiles_of_matrix(scores), rows, len(images), 64)


# ---- memory -----------------------------------------------------------------------------------------------


class Tiles:
    """Tiles of embeddings that remember what was asked for."""

    def __init__(self, images, speech):
        self.tiles = tiles_of_embeddings(images, speech)
        self.asked = []

    def __call__(self, rows, columns):
        tile = self.tiles(rows, columns)
        self.asked.append((rows, columns, tile))
        return tile


def test_no_tile_is_larger_than_asked_for_and_all_of_them_cover_the_matrix_once():
    images, speech, rows = random_case(3, pictures=70, extra=300)
    tiles = Tiles(images, speech)
    count_ranks(tiles, rows, len(images), 400)
    assert max(tile.size for _, _, tile in tiles.asked) <= 400
    assert min(min(tile.shape) for _, _, tile in tiles.asked) > 1, "a product of one row rounds otherwise"
    covered = np.zeros((len(images), len(rows)), dtype=int)
    for block, columns, _ in tiles.asked:
        covered[block, columns] += 1
    assert covered.min() == 1
    assert covered.max() == 2
    twice = (covered == 2).mean()
    assert 0 < twice < 0.5, "only tiles along the diagonal are made again"
    assert (covered[rows, np.arange(len(rows))] == 2).all()


def test_a_tile_made_again_is_the_same_tile():
    images, speech, rows = random_case(4, pictures=70, extra=300)
    rng = np.random.default_rng(0)
    images, speech = (torch.from_numpy(rng.normal(size=x.shape).astype(np.float32)) for x in (images, speech))
    tiles = Tiles(images, speech)
    count_ranks(tiles, rows, len(images), 400)
    made = {}
    for block, columns, tile in tiles.asked:
        earlier = made.setdefault((block.start, tuple(columns)), tile)
        np.testing.assert_array_equal(tile, earlier)
    assert len(made) < len(tiles.asked)


def test_scoring_embeddings_never_makes_the_matrix(monkeypatch):
    images, speech, rows = random_case(6, pictures=60, extra=240, dim=8)
    whole = score(rank_matrix((images @ speech.T).numpy(), range(60), rows))
    largest = []

    def products(*embeddings):
        tiles = tiles_of_embeddings(*embeddings)

        def product(block, columns):
            tile = tiles(block, columns)
            largest.append(tile.size)
            return tile

        return product

    monkeypatch.setattr(ranks, "TILE_SCORES", 1000)
    monkeypatch.setattr(ranks, "tiles_of_embeddings", products)
    found = rank_embeddings(images, speech, range(60), rows)
    assert score(found) == whole
    assert max(largest) <= 1000


@pytest.mark.parametrize(
    ("images", "captions", "says"),
    [
        (range(22), 83, "22 pictures and 83 captions"),
        (range(23), 82, "82 captions"),
        ([0] * 23, 83, "several"),
    ],
)
def test_embeddings_without_their_ids_are_refused(images, captions, says):
    vectors, speech, rows = random_case(0)
    with pytest.raises(VgsplusError, match=says):
        rank_embeddings(vectors, speech, images, rows[:captions])


# ---- a split ----------------------------------------------------------------------------------------------


def embedded_split(seed):
    images, speech, rows = random_case(seed)
    captions = tuple(
        replace(CAPTION, id=f"c{number}", split="test", audio=f"c{number}.wav", image=f"p{row}")
        for number, row in enumerate(rows)
    )
    names = tuple(f"p{row}" for row in range(len(images)))
    return SplitEmbeddings(split="test", image_ids=names, images=images, captions=captions, speech=speech)


def test_evaluate_scores_a_split_and_its_gallery_agrees_with_the_ranks():
    embedded = embedded_split(8)
    result = evaluate(embedded, seed=3)
    found = rank_split(embedded)
    assert result.scores == score(found, seed=3)
    assert len(result.retrieved) == len(embedded.captions)
    for caption, rank in zip(embedded.captions, found.speech_to_image, strict=True):
        shown = result.retrieved[caption.id]
        assert (shown.index(caption.image) + 1 if caption.image in shown else None) == (
            rank if rank <= retrieval.GALLERY_IMAGES else None
        )
