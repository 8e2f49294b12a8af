"""The losses of a batch: self-supervision, grounding and their weighted sum."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

PUBLISHED_TERMS = (
    "grounding",
    "ssl",
    "contrastive",
    "diversity",
    "feature_penalty",
    "prob_perplexity",
    "code_perplexity",
)
"""The scalars of the paper. Each is also an attribute of `Losses`, None if it is not computed at this α."""

METRICS = (
    *("speech_embedding_std", "image_embedding_std", "similarity_std"),
    *("temperature", "masked_share"),
)
"""Further scalars among the terms: logged, but not drawn as losses are (see `training.log`)."""


@dataclass(frozen=True)
class Losses:
    """The losses of a batch (paper, equation 1).

    Attributes:
        total: α · grounding + (1 − α) · ssl, where ssl = contrastive + diversity + feature_penalty; a scalar.
            The papers call grounding L_AV and ssl L_AUD.
        terms: scalars by name: loss terms, already weighted within ssl, and perplexities, which are metrics.
            They are logged, averaged and plotted under these names, except that `METRICS` are not plotted.
        similarity: (B, B), image × speech; None for α = 0.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    similarity: Tensor | None = None

    def __getattr__(self, name: str) -> Tensor | None:
        if name in PUBLISHED_TERMS:
            return self.terms.get(name)
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
