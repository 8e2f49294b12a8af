"""The speech encoder: feature extractor, masking and transformer layers (wav2vec 2.0, section 2).

B batch, S samples, T frames, C channels of the features, D dimensions, M masked frames of an utterance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from vgsplus.functional import gather_masked, lengths_to_mask, upcast
from vgsplus.models.feature_extractor import FeatureExtractor
from vgsplus.models.transformer import PositionalConvolution, TransformerLayer

LENGTH_MULTIPLE = 4_000
"""Padded lengths are multiples of this many samples, because oneDNN compiles a kernel for every new shape."""


@dataclass
class SpeechFeatures:
    """Output of the feature extractor.

    Attributes:
        features: (B, T, C) after LayerNorm.
        penalty: scalar, mean square of the features before LayerNorm.
        attention_mask: (B, T) bool, True at valid (non-padding) frames.
        lengths: (B,) int64, number of valid frames.
    """

    features: Tensor
    penalty: Tensor
    attention_mask: Tensor
    lengths: Tensor


class SpeechEncoder(nn.Module):
    """Map waveforms to the hidden states of the transformer layers.

    The output of an utterance does not depend on the batch that it is in: normalisation, attention and
    convolutions ignore padding. Utterances are bucketed by length, so that each is padded to the longest of
    its bucket only.

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
        bucket_samples: target size of a bucket: enough samples to occupy a processor, few enough to limit
            padding.
    """

    cls: nn.Parameter | None
    bucket_samples: int = 420_000

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
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        waveforms: Tensor,
        num_samples: Tensor,
        mask: Tensor | None,
        layers: Sequence[int],
        *,
        masked_only: bool = False,
    ) -> tuple[SpeechFeatures, list[Tensor]]:
        """Extract features and run the transformer layers, bucket by bucket.

        Args:
            waveforms: (B, S) float, normalised and padded with zeros.
            num_samples: (B,) int64.
            mask: (B, T) bool, True at masked frames; None for none.
            layers: indices of the layers whose hidden states are returned, ascending.
            masked_only: return only the masked frames of the last of `layers`, as `gather_masked` does.

        Returns:
            The features, and for each of `layers` (B, 1 + T, D) with the CLS token first, (B, T, D) without
            one, or (B, M, D).
        """
        buckets = self._buckets(num_samples)
        if len(buckets) < 2:
            features = self.extract_features(waveforms, num_samples)
            return features, self.encode(features, mask, layers, masked_only=masked_only)
        parts, outputs = [], []
        for rows in buckets:
            longest = math.ceil(int(num_samples[rows[0]]) / LENGTH_MULTIPLE) * LENGTH_MULTIPLE
            features = self.extract_features(waveforms[rows, :longest], num_samples[rows])
            bucket_mask = None if mask is None else mask[rows, : features.features.shape[1]]
            parts.append(features)
            outputs.append(self.encode(features, bucket_mask, layers, masked_only=masked_only))
        order = torch.cat(buckets).argsort()
        frames, lengths = self.num_frames(waveforms.shape[1]), self.waveform.num_frames(num_samples)
        counts = torch.stack([part.lengths.sum() for part in parts])
        merged = SpeechFeatures(
            features=_concatenate([part.features for part in parts], frames)[order],
            penalty=(torch.stack([part.penalty for part in parts]) * counts).sum() / lengths.sum(),
            attention_mask=lengths_to_mask(lengths, frames),
            lengths=lengths,
        )
        out_frames = [frames + (self.cls is not None)] * len(layers)
        if masked_only:
            assert mask is not None
            out_frames[-1] = int(mask.sum(-1).max())
        by_layer = zip(zip(*outputs, strict=True), out_frames, strict=True)
        return merged, [_concatenate(hidden, num)[order] for hidden, num in by_layer]

    def num_frames(self, samples: int) -> int:
        """Return T, the frames of a row of `samples` samples, padding included."""
        return int(self.waveform.num_frames(torch.tensor(samples)))

    def frame_lengths(self, num_samples: Tensor, row_samples: int) -> Tensor:
        """Return the number of valid frames (B,) of num_samples (B,), padded to `row_samples`."""
        del row_samples  # used with `published` padding
        return self.waveform.num_frames(num_samples)

    def extract_features(self, waveforms: Tensor, num_samples: Tensor) -> SpeechFeatures:
        """Run the feature extractor on waveforms (B, S) of num_samples (B,)."""
        raw = self.waveform(waveforms, num_samples)
        lengths = self.frame_lengths(num_samples, waveforms.shape[1])
        attention_mask = lengths_to_mask(lengths, raw.shape[1])
        squares = upcast(raw).square().mean(-1).masked_fill(~attention_mask, 0)
        return SpeechFeatures(self.norm(raw), squares.sum() / lengths.sum(), attention_mask, lengths)

    def encode(
        self,
        features: SpeechFeatures,
        mask: Tensor | None,
        layers: Sequence[int],
        *,
        masked_only: bool = False,
    ) -> list[Tensor]:
        """Mask the features and run the transformer up to the last of `layers`; arguments as in `forward`."""
        x = self.dropout(self.project(features.features))
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_vector.to(x.dtype), x)
        attention_mask = None if bool(features.attention_mask.all()) else features.attention_mask
        if attention_mask is not None:
            x = self._mask_padding(x, attention_mask)
            if self.cls is not None:
                attention_mask = pad(attention_mask, (1, 0), value=True)
        if self.cls_before_pos_conv:
            x = self._prepend_cls(x)
            x = x + self.positions(x)
        else:
            x = self._prepend_cls(x + self.positions(x))
        x = self.dropout(x if self.input_norm is None else self.input_norm(x))
        hidden_states = []
        for index, layer in enumerate(self.layers[: layers[-1] + 1]):
            query = None
            if masked_only and index == layers[-1]:
                assert mask is not None
                query = gather_masked(self.without_cls(x), mask)
            x = layer(x, attention_mask, query)
            if index in layers:
                hidden_states.append(x)
        return hidden_states

    def normalise_output(self, hidden_state: Tensor) -> Tensor:
        """Apply the final LayerNorm of models with `layer_norm_first` to the last hidden state (…, D)."""
        return hidden_state if self.output_norm is None else self.output_norm(hidden_state)

    def without_cls(self, hidden_state: Tensor) -> Tensor:
        """Return the frames (B, T, D) of a hidden state (B, 1 + T, D)."""
        return hidden_state if self.cls is None else hidden_state[:, 1:]

    def _buckets(self, num_samples: Tensor) -> tuple[Tensor, ...]:
        return bucket_by_length(num_samples, self.bucket_samples)

    def _prepend_cls(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, 1 + T, D), or return it unchanged in a model without CLS token."""
        if self.cls is None:
            return x
        return torch.cat([self.cls.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)

    def _mask_padding(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        """Set padding to zero, so that the positional convolution ignores it."""
        return x.masked_fill(~attention_mask[..., None], 0)


def bucket_by_length(num_samples: Tensor, bucket_samples: int) -> tuple[Tensor, ...]:
    """Sort utterances of num_samples (B,) by length and split them into buckets of equal size.

    Returns:
        The rows of each bucket of about `bucket_samples` samples, int64, the longest utterances first.
    """
    parts = math.ceil(int(num_samples.sum()) / bucket_samples)
    return num_samples.argsort(descending=True, stable=True).chunk(max(1, parts))


def _concatenate(parts: Sequence[Tensor], frames: int) -> Tensor:
    """Concatenate tensors (b, t, D) along the batch, each padded with zeros to `frames` frames."""
    return torch.cat([pad(part, (0, 0, 0, frames - part.shape[1])) for part in parts])
