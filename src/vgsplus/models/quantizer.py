"""The Gumbel-softmax product quantiser (wav2vec 2.0, section 2).

N frames, C channels, G codebooks (groups), K codes in each, V dimensions of all groups together.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgsplus.functional import upcast


class Quantized(NamedTuple):
    """Output of the quantiser.

    Attributes:
        targets: (N, V).
        codes: (N, G) int64, the chosen code of each group.
        mean_probabilities: (G, K), softmax of the logits averaged over frames, for the diversity loss.
    """

    targets: Tensor
    codes: Tensor
    mean_probabilities: Tensor


class Quantizer(nn.Module):
    """Choose one code in each group; the gradient is that of the Gumbel softmax (straight-through).

    Args:
        channels: C.
        groups: G.
        codes: K.
        dim: V.
        temperature: initial and final temperature of the Gumbel softmax, and its factor at each update.
    """

    updates: Tensor

    def __init__(
        self, channels: int, groups: int, codes: int, dim: int, temperature: tuple[float, float, float]
    ) -> None:
        super().__init__()
        self.groups, self.num_codes, self.temperature = groups, codes, temperature
        self.logits = nn.Linear(channels, groups * codes)
        self.codebook = nn.Parameter(torch.rand(groups, codes, dim // groups))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor, *, update_temperature: bool = True) -> Quantized:
        """Quantise features (N, C). In evaluation mode choose the most probable codes, without noise.

        Args:
            features: (N, C).
            update_temperature: whether this call counts as an update, as one call of each training step does.
        """
        logits = upcast(self.logits(features)).view(-1, self.groups, self.num_codes)
        if self.training:
            initial, final, factor = self.temperature
            temperature = (initial * factor ** self.updates.double()).clamp(min=final).to(logits.dtype)
            if update_temperature:
                self.updates += 1
            noise = -torch.empty_like(logits).exponential_().log()
            soft = F.softmax((logits + noise) / temperature, dim=-1)
            codes = soft.argmax(-1)
            choice = F.one_hot(codes, self.num_codes) + soft - soft.detach()
        else:
            codes = logits.argmax(-1)
            choice = F.one_hot(codes, self.num_codes).to(logits.dtype)
        targets = torch.einsum("ngk,gkv->ngv", choice, self.codebook.to(choice.dtype)).flatten(1)
        return Quantized(targets, codes, F.softmax(logits, dim=-1).mean(0))
