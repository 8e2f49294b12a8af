"""Processes that share a batch, and micro-batches, find the losses and gradients of the whole batch."""

import copy

import pytest
import torch
import torch.distributed as dist
from helpers import TINY_VISION
from torch.multiprocessing.spawn import start_processes

from vgsplus.functional import gather_batch
from vgsplus.models.config import PixelConfig
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.models.vision_transformer import VISION_TRANSFORMERS

SAMPLES = torch.tensor([400, 719, 1900, 4300, 4300, 6400, 9600])
ALPHAS = (0.0, 0.3, 1.0)
PICTURES = {"image": PixelConfig(backbone="dinov2-small", tune="all", weights=None)}
"""A model that reads pictures; `small_vision` makes its network small."""


@pytest.fixture(autouse=True)
def small_vision(monkeypatch):
    monkeypatch.setitem(VISION_TRANSFORMERS, "dinov2-small", TINY_VISION)


def whole_batch():
    generator = torch.Generator().manual_seed(1)
    waveforms = torch.randn(7, 9600, generator=generator, dtype=torch.float64)
    waveforms[torch.arange(9600) >= SAMPLES[:, None]] = 0
    return {
        "waveforms": waveforms,
        "num_samples": SAMPLES,
        "features": torch.randn(7, 4, 6, generator=generator, dtype=torch.float64),
        "boxes": torch.rand(7, 4, 4, generator=generator, dtype=torch.float64),
        "pixels": torch.randint(256, (7, 3, 42, 42), generator=generator, dtype=torch.uint8),
        "image_ids": torch.tensor([3, 5, 3, 9, 1, 5, 6]),
    }


def losses_and_gradients(model, batch, alpha):
    """Terms, gradients (the mean over the processes) and buffers after one step in training mode."""
    model = copy.deepcopy(model).train()
    losses = model(batch, alpha, seed=2**63 + 11)
    losses.total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if dist.is_initialized():
        for gradient in gradients.values():
            dist.all_reduce(gradient)
            gradient.div_(dist.get_world_size())
    terms = {name: term.detach() for name, term in losses.terms.items()}
    return {"total": losses.total.detach(), **terms, **gradients, **dict(model.named_buffers())}


def find_part(rank, processes, folder, config):
    """Compute a part of the batch, and save what the first process finds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=processes)
    model, batch = build(config), whole_batch()
    part = {name: tensor[rank::processes] for name, tensor in batch.items()}
    part |= {"places": torch.arange(7)[rank::processes], "batch_size": 7}
    found = [losses_and_gradients(model, part, alpha) for alpha in ALPHAS]
    rows = gather_batch(torch.arange(7)[rank::processes], 7)
    if rank == processes - 1:
        torch.save([rows, found], folder / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


def build(config):
    torch.manual_seed(0)
    return VGSPlus(config).double()


@pytest.mark.parametrize(("processes", "changes"), [(2, {}), (4, {}), (2, PICTURES)])
def test_processes_find_what_one_process_finds(make_model, tmp_path, processes, changes):
    config = make_model(feature_dim=6, dropout=0.2, **changes).config
    # Forked, as processes of their own could not import this module.
    start_processes(find_part, (processes, tmp_path, config), nprocs=processes, start_method="fork")
    rows, found = torch.load(tmp_path / "found.pt")
    assert sorted(rows.tolist()) == list(range(7))
    model, batch = build(config), whole_batch()
    for alpha, together in zip(ALPHAS, found, strict=True):
        alone = losses_and_gradients(model, batch, alpha)
        assert together.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(together[name], value, rtol=1e-8, atol=1e-11, msg=name)


@pytest.mark.parametrize(
    ("micro_batch_size", "checkpoint_layers"), [(1, False), (3, False), (3, True), (None, True)]
)
@pytest.mark.parametrize(
    "changes", [{}, {"ssl_layers": 0, "layer_norm_first": True, "extractor_mode": "layer_norm"}, PICTURES]
)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_activations_computed_again_find_the_same(
    make_model, alpha, changes, micro_batch_size, checkpoint_layers
):
    model, batch = build(make_model(feature_dim=6, dropout=0.2, **changes).config), whole_batch()
    expected = losses_and_gradients(model, batch, alpha)
    model.recompute(micro_batch_size, checkpoint_layers=checkpoint_layers)
    found = losses_and_gradients(model, batch, alpha)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-11, msg=name)


@pytest.mark.parametrize("changes", [{}, PICTURES])
def test_micro_batches_store_the_activations_of_one_of_them(make_model, changes):
    model, batch = build(make_model(feature_dim=6, **changes).config), whole_batch()
    stored = []
    for size in (None, 1):
        model.recompute(size, checkpoint_layers=False)
        sizes = {}

        def count(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            losses = model.train()(batch, 0.5)
        stored.append(sum(sizes.values()))
        del losses
    assert stored[1] < stored[0] / 3
