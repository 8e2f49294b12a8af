"""Normalisation with statistics over real frames only.

B batch, C channels, T frames. With `mask` None all frames count, and PyTorch's fused kernels are used.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vgsplus.functional import upcast


class MaskedNorm(torch.autograd.Function):
    """Normalise by the mean and variance of the real frames; save only the input for backward.

    Autograd alone would also save the upcast, masked and centred copies of the widest
    activation of the network.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        x: Tensor,
        real: Tensor,
        weight: Tensor,
        bias: Tensor,
        dims: tuple[int, ...],
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return y (B, C, T), mean and variance of x (B, C, T) over `dims`; real (B, 1, T) holds 0 and 1."""
        full = upcast(x)
        count = real.sum(dims, keepdim=True).clamp(min=1)
        mean = (full * real).sum(dims, keepdim=True) / count
        variance = ((full - mean).mul_(real)).square_().sum(dims, keepdim=True) / count
        scale = weight[:, None] * torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, real, weight, mean, variance, count)
        ctx.dims, ctx.eps = dims, eps
        ctx.mark_non_differentiable(mean, variance)
        return torch.addcmul(bias[:, None] - mean * scale, full, scale).to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of x, weight and bias. Padding is scaled too, but not part of the moments."""
        x, real, weight, mean, variance, count = ctx.saved_tensors
        grad, inverse = upcast(grads[0]), torch.rsqrt(variance + ctx.eps)
        standard = (upcast(x) - mean).mul_(inverse)
        shift = grad.sum(ctx.dims, keepdim=True)
        stretch = (grad * standard).sum(ctx.dims, keepdim=True)
        moments = standard.mul_(stretch).add_(shift).mul_(real).div_(count)
        grad_x = torch.sub(grad, moments, out=moments).mul_(weight[:, None] * inverse)
        return grad_x.to(x.dtype), None, stretch.sum((0, 2)), shift.sum((0, 2)), None, None


def _masked_norm(
    x: Tensor, mask: Tensor, norm: nn.BatchNorm1d | nn.GroupNorm, dims: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    real = mask[:, None].to(torch.promote_types(x.dtype, torch.float32))
    output: tuple[Tensor, Tensor, Tensor] = MaskedNorm.apply(x, real, norm.weight, norm.bias, dims, norm.eps)
    return output


class MaskedInstanceNorm(nn.GroupNorm):
    """Normalise each channel of each utterance over time (a GroupNorm with one channel in each group)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise x (B, C, T); mask (B, T) is True at real frames."""
        return super().forward(x) if mask is None else _masked_norm(x, mask, self, (2,))[0]


class MaskedBatchNorm(nn.BatchNorm1d):
    """Normalise each channel over the real frames of a batch."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise x (B, C, T); mask (B, T) is True at real frames."""
        if mask is None or not self.training:
            return super().forward(x)
        y, mean, variance = _masked_norm(x, mask, self, (0, 2))
        count = mask.sum()
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


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set the frames of x (B, C, T) to zero where mask (B, T) is False."""
    return x if mask is None else x.masked_fill(~mask[:, None], 0)
