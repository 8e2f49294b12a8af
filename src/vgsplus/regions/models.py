"""Models by name."""

from pathlib import Path

import torch

from vgsplus.errors import VgsplusError
from vgsplus.regions.backbones import efficientnet_lite0, timm_backbone, transformers_backbone
from vgsplus.regions.describer import Describer
from vgsplus.regions.detector import FASTER_RCNN, faster_rcnn

EFFICIENTNET_LITE0 = "efficientnet-lite0"
NAMES = f"{FASTER_RCNN}, {EFFICIENTNET_LITE0}, timm:NAME, transformers:NAME or transformers:FOLDER"


def open_describer(name: str, *, weights: Path | None = None, device: torch.device) -> Describer:
    """The model `name`, with its library's weights or those in the file `weights`, on `device`.

    Raises:
        VgsplusError: the name is unknown, its library is not installed, or its weights cannot be had.
        CheckpointError: the file of weights cannot be read.
    """
    family, _, member = name.partition(":")
    if name == FASTER_RCNN:
        return faster_rcnn(weights, device)
    if name == EFFICIENTNET_LITE0:
        return efficientnet_lite0(weights, device)
    if family == "timm" and member:
        return timm_backbone(member, weights, device)
    if family == "transformers" and member:
        if weights is not None:
            raise VgsplusError(
                f"{name}: takes no file of weights. Name the folder that holds the model: transformers:FOLDER"
            )
        return transformers_backbone(member, device)
    raise VgsplusError(f"there is no model {name!r}. The models are {NAMES}.")
