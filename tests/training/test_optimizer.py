import copy
import math

import pytest
import torch
from torch import nn

from vgsplus.schedule import OptimizerSettings
from vgsplus.training.optimizer import BertAdam, build_optimizer, load_named_state, named_state


def oracle(p, grads, lrs, *, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.01):
    """The formula for one number, in Python's float64."""
    m = v = 0.0
    for g, lr in zip(grads, lrs, strict=True):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        p -= lr * (m / (math.sqrt(v) + eps) + weight_decay * p)
    return p


def test_bertadam_follows_the_formula_number_by_number():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    grads = torch.randn(20, 3, 4, generator=generator, dtype=torch.float64)
    grads[:, 0, 0] = 0.0
    lrs = [1e-2 * (k + 1) / 20 for k in range(20)]
    p = nn.Parameter(start.clone())
    optimizer = BertAdam([p], lr=1.0)
    for grad, lr in zip(grads, lrs, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        p.grad = grad.clone()
        optimizer.step()
    expected = [oracle(start[i, j].item(), grads[:, i, j].tolist(), lrs) for i in range(3) for j in range(4)]
    torch.testing.assert_close(p.detach().flatten(), torch.tensor(expected, dtype=torch.float64))


def test_the_first_update_is_not_bias_corrected():
    p = nn.Parameter(torch.zeros(1))
    p.grad = torch.ones(1)
    BertAdam([p], lr=1.0, eps=0.0).step()
    assert p.item() == pytest.approx(-0.1 / math.sqrt(0.001))


def test_parameters_without_gradient_are_left_alone():
    moved, still = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    moved.grad = torch.zeros(2)
    optimizer = BertAdam([moved, still], lr=0.5)
    optimizer.step()
    assert torch.equal(still, torch.ones(2))
    assert still not in optimizer.state
    assert torch.all(moved < 1), "weight decay acts without a gradient signal"


@pytest.mark.parametrize("name", ["bertadam", "adamw"])
def test_a_loaded_state_continues_exactly(name):
    settings = OptimizerSettings(name=name, lr=1e-2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2))
    optimizer = build_optimizer(model, settings)

    def update(model, optimizer, seed):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model[:2](x).square().sum().backward()
        optimizer.step()

    for seed in range(3):
        update(model, optimizer, seed)
    tensors = {key: tensor.clone() for key, tensor in named_state(optimizer, model).items()}
    assert not any("2.weight" in key for key in tensors), "what had no gradient has no state"
    twin = copy.deepcopy(model)
    resumed = build_optimizer(twin, settings)
    load_named_state(resumed, twin, tensors)
    for seed in range(3, 6):
        update(model, optimizer, seed)
        update(twin, resumed, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    ours, theirs = named_state(resumed, twin), named_state(optimizer, model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
