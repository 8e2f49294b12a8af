"""Grounding loss: masked margin softmax over the images and captions of a batch (FaST-VGS, equation 1)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vgsplus.functional import upcast

MASKED_SCORE = -10_000.0
"""Score of other captions of the same image, which are excluded from the negatives."""


def grounding_loss(similarity: Tensor, image_ids: Tensor, margin: float = 1.0) -> Tensor:
    """Return the cross-entropy over rows plus that over columns, with a margin on the diagonal.

    Args:
        similarity: (B, B), image × speech.
        image_ids: (B,) int64. Equal ids are not negatives of each other.
        margin: subtracted from the similarity of matching pairs.

    Returns:
        A scalar.
    """
    batch = len(similarity)
    matching = torch.eye(batch, dtype=torch.bool, device=similarity.device)
    scores = upcast(similarity) - margin * matching
    same_image = (image_ids[:, None] == image_ids) & ~matching
    scores = scores.masked_fill(same_image, MASKED_SCORE)
    target = torch.arange(batch, device=similarity.device)
    return F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)


@torch.no_grad()
def embedding_std(embeddings: Tensor) -> Tensor:
    """Return how far embeddings (B, D) differ: 0 if all have one direction, near 1 if all directions alike.

    √D times the standard deviation over the batch of embeddings scaled to unit length, averaged over
    dimensions, by which SimSiam (Chen and He, CVPR 2021, section 4.1) shows collapse.

    Returns:
        A scalar.
    """
    unit = F.normalize(upcast(embeddings), dim=-1)
    return unit.std(0, unbiased=False).mean() * math.sqrt(embeddings.shape[-1])
