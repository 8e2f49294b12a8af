"""Normalisation whose statistics count real frames only.

B batch, C channels, T frames. With `valid` None every frame counts and PyTorch's fused kernels do the work.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vgsplus.losses.precision import full_precision


def frame_mask(lengths: Tensor, num_frames: int) -> Tensor:
    """(B, T) bool, True where a real frame is; lengths (B,) int64 in frames."""
    return torch.arange(num_frames, device=lengths.device) < lengths[:, None]


class _Standardise(torch.autograd.Function):
    """Scale and shift by the moments of the real frames; keeps the input alone for the way back.

    Autograd by itself would also keep its full-precision, masked and centred copies, and the first of these
    layers stands at the widest activation of all.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        x: Tensor,
        kept: Tensor,
        weight: Tensor,
        bias: Tensor,
        dims: tuple[int, ...],
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take x (B, C, T) and kept (B, 1, T) of 0 and 1 to y as x, and the moments over `dims`."""
        full = full_precision(x)
        count = kept.sum(dims, keepdim=True).clamp(min=1)
        mean = (full * kept).sum(dims, keepdim=True) / count
        variance = ((full - mean).mul_(kept)).square_().sum(dims, keepdim=True) / count
        scale = weight[:, None] * torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, kept, weight, mean, variance, count)
        ctx.dims, ctx.eps = dims, eps
        ctx.mark_non_differentiable(mean, variance)
        return torch.addcmul(bias[:, None] - mean * scale, full, scale).to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """The gradients of x, weight and bias; padded frames are scaled too, but move no moment."""
        x, kept, weight, mean, variance, count = ctx.saved_tensors
        grad, inverse = full_precision(grads[0]), torch.rsqrt(variance + ctx.eps)
        standard = (full_precision(x) - mean).mul_(inverse)
        shift = grad.sum(ctx.dims, keepdim=True)
        stretch = (grad * standard).sum(ctx.dims, keepdim=True)
        moments = standard.mul_(stretch).add_(shift).mul_(kept).div_(count)
        grad_x = torch.sub(grad, moments, out=moments).mul_(weight[:, None] * inverse)
        return grad_x.to(x.dtype), None, stretch.sum((0, 2)), shift.sum((0, 2)), None, None


def _standardise(
    x: Tensor, valid: Tensor, norm: nn.BatchNorm1d | nn.GroupNorm, dims: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    kept = valid[:, None].to(torch.promote_types(x.dtype, torch.float32))
    found: tuple[Tensor, Tensor, Tensor] = _Standardise.apply(x, kept, norm.weight, norm.bias, dims, norm.eps)
    return found


class UtteranceNorm(nn.GroupNorm):
    """Each channel of each utterance normalised over its own time (a GroupNorm with a group a channel)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, C, T) → (B, C, T); valid (B, T) True where a real frame is."""
        return super().forward(x) if valid is None else _standardise(x, valid, self, (2,))[0]


class FrameBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the real frames of a batch; padding touches neither output nor statistics."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, C, T) → (B, C, T); valid (B, T) True where a real frame is."""
        if valid is None or not self.training:
            return super().forward(x)
        y, mean, variance = _standardise(x, valid, self, (0, 2))
        count = valid.sum()
        self._track(mean.flatten(), (variance * (count / (count - 1).clamp(min=1))).flatten())
        return y

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
