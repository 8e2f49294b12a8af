"""The model with the padding of FaST-VGS-Family, for parity with published checkpoints only.

Padding is included in normalisation, convolutions and the feature penalty, so that the output of an utterance
depends on its batch; and all utterances of a batch have the same number of masked frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vgsplus.draws import fold
from vgsplus.losses.masking import trim_to_shortest
from vgsplus.models.feature_extractor import FeatureExtractor
from vgsplus.models.segments import Segments
from vgsplus.models.speech_encoder import SpeechEncoder
from vgsplus.models.speech_head import SpeechHead
from vgsplus.models.vgsplus import ModelConfig, VGSPlus


class PublishedFeatureExtractor(FeatureExtractor):
    """Extract features of whole rows, padding included, by PyTorch's convolutions."""

    def forward(self, waveforms: Tensor, num_samples: Tensor) -> Tensor:
        """See `FeatureExtractor.forward`; returns all frames of all rows (B · T, C)."""
        del num_samples
        x = waveforms[:, None]
        for index, convolution in enumerate(self.convolutions):
            x = convolution(x)
            if self.norm is None:
                x = self.norms[index](x.transpose(1, 2)).transpose(1, 2)
            elif index == 0:
                x = self.norm(x)
            x = F.gelu(x)
        return x.transpose(1, 2).flatten(0, 1)


class PublishedSpeechEncoder(SpeechEncoder):
    """Run all frames of a batch, padding included; padding is masked in attention only."""

    def frame_lengths(self, num_samples: Tensor, row_samples: int) -> Tensor:
        """Divide the row evenly into frames, and count those that begin before the utterance ends."""
        frames = self.num_frames(row_samples)
        samples_per_frame = row_samples // frames
        return ((num_samples + samples_per_frame - 1) // samples_per_frame).clamp(max=frames)

    def segments(
        self, num_samples: Tensor, row_samples: int, device: torch.device, keys: Tensor | None = None
    ) -> Segments:
        """See `SpeechEncoder.segments`; padding has frames too."""
        frames = [self.num_frames(row_samples)] * len(num_samples)
        valid = self.frame_lengths(num_samples, row_samples).tolist()
        return Segments(frames, device, valid=valid, keys=keys)


class PublishedSpeechHead(SpeechHead):
    """Include padding in the normalisation of ResDAVEnet."""

    def _downsample(self, frames: Tensor, segments: Segments) -> tuple[Tensor, Segments]:
        x, down = self.resdavenet(frames, segments)
        factor = round(segments.lengths[0] / down.lengths[0])
        return x, down.with_lengths(down.lengths, (n // factor for n in segments.valid))


class PublishedVGSPlus(VGSPlus):
    """`VGSPlus` in `published` padding mode."""

    padding = "published"
    feature_extractor_class = PublishedFeatureExtractor
    speech_encoder_class = PublishedSpeechEncoder
    speech_head_class = PublishedSpeechHead

    def _draw_mask(self, num_samples: Tensor, row_samples: int, alpha: float, keys: Tensor) -> Tensor | None:
        """Mask at α = 1 too if there are SSL layers; mask the same number of frames in all utterances."""
        if alpha == 1 and self.config.ssl_layers == 0:
            return None
        return trim_to_shortest(self._span_mask(num_samples, row_samples, keys), fold(keys, 0))


def build_model(config: ModelConfig) -> VGSPlus:
    """Build the model of a configuration in its padding mode."""
    return PublishedVGSPlus(config) if config.padding == "published" else VGSPlus(config)
