"""Self-supervision: tell a masked frame's own target from others', and use the whole codebook.

wav2vec 2.0, equations 3 and 4. B batch, M masked frames, N negatives, V dimensions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vgsplus.losses.precision import full_precision


def contrastive_loss(
    predictions: Tensor,
    targets: Tensor,
    codes: Tensor,
    negatives: Tensor,
    present: Tensor,
    temperature: float = 0.1,
) -> Tensor:
    """Mean cross-entropy of each masked frame's own target against its negatives.

    All cosines of an utterance are one matrix product; negatives are picked from it, never copied out.

    Args:
        predictions: (B, M, V).
        targets: (B, M, V).
        codes: (B, M, G) int64; a negative with the codes of the positive does not count.
        negatives: (B, M, N) int64 in [0, M).
        present: (B, M) True where a masked frame is, False where an utterance has fewer than M.
        temperature: κ.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        predicted = F.normalize(full_precision(predictions), dim=-1)
        target = F.normalize(full_precision(targets), dim=-1)
        cosines = predicted @ target.transpose(1, 2)
        own = cosines.diagonal(dim1=1, dim2=2)[..., None]
        same = (codes[:, :, None] == codes[:, None]).all(-1).gather(2, negatives)
        others = cosines.gather(2, negatives).masked_fill(same, -torch.inf)
        logits = torch.cat([own, others], dim=-1)[present] / temperature
        return -F.log_softmax(logits, dim=-1)[:, 0].mean()


def perplexity(probabilities: Tensor) -> Tensor:
    """Sum over groups of exp(entropy); probabilities (G, K) → scalar."""
    return torch.exp(-(probabilities * (probabilities + 1e-7).log()).sum(-1)).sum()


def diversity_loss(mean_probabilities: Tensor) -> Tensor:
    """(G·K − perplexity) / (G·K): 0 when all codes are used alike; mean_probabilities (G, K)."""
    total = mean_probabilities.numel()
    return (total - perplexity(mean_probabilities)) / total


def code_perplexity(codes: Tensor, num_codes: int) -> Tensor:
    """Perplexity of the codes chosen; codes (n, G) int64."""
    return perplexity(F.one_hot(codes, num_codes).float().mean(0))
