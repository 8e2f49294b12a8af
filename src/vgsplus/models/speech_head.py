"""The speech head: one embedding from a hidden state of the shared layers (FaST-VGS, section 2)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from vgsplus.functional import lengths_to_mask
from vgsplus.models.resdavenet import ResDAVEnet
from vgsplus.models.transformer import TransformerLayer


class SpeechHead(nn.Module):
    """ResDAVEnet on the frames, an MLP on the CLS token, one transformer layer on both, and a projection."""

    def __init__(self, resdavenet: ResDAVEnet, layer: TransformerLayer, dim: int) -> None:
        super().__init__()
        self.resdavenet = resdavenet
        self.cls = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.layer = layer
        self.project = nn.Linear(dim, dim)

    def forward(self, hidden_state: Tensor, lengths: Tensor) -> Tensor:
        """Embed hidden states (B, 1 + T, D), the CLS token first, of `lengths` (B,) frames each: (B, D)."""
        cls, frames = hidden_state[:, :1], hidden_state[:, 1:]
        x, lengths = self._downsample(frames, lengths)
        attention_mask = pad(lengths_to_mask(lengths, x.shape[1]), (1, 0), value=True)
        x = torch.cat([self.cls(cls).to(x.dtype), x], dim=1)
        embedding: Tensor = self.project(self.layer(x, attention_mask, x[:, :1])[:, 0])
        return embedding

    def _downsample(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        downsampled: tuple[Tensor, Tensor] = self.resdavenet(frames, lengths)
        return downsampled
