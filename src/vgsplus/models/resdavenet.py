"""ResDAVEnet: residual convolutions that shorten speech on its way to one vector (FaST-VGS, section 2)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vgsplus.models.normalization import FrameBatchNorm, frame_mask, mask_frames


class ResidualBlock(nn.Module):
    """Two convolutions over time beside a short cut; `stride` shortens time."""

    def __init__(self, before: int, after: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv1d(before, after, kernel, stride, padding=kernel // 2, bias=False)
        self.norm1 = FrameBatchNorm(after)
        self.conv2 = nn.Conv1d(after, after, kernel, padding=kernel // 2, bias=False)
        self.norm2 = FrameBatchNorm(after)
        self.shortcut = nn.Conv1d(before, after, 1, stride, bias=False) if stride > 1 else None
        self.shortcut_norm = FrameBatchNorm(after) if stride > 1 else None

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, C, T), lengths (B,) or None for no padding → both over stride in time, rounded up."""
        x = mask_frames(x, None if lengths is None else frame_mask(lengths, x.shape[2]))
        y = self.conv1(x)
        valid = None
        if lengths is not None:
            lengths = (lengths + self.stride - 1) // self.stride
            valid = frame_mask(lengths, y.shape[2])
        y = mask_frames(F.relu(self.norm1(y, valid)), valid)
        y = self.norm2(self.conv2(y), valid)
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x), valid)
        return F.relu(x + y), lengths


class ResDAVEnet(nn.Module):
    """A projection, then stages of residual blocks; every stage halves time and may widen.

    Args:
        dim: of the frames that come in.
        widths: channels of each stage.
        blocks: in each stage. kernel: of their convolutions.
    """

    def __init__(self, dim: int, widths: Sequence[int], blocks: int, kernel: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, widths[0])
        self.norm = FrameBatchNorm(widths[0])
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
        """(B, T, D), lengths (B,) or None → (B, T', C) and lengths in the shorter frames."""
        valid = None if lengths is None else frame_mask(lengths, x.shape[1])
        x = F.relu(self.norm(self.project(x).transpose(1, 2), valid))
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x, lengths = block(x, lengths)
        return x.transpose(1, 2), lengths
