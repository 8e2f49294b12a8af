"""A Vision Transformer on pictures in place of stored region features."""

import numpy as np
import pytest
import torch
from helpers import TINY_VISION
from PIL import Image

from vgsplus.config import from_dict, to_dict
from vgsplus.errors import ConfigError
from vgsplus.models.config import PixelConfig
from vgsplus.models.vision_transformer import IMAGENET_MEAN, IMAGENET_STD, VISION_TRANSFORMERS
from vgsplus.regions.backbones import GridExtractor
from vgsplus.regions.images import square_pixels


@pytest.fixture
def make_reader(make_model, monkeypatch):
    """A function that builds a tiny model that reads pictures."""
    monkeypatch.setitem(VISION_TRANSFORMERS, "tiny", TINY_VISION)

    def make(tune="none", layer=None, **changes):
        image = PixelConfig(backbone="tiny", tune=tune, weights=None, layer=layer)
        return make_model(image=image, **changes)

    return make


def pictures(number=3):
    return [Image.effect_noise((40 + index, 30), 60).convert("RGB") for index in range(number)]


def batch_of(images):
    generator = torch.Generator().manual_seed(1)
    return {
        "waveforms": torch.randn(len(images), 4800, generator=generator),
        "num_samples": torch.tensor([4800] * len(images)),
        "pixels": torch.from_numpy(np.stack([square_pixels(image, TINY_VISION.side) for image in images])),
        "image_ids": torch.arange(len(images)),
    }


def test_stored_patches_are_those_of_the_pictures(make_reader):
    model, images = make_reader(), pictures()
    extractor = GridExtractor(
        model.pixels.network,
        model.pixels.network.patch_map,
        side=TINY_VISION.side,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        resampling=Image.Resampling.BICUBIC,
        device=torch.device("cpu"),
        provenance={"model": "tiny"},
    )
    extractor.grid = TINY_VISION.side // TINY_VISION.patch
    stored = extractor.extract([extractor.prepare(image) for image in images])
    pixels = batch_of(images)["pixels"]
    for computed, kept in zip(model.pixels(pixels), stored, strict=True):
        torch.testing.assert_close(computed, kept)
    with torch.no_grad():
        torch.testing.assert_close(model.embed_image(pixels), model.embed_image(*stored))


@pytest.mark.parametrize("tune", ["none", "last", "all"])
def test_only_what_is_tuned_has_gradients(make_reader, tune):
    model = make_reader(tune).train()
    model(batch_of(pictures()), 1.0, seed=0).total.backward()
    tuned = {
        name for name, parameter in model.pixels.network.named_parameters() if parameter.grad is not None
    }
    every = {name for name, _ in model.pixels.network.named_parameters()}
    last = {name for name in every if name.startswith(("layers.2.", "norm."))}
    assert tuned == {"none": set(), "last": last, "all": every}[tune]
    assert all(parameter.grad is not None for parameter in model.image.parameters())


def test_only_the_layers_up_to_the_one_that_is_used_are_built(make_reader):
    model, whole = make_reader("last", 2).train(), make_reader()
    network = model.pixels.network
    weights = whole.pixels.network.state_dict()
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    outputs = []
    whole.pixels.network.layers[1].register_forward_hook(lambda *call: outputs.append(call[-1]))
    pixels = batch_of(pictures())["pixels"]
    whole.pixels(pixels)
    torch.testing.assert_close(model.pixels(pixels)[0], outputs[0][:, 1:])
    model(batch_of(pictures()), 1.0, seed=0).total.backward()
    tuned = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert tuned == {f"layers.1.{name}" for name, _ in network.layers[1].named_parameters()}
    for layer in (0, 4):
        with pytest.raises(ValueError, match=f"layer of tiny must be 1 to 3, not {layer}"):
            make_reader(layer=layer)


def test_settings_are_read_and_written(make_reader):
    make_reader()
    values = {"corpus": "c", "schedule": "VGS", "model": {"image": {"backbone": "tiny", "tune": "last"}}}
    config = from_dict(values)
    assert config.model.image == PixelConfig(backbone="tiny", tune="last")
    assert from_dict(to_dict(config)) == config
    with pytest.raises(ConfigError, match=r"model\.image: backbone must be dinov2-small"):
        from_dict(values | {"model": {"image": {"backbone": "resnet"}}})
    with pytest.raises(ConfigError, match="model: image needs grounded: true"):
        from_dict(values | {"model": values["model"] | {"grounded": False}})
    with pytest.raises(ConfigError, match=r"model\.image\.tune"):
        from_dict(values | {"model": {"image": {"backbone": "tiny", "tune": "some"}}})
