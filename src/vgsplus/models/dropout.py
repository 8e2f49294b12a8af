"""Dropout that is a function of the place of an element in its utterance."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgsplus.draws import fold, random_bits
from vgsplus.models.segments import Segments


def dropout(x: Tensor, probability: float, keys: Tensor) -> Tensor:
    """Set elements of x to zero with a probability, and scale the others so that the mean stays.

    Four elements share 64 random bits, so that the probability is rounded to a multiple of 2⁻¹⁶. It takes
    less time on a CPU than PyTorch's dropout, which draws one number after the other.

    Args:
        x: (…, D).
        probability: in [0, 1).
        keys: (…) int64; equal keys have equal zeros.
    """
    dropped = min(round(probability * 2**16), 2**16 - 1)
    size = x.shape[-1]
    numbers = random_bits(keys, (size + 3) // 4).view(torch.int16)[..., :size]
    # int16 is signed: its numbers begin at -2¹⁵.
    return x * (numbers >= dropped - 2**15).to(x.dtype).mul_(2**16 / (2**16 - dropped))


class Dropout(nn.Module):
    """`dropout` in training mode, the identity in evaluation mode.

    On a GPU it is PyTorch's, whose draws depend on the batch: attention's kernels draw by themselves there.

    Args:
        p: probability.

    Attributes:
        stream: a number that no other Dropout of the model has.
    """

    stream = 0

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def keys(self, segments: Segments) -> Tensor | None:
        """Return keys (N,) for rows (N, D) of segments, or None if they are not needed."""
        if self.training and self.p > 0 and segments.device.type == "cpu":
            return fold(segments.row_keys, self.stream)
        return None

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """Apply to x (…, D) with keys (…)."""
        if keys is None:
            return F.dropout(x, self.p, self.training)
        return dropout(x, self.p, keys)
