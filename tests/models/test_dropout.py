import pytest
import torch

from vgsplus.draws import new_keys
from vgsplus.models.dropout import Dropout, dropout
from vgsplus.models.segments import Segments


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_a_share_of_the_elements_is_dropped_and_the_mean_stays(probability):
    torch.manual_seed(0)
    x = torch.ones(1001, 999, requires_grad=True)
    output = dropout(x, probability, new_keys(1001))
    y = output.detach()
    deviation = (probability * (1 - probability) / x.numel()) ** 0.5
    assert float((y == 0).float().mean()) == pytest.approx(probability, abs=5 * deviation)
    assert float(y.max()) == pytest.approx(1 / (1 - probability), rel=1e-3)
    assert float(y.mean()) == pytest.approx(1, abs=5 * deviation / (1 - probability))
    (gradient,) = torch.autograd.grad(output.sum(), x)
    assert torch.equal(gradient, y)


def test_rows_and_columns_are_dropped_independently():
    torch.manual_seed(0)
    for dropped in (
        dropout(torch.ones(4000, 64), 0.5, new_keys(4000)),
        dropout(torch.ones(64, 4000), 0.5, new_keys(64)).T,
    ):
        correlation = torch.corrcoef((dropped == 0).T.float()) - torch.eye(64)
        assert float(correlation.abs().max()) < 6 / 4000**0.5


def test_nothing_is_dropped_in_evaluation_or_at_probability_zero():
    x, segments = torch.randn(5, 3), Segments([2, 3], torch.device("cpu"))
    for module in (Dropout(0.5).eval(), Dropout(0.0).train()):
        assert torch.equal(module(x, module.keys(segments)), x)


def test_what_is_dropped_follows_the_sequence_not_its_batch():
    keys, x = new_keys(2), torch.ones(5, 40)
    module = Dropout(0.5)
    both = Segments([2, 3], x.device, keys=keys)
    second = Segments([3], x.device, keys=keys[1:])
    dropped = module(x, module.keys(both))
    assert torch.equal(dropped[2:], module(x[2:], module.keys(second)))
    module.stream = 1
    assert not torch.equal(dropped, module(x, module.keys(both)))
