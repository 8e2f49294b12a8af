"""Sums and softmaxes in no less than 32 bits, whatever mixed precision the network ran in."""

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay. Any shape."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
