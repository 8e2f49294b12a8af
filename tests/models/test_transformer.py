import torch

from vgsplus.models.segments import Segments
from vgsplus.models.transformer import TransformerLayer


def test_rows_asked_for_alone_are_those_of_the_whole_layer():
    torch.manual_seed(0)
    layer = TransformerLayer(dim=8, heads=2, ffn_dim=16, dropout=0.0).double()
    x = torch.randn(16, 8, dtype=torch.float64, requires_grad=True)
    segments = Segments([7, 4, 5], x.device)
    rows, chosen = torch.tensor([0, 3, 7, 11, 12, 15]), segments.with_lengths([2, 1, 3])
    weights = torch.randn(6, 8, dtype=torch.float64)

    def gradients(output):
        return torch.autograd.grad((output * weights).sum(), [x, *layer.parameters()])

    whole, alone = layer(x, segments)[rows], layer(x, segments, x[rows], chosen)
    torch.testing.assert_close(alone, whole)
    for one, other in zip(gradients(alone), gradients(whole), strict=True):
        torch.testing.assert_close(one, other)


def test_a_sequence_attends_to_itself_alone():
    torch.manual_seed(0)
    layer = TransformerLayer(dim=8, heads=2, ffn_dim=16, dropout=0.0)
    x = torch.randn(16, 8)
    changed = torch.cat([x[:7], torch.randn(9, 8)])
    segments = Segments([7, 4, 5], x.device)
    assert torch.equal(layer(x, segments)[:7], layer(changed, segments)[:7])
