"""The feature extractor: convolutions from samples to one frame every 20 ms (wav2vec 2.0, section 2).

All utterances of a batch lie end to end in one row of samples, each from a multiple of the total stride
on, so that in every layer the frames follow one another as well. N samples or frames of all
utterances together, C channels.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgsplus.models.segments import round_up

INFERENCE_SAMPLES = 960_000
"""Samples that run together without gradients, a minute: the first layer and its norm need 20 MB a second."""


def receptive_field(layers: Sequence[tuple[int, int, int]]) -> int:
    """Return the receptive field of one frame in samples, which is also the shortest valid input.

    Args:
        layers: (channels, kernel, stride) of each convolution.
    """
    field, step = 1, 1
    for _, kernel, stride in layers:
        field += (kernel - 1) * step
        step *= stride
    return field


class FeatureExtractor(nn.Module):
    """Convolutions over time, each followed by GELU, with normalisation after the first one or after each.

    Args:
        layers: (channels, kernel, stride) of each convolution.
        mode: "default": normalise each channel over time after the first convolution (base models);
            "layer_norm": normalise each frame over its channels after every convolution (large models).
        bias: whether the convolutions have a bias.
    """

    def __init__(
        self,
        layers: Sequence[tuple[int, int, int]],
        *,
        mode: Literal["default", "layer_norm"] = "default",
        bias: bool = False,
    ) -> None:
        super().__init__()
        channels = [1, *(layer[0] for layer in layers)]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, kernel, stride, bias=bias)
            for before, (after, kernel, stride) in zip(channels, layers, strict=False)
        )
        self.norm = nn.GroupNorm(layers[0][0], layers[0][0]) if mode == "default" else None
        self.norms = nn.ModuleList(nn.LayerNorm(after) for after in channels[1:] if mode == "layer_norm")
        self.layers = tuple(layers)
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv1d)
            nn.init.kaiming_normal_(convolution.weight)
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)

    @property
    def stride(self) -> int:
        """Samples between the starts of adjacent frames."""
        return math.prod(stride for _, _, stride in self.layers)

    @property
    def receptive_field(self) -> int:
        """Receptive field of one frame in samples."""
        return receptive_field(self.layers)

    def num_frames(self, num_samples: Tensor, depth: int | None = None) -> Tensor:
        """Return the number of frames whose receptive field contains no padding.

        Args:
            num_samples: (…) int64.
            depth: count the output of this many convolutions, by default of all.

        Returns:
            (…) int64.
        """
        for _, kernel, stride in self.layers[:depth]:
            num_samples = (num_samples - kernel).div(stride, rounding_mode="floor") + 1
        return num_samples.clamp(min=0)

    def forward(self, waveforms: Tensor, num_samples: Tensor) -> Tensor:
        """Extract features.

        Args:
            waveforms: (B, S) float, normalised and padded with zeros.
            num_samples: (B,) int64, on the host.

        Returns:
            (N, C), the frames of all utterances, and zeros up to `round_up` rows.
        """
        frames = [
            frame
            for part in _parts(num_samples.tolist())
            for frame in self._extract(waveforms[part], num_samples[part])
        ]
        num = sum(map(len, frames))
        rest = frames[0].new_zeros(round_up(num) - num, frames[0].shape[1])
        return torch.cat([*frames, rest])

    def _extract(self, waveforms: Tensor, num_samples: Tensor) -> list[Tensor]:
        """Return the frames (T, C) of each utterance, all of which run together."""
        # Strides of the whole encoder that each utterance takes.
        cells = (num_samples + self.stride - 1).div(self.stride, rounding_mode="floor")
        waveforms = F.pad(waveforms, (0, -waveforms.shape[1] % self.stride))
        lengths = (cells * self.stride).tolist()
        rows = [row[:length] for row, length in zip(waveforms, lengths, strict=True)]
        total = int(cells.sum())
        rows.append(waveforms.new_zeros((round_up(total) - total) * self.stride))
        x = torch.cat(rows)[:, None]
        starts = (cells.cumsum(0) - cells) * self.stride
        for index, (convolution, (_, _, stride)) in enumerate(
            zip(self.convolutions, self.layers, strict=True)
        ):
            assert isinstance(convolution, nn.Conv1d)
            x = convolve_rows(x, convolution.weight, convolution.bias, stride)
            starts = starts.div(stride, rounding_mode="floor")
            if self.norm is None:
                x = F.gelu(self.norms[index](x))
            elif index == 0:
                stops = starts + self.num_frames(num_samples, 1)
                spans = list(zip(starts.tolist(), stops.tolist(), strict=True))
                x = _InstanceNormGelu.apply(x, self.norm.weight, self.norm.bias, spans, self.norm.eps)
            else:
                x = F.gelu(x)
        # The one or two rows between the frames of two utterances reach into both, and are dropped.
        counts = self.num_frames(num_samples)
        return [x[start : start + n] for start, n in zip(starts.tolist(), counts.tolist(), strict=True)]


def _parts(num_samples: list[int]) -> Iterator[slice]:
    """Yield the utterances that run together: all, or without gradients parts of limited length."""
    if torch.is_grad_enabled():
        yield slice(None)
        return
    start, total = 0, 0
    for index, samples in enumerate(num_samples):
        if index > start and total + samples > INFERENCE_SAMPLES:
            yield slice(start, index)
            start, total = index, 0
        total += samples
    yield slice(start, None)


def convolve_rows(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Convolve rows without padding by products of matrices, without a copy.

    Args:
        x: (N, C).
        weight: (O, C, kernel).
        bias: (O,) or None.
        stride: of the convolution.

    Returns:
        (N', O).
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    y: Tensor = _ConvolveRows.apply(x, weight, stride)
    return y if bias is None else y + bias.to(y.dtype)


class _ConvolveRows(torch.autograd.Function):
    """A convolution as a sum of products.

    Each `stride` adjacent rows are one row of a matrix (N', stride · C), a view of x. `stride` taps of the
    kernel are one product with it; the next taps are one with the view that starts `stride` rows later.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:  # noqa: ANN401 - torch's context
        """See `convolve_rows`."""
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        kernel, channels = weight.shape[2], weight.shape[1]
        # The windows of one channel are copied, because several products with so few columns take longer.
        ctx.step = kernel if channels == 1 else stride
        y = None
        for view, taps in _windows(x, kernel, stride, ctx.step):
            matrix = _matrix(weight, taps)
            y = view @ matrix if y is None else y.addmm_(view, matrix)
        assert y is not None
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of x and weight."""
        x, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        kernel, stride = weight.shape[2], ctx.stride
        grad_x, grad_weight = None, torch.empty_like(weight)
        if ctx.needs_input_grad[0]:
            grad_x = torch.empty_like(x)
            covered = len(grad) * stride if kernel >= stride else 0
            grad_x[covered:] = 0
            for view, taps in _windows(grad_x, kernel, stride, stride):
                # The first windows write their rows, the others add to them.
                matrix = _matrix(weight, taps).T
                if covered and taps.start == 0:
                    torch.mm(grad, matrix, out=view)
                else:
                    view.addmm_(grad, matrix)
        for view, taps in _windows(x, kernel, stride, ctx.step):
            product = view.T @ grad  # (taps · C, O)
            grad_weight[:, :, taps] = product.view(-1, *weight.shape[1::-1]).permute(2, 1, 0)
        return grad_x, grad_weight, None


def _windows(x: Tensor, kernel: int, stride: int, step: int) -> Iterator[tuple[Tensor, slice]]:
    """Yield views (N', taps · C) of x (N, C), and the up to `step` taps of the kernel that they belong to."""
    num, channels = x.shape
    frames = (num - kernel) // stride + 1
    for first in range(0, kernel, step):
        taps = min(step, kernel - first)
        offset = x.storage_offset() + first * channels
        yield (
            x.as_strided((frames, taps * channels), (stride * channels, 1), offset),
            slice(first, first + taps),
        )


def _matrix(weight: Tensor, taps: slice) -> Tensor:
    """Return the taps of a kernel (O, C, kernel) as a matrix (taps · C, O)."""
    return weight[:, :, taps].permute(2, 1, 0).flatten(0, 1)


class _InstanceNormGelu(torch.autograd.Function):
    """Normalise each channel of each utterance over time, then GELU; rows between utterances become zero.

    Saves only the input, the widest activation of the network, and computes the rest again for backward.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        spans: list[tuple[int, int]],
        eps: float,
    ) -> Tensor:
        """Map x (N, C) to (N, C), given the (start, stop) of each utterance."""
        normalised = torch.empty_like(x)
        statistics = []
        for start, stop in _zero_between(normalised, spans):
            normalised[start:stop], mean, rstd = torch.native_batch_norm(
                x[start:stop], weight, bias, None, None, True, 0.0, eps
            )
            statistics += [mean, rstd]
        ctx.save_for_backward(x, weight, bias, *statistics)
        ctx.spans, ctx.eps = spans, eps
        return F.gelu(normalised)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of x, weight and bias."""
        x, weight, bias, *statistics = ctx.saved_tensors
        normalised, grad_x = torch.empty_like(x), torch.empty_like(x)
        spans = _zero_between(grad_x, _zero_between(normalised, ctx.spans))
        pairs = list(zip(spans, zip(statistics[::2], statistics[1::2], strict=True), strict=True))
        for (start, stop), (mean, rstd) in pairs:
            scale = weight * rstd
            normalised[start:stop] = torch.addcmul(bias - mean * scale, x[start:stop].to(scale.dtype), scale)
        grad = torch.ops.aten.gelu_backward(grads[0], normalised)
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        for (start, stop), (mean, rstd) in pairs:
            grad_x[start:stop], weights, biases = torch.ops.aten.native_batch_norm_backward(
                grad[start:stop],
                x[start:stop],
                weight,
                None,
                None,
                mean,
                rstd,
                True,
                ctx.eps,
                [True, True, True],
            )
            grad_weight += weights
            grad_bias += biases
        return grad_x, grad_weight, grad_bias, None, None


def _zero_between(x: Tensor, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Set the rows of x (N, C) outside the spans to zero, and return the spans."""
    stops = [0, *(stop for _, stop in spans)]
    for stop, start in zip(stops, [*(start for start, _ in spans), len(x)], strict=True):
        x[stop:start] = 0
    return spans
