"""The speech encoder: feature extractor, masking and transformer layers (wav2vec 2.0, section 2).

B batch, S samples, N frames of all utterances together, M masked frames of them, C channels of the features,
D dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vgsplus.functional import upcast
from vgsplus.models.dropout import Dropout
from vgsplus.models.feature_extractor import FeatureExtractor
from vgsplus.models.segments import Segments, Selection
from vgsplus.models.transformer import PositionalConvolution, TransformerLayer


@dataclass
class SpeechFeatures:
    """Output of the feature extractor.

    Attributes:
        features: (N, C) after LayerNorm, rounded up as `segments`.
        square_sum: scalar, sum of the squares of the features before LayerNorm.
        segments: the frames of each utterance.
    """

    features: Tensor
    square_sum: Tensor
    segments: Segments


class SpeechEncoder(nn.Module):
    """Map waveforms to the hidden states of the transformer layers.

    The frames of all utterances lie end to end, without padding, so that the output of an utterance does not
    depend on the batch that it is in.

    Args:
        waveform: the feature extractor.
        channels: C.
        dim: D.
        layers: the transformer layers.
        positions: the convolutional positional embedding.
        dropout: probability, of the inputs of the transformer.
        cls_position: where a learned CLS token is put before the frames (FaST-VGS, section 2):
            "before_pos_conv", so that the positional convolution includes it, or "after_pos_conv", as in
            VG-HuBERT; None for no token.
        layer_norm_first: whether the layers normalise their inputs (wav2vec 2.0 large). Hidden states are
            then normalised by `normalise_output` only.

    Attributes:
        micro_batch_size: utterances that `encode` computes together; None: all. With fewer, their activations
            are not stored but computed again in the backward pass, and the results are the same.
        checkpoint_layers: whether activations within transformer layers are computed again in the backward
            pass instead of being stored.
    """

    micro_batch_size: int | None = None
    checkpoint_layers = False
    cls: nn.Parameter | None

    def __init__(
        self,
        waveform: FeatureExtractor,
        channels: int,
        dim: int,
        layers: list[TransformerLayer],
        positions: PositionalConvolution,
        dropout: float,
        *,
        cls_position: Literal["before_pos_conv", "after_pos_conv"] | None,
        layer_norm_first: bool = False,
    ) -> None:
        super().__init__()
        self.cls_before_pos_conv = cls_position == "before_pos_conv"
        self.waveform = waveform
        self.norm = nn.LayerNorm(channels)
        self.project = nn.Linear(channels, dim)
        self.mask_vector = nn.Parameter(torch.rand(dim))
        self.register_parameter("cls", nn.Parameter(torch.randn(1, 1, dim)) if cls_position else None)
        self.positions = positions
        self.input_norm = None if layer_norm_first else nn.LayerNorm(dim)
        self.layers = nn.ModuleList(layers)
        self.output_norm = nn.LayerNorm(dim) if layer_norm_first else None
        self.feature_dropout, self.input_dropout = Dropout(dropout), Dropout(dropout)

    def num_frames(self, samples: int) -> int:
        """Return the frames of a row of `samples` samples, padding included."""
        return int(self.waveform.num_frames(torch.tensor(samples)))

    def frame_lengths(self, num_samples: Tensor, row_samples: int) -> Tensor:
        """Return how many frames (B,) of each utterance are not padding, in rows of `row_samples`."""
        del row_samples  # used with `published` padding
        return self.waveform.num_frames(num_samples)

    def extract_features(
        self, waveforms: Tensor, num_samples: Tensor, keys: Tensor | None = None
    ) -> SpeechFeatures:
        """Run the feature extractor.

        Args:
            waveforms: (B, S) float, normalised and padded with zeros.
            num_samples: (B,) int64, on the host.
            keys: (B,) int64, of the random numbers of the utterances (see `Segments`).
        """
        raw = self.waveform(waveforms, num_samples)
        segments = self.segments(num_samples, waveforms.shape[1], raw.device, keys)
        return SpeechFeatures(self.norm(raw), upcast(raw[: segments.num_rows]).square().sum(), segments)

    def segments(
        self, num_samples: Tensor, row_samples: int, device: torch.device, keys: Tensor | None = None
    ) -> Segments:
        """Return where the frames of utterances lie, in rows of `row_samples`; `keys` as for `Segments`."""
        lengths = self.frame_lengths(num_samples, row_samples).tolist()
        return Segments(lengths, device, rounded=True, keys=keys)

    def encode(
        self,
        waveforms: Tensor,
        num_samples: Tensor,
        mask: Tensor | None,
        layers: Sequence[int],
        *,
        keys: Tensor | None = None,
        masked_only: bool = False,
    ) -> tuple[SpeechFeatures, Selection | None, list[Tensor]]:
        """Extract features, mask them and run the transformer, in micro-batches if they are set.

        Args:
            waveforms: (B, S) float, normalised and padded with zeros.
            num_samples: (B,) int64, on the host.
            mask: (B, T) bool, the frames to mask; None for none.
            layers: see `forward`.
            keys: (B,) int64, of the random numbers of the utterances (see `Segments`).
            masked_only: see `forward`.

        Returns:
            The features, the masked frames, and the hidden states of `forward`.
        """
        batch, size = len(num_samples), self.micro_batch_size
        if size is None or size >= batch or not torch.is_grad_enabled():
            features = self.extract_features(waveforms, num_samples, keys)
            masked = None if mask is None else features.segments.select(mask)
            return features, masked, self(features, masked, layers, masked_only=masked_only)

        def encode_part(part: slice) -> tuple[Tensor, ...]:
            own_mask, own_keys = (None if x is None else x[part] for x in (mask, keys))
            features = self.extract_features(waveforms[part], num_samples[part], own_keys)
            masked = None if own_mask is None else features.segments.select(own_mask)
            hidden = self(features, masked, layers, masked_only=masked_only)
            segments = self._output_segments(features.segments, masked, layers, masked_only=masked_only)
            rows = (x[: of.num_rows] for x, of in zip(hidden, segments, strict=True))
            return features.square_sum, features.features[: features.segments.num_rows], *rows

        parts = [
            checkpoint(encode_part, slice(start, start + size), use_reentrant=False)
            for start in range(0, batch, size)
        ]
        square_sums, rows, *hidden = zip(*parts, strict=True)
        segments = self.segments(num_samples, waveforms.shape[1], waveforms.device, keys)
        masked = None if mask is None else segments.select(mask)
        outputs = self._output_segments(segments, masked, layers, masked_only=masked_only)
        features = SpeechFeatures(segments.concatenate(rows), torch.stack(square_sums).sum(), segments)
        return features, masked, [of.concatenate(x) for x, of in zip(hidden, outputs, strict=True)]

    def _output_segments(
        self, segments: Segments, masked: Selection | None, layers: Sequence[int], *, masked_only: bool
    ) -> list[Segments]:
        """Return the segments of each of the hidden states that `forward` returns."""
        outputs = [segments if self.cls is None else segments.with_token] * len(layers)
        return outputs if masked is None or not masked_only else [*outputs[:-1], masked.segments]

    def forward(
        self,
        features: SpeechFeatures,
        masked: Selection | None,
        layers: Sequence[int],
        *,
        masked_only: bool = False,
    ) -> list[Tensor]:
        """Mask the features and run the transformer.

        Args:
            features: of all utterances.
            masked: the frames to mask; None for none.
            layers: indices of the layers whose hidden states are returned, ascending; layers after the last
                of them do not run.
            masked_only: compute only the masked frames of the last of `layers`.

        Returns:
            For each of `layers` the hidden states (B + N, D) of `features.segments.with_token`, the CLS token
            of an utterance first; (N, D) without CLS token; or (M, D) of the masked frames; all rounded up.
        """
        segments = features.segments
        x = self.feature_dropout(self.project(features.features), self.feature_dropout.keys(segments))
        if masked is not None:
            x = torch.where(masked.mask[:, None], self.mask_vector.to(x.dtype), x)
        if self.cls is not None and self.cls_before_pos_conv:
            x, segments = segments.prepend(self.cls[0], x), segments.with_token
            x = x + self.positions(x, segments)
        else:
            x = x + self.positions(x, segments)
            if self.cls is not None:
                x, segments = segments.prepend(self.cls[0], x), segments.with_token
        x = x if self.input_norm is None else self.input_norm(x)
        x = self.input_dropout(x, self.input_dropout.keys(segments))
        hidden_states = []
        for index, layer in enumerate(self.layers[: layers[-1] + 1]):
            if masked_only and index == layers[-1]:
                assert masked is not None
                query = self.without_cls(x, features.segments)[masked.rows]
                x = self._run(layer, x, segments, query, masked.segments)
            else:
                x = self._run(layer, x, segments)
            if index in layers:
                hidden_states.append(x)
        return hidden_states

    def _run(self, layer: nn.Module, *arguments: Tensor | Segments) -> Tensor:
        output: Tensor = (
            checkpoint(layer, *arguments, use_reentrant=False)
            if self.checkpoint_layers and torch.is_grad_enabled()
            else layer(*arguments)
        )
        return output

    def normalise_output(self, hidden_state: Tensor) -> Tensor:
        """Apply the final LayerNorm of models with `layer_norm_first` to the last hidden state (…, D)."""
        return hidden_state if self.output_norm is None else self.output_norm(hidden_state)

    def without_cls(self, hidden_state: Tensor, segments: Segments) -> Tensor:
        """Return the frames (N, D) of `segments` of a hidden state, without CLS tokens."""
        return hidden_state if self.cls is None else segments.split_token(hidden_state)[1]
