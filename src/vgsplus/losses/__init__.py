"""The losses of a batch: self-supervision, grounding and their weighted sum."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

PUBLISHED_TERMS = (
    *("grounding", "ssl", "contrastive", "diversity", "feature_penalty"),
    *("prob_perplexity", "code_perplexity"),
)
"""The terms of the paper. Each is also an attribute of `Losses`, None if α = 0 or α = 1 leaves it out."""


@dataclass(frozen=True)
class Losses:
    """The losses of a batch (paper, equation 1).

    Attributes:
        total: α · grounding + (1 − α) · ssl, where ssl = contrastive + diversity + feature_penalty; a scalar.
        terms: scalars by name, which are logged, averaged and plotted under these names. Terms of a sum are
            weighted already.
        similarity: (B, B), image × speech; None for α = 0.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    similarity: Tensor | None = None

    def __getattr__(self, name: str) -> Tensor | None:
        if name in PUBLISHED_TERMS:
            return self.terms.get(name)
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
