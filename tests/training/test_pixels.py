"""Training on pictures themselves."""

import dataclasses
import json

import pytest
import torch
from helpers import TINY_VISION
from safetensors.torch import load_file, save_file

from vgsplus.corpora import Corpus
from vgsplus.errors import ConfigError, CorpusError, VgsplusError
from vgsplus.evaluation.embeddings import embed_split
from vgsplus.models.config import PixelConfig
from vgsplus.models.vision_transformer import VISION_TRANSFORMERS, VisionTransformer
from vgsplus.training import checkpoint
from vgsplus.training.checkpoint import STATE_FILE, load_model
from vgsplus.training.data import training_batches
from vgsplus.training.sampler import WHOLE
from vgsplus.training.trainer import train


@pytest.fixture
def network(monkeypatch):
    """A small network in place of dinov2-small."""
    monkeypatch.setitem(VISION_TRANSFORMERS, "dinov2-small", TINY_VISION)
    torch.manual_seed(9)
    return VisionTransformer(TINY_VISION)


@pytest.fixture
def weights(network, tmp_path):
    """Its weights, in a file as published."""
    path = tmp_path / "weights.safetensors"
    save_file({network.published_name(name): tensor for name, tensor in network.state_dict().items()}, path)
    return path


@pytest.fixture
def make_reading(make_config, tiny_model, tiny_corpus):
    """A function that makes the settings of a run that reads the pictures of `tiny_corpus`."""

    def make(tune, weights, layer=None, **changes):
        weights = weights and str(weights)
        image = PixelConfig(backbone="dinov2-small", tune=tune, weights=weights, layer=layer)
        model = dataclasses.replace(tiny_model, image=image)
        return make_config(**({"corpus": str(tiny_corpus), "model": model, "validate_every": None} | changes))

    return make


def test_a_stopped_run_resumes_bit_for_bit_without_the_file_of_weights(make_reading, weights, runs, tmp_path):
    config = make_reading("all", weights, validate_every=1.0)
    train(config, tmp_path / "whole")
    runs.stop(7, config, tmp_path / "stopped")
    weights.unlink()
    train(config, tmp_path / "stopped", resume=True)
    runs.assert_same(tmp_path / "whole", tmp_path / "stopped", "validation")


def test_weights_of_layers_that_are_not_used_are_not_needed(make_reading, network, weights, tmp_path):
    kept = {name: tensor for name, tensor in load_file(weights).items() if "layer.2." not in name}
    save_file(kept, weights)
    with pytest.raises(VgsplusError, match=r"encoder\.layer\.2\..* is absent"):
        train(make_reading("none", weights), tmp_path / "all")
    train(make_reading("none", weights, layer=2), tmp_path / "run")
    trained = load_model(tmp_path / "run").pixels.network.state_dict()
    assert trained
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in trained.items())


@pytest.mark.parametrize("tune", ["none", "last"])
def test_weights_come_from_the_file_and_only_tuned_ones_change(
    make_reading, network, weights, tune, tmp_path
):
    train(make_reading(tune, weights), tmp_path / "run")
    trained = load_model(tmp_path / "run").pixels.network.state_dict()
    changed = {
        name for name, tensor in network.state_dict().items() if not torch.equal(tensor, trained[name])
    }
    assert all(name.startswith(("layers.2.", "norm.")) for name in changed)
    assert bool(changed) == (tune == "last")


def test_workers_read_the_same_pictures(make_reading, network, tiny_corpus):
    del network
    corpus, found = Corpus.open(tiny_corpus), []
    for workers in (0, 2):
        config = make_reading("none", None, workers=workers)
        phase = config.schedule.plan(lambda _: 4)[1]
        found.append([batch for (batch,) in training_batches(config, phase, corpus, None, WHOLE, 0)])
    for one, other in zip(*found, strict=True):
        assert one["pixels"].shape == (4, 3, 42, 42)
        assert one["pixels"].dtype == torch.uint8
        assert not {"features", "boxes"} & one.keys()
        assert torch.equal(one["pixels"], other["pixels"])


def test_a_run_without_pictures_or_weights_does_not_start(
    make_reading, corpus_root, tiny_corpus, weights, edited_corpus, tmp_path
):
    def start(config):
        with pytest.raises(ConfigError) as refused:
            train(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        return str(refused.value)

    assert "model.image.weights: absent: there is no such file" in start(make_reading("all", "absent"))
    save_file({"layernorm.weight": torch.ones(16)}, weights)
    assert "embeddings.cls_token is absent" in start(make_reading("all", weights))
    assert "prepared without its pictures" in start(make_reading("all", None, corpus=str(corpus_root)))
    copy = edited_corpus(tiny_corpus, lambda _: True)
    for picture in copy.rglob("*.png"):
        picture.write_bytes(b"no picture")
    assert "cannot be read as a picture" in start(make_reading("all", None, corpus=str(copy)))
    with pytest.raises(CorpusError, match="cannot be read as a picture"):
        Corpus.open(copy).pixels(["train/000.png"], 42)


def test_pictures_are_embedded_for_retrieval(make_reading, network, tiny_corpus, tmp_path):
    del network
    train(make_reading("last", None), tmp_path / "run")
    model, corpus = load_model(tmp_path / "run"), Corpus.open(tiny_corpus)
    found = embed_split(model, corpus, "test", batch_size=3)
    with torch.no_grad():
        expected = model.embed_image(torch.from_numpy(corpus.pixels(found.image_ids, 42)))
    torch.testing.assert_close(found.images, expected)


def test_runs_from_before_the_setting_resume(make_config, runs, tmp_path):
    config = make_config()
    runs.stop(6, config, tmp_path / "run")
    path = checkpoint.latest_path(tmp_path / "run") / STATE_FILE
    state = json.loads(path.read_text())
    del state["model"]["image"], state["run"]["model"]["image"]
    path.write_text(json.dumps(state))
    train(config, tmp_path / "run", resume=True)
    runs.assert_same(runs.finished(config), tmp_path / "run")
