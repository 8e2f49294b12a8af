"""Span masks and negatives (wav2vec 2.0, sections 3.1 and 3.2), drawn for all utterances of a batch together.

B batch, T frames. What is drawn for an utterance is a function of its key (see `draws`) and its length.
"""

import torch
from torch import Tensor

from vgsplus.draws import fold, integers, new_keys, uniform

MIN_SPANS = 2


def span_mask(
    lengths: Tensor, num_frames: int, *, probability: float, span: int, keys: Tensor | None = None
) -> Tensor:
    """Draw the mask (B, T): spans of `span` frames at distinct starts, which may overlap.

    The number of spans is probability · length / span, rounded up or down at random, and at least 2.
    Utterances without room for their spans at distinct starts have shorter spans.

    Args:
        lengths: (B,) int64, frames of each utterance without padding.
        num_frames: T.
        probability: share of frames that would be masked if spans did not overlap.
        span: frames of a span.
        keys: (B,) int64 of the utterances; None: new ones.

    Returns:
        (B, T) bool, True at masked frames.
    """
    device = lengths.device
    keys = new_keys(len(lengths)).to(device) if keys is None else keys
    rounding = uniform(fold(keys, 0), 1)[:, 0]
    spans = (probability * lengths / span + rounding).long().clamp(min=MIN_SPANS)
    spans = torch.minimum(spans, lengths)
    span_length = torch.where(lengths - span <= spans, (lengths - spans - 1).clamp(min=1), span)
    num_starts = lengths - span_length + (span_length == 1)
    frames = torch.arange(num_frames, device=device)
    can_start = frames < num_starts[:, None]
    order = uniform(fold(keys, 1), num_frames).masked_fill(~can_start, 2)
    is_start = (order.argsort(-1).argsort(-1) < spans[:, None]) & can_start
    # A frame is masked if a span starts at it or in the span_length - 1 frames before it.
    starts_so_far = torch.nn.functional.pad(is_start.long().cumsum(-1), (1, 0))
    before = (frames - span_length[:, None] + 1).clamp(min=0)
    return starts_so_far[:, 1:] > starts_so_far.gather(1, before)


def trim_to_shortest(mask: Tensor, keys: Tensor | None = None) -> Tensor:
    """Unmask random frames of mask (B, T) until all utterances have as many masked frames as the fewest.

    This is the rule of fairseq and of FaST-VGS-Family. `keys` (B,) are those of the utterances.
    """
    fewest = mask.sum(-1).min()
    keys = new_keys(len(mask)).to(mask.device) if keys is None else keys
    order = uniform(keys, mask.shape[1]).masked_fill(~mask, 2)
    return mask & (order.argsort(-1).argsort(-1) < fewest)


def draw_negatives(counts: Tensor, num_masked: int, num_negatives: int, keys: Tensor | None = None) -> Tensor:
    """Draw, for each masked frame, indices of other masked frames of the same utterance, with replacement.

    An utterance with one masked frame has no other: its negatives are the padding row at index 1, or itself
    if M = 1.

    Args:
        counts: (B,) int64, masked frames of each utterance.
        num_masked: M, the largest of `counts`.
        num_negatives: N.
        keys: (B,) int64 of the utterances; None: new ones.

    Returns:
        (B, M, N) int64 in [0, M).
    """
    keys = new_keys(len(counts)).to(counts.device) if keys is None else keys
    others = (counts - 1).clamp(min=1)[:, None]
    frames = torch.arange(num_masked, device=counts.device)
    drawn = integers(fold(keys[:, None], frames), num_negatives, others)
    own = frames[:, None]
    return (drawn + (drawn >= own)).clamp(max=num_masked - 1)
