"""The image encoder: regions and their places, to one vector (FaST-VGS, section 2; LXMERT)."""

import torch
from torch import Tensor, nn

from vgsplus.models.transformer import TransformerLayer

DETECTOR_EPS = 1e-12
"""LayerNorm's ε in the region embedding, which came from a detector's code with another default."""


class ImageEncoder(nn.Module):
    """Regions → transformer layers → the CLS position through an MLP."""

    def __init__(
        self, feature_dim: int, dim: int, heads: int, ffn_dim: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.features = nn.Linear(feature_dim, dim)
        self.features_norm = nn.LayerNorm(dim, eps=DETECTOR_EPS)
        self.boxes = nn.Linear(4, dim)
        self.boxes_norm = nn.LayerNorm(dim, eps=DETECTOR_EPS)
        self.dropout = nn.Dropout(dropout)
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.layers = nn.ModuleList(TransformerLayer(dim, heads, ffn_dim, dropout) for _ in range(layers))
        self.head = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """(B, R, F), (B, R, 4) in [0, 1] → (B, D)."""
        seen = self.features_norm(self.features(features)) + self.boxes_norm(self.boxes(boxes))
        x = self.dropout(seen / 2)
        x = torch.cat([self.cls.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
        *layers, last = self.layers
        for layer in layers:
            x = layer(x)
        embedding: Tensor = self.head(last(x, queries=x[:, :1])[:, 0])
        return embedding
