"""The speech head: one embedding from a hidden state of the shared layers (FaST-VGS, section 2)."""

from torch import Tensor, nn

from vgsplus.models.resdavenet import ResDAVEnet
from vgsplus.models.segments import Segments
from vgsplus.models.transformer import TransformerLayer


class SpeechHead(nn.Module):
    """ResDAVEnet on the frames, an MLP on the CLS token, one transformer layer on both, and a projection."""

    def __init__(self, resdavenet: ResDAVEnet, layer: TransformerLayer, dim: int) -> None:
        super().__init__()
        self.resdavenet = resdavenet
        self.cls = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.layer = layer
        self.project = nn.Linear(dim, dim)

    def forward(self, hidden_state: Tensor, segments: Segments) -> Tensor:
        """Embed hidden states.

        Args:
            hidden_state: (B + N, D), the CLS token of each utterance before its frames.
            segments: the N frames.

        Returns:
            (B, D).
        """
        cls, frames = segments.split_token(hidden_state)
        x, down = self._downsample(frames, segments)
        cls = self.cls(cls)
        x = down.prepend(cls, x)
        first = down.with_lengths([1] * len(cls))
        embedding: Tensor = self.project(self.layer(x, down.with_token, down.split_token(x)[0], first))
        return embedding

    def _downsample(self, frames: Tensor, segments: Segments) -> tuple[Tensor, Segments]:
        downsampled: tuple[Tensor, Segments] = self.resdavenet(frames, segments)
        return downsampled
