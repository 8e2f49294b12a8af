"""The Gumbel product quantiser: what masked frames are predicted as (wav2vec 2.0, section 3.2)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgsplus.losses.precision import full_precision


class Quantized(NamedTuple):
    """Targets (N, V), the code of each group (N, G) int64, and the softmax that diversity rewards (G, K)."""

    targets: Tensor
    codes: Tensor
    mean_probabilities: Tensor


class Quantizer(nn.Module):
    """Picks one of K codes in each of G groups, hard forwards and soft backwards.

    Args:
        channels: of the frames.
        groups: G. codes: K in each group. dim: of all groups' vectors together.
        temperature: Gumbel temperature at first, at last, and its decay each update.
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

    def forward(self, frames: Tensor, *, anneal: bool = True) -> Quantized:
        """(N, C) → Quantized; in evaluation mode the likeliest code, without noise.

        In training the temperature moves on with every call, unless `anneal` is false: a call that shares its
        update with one that does.
        """
        logits = full_precision(self.logits(frames)).view(-1, self.groups, self.num_codes)
        if self.training:
            first, last, decay = self.temperature
            heat = (first * decay ** self.updates.double()).clamp(min=last).to(logits.dtype)
            if anneal:
                self.updates += 1
            noise = -torch.empty_like(logits).exponential_().log()
            soft = F.softmax((logits + noise) / heat, dim=-1)
            codes = soft.argmax(-1)
            choice = F.one_hot(codes, self.num_codes) + soft - soft.detach()
        else:
            codes = logits.argmax(-1)
            choice = F.one_hot(codes, self.num_codes).to(logits.dtype)
        targets = torch.einsum("ngk,gkv->ngv", choice, self.codebook.to(choice.dtype)).flatten(1)
        return Quantized(targets, codes, F.softmax(logits, dim=-1).mean(0))
