"""Span masks and negatives (wav2vec 2.0, sections 3.1 and 3.2), drawn for a whole batch at once.

B batch, T frames. Both draw from torch's global generator of the device, which the trainer seeds each step.
"""

import torch
from torch import Tensor

MIN_SPANS = 2


def span_mask(lengths: Tensor, num_frames: int, *, probability: float, span: int, equal: bool) -> Tensor:
    """Masked frames (B, T) bool: spans of `span` frames at distinct starts, which may overlap.

    The number of spans is probability · length / span, rounded up or down at random, and at least 2; an
    utterance too short for a whole span has shorter ones. `equal` leaves every utterance with as many masked
    frames as the one with the fewest (the published rule).

    Args:
        lengths: (B,) int64, real frames of each utterance.
        num_frames: T.
        probability: share of frames that would be masked if spans did not overlap.
        span: frames of a span.
        equal: cut to equal numbers.
    """
    device, batch = lengths.device, len(lengths)
    spans = (probability * lengths / span + torch.rand(batch, device=device)).long().clamp(min=MIN_SPANS)
    spans = torch.minimum(spans, lengths)
    width = torch.where(lengths - span <= spans, (lengths - spans - 1).clamp(min=1), span)
    starts = lengths - width + (width == 1)
    frames = torch.arange(num_frames, device=device)
    key = torch.rand(batch, num_frames, device=device).masked_fill(frames >= starts[:, None], 2)
    begins = (key.argsort(-1).argsort(-1) < spans[:, None]) & (frames < starts[:, None])
    # A frame is masked if a span began at it or in the width - 1 frames before it.
    begun = torch.nn.functional.pad(begins.long().cumsum(-1), (1, 0))
    before = (frames - width[:, None] + 1).clamp(min=0)
    mask = begun[:, 1:] > begun.gather(1, before)
    return cut_to_equal(mask) if equal else mask


def cut_to_equal(mask: Tensor) -> Tensor:
    """Keep, at random, as many masked frames in each as the utterance with the fewest has; (B, T) bool."""
    fewest = mask.sum(-1).min()
    key = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, 2)
    return mask & (key.argsort(-1).argsort(-1) < fewest)


def draw_negatives(counts: Tensor, num_masked: int, num_negatives: int) -> Tensor:
    """For each masked frame, indices of other masked frames of the same utterance, (B, M, N) int64 in [0, M).

    Args:
        counts: (B,) masked frames of each utterance.
        num_masked: M, the most of them.
        num_negatives: N.
    """
    others = (counts - 1).clamp(min=1)[:, None, None]
    drawn = torch.rand(len(counts), num_masked, num_negatives, device=counts.device, dtype=torch.float64)
    drawn = (drawn * others).long()
    own = torch.arange(num_masked, device=counts.device)[:, None]
    return (drawn + (drawn >= own)).clamp(max=num_masked - 1)
