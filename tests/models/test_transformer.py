import copy
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from vgsplus.models.segments import Segments
from vgsplus.models.transformer import TransformerLayer, compile_layers


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


@pytest.mark.parametrize("layer_norm_first", [False, True])
def test_compiled_layers_compute_the_same_without_a_graph_break(monkeypatch, layer_norm_first):
    # Tracing is what may fail; this backend omits the minutes in which kernels are generated.
    compile_quickly = partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", compile_quickly)
    torch.manual_seed(0)
    layer = TransformerLayer(dim=8, heads=2, ffn_dim=16, dropout=0.0, layer_norm_first=layer_norm_first)
    compiled = copy.deepcopy(layer)
    compile_layers(compiled)
    compilations = counters["stats"]["unique_graphs"]
    for lengths in ([7, 4, 5], [9, 2], [30, 1, 1]):
        segments = Segments(lengths, torch.device("cpu"))
        x = torch.randn(sum(lengths), 8)
        for one in (layer, compiled):
            one.zero_grad()
            one(x, segments).square().sum().backward()
        torch.testing.assert_close(compiled(x, segments), layer(x, segments))
        for ours, theirs in zip(compiled.parameters(), layer.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
    assert counters["stats"]["unique_graphs"] == compilations + 1, "another number of rows was compiled anew"
    assert compiled.state_dict().keys() == layer.state_dict().keys()
