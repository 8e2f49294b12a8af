"""Span masks and negatives (wav2vec 2.0, sections 3.1 and 3.2), drawn for a batch at once.

B batch, T frames. All draw from the global generator of the device, which the trainer seeds at every step.
"""

import torch
from torch import Tensor

MIN_SPANS = 2


def span_mask(lengths: Tensor, num_frames: int, *, probability: float, span: int) -> Tensor:
    """Draw the mask (B, T): spans of `span` frames at distinct starts, which may overlap.

    The number of spans is probability · length / span, rounded up or down at random, and at least 2.
    Utterances too short for one span have shorter spans.

    Args:
        lengths: (B,) int64, frames of each utterance without padding.
        num_frames: T.
        probability: share of frames that would be masked if spans did not overlap.
        span: frames of a span.

    Returns:
        (B, T) bool, True at masked frames.
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
    return begun[:, 1:] > begun.gather(1, before)


def trim_to_shortest(mask: Tensor) -> Tensor:
    """Unmask random frames of mask (B, T) until all utterances have as many masked frames as the fewest.

    This is the rule of fairseq and of the published code.
    """
    fewest = mask.sum(-1).min()
    key = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, 2)
    return mask & (key.argsort(-1).argsort(-1) < fewest)


def draw_negatives(counts: Tensor, num_masked: int, num_negatives: int) -> Tensor:
    """Draw, for each masked frame, indices of other masked frames of the same utterance.

    Args:
        counts: (B,) int64, masked frames of each utterance.
        num_masked: M, the largest of `counts`.
        num_negatives: N.

    Returns:
        (B, M, N) int64 in [0, M).
    """
    others = (counts - 1).clamp(min=1)[:, None, None]
    drawn = torch.rand(len(counts), num_masked, num_negatives, device=counts.device, dtype=torch.float64)
    drawn = (drawn * others).long()
    own = torch.arange(num_masked, device=counts.device)[:, None]
    return (drawn + (drawn >= own)).clamp(max=num_masked - 1)
