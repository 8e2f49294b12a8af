"""ResDAVEnet: residual convolutions that downsample speech (FaST-VGS, section 2).

N frames of all utterances together, C channels, D dimensions.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgsplus.functional import mean_over_batch, num_processes, upcast
from vgsplus.models.feature_extractor import convolve_rows
from vgsplus.models.segments import Segments


class ResidualBlock(nn.Module):
    """Two convolutions over time with a residual connection; the first has the stride."""

    def __init__(self, before: int, after: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv1d(before, after, kernel, stride, padding=kernel // 2, bias=False)
        self.norm1 = nn.BatchNorm1d(after)
        self.conv2 = nn.Conv1d(after, after, kernel, padding=kernel // 2, bias=False)
        self.norm2 = nn.BatchNorm1d(after)
        self.shortcut = nn.Conv1d(before, after, 1, stride, bias=False) if stride > 1 else None
        self.shortcut_norm = nn.BatchNorm1d(after) if stride > 1 else None

    def forward(self, x: Tensor, segments: Segments) -> tuple[Tensor, Segments]:
        """Map x (N, C) to N' rows and their segments: frames / stride of each utterance, rounded up."""
        down = segments.with_lengths(-(-n // self.stride) for n in segments.lengths)
        y = F.relu(_normalise(self.norm1, _convolve(self.conv1, x, segments)))
        y = _normalise(self.norm2, _convolve(self.conv2, y, down))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = _normalise(self.shortcut_norm, _convolve(self.shortcut, x, segments))
        return F.relu(x + y), down


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
        self.norm = nn.BatchNorm1d(widths[0])
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

    def forward(self, x: Tensor, segments: Segments) -> tuple[Tensor, Segments]:
        """Map x (N, D) to (N', C) and the segments of these rows."""
        x = F.relu(_normalise(self.norm, self.project(x)[: segments.num_rows]))
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x, segments = block(x, segments)
        return x, segments


def _normalise(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """Normalise rows (N, C); in training by the statistics of the rows of all processes."""
    if not norm.training or num_processes() == 1:
        normalised: Tensor = norm(x)
        return normalised
    wide, count = upcast(x), len(x)
    mean = mean_over_batch(wide.sum(0), count)
    variance = mean_over_batch((wide - mean).square().sum(0), count)
    with torch.no_grad():
        rows = num_processes() * mean_over_batch(mean.new_tensor(count), 1)
        assert norm.momentum is not None
        for running, value in ((norm.running_mean, mean), (norm.running_var, variance * rows / (rows - 1))):
            assert running is not None
            running.lerp_(value, norm.momentum)
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked += 1
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return ((wide - mean) * scale + norm.bias).to(x.dtype)


def _convolve(convolution: nn.Conv1d, x: Tensor, segments: Segments) -> Tensor:
    """Convolve each sequence of rows (N, C), with zeros beyond it: (N', C')."""
    (kernel,), (stride,) = convolution.kernel_size, convolution.stride
    size, positions, outputs = segments.space_out(kernel, stride)
    spaced = x.new_zeros(size, x.shape[1]).index_copy(0, positions, x)
    return convolve_rows(spaced, convolution.weight, None, stride)[outputs]
