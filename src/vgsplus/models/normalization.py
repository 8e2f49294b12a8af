"""Normalisation whose statistics count real frames only.

B batch, C channels, T frames. With `valid` None every frame counts and PyTorch's fused kernels do the work.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgsplus.losses.precision import full_precision


def frame_mask(lengths: Tensor, num_frames: int) -> Tensor:
    """(B, T) bool, True where a real frame is; lengths (B,) int64 in frames."""
    return torch.arange(num_frames, device=lengths.device) < lengths[:, None]


def _moments(x: Tensor, valid: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, population variance and count over the valid frames; x (B, C, T), valid (B, T)."""
    kept = valid[:, None]
    count = kept.sum(dims, keepdim=True).clamp(min=1)
    x = x.masked_fill(~kept, 0)
    mean = x.sum(dims, keepdim=True) / count
    variance = (x - mean).masked_fill(~kept, 0).square().sum(dims, keepdim=True) / count
    return mean, variance, count


def _affine(x: Tensor, mean: Tensor, variance: Tensor, norm: nn.BatchNorm1d | nn.GroupNorm) -> Tensor:
    scale = norm.weight[:, None] * torch.rsqrt(variance + norm.eps)
    return torch.addcmul(norm.bias[:, None] - mean * scale, x, scale)


class UtteranceNorm(nn.GroupNorm):
    """Each channel of each utterance normalised over its own time (a GroupNorm with a group a channel)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, C, T) → (B, C, T); valid (B, T) True where a real frame is."""
        if valid is None:
            return super().forward(x)
        dtype, x = x.dtype, full_precision(x)
        mean, variance, _ = _moments(x, valid, (2,))
        return _affine(x, mean, variance, self).to(dtype)


class FrameBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the real frames of a batch; padding touches neither output nor statistics."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, C, T) → (B, C, T); valid (B, T) True where a real frame is."""
        if valid is None or not self.training:
            return super().forward(x)
        dtype, x = x.dtype, full_precision(x)
        mean, variance, count = _moments(x, valid, (0, 2))
        self._track(mean.flatten(), (variance * (count / (count - 1).clamp(min=1))).flatten())
        return _affine(x, mean, variance, self).to(dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def mask_frames(x: Tensor, valid: Tensor | None) -> Tensor:
    """Zero the padded frames of (B, C, T)."""
    return x if valid is None else x.masked_fill(~valid[:, None], 0)


def gelu(x: Tensor) -> Tensor:
    """The exact GELU, as the published model uses it throughout."""
    return F.gelu(x)
