"""The model with the padding of FaST-VGS-Family, for parity with published checkpoints only.

Padding is included in normalisation, convolutions and the feature penalty, so that the output of an utterance
depends on its batch; and all utterances of a batch have the same number of masked frames.
"""

import torch
from torch import Tensor

from vgsplus.functional import lengths_to_mask, upcast
from vgsplus.losses.masking import trim_to_shortest
from vgsplus.models.speech_encoder import SpeechEncoder, SpeechFeatures
from vgsplus.models.speech_head import SpeechHead
from vgsplus.models.vgsplus import ModelConfig, VGSPlus


class PublishedSpeechEncoder(SpeechEncoder):
    """Run all utterances of a batch together; padding is masked in attention only."""

    def frame_lengths(self, num_samples: Tensor, row_samples: int) -> Tensor:
        """Divide the row evenly into frames, and count those that begin before the utterance ends."""
        frames = self.num_frames(row_samples)
        samples_per_frame = row_samples // frames
        return ((num_samples + samples_per_frame - 1) // samples_per_frame).clamp(max=frames)

    def extract_features(self, waveforms: Tensor, num_samples: Tensor) -> SpeechFeatures:
        """See `SpeechEncoder.extract_features`."""
        raw = self.waveform(waveforms, None)
        lengths = self.frame_lengths(num_samples, waveforms.shape[1])
        attention_mask = lengths_to_mask(lengths, raw.shape[1])
        return SpeechFeatures(self.norm(raw), upcast(raw).square().mean(), attention_mask, lengths)

    def _buckets(self, num_samples: Tensor) -> tuple[Tensor, ...]:
        return (torch.arange(len(num_samples)),)

    def _mask_padding(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        del attention_mask
        return x


class PublishedSpeechHead(SpeechHead):
    """Include padding in the normalisation of ResDAVEnet."""

    def _downsample(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x, _ = self.resdavenet(frames, None)
        return x, lengths // round(frames.shape[1] / x.shape[1])


class PublishedVGSPlus(VGSPlus):
    """`VGSPlus` in `published` padding mode."""

    padding = "published"
    speech_encoder_class = PublishedSpeechEncoder
    speech_head_class = PublishedSpeechHead

    def _draw_mask(self, num_samples: Tensor, row_samples: int, alpha: float) -> Tensor | None:
        """Mask at α = 1 too if there are SSL layers; mask the same number of frames in all utterances."""
        if alpha == 1 and self.config.ssl_layers == 0:
            return None
        return trim_to_shortest(self._span_mask(num_samples, row_samples))


def build_model(config: ModelConfig) -> VGSPlus:
    """Build the model of a configuration in its padding mode."""
    return PublishedVGSPlus(config) if config.padding == "published" else VGSPlus(config)
