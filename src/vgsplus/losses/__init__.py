"""What the network is trained on: masking, self-supervision and grounding."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Losses:
    """The losses of a batch; None where α left nothing to compute (paper, equation 1).

    total = α · grounding + (1 − α) · ssl, and ssl = contrastive + diversity + feature_penalty, each already
    weighted. similarity is (B, B), image × speech; the rest are scalars.
    """

    total: Tensor
    grounding: Tensor | None = None
    ssl: Tensor | None = None
    contrastive: Tensor | None = None
    diversity: Tensor | None = None
    feature_penalty: Tensor | None = None
    prob_perplexity: Tensor | None = None
    code_perplexity: Tensor | None = None
    similarity: Tensor | None = None


__all__ = ["Losses"]
