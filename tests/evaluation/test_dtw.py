import numpy as np
import pytest
from helpers import path_cost

from vgsplus.evaluation import dtw


def cost(a, b):
    return dtw.costs([a, b], np.arange(2))[0, 1]


def test_a_sequence_costs_nothing_against_itself_and_pairs_are_symmetric():
    rng = np.random.default_rng(13)
    for dim in (1, 4, 33):
        a, b = rng.normal(size=(9, dim)), rng.normal(size=(13, dim))
        assert cost(a, a) == 0
        assert cost(a, b) == cost(b, a)
        assert cost(a, b) == pytest.approx(path_cost(a, b), rel=1e-12)
        assert cost(a, a.repeat(3, axis=0)) == 0, "staying on a frame costs its distance alone"


def test_frames_that_differ_in_their_last_digits_are_distinguished():
    near = np.full((1, 3), 1e4)
    assert cost(near, near + np.array([[1e-9, 0, 0]])) == pytest.approx(1e-9, rel=1e-2)


def test_the_path_is_not_divided_by_its_length():
    assert cost(np.zeros((2, 1)), np.ones((5, 1))) == 5
    assert cost(np.array([[0.0], [5.0]]), np.array([[1.0], [2.0], [7.0]])) == 1 + 2 + 2


def test_only_pairs_of_different_groups_are_aligned():
    rng = np.random.default_rng(14)
    sequences = [rng.normal(size=(length, 3)) for length in (4, 1, 7, 2, 5, 6)]
    groups = np.array([0, 1, 2, 0, 1, 0])
    found = dtw.costs(sequences, groups)
    same = groups[:, None] == groups
    assert np.isinf(found[same]).all()
    assert np.isfinite(found[~same]).all()
    assert (found == found.T).all()
    assert found[0, 1] == cost(sequences[0], sequences[1])
