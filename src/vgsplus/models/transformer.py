"""Transformer layers and the convolution that tells them where a frame is.

B batch, T positions, Q of them that ask, D dimensions, H heads, E = D / H.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Scaled dot products: q (B, H, Q, E), k and v (B, H, T, E) → (B, H, Q, E).

    mask (B, 1, 1, T) is True where a key is.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # PyTorch's fused kernel takes 1.2 to 5 times as long here, at 140 to 400 positions.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return F.dropout(scores.softmax(-1), dropout) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


class SelfAttention(nn.Module):
    """Multi-head attention with query, key and value in one projection."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, keys: Tensor | None, queries: Tensor | None) -> Tensor:
        """What queries (B, Q, D), or all of x (B, T, D), find in x → (B, Q, D) or (B, T, D).

        keys (B, T) is True where a key may be attended to, None for all.
        """
        if queries is None:
            q, k, v = self._split(self.qkv(x), 3)
        else:
            dim, weight, bias = x.shape[2], self.qkv.weight, self.qkv.bias
            (q,) = self._split(F.linear(queries, weight[:dim], bias[:dim]), 1)
            k, v = self._split(F.linear(x, weight[dim:], bias[dim:]), 2)
        mask = None if keys is None else keys[:, None, None]
        attended = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        mixed: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return mixed

    def _split(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, T, parts · D) → each part as (B, H, T, E)."""
        batch, positions, width = projected.shape
        heads = projected.view(batch, positions, parts, self.heads, width // (parts * self.heads))
        return heads.permute(2, 0, 3, 1, 4).unbind()


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each added to its input.

    The sum is normalised (post-LN), or, with `norm_first`, what goes into each is, and the sum is not.
    """

    def __init__(
        self, dim: int, heads: int, ffn_dim: int, dropout: float, *, norm_first: bool = False
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = SelfAttention(dim, heads, dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, ffn_dim)
        self.contract = nn.Linear(ffn_dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, keys: Tensor | None = None, queries: Tensor | None = None) -> Tensor:
        """(B, T, D) → (B, T, D), or, with queries (B, Q, D) that are positions of x, theirs alone, (B, Q, D).

        keys (B, T) is True where a key may be attended to. Where few positions are wanted of a last layer,
        asking for these saves most of it.
        """
        if self.norm_first:
            normalised = None if queries is None else self.attention_norm(queries)
            attended = self.dropout(self.attention(self.attention_norm(x), keys, normalised))
            x = (x if queries is None else queries) + attended
            return x + self._feed_forward(self.ffn_norm(x))
        attended = self.dropout(self.attention(x, keys, queries))
        x = self.attention_norm((x if queries is None else queries) + attended)
        output: Tensor = self.ffn_norm(x + self._feed_forward(x))
        return output

    def _feed_forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.dropout(self.contract(F.gelu(self.expand(x))))
        return output


class PositionalConvolution(nn.Module):
    """A wide grouped convolution whose output is added to the frames (wav2vec 2.0, section 2)."""

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        convolution = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)
        nn.init.normal_(convolution.weight, std=(4 / (kernel * dim)) ** 0.5)
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)
        self.convolution = weight_norm(convolution, dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        # An even kernel gives one position too many.
        return F.gelu(self.convolution(x.transpose(1, 2))[:, :, : x.shape[1]]).transpose(1, 2)
