"""The Gumbel-softmax product quantiser (wav2vec 2.0, section 2).

N frames, C channels, G codebooks (groups), K codes in each, V dimensions of all groups together.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgsplus.draws import new_keys, uniform
from vgsplus.functional import mean_over_batch, upcast


class Quantized(NamedTuple):
    """Output of the quantiser.

    Attributes:
        vectors: (N, V), the chosen entries of the codebooks.
        codes: (N, G) int64, the chosen code of each group.
        mean_probabilities: (G, K), softmax of the logits averaged over the frames of the whole batch, for
            the diversity loss.
        temperature: of the Gumbel softmax, a scalar; None in evaluation mode.
    """

    vectors: Tensor
    codes: Tensor
    mean_probabilities: Tensor
    temperature: Tensor | None


class Quantizer(nn.Module):
    """Choose one code in each group; the gradient is that of the Gumbel softmax (straight-through).

    Args:
        channels: C.
        num_groups: G.
        num_codes: K.
        dim: V.
        temperature: (initial, final, decay factor of each update) of the Gumbel softmax.
    """

    updates: Tensor

    def __init__(
        self,
        channels: int,
        num_groups: int,
        num_codes: int,
        dim: int,
        temperature: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.num_groups, self.num_codes, self.temperature = num_groups, num_codes, temperature
        self.logits = nn.Linear(channels, num_groups * num_codes)
        self.codebook = nn.Parameter(torch.rand(num_groups, num_codes, dim // num_groups))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(
        self, features: Tensor, keys: Tensor | None = None, *, update_temperature: bool = True
    ) -> Quantized:
        """Quantise features (N, C). In evaluation mode choose the most probable codes, without noise.

        Args:
            features: (N, C).
            keys: (N,) int64, of the Gumbel noise of each frame (see `draws`); None: new ones.
            update_temperature: whether this call counts as an update, as one call of each optimiser update
                must.
        """
        logits = upcast(self.logits(features)).view(-1, self.num_groups, self.num_codes)
        temperature = None
        if self.training:
            initial, final, factor = self.temperature
            temperature = (initial * factor ** self.updates.double()).clamp(min=final).to(logits.dtype)
            if update_temperature:
                self.updates += 1
            keys = new_keys(len(logits)).to(logits.device) if keys is None else keys
            noise = -(-uniform(keys, logits[0].numel()).log()).log().view_as(logits)
            soft = F.softmax((logits + noise) / temperature, dim=-1)
            codes = soft.argmax(-1)
            choice = F.one_hot(codes, self.num_codes) + soft - soft.detach()
        else:
            codes = logits.argmax(-1)
            choice = F.one_hot(codes, self.num_codes).to(logits.dtype)
        vectors = torch.einsum("ngk,gkv->ngv", choice, self.codebook.to(choice.dtype)).flatten(1)
        mean_probabilities = mean_over_batch(F.softmax(logits, dim=-1).sum(0), len(logits))
        return Quantized(vectors, codes, mean_probabilities, temperature)
