"""Transformer layers and the convolutional positional embedding.

B batch, T positions, Q query positions, D dimensions, H heads, E = D / H.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Scaled dot-product attention: q (B, H, Q, E), k and v (B, H, T, E) → (B, H, Q, E).

    mask (B, 1, 1, T) is True at keys that are attended to.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # PyTorch's fused kernel takes 1.2 to 5 times as long here, at 140 to 400 positions.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return F.dropout(scores.softmax(-1), dropout) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection for query, key and value."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, attention_mask: Tensor | None, query: Tensor | None) -> Tensor:
        """Attend to x (B, T, D); arguments and shapes as in `TransformerLayer.forward`."""
        if query is None:
            q, k, v = self._split(self.qkv(x), 3)
        else:
            dim, weight, bias = x.shape[2], self.qkv.weight, self.qkv.bias
            (q,) = self._split(F.linear(query, weight[:dim], bias[:dim]), 1)
            k, v = self._split(F.linear(x, weight[dim:], bias[dim:]), 2)
        mask = None if attention_mask is None else attention_mask[:, None, None]
        attended = attention(q, k, v, mask, self.dropout if self.training else 0.0)
        output: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return output

    def _split(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Split (B, T, parts · D) into parts and heads: (B, H, T, E) each."""
        batch, positions, width = projected.shape
        heads = projected.view(batch, positions, parts, self.heads, width // (parts * self.heads))
        return heads.permute(2, 0, 3, 1, 4).unbind()


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward network, each with a residual connection.

    Args:
        dim: D.
        heads: H.
        ffn_dim: width of the feed-forward network.
        dropout: probability, also of attention weights.
        layer_norm_first: normalise the inputs of both parts (pre-norm) instead of the sums (post-norm).
    """

    def __init__(
        self, dim: int, heads: int, ffn_dim: int, dropout: float, *, layer_norm_first: bool = False
    ) -> None:
        super().__init__()
        self.layer_norm_first = layer_norm_first
        self.attention = SelfAttention(dim, heads, dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, ffn_dim)
        self.contract = nn.Linear(ffn_dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None, query: Tensor | None = None) -> Tensor:
        """Compute the output of every position, or of `query` only, which saves most of a final layer.

        Args:
            x: (B, T, D).
            attention_mask: (B, T) bool, True at positions that are attended to, as in transformers (the
                opposite of PyTorch's key_padding_mask); None for all.
            query: (B, Q, D), the positions of x whose outputs are computed; None for all.

        Returns:
            (B, T, D), or (B, Q, D) with `query`.
        """
        residual = x if query is None else query
        if self.layer_norm_first:
            normalised = None if query is None else self.attention_norm(query)
            attended = self.attention(self.attention_norm(x), attention_mask, normalised)
            x = residual + self.dropout(attended)
            return x + self._feed_forward(self.ffn_norm(x))
        x = self.attention_norm(residual + self.dropout(self.attention(x, attention_mask, query)))
        output: Tensor = self.ffn_norm(x + self._feed_forward(x))
        return output

    def _feed_forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.dropout(self.contract(F.gelu(self.expand(x))))
        return output


class PositionalConvolution(nn.Module):
    """Convolutional relative positional embedding (wav2vec 2.0, section 2).

    Args:
        dim: D.
        kernel: in frames.
        groups: of the convolution.
    """

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        convolution = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)
        nn.init.normal_(convolution.weight, std=(4 / (kernel * dim)) ** 0.5)
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)
        self.convolution = weight_norm(convolution, dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedding (B, T, D) to be added to x (B, T, D)."""
        # An even kernel yields one position too many.
        return F.gelu(self.convolution(x.transpose(1, 2))[:, :, : x.shape[1]]).transpose(1, 2)
