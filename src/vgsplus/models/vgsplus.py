"""The joint model: one speech encoder for grounding in images and self-supervision (the paper's Fig. 1).

B batch, S samples, T frames of a padded row, N frames of all utterances together, R regions, F features of a
region, D dimensions, M masked frames of an utterance.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vgsplus.draws import fold, key_of, new_keys
from vgsplus.functional import gather_batch, lengths_to_mask, mean_over_batch, upcast
from vgsplus.losses import Losses
from vgsplus.losses.grounding import embedding_std, grounding_loss
from vgsplus.losses.masking import draw_negatives, span_mask
from vgsplus.losses.ssl import code_perplexity, contrastive_loss, diversity_loss, perplexity
from vgsplus.models.config import ModelConfig
from vgsplus.models.dropout import Dropout
from vgsplus.models.feature_extractor import FeatureExtractor
from vgsplus.models.image_encoder import ImageEncoder
from vgsplus.models.quantizer import Quantizer
from vgsplus.models.resdavenet import ResDAVEnet
from vgsplus.models.segments import Selection
from vgsplus.models.speech_encoder import SpeechEncoder, SpeechFeatures
from vgsplus.models.speech_head import SpeechHead
from vgsplus.models.transformer import PositionalConvolution, TransformerLayer
from vgsplus.models.vision_transformer import VISION_TRANSFORMERS, PixelEncoder

__all__ = ["ModelConfig", "VGSPlus"]

_SPEECH, _IMAGES, _MASKS, _NEGATIVES = range(4)
"""What is drawn for a caption."""

_NOISE = -1
"""The Gumbel noise among what is drawn for a frame; the others are the streams of `Dropout`."""


class VGSPlus(nn.Module):
    """The joint model with `exact` padding; `models.published.build_model` builds either padding mode.

    `forward` computes the losses; `embed_speech`, `embed_image` and `speech_layers` are for evaluation.

    Raises:
        ValueError: the configuration asks for the other padding mode.
    """

    padding: ClassVar[str] = "exact"
    feature_extractor_class: ClassVar[type[FeatureExtractor]] = FeatureExtractor
    speech_encoder_class: ClassVar[type[SpeechEncoder]] = SpeechEncoder
    speech_head_class: ClassVar[type[SpeechHead]] = SpeechHead

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.padding != self.padding:
            raise ValueError(f"build a model with padding {config.padding!r} by models.published.build_model")
        self.config = c = config
        channels = c.conv_layers[-1][0]
        cls_position: Literal["before_pos_conv", "after_pos_conv"] | None = None
        if c.grounded or c.cls_after_positions:
            cls_position = "after_pos_conv" if c.cls_after_positions else "before_pos_conv"
        self.speech = self.speech_encoder_class(
            self.feature_extractor_class(c.conv_layers, mode=c.extractor_mode, bias=c.conv_bias),
            channels,
            c.dim,
            [
                TransformerLayer(c.dim, c.heads, c.ffn_dim, c.dropout, layer_norm_first=c.layer_norm_first)
                for _ in range(c.shared_layers + c.ssl_layers)
            ],
            PositionalConvolution(c.dim, c.pos_conv_kernel, c.pos_conv_groups),
            c.dropout,
            cls_position=cls_position,
            layer_norm_first=c.layer_norm_first,
        )
        self.target_dropout = Dropout(c.dropout)
        self.quantizer = Quantizer(
            channels, c.quantizer_groups, c.quantizer_codes, c.quantizer_dim, c.temperature
        )
        self.project_target = nn.Linear(c.quantizer_dim, c.ssl_dim)
        self.project_prediction = nn.Linear(c.dim, c.ssl_dim)
        if c.grounded:
            self.speech_head = self.speech_head_class(
                ResDAVEnet(c.dim, c.resdavenet_widths, c.resdavenet_blocks, c.resdavenet_kernel),
                TransformerLayer(c.dim, c.heads, c.ffn_dim, c.dropout),
                c.dim,
            )
            vision = None if c.image is None else VISION_TRANSFORMERS[c.image.backbone]
            features = c.feature_dim if vision is None else vision.dim
            self.image = ImageEncoder(features, c.dim, c.heads, c.ffn_dim, c.image_layers, c.dropout)
            if c.image is not None and vision is not None:
                self.pixels = PixelEncoder(vision, c.image.tune, c.image.layer)
        # 0.02 at the paper's width, as published, scaled so that narrower models keep the variance of
        # their outputs; they train faster with it.
        std = 0.02 * (768 / c.dim) ** 0.5
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
        for stream, module in enumerate(m for m in self.modules() if isinstance(m, Dropout)):
            module.stream = stream
        self.speech.mask_vector.data.mul_(c.mask_vector_scale)
        # Its inputs have passed a LayerNorm.
        nn.init.normal_(self.quantizer.logits.weight, std=c.quantizer_logit_std / channels**0.5)

    def recompute(self, micro_batch_size: int | None, *, checkpoint_layers: bool) -> None:
        """Set which activations are computed again instead of stored (see `SpeechEncoder`)."""
        self.speech.micro_batch_size, self.speech.checkpoint_layers = micro_batch_size, checkpoint_layers
        if self.config.image:
            self.pixels.micro_batch_size = micro_batch_size
            self.pixels.network.checkpoint_layers = checkpoint_layers

    # ---- evaluation, without masking ----

    def embed_speech(self, waveforms: Tensor, num_samples: Tensor) -> Tensor:
        """Embed utterances for retrieval.

        Args:
            waveforms: (B, S) float32, normalised and padded with zeros.
            num_samples: (B,) int64.

        Returns:
            (B, D).

        Raises:
            ValueError: an utterance is shorter than one frame or longer than its row, or the model has no
                grounding modules.
        """
        self._require_grounding()
        features = self.speech.extract_features(waveforms, self._check_lengths(waveforms, num_samples))
        (hidden,) = self.speech(features, None, [self.config.shared_layers - 1])
        embedding: Tensor = self.speech_head(hidden, features.segments)
        return embedding

    def embed_image(self, images: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Embed images for retrieval.

        Args:
            images: (B, R, F) features of their regions, or, if `config.image` is set, (B, 3, S, S) pixels as
                uint8.
            boxes: (B, R, 4) as (x1, y1, x2, y2), divided by width and height; None with pixels.

        Returns:
            (B, D).

        Raises:
            ValueError: the model has no grounding modules.
        """
        self._require_grounding()
        if boxes is None:
            images, boxes = self.pixels(images)
        embedding: Tensor = self.image(images, boxes)
        return embedding

    def speech_layers(self, waveforms: Tensor, num_samples: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Compute the hidden states of all transformer layers in one pass.

        With `layer_norm_first`, hidden states are values of the residual stream, before any final LayerNorm,
        as in fairseq and transformers.

        Args:
            waveforms: (B, S) float32, normalised and padded with zeros.
            num_samples: (B,) int64.

        Returns:
            The output (B, T, D) of each layer, without the CLS token, and a mask (B, T), True at valid
            frames.

        Raises:
            ValueError: an utterance is shorter than one frame or longer than its row.
        """
        num_samples = self._check_lengths(waveforms, num_samples)
        features = self.speech.extract_features(waveforms, num_samples)
        segments, frames = features.segments, self.speech.num_frames(waveforms.shape[1])
        hidden_states = self.speech(features, None, range(len(self.speech.layers)))
        layers = (segments.pad(self.speech.without_cls(hidden, segments), frames) for hidden in hidden_states)
        valid = torch.tensor(segments.valid, device=waveforms.device)
        return tuple(layers), lengths_to_mask(valid, frames)

    # ---- training ----

    def forward(
        self,
        batch: Mapping[str, Any],
        alpha: float = 0.5,
        mask: Tensor | None = None,
        negatives: Tensor | None = None,
        *,
        seed: int | None = None,
        update_temperature: bool = True,
    ) -> Losses:
        """Compute the losses of a batch that have a weight at α (paper, equation 1).

        Args:
            batch: waveforms (B, S), num_samples (B,); for α > 0 also image_ids (B,), a tensor or any
                hashables, and features (B, R, F) and boxes (B, R, 4), or with `config.image` pixels
                (B, 3, S, S) uint8. `places` (B,) int64 on the host number the captions whose random numbers
                are drawn, 0, 1, … by default; `batch_size` is the number of captions in all processes, B by
                default.
            alpha: weight of grounding in [0, 1]. At 1 neither the SSL layers nor the quantiser run, and
                speech is masked only by a given `mask` or with `published` padding; at 0 images are not used.
            mask: (B, T) bool to use instead of drawing one.
            negatives: (B, N·M) int64 indices of the B·M masked frames to use instead of drawing them; all
                utterances must have M masked frames.
            seed: of all that is drawn, a function of it and of `places` (but dropout on a GPU draws from the
                global generator); None: drawn from the global generator.
            update_temperature: whether this call counts as an update for the Gumbel temperature; pass False
                for all but one call of an optimiser update.

        Raises:
            ValueError: α is outside [0, 1] or positive without grounding modules, or an utterance is shorter
                than one frame.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], not {alpha}")
        if alpha > 0:
            self._require_grounding()
        waveforms = batch["waveforms"]
        num_samples = self._check_lengths(waveforms, batch["num_samples"])
        root = new_keys(1) if seed is None else key_of(seed)
        keys = fold(root, batch.get("places", torch.arange(len(num_samples))))
        if mask is None:
            mask = self._draw_mask(num_samples, waveforms.shape[1], alpha, fold(keys, _MASKS))
        grounding_layer, last_layer = self.config.shared_layers - 1, len(self.speech.layers) - 1
        layers = [grounding_layer] if alpha > 0 else []
        if alpha < 1 and last_layer not in layers:
            layers.append(last_layer)
        # Predictions need masked frames only, grounding needs all frames of its layer.
        masked_only = alpha < 1 and not (alpha > 0 and grounding_layer == last_layer)
        features, masked, hidden_states = self.speech.encode(
            waveforms, num_samples, mask, layers, keys=fold(keys, _SPEECH), masked_only=masked_only
        )
        terms: dict[str, Tensor] = {}
        total: Tensor | float = 0.0
        similarity = None
        if alpha > 0:
            size = int(batch.get("batch_size", len(num_samples)))
            speech_embeddings = gather_batch(self.speech_head(hidden_states[0], features.segments), size)
            regions = (
                self.pixels(batch["pixels"]) if self.config.image else (batch["features"], batch["boxes"])
            )
            image_embeddings = gather_batch(self.image(*regions, fold(keys, _IMAGES)), size)
            with torch.autocast(speech_embeddings.device.type, enabled=False):
                similarity = upcast(image_embeddings) @ upcast(speech_embeddings).T
            image_ids = gather_batch(_image_numbers(batch["image_ids"], similarity.device), size)
            terms["grounding"] = grounding_loss(similarity, image_ids)
            terms["speech_embedding_std"] = embedding_std(speech_embeddings)
            terms["image_embedding_std"] = embedding_std(image_embeddings)
            terms["similarity_std"] = similarity.detach().std()
            total = total + alpha * terms["grounding"]
        if alpha < 1:
            assert masked is not None
            hidden = hidden_states[-1]
            if not masked_only:
                hidden = self.speech.without_cls(hidden, features.segments)[masked.rows]
            predictions = self.project_prediction(self.speech.normalise_output(hidden))
            terms |= self._ssl_terms(
                features, predictions, masked, negatives, keys, update_temperature=update_temperature
            )
            total = total + (1 - alpha) * terms["ssl"]
        assert isinstance(total, Tensor)
        return Losses(total, terms, similarity)

    def losses(
        self,
        batch: Mapping[str, Any],
        alpha: float = 0.5,
        mask: Tensor | None = None,
        negatives: Tensor | None = None,
    ) -> Losses:
        """Call the model; arguments and errors as for `forward`."""
        losses: Losses = self(batch, alpha, mask, negatives)
        return losses

    def count_rows(self, batch: Mapping[str, Any]) -> tuple[int, int]:
        """Return the frames of speech of a batch, and the rows that attention computes, padding included."""
        num_samples, waveforms = batch["num_samples"], batch["waveforms"]
        segments = self.speech.segments(num_samples, waveforms.shape[1], waveforms.device)
        return sum(segments.valid), segments.computed_rows

    def _draw_mask(self, num_samples: Tensor, row_samples: int, alpha: float, keys: Tensor) -> Tensor | None:
        """Draw the mask (B, T) of utterances padded to `row_samples`, None if nothing is masked."""
        return None if alpha == 1 else self._span_mask(num_samples, row_samples, keys)

    def _span_mask(self, num_samples: Tensor, row_samples: int, keys: Tensor) -> Tensor:
        return span_mask(
            self.speech.frame_lengths(num_samples, row_samples),
            self.speech.num_frames(row_samples),
            probability=self.config.mask_probability,
            span=self.config.mask_span,
            keys=keys,
        )

    def _ssl_terms(
        self,
        features: SpeechFeatures,
        predictions: Tensor,
        masked: Selection,
        negatives: Tensor | None,
        keys: Tensor,
        *,
        update_temperature: bool,
    ) -> dict[str, Tensor]:
        """Compare predictions (rows of `masked`, ssl_dim) of masked frames with their quantised features."""
        c, segments = self.config, masked.segments
        counts = segments.move(torch.tensor(segments.lengths))
        num_masked = max(segments.lengths)
        row_keys = segments.row_keys
        targets = self.target_dropout(features.features[masked.rows], self.target_dropout.keys(segments))
        quantized = self.quantizer(
            targets[: segments.num_rows],
            fold(row_keys[: segments.num_rows], _NOISE),
            update_temperature=update_temperature,
        )
        predictions, codes = segments.pad(predictions), segments.pad(quantized.codes)
        targets = segments.pad(self.project_target(quantized.vectors))
        if negatives is None:
            keys = segments.move(fold(keys, _NEGATIVES))
            negatives = draw_negatives(counts, num_masked, c.num_negatives, keys)
        else:
            first = torch.arange(len(counts), device=counts.device)[:, None, None] * num_masked
            negatives = negatives.view(len(counts), num_masked, -1) - first
        valid = lengths_to_mask(counts, num_masked)
        contrastive = contrastive_loss(predictions, targets, codes, negatives, valid)
        num_values = features.segments.num_rows * features.features.shape[1]
        penalty = c.feature_penalty_weight * mean_over_batch(features.square_sum, num_values)
        diversity = c.diversity_weight * diversity_loss(quantized.mean_probabilities)
        terms = {
            "contrastive": contrastive,
            "diversity": diversity,
            "feature_penalty": penalty,
            "ssl": contrastive + diversity + penalty,
            "prob_perplexity": perplexity(quantized.mean_probabilities.detach()),
            "code_perplexity": code_perplexity(quantized.codes, c.quantizer_codes),
            "masked_share": mean_over_batch(counts.sum().float(), sum(features.segments.valid)),
        }
        if quantized.temperature is not None:
            terms["temperature"] = quantized.temperature
        return terms

    def _check_lengths(self, waveforms: Tensor, num_samples: Tensor) -> Tensor:
        """Return num_samples on the host; a device is not waited for if they are there already."""
        num_samples = num_samples.cpu()
        frames = self.speech.waveform.num_frames(num_samples)
        if int(frames.min()) < 1 or int(num_samples.max()) > waveforms.shape[1]:
            raise ValueError(
                f"num_samples ({num_samples.tolist()}) must give every utterance at least one frame and not "
                f"exceed the {waveforms.shape[1]} samples of a row"
            )
        return num_samples

    def _require_grounding(self) -> None:
        if not self.config.grounded:
            raise ValueError(
                "this model is wav2vec 2.0 alone, without grounding modules: it cannot embed speech or "
                "images and is trained at alpha = 0 only; to ground it, train a model with `grounded: true` "
                "and `init` from it"
            )


def _image_numbers(image_ids: Tensor | Sequence[object], device: torch.device) -> Tensor:
    """Number image ids of any type: (B,) int64."""
    if isinstance(image_ids, Tensor):
        return image_ids.to(device)
    numbers: dict[object, int] = {}
    return torch.tensor([numbers.setdefault(image, len(numbers)) for image in image_ids], device=device)
