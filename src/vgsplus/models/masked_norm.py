"""Normalisation with statistics over valid (non-padding) frames only.

B batch, C channels, T frames. With `mask` None all frames count, and PyTorch's fused kernels are used.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vgsplus.functional import upcast


class MaskedNorm(torch.autograd.Function):
    """Normalise by the mean and variance of the valid frames; save only the input for backward.

    Autograd alone would also save the upcast, masked and centred copies of the widest activation of
    the network.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        x: Tensor,
        valid: Tensor,
        weight: Tensor,
        bias: Tensor,
        dims: tuple[int, ...],
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return y (B, C, T), mean and variance of x (B, C, T) over `dims`; valid (B, 1, T) holds 0 and 1."""
        x32 = upcast(x)
        count = valid.sum(dims, keepdim=True).clamp(min=1)
        mean = (x32 * valid).sum(dims, keepdim=True) / count
        variance = ((x32 - mean).mul_(valid)).square_().sum(dims, keepdim=True) / count
        scale = weight[:, None] * torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, valid, weight, mean, variance, count)
        ctx.dims, ctx.eps = dims, eps
        ctx.mark_non_differentiable(mean, variance)
        return torch.addcmul(bias[:, None] - mean * scale, x32, scale).to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of x, weight and bias. Padding is not part of the statistics."""
        x, valid, weight, mean, variance, count = ctx.saved_tensors
        grad, rstd = upcast(grads[0]), torch.rsqrt(variance + ctx.eps)
        x_hat = (upcast(x) - mean).mul_(rstd)
        grad_bias = grad.sum(ctx.dims, keepdim=True)
        grad_weight = (grad * x_hat).sum(ctx.dims, keepdim=True)
        statistics_grad = x_hat.mul_(grad_weight).add_(grad_bias).mul_(valid).div_(count)
        grad_x = torch.sub(grad, statistics_grad, out=statistics_grad).mul_(weight[:, None] * rstd)
        return grad_x.to(x.dtype), None, grad_weight.sum((0, 2)), grad_bias.sum((0, 2)), None, None


def _masked_norm(
    x: Tensor, mask: Tensor, norm: nn.BatchNorm1d | nn.GroupNorm, dims: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    valid = mask[:, None].to(torch.promote_types(x.dtype, torch.float32))
    output: tuple[Tensor, Tensor, Tensor] = MaskedNorm.apply(x, valid, norm.weight, norm.bias, dims, norm.eps)
    return output


class MaskedInstanceNorm(nn.GroupNorm):
    """Normalise each channel of each utterance over time (a GroupNorm with one channel in each group)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise x (B, C, T); mask (B, T) is True at valid frames."""
        return super().forward(x) if mask is None else _masked_norm(x, mask, self, (2,))[0]


class MaskedBatchNorm(nn.BatchNorm1d):
    """Normalise each channel over the valid frames of a batch."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise x (B, C, T); mask (B, T) is True at valid frames."""
        if mask is None or not self.training:
            return super().forward(x)
        y, mean, variance = _masked_norm(x, mask, self, (0, 2))
        count = mask.sum()
        self._update_running_statistics(
            mean.flatten(), (variance * (count / (count - 1).clamp(min=1))).flatten()
        )
        return y

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def mask_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set the frames of x (B, C, T) to zero where mask (B, T) is False."""
    return x if mask is None else x.masked_fill(~mask[:, None], 0)
