import pytest
import torch

from vgsplus.models.transformer import TransformerLayer


@pytest.mark.parametrize("masked", [False, True])
def test_positions_asked_for_alone_are_those_of_the_whole_layer(masked):
    torch.manual_seed(0)
    layer = TransformerLayer(dim=8, heads=2, ffn_dim=16, dropout=0.0).double()
    x = torch.randn(3, 7, 8, dtype=torch.float64, requires_grad=True)
    keys = torch.arange(7) < torch.tensor([7, 4, 5])[:, None] if masked else None
    weights = torch.randn(3, 2, 8, dtype=torch.float64)

    def gradients(output):
        return torch.autograd.grad((output * weights).sum(), [x, *layer.parameters()])

    whole, alone = layer(x, keys)[:, [3, 0]], layer(x, keys, x[:, [3, 0]])
    torch.testing.assert_close(alone, whole)
    for one, other in zip(gradients(alone), gradients(whole), strict=True):
        torch.testing.assert_close(one, other)
