"""Transformer layers and the convolutional positional embedding.

N rows of all sequences together, M of them queries, D dimensions, H heads, E = D / H; b sequences of up to t
positions in a group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from vgsplus.draws import fold
from vgsplus.models.dropout import Dropout
from vgsplus.models.segments import Segments


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: Dropout, random_keys: Tensor | None
) -> Tensor:
    """Scaled dot-product attention: q (b, H, q, E), k and v (b, H, t, E) → (b, H, q, E).

    mask (b, 1, 1, t) is True at keys that are attended to; random_keys (b, q) are those of `Dropout`.
    """
    if q.device.type == "cpu" and (random_keys is not None or q.dtype == torch.bfloat16):
        # With dropout PyTorch computes the scores as well, and in bfloat16 its fused kernel takes 1.2 to 5
        # times as long, at 140 to 400 positions.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.softmax(-1)
        if random_keys is not None:
            heads = torch.arange(q.shape[1])[:, None]
            weights = dropout(weights, fold(random_keys[:, None], heads))
        attended: Tensor = weights @ v
        return attended
    dropout_p = dropout.p if dropout.training else 0.0
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection for query, key and value."""

    def __init__(self, dim: int, heads: int, dropout_p: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, Dropout(dropout_p)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, segments: Segments, query: Tensor | None, query_segments: Segments | None
    ) -> Tensor:
        """Attend to x (N, D) within each sequence; arguments and shapes as in `TransformerLayer.forward`."""
        if query is None or query_segments is None:
            query_segments = segments
            heads = (self._heads(part, 3) for part in segments.split(self.qkv(x)))
        else:
            dim, weight, bias = x.shape[1], self.qkv.weight, self.qkv.bias
            queries = query_segments.split(F.linear(query, weight[:dim], bias[:dim]))
            keys_values = segments.split(F.linear(x, weight[dim:], bias[dim:]))
            heads = (
                self._heads(q, 1) + self._heads(kv, 2) for q, kv in zip(queries, keys_values, strict=True)
            )
        random_keys = self.dropout.keys(query_segments)
        groups = zip(
            heads,
            segments.masks,
            segments.masks if random_keys is None else query_segments.split(random_keys),
            strict=True,
        )
        attended = [
            attention(q, k, v, mask, self.dropout, None if random_keys is None else keys)
            .transpose(1, 2)
            .flatten(2)
            for (q, k, v), mask, keys in groups
        ]
        output: Tensor = self.out(query_segments.join(attended))
        return output

    def first_row_weights(self, x: Tensor, segments: Segments) -> Tensor:
        """Return how much the first row of each sequence of x (N, D) attends to its rows: (N, H)."""
        parts = []
        for projected, mask in zip(segments.split(self.qkv(x)), segments.masks, strict=True):
            q, k, _ = self._heads(projected, 3)
            scores = (q[:, :, :1] * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            weights = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)
            parts.append(weights[:, :, 0].transpose(1, 2))
        return segments.join(parts)

    def _heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Split (b, t, parts · D) into parts and heads: (b, H, t, E) each."""
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
        self.attention_dropout, self.ffn_dropout = Dropout(dropout), Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        segments: Segments,
        query: Tensor | None = None,
        query_segments: Segments | None = None,
    ) -> Tensor:
        """Compute the output of every row, or of `query` only, which saves most of a final layer.

        Args:
            x: (N, D).
            segments: the sequences; rows attend to those of their own sequence.
            query: (M, D), the rows of x whose outputs are computed; None for all.
            query_segments: the sequences of `query`, `segments` with other lengths.

        Returns:
            (N, D), or (M, D) with `query`.
        """
        residual = x if query is None else query
        if self.layer_norm_first:
            x, query = self.attention_norm(x), None if query is None else self.attention_norm(query)
        attended = self.attention(x, segments, query, query_segments)
        rows = segments if query_segments is None else query_segments
        return self.after_attention(
            residual, attended, self.attention_dropout.keys(rows), self.ffn_dropout.keys(rows)
        )

    def after_attention(
        self,
        residual: Tensor,
        attended: Tensor,
        attention_keys: Tensor | None = None,
        ffn_keys: Tensor | None = None,
    ) -> Tensor:
        """Compute the rest of the layer, row by row: (M, D) from the queries and what they attended to.

        The keys (M,) are those of both `Dropout`s.
        """
        x: Tensor = residual + self.attention_dropout(attended, attention_keys)
        if self.layer_norm_first:
            return x + self._feed_forward(self.ffn_norm(x), ffn_keys)
        x = self.attention_norm(x)
        output: Tensor = self.ffn_norm(x + self._feed_forward(x, ffn_keys))
        return output

    def _feed_forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        output: Tensor = self.ffn_dropout(self.contract(F.gelu(self.expand(x))), keys)
        return output


def compile_layers(model: nn.Module) -> None:
    """Let torch.compile fuse the operations of all transformer layers of a model, but for attention.

    Only the part that works on rows is compiled, since it has one shape that changes, the number of rows;
    attention runs on groups whose number and shapes differ from batch to batch.
    """
    for module in model.modules():
        if isinstance(module, TransformerLayer):
            module.after_attention = torch.compile(module.after_attention, dynamic=True)  # type: ignore[method-assign]


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

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        """Return the embedding (N, D) to be added to x (N, D), as if zeros surrounded each sequence."""
        convolution = self.convolution
        weight, bias = convolution.weight, convolution.bias  # the weight is normalised once
        parts = [
            # An even kernel yields one position too many.
            F.conv1d(part.transpose(1, 2), weight, bias, 1, convolution.padding, 1, convolution.groups)[
                :, :, : part.shape[1]
            ].transpose(1, 2)
            for part in segments.split(x, zero_padding=True)
        ]
        return F.gelu(segments.join(parts))
