"""The waveform encoder: convolutions from samples to one frame every 20 ms (wav2vec 2.0, section 2)."""

import math
from collections.abc import Sequence

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
    """Convolutions without bias, GELU after each, normalisation after the first.

    Args:
        layers: (channels, kernel, stride) of each convolution.
        exact: normalise each utterance over its real frames, not over its padding too.
    """

    def __init__(self, layers: Sequence[tuple[int, int, int]], *, exact: bool) -> None:
        super().__init__()
        channels = [1, *(layer[0] for layer in layers)]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, kernel, stride, bias=False)
            for before, (after, kernel, stride) in zip(channels, layers, strict=False)
        )
        self.norm = UtteranceNorm(layers[0][0])
        self.layers, self.exact = tuple(layers), exact
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv1d)
            nn.init.kaiming_normal_(convolution.weight)

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
        x = F.gelu(
            self.norm(x, frame_mask(self.num_frames(num_samples, 1), x.shape[2]) if self.exact else None)
        )
        for convolution in self.convolutions[1:]:
            x = F.gelu(convolution(x))
        return x.transpose(1, 2)

    def _first(self, waveforms: Tensor) -> Tensor:
        """(B, S) → (B, C, T): the convolution of the one channel, as a product with its windows.

        On a CPU, the gradient takes a fifth of the time that it takes through conv1d.
        """
        (_, kernel, stride), weight = self.layers[0], self.convolutions[0].weight
        assert isinstance(weight, Tensor)
        windows = waveforms.unfold(1, kernel, stride).transpose(1, 2).contiguous()  # (B, kernel, T)
        return torch.bmm(weight[:, 0].expand(len(waveforms), -1, -1), windows)
