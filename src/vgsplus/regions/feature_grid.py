"""A backbone as a describer: its map of patches, pooled to a grid of 6 x 6 cells.

Shape letters: B pictures, C channels of the map, h and w its patches, S the side of what the network sees.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vgsplus.regions.pixel_grid import GRID, GRID_REGIONS, grid_boxes, over_white

type Colour = tuple[float, float, float]


class GridDescriber:
    """36 regions a picture, by rows: the cells of a grid over the picture, stretched to a square.

    A cell's features are the mean of the map over its area; a patch that cells share counts by its share in
    each. So the boxes hold whatever the map's size, one smaller than the grid included.

    Args:
        network: moved to `device` and set to evaluate.
        patches: the map (B, C, h, w) that it makes of pictures (B, 3, S, S).
        side: S, in pixels.
        mean: subtracted from red, green and blue in [0, 1].
        std: what these are then divided by.
        resampling: how pictures are stretched.
        provenance: completed by how pictures are prepared.
    """

    def __init__(
        self,
        network: nn.Module,
        patches: Callable[[Tensor], Tensor],
        *,
        side: int,
        mean: Colour,
        std: Colour,
        resampling: Image.Resampling,
        device: torch.device,
        provenance: dict[str, Any],
    ) -> None:
        network.float().eval().requires_grad_(requires_grad=False).to(device)
        self.patches = patches
        self.device = device
        self._side, self._resampling = side, resampling
        self._mean, self._std = (torch.tensor(colour).view(3, 1, 1) for colour in (mean, std))
        preparation = {
            "size": [side, side],
            "resampling": resampling.name.lower(),
            "mean": list(mean),
            "std": list(std),
            "transparency": "over white",
        }
        self.provenance = provenance | {"regions": "6x6 grid of cells", "preparation": preparation}

    def prepare(self, picture: Image.Image) -> Tensor:
        """The picture stretched to (3, S, S), its colours shifted and scaled."""
        stretched = over_white(picture).resize((self._side, self._side), self._resampling)
        pixels = torch.from_numpy(np.array(stretched)).permute(2, 0, 1).float() / 255
        return (pixels - self._mean) / self._std

    @torch.inference_mode()
    def describe(self, pictures: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Features (B, 36, C) and boxes (B, 36, 4), float32 on the CPU."""
        features = pool(self.patches(torch.stack(list(pictures)).to(self.device))).cpu()
        boxes = torch.from_numpy(grid_boxes()).expand(len(pictures), GRID_REGIONS, 4)
        return features, boxes


def pool(patches: Tensor) -> Tensor:
    """The mean of a map (B, C, h, w) over each cell's area: (B, 36, C), cells by rows."""
    down, across = (_shares(size).to(patches) for size in patches.shape[-2:])
    return torch.einsum("ih,bchw,jw->bijc", down, patches, across).flatten(1, 2)


def _shares(patches: int) -> Tensor:
    """The share of each of the patches along a side in each of the cells, (6, patches); rows sum to 1."""
    cells = torch.arange(GRID, dtype=torch.float64)[:, None] * patches
    starts = torch.arange(patches, dtype=torch.float64) * GRID
    overlap = torch.minimum(cells + patches, starts + GRID) - torch.maximum(cells, starts)
    return overlap.clamp(min=0) / patches
