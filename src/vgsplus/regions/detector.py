"""Faster R-CNN v2 of torchvision as a describer: the boxes it is surest of, described by its box head.

Shape letters: P proposals, K classes (0 is the background), R regions, H and W the picture as the network
sees it.
"""

import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vgsplus.errors import VgsplusError
from vgsplus.regions.libraries import from_hub, library
from vgsplus.regions.pixel_grid import over_white
from vgsplus.regions.weights import digest, fill

FASTER_RCNN = "fasterrcnn_resnet50_fpn_v2"
REGIONS = 36


class DetectorDescriber:
    """36 regions a picture by falling score, and the box head's features of each.

    A proposal counts once, with the class it scores highest in and that class's box; boxes of one class
    that overlap beyond the network's own threshold yield to the best. Where fewer than 36 are left, the best
    of those that yielded fill up. Boxes are then described anew, so that features are those of the boxes.

    Pictures run one by one: padded to the size of another, a picture would be described differently.
    """

    def __init__(
        self,
        network: Any,  # noqa: ANN401 - a FasterRCNN of torchvision, which is optional
        *,
        device: torch.device,
        provenance: dict[str, Any],
    ) -> None:
        self.network = network.eval().requires_grad_(requires_grad=False).to(device)
        self.device = device
        self._operations = library("torchvision.ops")
        self._image_list = library("torchvision.models.detection.image_list").ImageList
        transform = self.network.transform
        preparation = {
            "shorter_side": list(transform.min_size),
            "longest_side": transform.max_size,
            "mean": list(transform.image_mean),
            "std": list(transform.image_std),
            "transparency": "over white",
        }
        self.provenance = provenance | {
            "regions": f"{REGIONS} boxes by score, one a proposal, suppression within a class",
            "suppression_threshold": self.network.roi_heads.nms_thresh,
            "preparation": preparation,
        }

    def prepare(self, picture: Image.Image) -> Tensor:
        """The picture at the detector's size, (3, H, W), its colours shifted and scaled."""
        transform = self.network.transform
        pixels = torch.from_numpy(np.array(over_white(picture))).permute(2, 0, 1).float() / 255
        resized, _ = transform.resize(transform.normalize(pixels))
        assert isinstance(resized, Tensor)
        return resized

    @torch.inference_mode()
    def describe(self, pictures: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Features (B, 36, F) and boxes (B, 36, 4), float32 on the CPU."""
        found = [self._describe(picture) for picture in pictures]
        features, boxes = zip(*found, strict=True)
        return torch.stack(features).cpu(), torch.stack(boxes).cpu()

    def _describe(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        size = (picture.shape[1], picture.shape[2])
        padded = self.network.transform.batch_images([picture.to(self.device)])
        images = self._image_list(padded, [size])
        maps = self.network.backbone(padded)
        (proposals,), _ = self.network.rpn(images, maps)
        heads = self.network.roi_heads
        logits, offsets = heads.box_predictor(self._described(maps, proposals, size))
        decoded = self._operations.clip_boxes_to_image(heads.box_coder.decode(offsets, [proposals]), size)
        boxes = self._best(logits, decoded)
        height, width = size
        scale = torch.tensor([width, height, width, height], device=self.device)
        return self._described(maps, boxes, size), (boxes / scale).clamp(0, 1)

    def _described(self, maps: dict[str, Tensor], boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """The box head's features of boxes (n, 4) in pixels: (n, F)."""
        heads = self.network.roi_heads
        features: Tensor = heads.box_head(heads.box_roi_pool(maps, [boxes], [size]))
        return features

    def _best(self, logits: Tensor, decoded: Tensor) -> Tensor:
        """The boxes (36, 4) to keep, of logits (P, K) and boxes by class (P, K, 4)."""
        scores, labels = logits.softmax(-1)[:, 1:].max(-1)
        boxes = decoded[torch.arange(len(decoded), device=self.device), labels + 1]
        threshold = self.network.roi_heads.nms_thresh
        kept = self._operations.batched_nms(boxes, scores, labels, threshold)[:REGIONS]
        if len(kept) < REGIONS:
            yielded = scores.index_fill(0, kept, -math.inf)
            kept = torch.cat([kept, yielded.argsort(descending=True, stable=True)])[:REGIONS]
        ranked = kept[scores[kept].argsort(descending=True, stable=True)]
        # A picture with fewer proposals than regions repeats its last one.
        return boxes[ranked[torch.arange(REGIONS, device=self.device).clamp(max=len(ranked) - 1)]]


def faster_rcnn(weights: Path | None, device: torch.device) -> DetectorDescriber:
    """Faster R-CNN v2 with a ResNet-50 FPN; without `weights`, torchvision's, trained on COCO train2017.

    Raises:
        VgsplusError: torchvision is not installed, or its weights are neither cached nor to be fetched.
    """
    detection = library("torchvision.models.detection")
    network = detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    path = _cached(detection.FasterRCNN_ResNet50_FPN_V2_Weights.DEFAULT) if weights is None else weights
    fill(network, path)
    provenance = {
        "model": FASTER_RCNN,
        "weights": path.name,
        "weights_sha256": digest(network),
        "library": f"torchvision {version('torchvision')}",
    }
    return DetectorDescriber(network, device=device, provenance=provenance)


def _cached(weights: Any) -> Path:  # noqa: ANN401 - torchvision is optional
    """The file of torchvision's weights in PyTorch's cache, fetched if it is not there."""
    name = weights.url.rsplit("/", 1)[1]
    path: Path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with from_hub(FASTER_RCNN):
            torch.hub.download_url_to_file(
                weights.url, str(path), hash_prefix=name.rsplit("-", 1)[1].split(".")[0]
            )
    except VgsplusError as error:
        raise VgsplusError(f"{error} The cache would hold it as {path}.") from None
    return path
