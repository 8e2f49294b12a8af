"""Self-supervised losses: contrastive and diversity loss (wav2vec 2.0, equations 3 and 4).

B batch, M masked frames, N negatives, V dimensions, G codebooks (groups), K codes in each.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vgsplus.functional import mean_over_batch, upcast


def contrastive_loss(
    predictions: Tensor,
    targets: Tensor,
    codes: Tensor,
    negatives: Tensor,
    valid: Tensor,
    temperature: float = 0.1,
) -> Tensor:
    """Return the mean cross-entropy of the target of each masked frame against its negatives.

    The mean is over the masked frames of all processes. All cosines of an utterance are computed in one
    matrix product; those of the negatives are gathered from it.

    Args:
        predictions: (B, M, V), projected outputs of the last layer.
        targets: (B, M, V), projected quantised features.
        codes: (B, M, G) int64. Negatives with the codes of the positive are excluded.
        negatives: (B, M, N) int64 in [0, M), as drawn by `masking.draw_negatives`.
        valid: (B, M) bool, False where an utterance has fewer than M masked frames.
        temperature: κ.

    Returns:
        A scalar.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        predicted = F.normalize(upcast(predictions), dim=-1)
        target = F.normalize(upcast(targets), dim=-1)
        cosines = predicted @ target.transpose(1, 2)
        positive = cosines.diagonal(dim1=1, dim2=2)[..., None]
        same = (codes[:, :, None] == codes[:, None]).all(-1).gather(2, negatives)
        negative = cosines.gather(2, negatives).masked_fill(same, -torch.inf)
        logits = torch.cat([positive, negative], dim=-1) / temperature
        losses = -F.log_softmax(logits, dim=-1)[..., 0]
        # Selecting the valid ones would wait for a GPU, because their number is not known on the host.
        return mean_over_batch(losses.masked_fill(~valid, 0).sum(), valid.sum())


def perplexity(probabilities: Tensor) -> Tensor:
    """Return exp(entropy) of the probabilities (G, K), summed over groups: a scalar."""
    return torch.exp(-(probabilities * (probabilities + 1e-7).log()).sum(-1)).sum()


def diversity_loss(mean_probabilities: Tensor) -> Tensor:
    """Return (G·K − perplexity) / (G·K), 0 if all codes are used equally; mean_probabilities (G, K)."""
    total = mean_probabilities.numel()
    return (total - perplexity(mean_probabilities)) / total


def code_perplexity(codes: Tensor, num_codes: int) -> Tensor:
    """Return the perplexity of the chosen codes (N, G) int64: a scalar."""
    return perplexity(mean_over_batch(F.one_hot(codes, num_codes).float().sum(0), len(codes)))
