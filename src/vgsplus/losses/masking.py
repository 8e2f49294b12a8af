"""Span masks and negatives (wav2vec 2.0, sections 3.1 and 3.2), drawn for all utterances of a batch together.

B batch, T frames. All draw from the global generator of the device of their arguments, which the trainer
seeds at every step.
"""

import torch
from torch import Tensor

MIN_SPANS = 2


def span_mask(lengths: Tensor, num_frames: int, *, probability: float, span: int) -> Tensor:
    """Draw the mask (B, T): spans of `span` frames at distinct starts, which may overlap.

    The number of spans is probability · length / span, rounded up or down at random, and at least 2.
    Utterances without room for their spans at distinct starts have shorter spans.

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
    span_length = torch.where(lengths - span <= spans, (lengths - spans - 1).clamp(min=1), span)
    num_starts = lengths - span_length + (span_length == 1)
    frames = torch.arange(num_frames, device=device)
    can_start = frames < num_starts[:, None]
    random_key = torch.rand(batch, num_frames, device=device).masked_fill(~can_start, 2)
    is_start = (random_key.argsort(-1).argsort(-1) < spans[:, None]) & can_start
    # A frame is masked if a span starts at it or in the span_length - 1 frames before it.
    starts_so_far = torch.nn.functional.pad(is_start.long().cumsum(-1), (1, 0))
    before = (frames - span_length[:, None] + 1).clamp(min=0)
    return starts_so_far[:, 1:] > starts_so_far.gather(1, before)


def trim_to_shortest(mask: Tensor) -> Tensor:
    """Unmask random frames of mask (B, T) until all utterances have as many masked frames as the fewest.

    This is the rule of fairseq and of FaST-VGS-Family.
    """
    fewest = mask.sum(-1).min()
    random_key = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, 2)
    return mask & (random_key.argsort(-1).argsort(-1) < fewest)


def draw_negatives(counts: Tensor, num_masked: int, num_negatives: int) -> Tensor:
    """Draw, for each masked frame, indices of other masked frames of the same utterance, with replacement.

    An utterance with one masked frame has no other: its negatives are the padding row at index 1, or itself
    if M = 1.

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
