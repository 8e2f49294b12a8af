"""Region extractor with torchvision's Faster R-CNN v2: the best boxes and their box head features.

Shapes: P proposals, K classes (0: background), R regions, H x W resized image.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vgsplus.errors import VgsplusError
from vgsplus.regions.pixel_grid import Array, over_white
from vgsplus.regions.weights import downloading, load_weights, optional_module, provenance_of_weights

FASTER_RCNN = "fasterrcnn_resnet50_fpn_v2"
REGIONS = 36


class DetectorExtractor:
    """Extracts 36 regions per image, by decreasing score, with the features of the box head.

    Each proposal contributes one box, that of its best class. Non-maximum suppression within each class uses
    the threshold of the network; if fewer than 36 boxes remain, the best suppressed ones are added. The box
    head is then applied to the final boxes, so that features correspond to boxes.

    Images are processed one by one, because padding to the size of another image would change the features.
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
        self._operations = optional_module("torchvision.ops")
        self._image_list = optional_module("torchvision.models.detection.image_list").ImageList
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

    def prepare(self, image: Image.Image) -> Tensor:
        """Resize an image to (3, H, W), the input size of the detector, and standardise its colours."""
        transform = self.network.transform
        pixels = torch.from_numpy(np.array(over_white(image))).permute(2, 0, 1).float() / 255
        resized, _ = transform.resize(transform.normalize(pixels))
        assert isinstance(resized, Tensor)
        return resized

    @torch.inference_mode()
    def extract(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return features (B, 36, F) and boxes (B, 36, 4), float32 on the CPU."""
        found = [self._extract(image) for image in images]
        features, boxes = zip(*found, strict=True)
        return torch.stack(features).cpu(), torch.stack(boxes).cpu()

    def __call__(self, image: Image.Image) -> tuple[Array, Array]:
        """Return features (R, F) and boxes (R, 4) of one image: a `RegionFunction`."""
        features, boxes = self.extract([self.prepare(image)])
        return features[0].numpy(), boxes[0].numpy()

    def _extract(self, image: Tensor) -> tuple[Tensor, Tensor]:
        size = (image.shape[1], image.shape[2])
        padded = self.network.transform.batch_images([image.to(self.device)])
        images = self._image_list(padded, [size])
        maps = self.network.backbone(padded)
        (proposals,), _ = self.network.rpn(images, maps)
        heads = self.network.roi_heads
        logits, offsets = heads.box_predictor(self._box_features(maps, proposals, size))
        decoded = self._operations.clip_boxes_to_image(heads.box_coder.decode(offsets, [proposals]), size)
        boxes = self._best(logits, decoded)
        height, width = size
        scale = torch.tensor([width, height, width, height], device=self.device)
        return self._box_features(maps, boxes, size), (boxes / scale).clamp(0, 1)

    def _box_features(self, maps: dict[str, Tensor], boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Features (n, F) of the box head for boxes (n, 4) in pixels."""
        heads = self.network.roi_heads
        features: Tensor = heads.box_head(heads.box_roi_pool(maps, [boxes], [size]))
        return features

    def _best(self, logits: Tensor, decoded: Tensor) -> Tensor:
        """Select boxes (36, 4) by logits (P, K) and boxes of each class (P, K, 4)."""
        scores, labels = logits.softmax(-1)[:, 1:].max(-1)
        boxes = decoded[torch.arange(len(decoded), device=self.device), labels + 1]
        threshold = self.network.roi_heads.nms_thresh
        kept = self._operations.batched_nms(boxes, scores, labels, threshold)[:REGIONS]
        if len(kept) < REGIONS:
            suppressed = scores.index_fill(0, kept, -math.inf)
            kept = torch.cat([kept, suppressed.argsort(descending=True, stable=True)])[:REGIONS]
        ranked = kept[scores[kept].argsort(descending=True, stable=True)]
        # If there are fewer than 36 proposals, the last one is repeated.
        return boxes[ranked[torch.arange(REGIONS, device=self.device).clamp(max=len(ranked) - 1)]]


def faster_rcnn(weights: Path | None, device: torch.device) -> DetectorExtractor:
    """Build Faster R-CNN v2 with a ResNet-50 FPN; default weights: torchvision's, of COCO train2017.

    Raises:
        VgsplusError: torchvision is not installed, or its weights are neither cached nor can be downloaded.
    """
    detection = optional_module("torchvision.models.detection")
    network = detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    path = _cached(detection.FasterRCNN_ResNet50_FPN_V2_Weights.DEFAULT) if weights is None else weights
    load_weights(network, path)
    provenance = provenance_of_weights(FASTER_RCNN, network, path, "torchvision")
    return DetectorExtractor(network, device=device, provenance=provenance)


def _cached(weights: Any) -> Path:  # noqa: ANN401 - torchvision is optional
    """Return the path of torchvision weights in the cache of PyTorch; download them if necessary."""
    name = weights.url.rsplit("/", 1)[1]
    path: Path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with downloading(FASTER_RCNN):
            torch.hub.download_url_to_file(
                weights.url, str(path), hash_prefix=name.rsplit("-", 1)[1].split(".")[0]
            )
    except VgsplusError as error:
        raise VgsplusError(f"{error} Their place in the cache is {path}.") from None
    return path
