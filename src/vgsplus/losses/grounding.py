"""Grounding: the margin InfoNCE between images and spoken captions of a batch (FaST-VGS, equation 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vgsplus.losses.precision import full_precision

SAME_IMAGE = -10_000.0
"""Score given to a caption of the same image that stands elsewhere in the batch: it is no negative."""


def grounding_loss(similarity: Tensor, image_ids: Tensor, margin: float = 1.0) -> Tensor:
    """Cross-entropy over rows plus over columns, with the margin taken off the diagonal.

    Args:
        similarity: (B, B), image × speech.
        image_ids: (B,) int64.
        margin: in units of similarity.
    """
    batch = len(similarity)
    own = torch.eye(batch, dtype=torch.bool, device=similarity.device)
    scores = full_precision(similarity) - margin * own
    same = (image_ids[:, None] == image_ids) & ~own
    scores = scores.masked_fill(same, SAME_IMAGE)
    order = torch.arange(batch, device=similarity.device)
    return F.cross_entropy(scores, order) + F.cross_entropy(scores.T, order)
