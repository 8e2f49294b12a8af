"""ResDAVEnet: residual convolutions that downsample speech (FaST-VGS, section 2).

B batch, C channels, T frames, D dimensions.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vgsplus.functional import lengths_to_mask
from vgsplus.models.masked_norm import MaskedBatchNorm, mask_padding


class ResidualBlock(nn.Module):
    """Two convolutions over time with a residual connection; the first has the stride."""

    def __init__(self, before: int, after: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv1d(before, after, kernel, stride, padding=kernel // 2, bias=False)
        self.norm1 = MaskedBatchNorm(after)
        self.conv2 = nn.Conv1d(after, after, kernel, padding=kernel // 2, bias=False)
        self.norm2 = MaskedBatchNorm(after)
        self.shortcut = nn.Conv1d(before, after, 1, stride, bias=False) if stride > 1 else None
        self.shortcut_norm = MaskedBatchNorm(after) if stride > 1 else None

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map x (B, C, T) and lengths (B,), None for no padding, to T / stride frames, rounded up."""
        x = mask_padding(x, None if lengths is None else lengths_to_mask(lengths, x.shape[2]))
        y = self.conv1(x)
        mask = None
        if lengths is not None:
            lengths = (lengths + self.stride - 1) // self.stride
            mask = lengths_to_mask(lengths, y.shape[2])
        y = mask_padding(F.relu(self.norm1(y, mask)), mask)
        y = self.norm2(self.conv2(y), mask)
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x), mask)
        return F.relu(x + y), lengths


class ResDAVEnet(nn.Module):
    """A projection, then stages of residual blocks, each of which halves the number of frames.

    Args:
        dim: D.
        widths: channels of each stage.
        blocks: residual blocks in each stage.
        kernel: of the convolutions, in frames.
    """

    def __init__(self, dim: int, widths: Sequence[int], blocks: int, kernel: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, widths[0])
        self.norm = MaskedBatchNorm(widths[0])
        self.stages = nn.ModuleList(
            nn.ModuleList(
                ResidualBlock(after if index else before, after, kernel, 1 if index else 2)
                for index in range(blocks)
            )
            for before, after in zip([widths[0], *widths], widths, strict=False)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map x (B, T, D) and lengths (B,), None for no padding, to (B, T', C) and lengths in T' frames."""
        mask = None if lengths is None else lengths_to_mask(lengths, x.shape[1])
        x = F.relu(self.norm(self.project(x).transpose(1, 2), mask))
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x, lengths = block(x, lengths)
        return x.transpose(1, 2), lengths
