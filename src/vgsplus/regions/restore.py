"""Compute the regions of new images as those of a corpus were, and give them to a model."""

import re
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vgsplus.errors import VgsplusError
from vgsplus.models.config import ModelConfig
from vgsplus.regions.backbones import LITE_SIDES, open_extractor
from vgsplus.regions.images import square_pixels
from vgsplus.regions.pixel_grid import PIXEL_GRID, RegionFunction, grid_regions

PACKAGED = frozenset({"dinov2-small", *LITE_SIDES})
"""Models whose weights are in a Python package, so that they are found without a download."""
DETERMINING = ("weights_sha256", "regions", "preparation")
"""Entries of the provenance of extracted regions on which their values depend."""
REMEDY = (
    "Use a model of the pixel grid, of dinov2-small, of efficientnet-lite0 to -lite2 or of pixels; or, in "
    "Python, pass regions=: a function from a picture to features (R, F) and boxes (R, 4), such as "
    "vgsplus.regions.backbones.open_extractor(NAME, device=…, grid=…, layer=…) with the grid and layer of "
    "the training, or, for a corpus prepared without --features and --regions, "
    "vgsplus.regions.pixel_grid.grid_regions."
)


def describe(provenance: object) -> str:
    """Return in words how pictures were described, by `provenance.regions` of corpus.json."""
    if isinstance(provenance, list):
        provenance = provenance[0] if provenance else PIXEL_GRID
    if not isinstance(provenance, dict) or "model" not in provenance:
        return "not recorded" if provenance is None else str(provenance)
    layer, regions = (provenance.get(key) for key in ("layer", "regions"))
    parts = (provenance["model"], layer and f"layer {layer}", regions)
    return ", ".join(str(part) for part in parts if part)


def restore_regions(provenance: object, device: torch.device) -> RegionFunction:
    """Return the function that computes regions as those of a corpus were computed.

    Args:
        provenance: `provenance.regions` of corpus.json: `PIXEL_GRID`, the provenance of an extractor, or a
            list of one for each file of regions.
        device: device of the network, if there is one.

    Raises:
        VgsplusError: it is not recorded how, the regions are those of another program, or the weights are not
            in an installed package; nothing is downloaded.
    """
    if isinstance(provenance, list):
        # Corpora of lists without files of regions have the grid.
        same = all(one == provenance[0] for one in provenance)
        provenance = PIXEL_GRID if not provenance else provenance[0] if same else None
    if provenance == PIXEL_GRID:
        return grid_regions
    recorded = provenance if isinstance(provenance, dict) else {}
    name, layer = str(recorded.get("model") or ""), recorded.get("layer")
    if name and name not in PACKAGED:
        raise VgsplusError(
            f"The pictures of this model's training were described by {describe(recorded)}, whose weights no "
            f"package has. {REMEDY}"
        )
    cells = re.fullmatch(r"(\d{1,3})x\1 grid of cells", str(recorded.get("regions")))
    if not name or cells is None or not isinstance(layer, int | None):
        raise VgsplusError(
            f"How the pictures of this model's training were described is not recorded. {REMEDY}"
        )
    try:
        extractor = open_extractor(name, device=device, grid=int(cells[1]), layer=layer)
    except VgsplusError as error:
        raise VgsplusError(
            f"The pictures of this model's training were described by {name}: {error} {REMEDY}"
        ) from None
    if other := [key for key in DETERMINING if extractor.provenance[key] != recorded.get(key)]:
        raise VgsplusError(
            f"The pictures of this model's training were described by {name} with "
            f"{recorded.get('weights')}, and the installed one has another {other[0]}. {REMEDY}"
        )
    return extractor


def image_inputs(
    config: ModelConfig, images: Sequence[Image.Image], regions: RegionFunction | None
) -> tuple[Tensor, ...]:
    """Return the arguments of `VGSPlus.embed_image` for B images.

    They are features (B, R, F) and boxes (B, R, 4) by `regions`, or pixels (B, 3, S, S) of a model that reads
    pictures, for which `regions` is not used.

    Raises:
        VgsplusError: features or boxes have another shape than those of the training, or are not finite.
    """
    if config.image is not None:
        side = config.image.side
        return (torch.from_numpy(np.stack([square_pixels(image, side) for image in images])),)
    assert regions is not None
    found = [regions(image) for image in images]
    count = max(1, len(found[0][0]))
    for features, boxes in found:
        if features.ndim == 2 and features.shape[1] != config.feature_dim:
            raise VgsplusError(
                f"The model was trained on region features of {config.feature_dim} values; `regions` returns "
                f"{features.shape[-1]}. Pass the extractor of its training images as `regions` (2048 values "
                "are those of the paper's detector), or use a model trained on a corpus prepared without "
                "--features and --regions."
            )
        if features.shape != (count, config.feature_dim) or boxes.shape != (count, 4):
            raise VgsplusError(
                f"`regions` returned features {features.shape} and boxes {boxes.shape}; a batch needs "
                f"({count}, {config.feature_dim}) and ({count}, 4) for every picture."
            )
    features, boxes = (np.stack(arrays).astype(np.float32) for arrays in zip(*found, strict=True))
    if not (np.isfinite(features).all() and np.isfinite(boxes).all()):
        raise VgsplusError("`regions` returned values that are not finite numbers.")
    return torch.from_numpy(features), torch.from_numpy(boxes)
