import math

import pytest
import torch

from vgsplus.draws import fold, integers, new_keys, random_bits, uniform


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("keys", [new_keys(4000), torch.arange(4000)], ids=["drawn", "consecutive"])
def test_numbers_are_uniform_and_independent(keys):
    numbers = uniform(fold(keys, 3), 100)
    assert float(numbers.min()) > 0
    assert float(numbers.max()) < 1
    counts = torch.histc(numbers, 100, 0, 1)
    expected = numbers.numel() / 100
    assert float(((counts - expected) ** 2 / expected).sum()) < 99 + 5 * math.sqrt(2 * 99)
    for table in (numbers, numbers[:100, :].T.repeat(1, 1)):
        correlation = torch.corrcoef(table.T) - torch.eye(table.shape[1])
        assert float(correlation.abs().max()) < 6 / len(table) ** 0.5


def test_every_bit_of_a_key_changes_half_of_the_bits():
    keys = new_keys(500)
    for bit in range(64):
        changed = keys ^ (1 << bit if bit < 63 else -(2**63))
        different = random_bits(keys, 1) ^ random_bits(changed, 1)
        share = torch.stack([(different >> place) & 1 for place in range(64)]).float().mean((1, 2))
        assert float((share - 0.5).abs().max()) < 6 * 0.5 / 500**0.5


def test_a_number_depends_on_its_key_and_index_alone():
    keys = new_keys(9)
    assert torch.equal(uniform(keys, 20)[3:5, :7], uniform(keys[3:5], 7))
    assert not torch.equal(uniform(fold(keys, 1), 20), uniform(fold(keys, 2), 20))
    assert len({*fold(torch.zeros((), dtype=torch.int64), torch.arange(10_000)).tolist()}) == 10_000


def test_integers_are_below_their_limits_and_equally_likely():
    drawn = integers(new_keys(3), 60_000, torch.tensor([1, 6, 2**31 - 1]))
    assert set(drawn[0].tolist()) == {0}
    counts = torch.bincount(drawn[1])
    assert len(counts) == 6
    assert float((counts - 10_000).abs().max()) < 5 * (10_000 * 5 / 6) ** 0.5
    assert int(drawn[2].min()) >= 0
    assert float(drawn[2].double().mean()) == pytest.approx(2**30, rel=0.01)
