"""The image encoder: one embedding from region features and boxes (FaST-VGS, section 2; LXMERT).

B batch, R regions, F features of a region, D dimensions.
"""

import torch
from torch import Tensor, nn

from vgsplus.models.dropout import Dropout
from vgsplus.models.segments import Segments
from vgsplus.models.transformer import TransformerLayer

REGION_NORM_EPS = 1e-12
"""ε of the LayerNorms of the region embedding, as in LXMERT."""


class ImageEncoder(nn.Module):
    """Region embedding, CLS token, transformer layers, and an MLP on the CLS output."""

    def __init__(
        self, feature_dim: int, dim: int, heads: int, ffn_dim: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.features = nn.Linear(feature_dim, dim)
        self.features_norm = nn.LayerNorm(dim, eps=REGION_NORM_EPS)
        self.boxes = nn.Linear(4, dim)
        self.boxes_norm = nn.LayerNorm(dim, eps=REGION_NORM_EPS)
        self.dropout = Dropout(dropout)
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.layers = nn.ModuleList(TransformerLayer(dim, heads, ffn_dim, dropout) for _ in range(layers))
        self.head = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, features: Tensor, boxes: Tensor, keys: Tensor | None = None) -> Tensor:
        """Embed features (B, R, F) and boxes (B, R, 4), (x1, y1, x2, y2) in [0, 1]: (B, D).

        `keys` (B,) int64 on the host are those of the random numbers of the images (see `Segments`).
        """
        regions = self.features_norm(self.features(features)) + self.boxes_norm(self.boxes(boxes))
        batch, num_regions, _ = regions.shape
        segments = Segments([num_regions] * batch, regions.device, keys=keys)
        x = self.dropout((regions / 2).flatten(0, 1), self.dropout.keys(segments))
        x = segments.prepend(self.cls[0], x)
        *layers, last = self.layers
        for layer in layers:
            x = layer(x, segments.with_token)
        first = segments.with_lengths([1] * batch)
        embedding: Tensor = self.head(last(x, segments.with_token, segments.split_token(x)[0], first))
        return embedding
