"""VGS+: one speech encoder, grounded in pictures and taught by itself, weighted by α (the paper's Fig. 1).

B batch, S samples, T frames, R regions, F features of a region, D dimensions, M masked frames, N negatives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vgsplus.losses import Losses
from vgsplus.losses.grounding import grounding_loss
from vgsplus.losses.masking import draw_negatives, span_mask
from vgsplus.losses.precision import full_precision
from vgsplus.losses.ssl import code_perplexity, contrastive_loss, diversity_loss, perplexity
from vgsplus.models.image import ImageEncoder
from vgsplus.models.normalization import frame_mask
from vgsplus.models.quantizer import Quantizer
from vgsplus.models.resdavenet import ResDAVEnet
from vgsplus.models.speech import Frames, SpeechEncoder, SpeechHead, gather_masked, place
from vgsplus.models.transformer import PositionalConvolution, TransformerLayer
from vgsplus.models.waveform import WaveformEncoder


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The sizes of a model; the defaults are the paper's (182.6 M parameters).

    Attributes:
        conv_layers: (channels, kernel, stride) of the waveform encoder's convolutions.
        extractor_mode: "default": the first convolution's channels are normalised over time (wav2vec 2.0
            base); "layer_norm": every frame is, after every convolution (large, LV-60, XLSR). conv_bias:
            whether these convolutions have one. (fairseq's names.)
        layer_norm_first: whether transformer layers of speech normalise their inputs instead of their outputs
            (large, LV-60, XLSR).
        dim: D. heads: of every attention. ffn_dim: of every feed-forward.
        shared_layers: transformer layers of the speech encoder; grounding taps the last of them.
        ssl_layers: transformer layers of the speech decoder, which only self-supervision uses.
        pos_conv_kernel: frames. pos_conv_groups: of the positional convolution.
        dropout: everywhere.
        quantizer_groups: codebooks. quantizer_codes: in each. quantizer_dim: of all groups together.
        ssl_dim: where predictions and targets meet.
        mask_probability: share of frames in masked spans if none overlapped. mask_span: frames.
        num_negatives: N. diversity_weight: in L_AUD.
        temperature: of the Gumbel softmax: first, last, decay each update.
        resdavenet_widths: channels of its stages, the last equal to dim. resdavenet_blocks: in each stage.
        resdavenet_kernel: frames.
        feature_dim: F. image_layers: transformer layers of the image encoder.
        grounded: whether there is a grounding side: image encoder, speech head, CLS before the speech frames.
            Without it the network is wav2vec 2.0, of which only α = 0 can be trained.
        cls_after_positions: whether CLS is put before the speech frames after the positional convolution, as
            in VG-HuBERT, in a model without grounding too.
        padding: "exact": an utterance's output never depends on its batch; "published": as the old code.

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
    ssl_dim: int = 256
    mask_probability: float = 0.65
    mask_span: int = 10
    num_negatives: int = 100
    diversity_weight: float = 0.1
    temperature: tuple[float, float, float] = (2.0, 0.5, 0.999995)
    resdavenet_widths: tuple[int, ...] = (128, 256, 512, 768)
    resdavenet_blocks: int = 2
    resdavenet_kernel: int = 9
    feature_dim: int = 2048
    image_layers: int = 6
    grounded: bool = True
    cls_after_positions: bool = False
    padding: Literal["exact", "published"] = "exact"

    def __post_init__(self) -> None:
        for name in (
            *("dim", "heads", "ffn_dim", "shared_layers", "pos_conv_kernel", "pos_conv_groups"),
            *("quantizer_groups", "quantizer_codes", "ssl_dim", "mask_span", "num_negatives"),
            *("feature_dim", "image_layers", "resdavenet_blocks"),
        ):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        _require(self.ssl_layers >= 0, f"ssl_layers must be at least 0, not {self.ssl_layers}")
        _require(bool(self.conv_layers), "conv_layers must hold at least one convolution")
        _require(
            all(size >= 1 for layer in self.conv_layers for size in layer),
            "channels, kernels and strides of conv_layers must be at least 1",
        )
        _require(
            self.resdavenet_kernel % 2 == 1, f"resdavenet_kernel must be odd, not {self.resdavenet_kernel}"
        )
        _require(self.dim % self.heads == 0, f"dim ({self.dim}) must be a multiple of heads ({self.heads})")
        _require(
            self.dim % self.pos_conv_groups == 0,
            f"dim ({self.dim}) must be a multiple of pos_conv_groups ({self.pos_conv_groups})",
        )
        _require(
            self.quantizer_dim % self.quantizer_groups == 0,
            f"quantizer_dim ({self.quantizer_dim}) must be a multiple of quantizer_groups",
        )
        _require(
            not self.grounded or self.resdavenet_widths[-1:] == (self.dim,),
            f"the last of resdavenet_widths must equal dim ({self.dim})",
        )
        _require(0 <= self.dropout < 1, f"dropout must be in [0, 1), not {self.dropout}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class VGSPlus(nn.Module):
    """The joint model. `forward` computes the losses; the `embed_*` calls serve evaluation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = c = config
        exact, channels = c.padding == "exact", c.conv_layers[-1][0]
        self.speech = SpeechEncoder(
            WaveformEncoder(c.conv_layers, exact=exact, mode=c.extractor_mode, bias=c.conv_bias),
            channels,
            c.dim,
            [
                TransformerLayer(c.dim, c.heads, c.ffn_dim, c.dropout, norm_first=c.layer_norm_first)
                for _ in range(c.shared_layers + c.ssl_layers)
            ],
            PositionalConvolution(c.dim, c.pos_conv_kernel, c.pos_conv_groups),
            c.dropout,
            cls="after_positions" if c.cls_after_positions else "before_positions" if c.grounded else None,
            norm_first=c.layer_norm_first,
        )
        self.target_dropout = nn.Dropout(c.dropout)
        self.quantizer = Quantizer(
            channels, c.quantizer_groups, c.quantizer_codes, c.quantizer_dim, c.temperature
        )
        self.project_target = nn.Linear(c.quantizer_dim, c.ssl_dim)
        self.project_prediction = nn.Linear(c.dim, c.ssl_dim)
        if c.grounded:
            self.speech_head = SpeechHead(
                ResDAVEnet(c.dim, c.resdavenet_widths, c.resdavenet_blocks, c.resdavenet_kernel),
                TransformerLayer(c.dim, c.heads, c.ffn_dim, c.dropout),
                c.dim,
                exact=exact,
            )
            self.image = ImageEncoder(c.feature_dim, c.dim, c.heads, c.ffn_dim, c.image_layers, c.dropout)
        # The published 0.02 at the paper's width; a narrower model keeps the same variance of its outputs,
        # and learns faster for it.
        std = 0.02 * (768 / c.dim) ** 0.5
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

    # ---- evaluation: nothing is masked ----

    def embed_speech(self, waveforms: Tensor, num_samples: Tensor) -> Tensor:
        """(B, S) float32 zero-padded, (B,) int64 → (B, D).

        Raises:
            ValueError: an utterance shorter than one frame, or longer than its row; no grounding side.
        """
        self._require_grounding()
        self._check_lengths(waveforms, num_samples)
        heard, (tapped,) = self.speech(waveforms, num_samples, None, [self.config.shared_layers - 1])
        return self._embed_tapped(tapped, heard)

    def embed_image(self, features: Tensor, boxes: Tensor) -> Tensor:
        """(B, R, F), (B, R, 4) as (x1, y1, x2, y2) over width and height → (B, D).

        Raises:
            ValueError: the model has no grounding side.
        """
        self._require_grounding()
        embedding: Tensor = self.image(features, boxes)
        return embedding

    def speech_layers(self, waveforms: Tensor, num_samples: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """(B, S), (B,) → the outputs (B, T, D) of all layers in one pass; (B, T) True where a real frame.

        With `layer_norm_first`, they are sums that no layer has normalised, as in fairseq and transformers.

        Raises:
            ValueError: an utterance shorter than one frame, or longer than its row.
        """
        self._check_lengths(waveforms, num_samples)
        heard, outputs = self.speech(waveforms, num_samples, None, range(len(self.speech.layers)))
        return tuple(self.speech.frames(output) for output in outputs), heard.valid

    # ---- training ----

    def forward(
        self,
        batch: Mapping[str, Any],
        alpha: float = 0.5,
        mask: Tensor | None = None,
        negatives: Tensor | None = None,
        *,
        anneal: bool = True,
    ) -> Losses:
        """The losses of a batch, and only those that α asks for (paper, equation 1).

        Args:
            batch: waveforms (B, S), num_samples (B,); for α > 0 also features (B, R, F), boxes (B, R, 4) and
                image_ids (B,), a tensor or any hashables.
            alpha: weight of grounding in [0, 1]; at 1 neither the speech decoder nor the quantiser runs and
                speech is not masked (in `published` padding mode it is, where there is a speech decoder, as
                in the published code), at 0 no picture is looked at.
            mask: (B, T) bool to use instead of drawing one.
            negatives: (B, N·M) int64 into the B·M masked frames, to use instead of drawing; needs equal M.
            anneal: whether the Gumbel temperature moves on in training, as it does once an update; false for
                a further batch of the same update.

        Raises:
            ValueError: α outside [0, 1], α > 0 without a grounding side, or an utterance shorter than a
                frame.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], not {alpha}")
        if alpha > 0:
            self._require_grounding()
        waveforms, num_samples = batch["waveforms"], batch["num_samples"]
        self._check_lengths(waveforms, num_samples)
        supervised = alpha < 1
        published = self.config.padding == "published"
        if mask is None and (supervised or (published and self.config.ssl_layers > 0)):
            lengths, frames = self.speech.count_frames(num_samples, waveforms.shape[1])
            mask = span_mask(
                lengths,
                frames,
                probability=self.config.mask_probability,
                span=self.config.mask_span,
                equal=published,
            )
        tap, last = self.config.shared_layers - 1, len(self.speech.layers) - 1
        wanted = sorted({*([tap] if alpha > 0 else []), *([last] if supervised else [])})
        # Predictions are made of masked frames; grounding hears all, of the same layer without a decoder.
        masked_alone = supervised and not (alpha > 0 and tap == last)
        heard, outputs = self.speech(waveforms, num_samples, mask, wanted, masked_alone=masked_alone)
        found: dict[str, Tensor] = {}
        total: Tensor | float = 0.0
        if alpha > 0:
            found |= self._grounding(batch, outputs[0], heard)
            total = total + alpha * found["grounding"]
        if supervised:
            assert mask is not None
            hidden = outputs[-1] if masked_alone else gather_masked(self.speech.frames(outputs[-1]), mask)
            hidden = self.speech.normalise_output(hidden)
            found |= self._ssl(heard, hidden, mask, negatives, anneal=anneal)
            total = total + (1 - alpha) * found["ssl"]
        assert isinstance(total, Tensor)
        return Losses(total=total, **found)

    def losses(
        self,
        batch: Mapping[str, Any],
        alpha: float = 0.5,
        mask: Tensor | None = None,
        negatives: Tensor | None = None,
    ) -> Losses:
        """`forward` by the name of what it returns; arguments and errors as there."""
        return self.forward(batch, alpha, mask, negatives)

    def _check_lengths(self, waveforms: Tensor, num_samples: Tensor) -> None:
        frames = self.speech.waveform.num_frames(num_samples)
        if int(frames.min()) < 1 or int(num_samples.max()) > waveforms.shape[1]:
            raise ValueError(
                f"num_samples ({num_samples.tolist()}) must give every utterance at least one frame and stay "
                f"within the {waveforms.shape[1]} samples of a row"
            )

    def _require_grounding(self) -> None:
        if not self.config.grounded:
            raise ValueError(
                "this model is wav2vec 2.0 alone: it has no grounding side, so it embeds nothing and trains "
                "at alpha = 0 only; to ground it, train a model with `grounded: true` and `init` from it"
            )

    def _embed_tapped(self, tapped: Tensor, heard: Frames) -> Tensor:
        embedding: Tensor = self.speech_head(tapped, heard.lengths)
        return embedding

    def _grounding(self, batch: Mapping[str, Any], tapped: Tensor, heard: Frames) -> dict[str, Tensor]:
        speech = self._embed_tapped(tapped, heard)
        image = self.embed_image(batch["features"], batch["boxes"])
        with torch.autocast(speech.device.type, enabled=False):
            similarity = full_precision(image) @ full_precision(speech).T
        loss = grounding_loss(similarity, _as_numbers(batch["image_ids"], similarity.device))
        return {"grounding": loss, "similarity": similarity}

    def _ssl(
        self, heard: Frames, hidden: Tensor, mask: Tensor, negatives: Tensor | None, *, anneal: bool
    ) -> dict[str, Tensor]:
        c = self.config
        counts = mask.sum(-1)
        num_masked = hidden.shape[1]
        present = frame_mask(counts, num_masked)
        predictions = self.project_prediction(hidden)
        quantized = self.quantizer(self.target_dropout(heard.features)[mask], anneal=anneal)
        targets = place(self.project_target(quantized.targets), present)
        codes = place(quantized.codes, present)
        if negatives is None:
            local = draw_negatives(counts, num_masked, c.num_negatives)
        else:
            first = torch.arange(len(counts), device=counts.device)[:, None, None] * num_masked
            local = negatives.view(len(counts), num_masked, -1) - first
        contrastive = contrastive_loss(predictions, targets, codes, local, present)
        diversity = c.diversity_weight * diversity_loss(quantized.mean_probabilities)
        return {
            "contrastive": contrastive,
            "diversity": diversity,
            "feature_penalty": heard.penalty,
            "ssl": contrastive + diversity + heard.penalty,
            "prob_perplexity": perplexity(quantized.mean_probabilities.detach()),
            "code_perplexity": code_perplexity(quantized.codes, c.quantizer_codes),
        }


def _as_numbers(image_ids: Tensor | Sequence[object], device: torch.device) -> Tensor:
    if isinstance(image_ids, Tensor):
        return image_ids.to(device)
    seen: dict[object, int] = {}
    return torch.tensor([seen.setdefault(image, len(seen)) for image in image_ids], device=device)
