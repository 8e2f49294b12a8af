"""Tensor functions that models and losses share.

B batch, T frames, M masked frames of the utterance with the most, N rows.
"""

import torch
from torch import Tensor


def lengths_to_mask(lengths: Tensor, num_frames: int) -> Tensor:
    """Return the mask (B, `num_frames`) that is True at the first `lengths` (B,) frames of each row."""
    return torch.arange(num_frames, device=lengths.device) < lengths[:, None]


def upcast(x: Tensor) -> Tensor:
    """Convert half-precision tensors of any shape to float32; leave float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
