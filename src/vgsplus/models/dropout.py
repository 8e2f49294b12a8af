"""Dropout whose random bits are cheap on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout(x: Tensor, probability: float) -> Tensor:
    """Set elements of x to zero with a probability, and scale the others so that the mean stays.

    On a CPU PyTorch draws one random number after the other. Here four elements share the 64 bits of one draw
    there, which takes a quarter of the time; the probability is rounded to a multiple of 2⁻¹⁶.
    """
    if probability == 0 or x.device.type != "cpu":
        return F.dropout(x, probability)
    dropped = min(round(probability * 2**16), 2**16 - 1)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    numbers = draws.view(torch.int16)[: x.numel()].view(x.shape)
    # int16 is signed: its numbers begin at -2¹⁵.
    return x * (numbers >= dropped - 2**15).to(x.dtype).mul_(2**16 / (2**16 - dropped))


class Dropout(nn.Dropout):
    """`dropout` in training mode, the identity in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply to x of any shape."""
        return dropout(x, self.p) if self.training else x
