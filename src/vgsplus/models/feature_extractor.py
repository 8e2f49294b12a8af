"""The feature extractor: convolutions from samples to one frame every 20 ms (wav2vec 2.0, section 2)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgsplus.functional import lengths_to_mask
from vgsplus.models.masked_norm import MaskedInstanceNorm


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
        self.norm = MaskedInstanceNorm(layers[0][0]) if mode == "default" else None
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

    def forward(self, waveforms: Tensor, num_samples: Tensor | None) -> Tensor:
        """Extract features.

        Args:
            waveforms: (B, S) float, normalised and padded with zeros.
            num_samples: (B,) int64, valid samples of each row, for the statistics of the normalisation;
                None: all.

        Returns:
            (B, T, C).
        """
        x = self._convolve_waveforms(waveforms)
        if self.norm is None:
            x = self._normalise_frames(x, 0)
        else:
            mask = None
            if num_samples is not None:
                mask = lengths_to_mask(self.num_frames(num_samples, 1), x.shape[2])
            x = self.norm(x, mask)
        x = F.gelu(x)
        for index, convolution in enumerate(self.convolutions[1:], start=1):
            x = convolution(x)
            x = F.gelu(x if self.norm is not None else self._normalise_frames(x, index))
        return x.transpose(1, 2)

    def _convolve_waveforms(self, waveforms: Tensor) -> Tensor:
        """Apply the first convolution to (B, S) as a product with its windows: (B, C, T).

        On a CPU, backward takes a fifth of the time of conv1d.
        """
        (_, kernel, stride), first = self.layers[0], self.convolutions[0]
        assert isinstance(first, nn.Conv1d)
        windows = waveforms.unfold(1, kernel, stride).transpose(1, 2).contiguous()  # (B, kernel, T)
        x = torch.bmm(first.weight[:, 0].expand(len(waveforms), -1, -1), windows)
        return x if first.bias is None else x + first.bias[:, None].to(x.dtype)

    def _normalise_frames(self, x: Tensor, index: int) -> Tensor:
        """Apply the LayerNorm of a convolution to (B, C, T)."""
        normalised: Tensor = self.norms[index](x.transpose(1, 2)).transpose(1, 2)
        return normalised
