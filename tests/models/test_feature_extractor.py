import pytest
import torch
import torch.nn.functional as F

from vgsplus.models.feature_extractor import convolve_rows


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kernel", "stride"), [(10, 5), (3, 2), (2, 2), (8, 2), (2, 3), (1, 1), (5, 1)])
def test_products_are_the_convolution(channels, kernel, stride):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(31, channels, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, channels, kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    found = convolve_rows(x, weight, bias, stride)
    expected = F.conv1d(x.T, weight, bias, stride).T
    torch.testing.assert_close(found, expected)
    grad = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(found, (x, weight, bias), grad),
        torch.autograd.grad(expected, (x, weight, bias), grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_autocast_convolves_in_half_precision():
    x, weight = torch.randn(12, 3), torch.randn(4, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = convolve_rows(x, weight, None, 2)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), convolve_rows(x, weight, None, 2), rtol=0.05, atol=0.1)
