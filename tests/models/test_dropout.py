import pytest
import torch

from vgsplus.models.dropout import Dropout, dropout


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_a_share_of_the_elements_is_dropped_and_the_mean_stays(probability):
    torch.manual_seed(0)
    x = torch.ones(1001, 999, requires_grad=True)
    output = dropout(x, probability)
    y = output.detach()
    deviation = (probability * (1 - probability) / x.numel()) ** 0.5
    assert float((y == 0).float().mean()) == pytest.approx(probability, abs=5 * deviation)
    assert float(y.max()) == pytest.approx(1 / (1 - probability), rel=1e-3)
    assert float(y.mean()) == pytest.approx(1, abs=5 * deviation / (1 - probability))
    (gradient,) = torch.autograd.grad(output.sum(), x)
    assert torch.equal(gradient, y)


def test_rows_and_columns_are_dropped_independently():
    torch.manual_seed(0)
    dropped = dropout(torch.ones(4000, 64), 0.5) == 0
    correlation = torch.corrcoef(dropped.T.float()) - torch.eye(64)
    assert float(correlation.abs().max()) < 6 / 4000**0.5


def test_nothing_is_dropped_in_evaluation_or_at_probability_zero():
    x = torch.randn(3, 5)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0).train()(x), x)
