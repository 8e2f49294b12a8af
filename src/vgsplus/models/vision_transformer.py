"""The Vision Transformers of DINO (Caron et al., 2021) and DINOv2 (Oquab et al., 2024).

They learned from pictures without labels.

B images, S side of an image in pixels, P patches of an image, D dimensions.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Sizes of a Vision Transformer.

    Attributes:
        dim: D.
        layers: number of transformer layers.
        heads: attention heads of each layer.
        ffn_dim: width of the feed-forward networks.
        patch: side of a patch in pixels.
        positions: patches along a side for which position embeddings are stored; they are interpolated for
            images of another size.
        side: S of the images that the model is given here.
        layer_scale: whether the output of each part of a layer is scaled by a vector, as in DINOv2.
    """

    dim: int
    layers: int
    heads: int
    ffn_dim: int
    patch: int
    positions: int
    side: int
    layer_scale: bool = True


VISION_TRANSFORMERS = {
    # ViT-S/14, trained at 518 pixels; 224 is the size to which its image processor crops.
    "dinov2-small": VisionConfig(dim=384, layers=12, heads=6, ffn_dim=1536, patch=14, positions=37, side=224),
    # ViT-S/8, the image side of VG-HuBERT.
    "dino-vits8": VisionConfig(
        dim=384, layers=12, heads=6, ffn_dim=1536, patch=8, positions=28, side=224, layer_scale=False
    ),
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue in [0, 1]; images are standardised with them."""

_NORM_EPS = 1e-6


class VisionTransformer(nn.Module):
    """Patch embedding, CLS token, position embeddings, pre-norm layers, and a LayerNorm.

    There is no dropout, so its outputs are a function of the images alone.

    Args:
        config: sizes of the network.
        layer: number of layers to build, the first ones. Its output is then that of the last of them, before
            any LayerNorm. None: all layers and the LayerNorm.

    Attributes:
        checkpoint_layers: whether activations within layers are computed again in the backward pass instead
            of being stored.
    """

    checkpoint_layers = False

    def __init__(self, config: VisionConfig, layer: int | None = None) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, config.dim, config.patch, stride=config.patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, config.dim) * 0.02)
        self.position_embeddings = nn.Parameter(torch.randn(1, 1 + config.positions**2, config.dim) * 0.02)
        self.layers = nn.ModuleList(
            VisionLayer(config.dim, config.heads, config.ffn_dim, layer_scale=config.layer_scale)
            for _ in range(layer or config.layers)
        )
        self.norm = nn.LayerNorm(config.dim, eps=_NORM_EPS) if layer is None else nn.Identity()
        self._renamed = _PUBLISHED_NAMES + (_DINOV2_NAMES if config.layer_scale else _DINO_NAMES)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the outputs (B, 1 + P, D) of the CLS token and the patches, row by row, of (B, 3, S, S)."""
        patches = self.patch_embedding(images)
        positions = self._positions(*patches.shape[-2:])
        cls = self.cls_token.expand(len(images), 1, -1)
        x = torch.cat([cls, patches.flatten(2).transpose(1, 2)], dim=1) + positions
        for layer in self.layers:
            again = self.checkpoint_layers and torch.is_grad_enabled()
            x = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
        output: Tensor = self.norm(x)
        return output

    def patch_map(self, images: Tensor) -> Tensor:
        """Compute the outputs of the patches of images (B, 3, S, S) as a map (B, D, h, w)."""
        rows, columns = (size // self.patch_embedding.stride[0] for size in images.shape[-2:])
        outputs: Tensor = self(images)
        return outputs[:, 1:].transpose(1, 2).reshape(len(images), -1, rows, columns)

    def published_name(self, name: str) -> str:
        """Return the name of a parameter in Hugging Face's files."""
        for own, published in self._renamed:
            name = name.replace(own, published)
        return name

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Interpolate the position embeddings to (1, 1 + rows · columns, D)."""
        stored = self.position_embeddings
        side = round((stored.shape[1] - 1) ** 0.5)
        if (rows, columns) == (side, side):
            return stored
        grid = stored[0, 1:].reshape(side, side, -1)
        # Products of matrices, because the gradient of interpolate differs from run to run on a GPU; in
        # float32, since half precision would shift them.
        with torch.autocast(stored.device.type, enabled=False):
            down, across = (self._bicubic(side, size).to(stored) for size in (rows, columns))
            resized = torch.einsum("ih,jw,hwd->ijd", down, across, grid)
        return torch.cat([stored[:, :1], resized.flatten(0, 1)[None]], dim=1)

    @staticmethod
    def _bicubic(source: int, target: int) -> Tensor:
        """Return the matrix (target, source) of the bicubic interpolation along one side."""
        points = torch.eye(source)[None, None]
        return F.interpolate(points, (target, source), mode="bicubic", align_corners=False)[0, 0]


class VisionLayer(nn.Module):
    """Self-attention and feed-forward network, each of normalised inputs, perhaps scaled, and added."""

    scale1: nn.Parameter | None
    scale2: nn.Parameter | None

    def __init__(self, dim: int, heads: int, ffn_dim: int, *, layer_scale: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.norm2 = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.fc1 = nn.Linear(dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, dim)
        for name in ("scale1", "scale2"):
            self.register_parameter(name, nn.Parameter(torch.ones(dim)) if layer_scale else None)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output (B, 1 + P, D) of x (B, 1 + P, D)."""
        normed = self.norm1(x)
        query, key, value = (
            project(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + _scale(self.out(attended), self.scale1)
        output: Tensor = x + _scale(self.fc2(F.gelu(self.fc1(self.norm2(x)))), self.scale2)
        return output


def _scale(x: Tensor, scale: nn.Parameter | None) -> Tensor:
    return x if scale is None else x * scale


class PixelEncoder(nn.Module):
    """Gives the patches of pictures as regions: their outputs in a `VisionTransformer`, and their boxes.

    Args:
        config: sizes of the network.
        tune: the parts that are trained (see `models.config.PixelConfig`).
        layer: as of `VisionTransformer`.

    Attributes:
        micro_batch_size: pictures that are computed together; None: all. With fewer, activations are computed
            again in the backward pass instead of being stored.
    """

    micro_batch_size: int | None = None
    colours: Tensor

    def __init__(
        self, config: VisionConfig, tune: Literal["none", "last", "all"], layer: int | None = None
    ) -> None:
        super().__init__()
        self.network = VisionTransformer(config, layer)
        if tune != "all":
            self.network.requires_grad_(requires_grad=False)
        if tune == "last":
            for part in (self.network.layers[-1], self.network.norm):
                part.requires_grad_()
        colours = torch.tensor([IMAGENET_MEAN, IMAGENET_STD]).view(2, 3, 1, 1)
        self.register_buffer("colours", colours, persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, P, D) and boxes (B, P, 4) of pictures (B, 3, S, S), uint8."""
        mean, std = self.colours.unbind()
        parts = torch.split(pixels, self.micro_batch_size or len(pixels))
        outputs = []
        for part in parts:
            images = (part.to(mean.dtype) / 255 - mean) / std
            again = len(parts) > 1 and torch.is_grad_enabled()
            outputs.append(
                checkpoint(self.network, images, use_reentrant=False) if again else self.network(images)
            )
        features = torch.cat(outputs)[:, 1:]
        return features, self._boxes(pixels).expand(len(pixels), -1, -1)

    def _boxes(self, pixels: Tensor) -> Tensor:
        """Return the boxes (P, 4) of patches in [0, 1], row by row."""
        rows, columns = (size // self.network.patch_embedding.stride[0] for size in pixels.shape[-2:])
        top, left = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        corners = torch.stack([left, top, left + 1, top + 1], dim=-1).flatten(0, 1)
        boxes = corners / torch.tensor([columns, rows, columns, rows])
        return boxes.to(self.colours)


_PUBLISHED_NAMES = (
    ("norm.", "layernorm."),  # the last one; the others are norm1 and norm2
    ("patch_embedding.", "embeddings.patch_embeddings.projection."),
    ("cls_token", "embeddings.cls_token"),
    ("position_embeddings", "embeddings.position_embeddings"),
    ("layers.", "encoder.layer."),
    *((f".{name}.", f".attention.attention.{name}.") for name in ("query", "key", "value")),
    (".out.", ".attention.output.dense."),
)
_DINOV2_NAMES = (
    *((f".scale{number}", f".layer_scale{number}.lambda1") for number in (1, 2)),
    *((f".fc{number}.", f".mlp.fc{number}.") for number in (1, 2)),
)
_DINO_NAMES = (
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".fc1.", ".intermediate.dense."),
    (".fc2.", ".output.dense."),
)
