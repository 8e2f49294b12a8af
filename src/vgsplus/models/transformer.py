"""Post-norm transformer layers and the convolution that tells them where a frame is.

B batch, T positions, D dimensions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Scaled dot products: q, k, v (B, H, T, E) → (B, H, T, E); mask (B, 1, 1, T) True where a key is."""
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

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """(B, T, D) → (B, T, D); keys (B, T) True where a key may be attended to, None for all."""
        batch, positions, dim = x.shape
        q, k, v = (
            self.qkv(x)
            .view(batch, positions, 3, self.heads, dim // self.heads)
            .permute(2, 0, 3, 1, 4)
            .unbind()
        )
        mask = None if keys is None else keys[:, None, None]
        attended = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        mixed: Tensor = self.out(attended.transpose(1, 2).reshape(batch, positions, dim))
        return mixed


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each added to its input and normalised after (post-LN)."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, heads, dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, ffn_dim)
        self.contract = nn.Linear(ffn_dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, T, D) → (B, T, D); keys (B, T) True where a key may be attended to."""
        x = self.attention_norm(x + self.dropout(self.attention(x, keys)))
        normalised: Tensor = self.ffn_norm(x + self.dropout(self.contract(F.gelu(self.expand(x)))))
        return normalised


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
