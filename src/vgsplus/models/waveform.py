"""The waveform encoder: convolutions from samples to one frame every 20 ms (wav2vec 2.0, section 2)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgsplus.models.normalization import UtteranceNorm, frame_mask


def receptive_field(layers: Sequence[tuple[int, int, int]]) -> int:
    """Samples that a frame hears, the fewest that give one; layers are (channels, kernel, stride)."""
    field, step = 1, 1
    for _, kernel, stride in layers:
        field += (kernel - 1) * step
        step *= stride
    return field


class WaveformEncoder(nn.Module):
    """Convolutions with GELU after each, and normalisation after the first or after each.

    Args:
        layers: (channels, kernel, stride) of each convolution.
        exact: normalise each utterance over its real frames, not over its padding too.
        mode: "default": each channel over time after the first convolution (base models); "layer_norm": each
            frame over its channels after every convolution (large models), which no padding touches.
        bias: whether convolutions add one.
    """

    def __init__(
        self,
        layers: Sequence[tuple[int, int, int]],
        *,
        exact: bool,
        mode: Literal["default", "layer_norm"] = "default",
        bias: bool = False,
    ) -> None:
        super().__init__()
        channels = [1, *(layer[0] for layer in layers)]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, kernel, stride, bias=bias)
            for before, (after, kernel, stride) in zip(channels, layers, strict=False)
        )
        self.norm = UtteranceNorm(layers[0][0]) if mode == "default" else None
        self.norms = nn.ModuleList(nn.LayerNorm(after) for after in channels[1:] if mode == "layer_norm")
        self.layers, self.exact = tuple(layers), exact
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv1d)
            nn.init.kaiming_normal_(convolution.weight)
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)

    @property
    def stride(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(stride for _, _, stride in self.layers)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame hears."""
        return receptive_field(self.layers)

    def num_frames(self, num_samples: Tensor, depth: int | None = None) -> Tensor:
        """Frames after `depth` convolutions (all by default) that hear real samples alone; (B,) → (B,)."""
        for _, kernel, stride in self.layers[:depth]:
            num_samples = (num_samples - kernel).div(stride, rounding_mode="floor") + 1
        return num_samples.clamp(min=0)

    def forward(self, waveforms: Tensor, num_samples: Tensor) -> Tensor:
        """(B, S) normalised samples, (B,) int64 → (B, T, C)."""
        x = self._first(waveforms)
        if self.norm is None:
            x = self._normalise_frames(x, 0)
        else:
            valid = frame_mask(self.num_frames(num_samples, 1), x.shape[2]) if self.exact else None
            x = self.norm(x, valid)
        x = F.gelu(x)
        for index, convolution in enumerate(self.convolutions[1:], start=1):
            x = convolution(x)
            x = F.gelu(x if self.norm is not None else self._normalise_frames(x, index))
        return x.transpose(1, 2)

    def _normalise_frames(self, x: Tensor, index: int) -> Tensor:
        """The LayerNorm of a convolution over the channels of (B, C, T)."""
        normalised: Tensor = self.norms[index](x.transpose(1, 2)).transpose(1, 2)
        return normalised

    def _first(self, waveforms: Tensor) -> Tensor:
        """(B, S) → (B, C, T): the convolution of the one channel, as a product with its windows.

        On a CPU, the gradient takes a fifth of the time that it takes through conv1d.
        """
        (_, kernel, stride), first = self.layers[0], self.convolutions[0]
        assert isinstance(first, nn.Conv1d)
        windows = waveforms.unfold(1, kernel, stride).transpose(1, 2).contiguous()  # (B, kernel, T)
        x = torch.bmm(first.weight[:, 0].expand(len(waveforms), -1, -1), windows)
        return x if first.bias is None else x + first.bias[:, None].to(x.dtype)
