"""Speech: waveform encoder, masking, transformer; and the head that gives one vector for the tapped layer.

B batch, S samples, T frames, D dimensions. Layers 0 … `tap` are the speech encoder, which both tasks share.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from vgsplus.losses.precision import full_precision
from vgsplus.models.normalization import frame_mask
from vgsplus.models.resdavenet import ResDAVEnet
from vgsplus.models.transformer import PositionalConvolution, TransformerLayer
from vgsplus.models.waveform import WaveformEncoder

PADDING_STEP = 4_000
"""Samples. Kernels are prepared anew for each length they meet, so that chunks share a few lengths."""


@dataclass
class Frames:
    """What the waveform encoder heard.

    Attributes:
        features: (B, T, C) after LayerNorm.
        penalty: scalar, on the raw output.
        valid: (B, T) True where a real frame is.
        lengths: (B,) real frames.
    """

    features: Tensor
    penalty: Tensor
    valid: Tensor
    lengths: Tensor


class SpeechEncoder(nn.Module):
    """From samples to the outputs of the transformer layers (wav2vec 2.0, section 2).

    `cls` puts a learned vector before the frames, which gathers what grounding needs (FaST-VGS, section 2):
    "before_positions", so that the positional convolution sees it, or "after_positions" (VG-HuBERT).

    With `norm_first`, layers normalise their inputs (wav2vec 2.0 large), and their outputs are not normalised
    until `normalise_output` does it for the prediction.

    Attributes:
        chunk: samples of utterances of like length that run together: enough to fill a processor, few enough
            to share a length.
    """

    cls: nn.Parameter | None
    chunk: int = 420_000

    def __init__(
        self,
        waveform: WaveformEncoder,
        channels: int,
        dim: int,
        layers: list[TransformerLayer],
        positions: PositionalConvolution,
        dropout: float,
        *,
        cls: Literal["before_positions", "after_positions"] | None,
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        self.cls_first = cls == "before_positions"
        self.waveform = waveform
        self.norm = nn.LayerNorm(channels)
        self.project = nn.Linear(channels, dim)
        self.mask_vector = nn.Parameter(torch.rand(dim))
        self.register_parameter("cls", nn.Parameter(torch.randn(1, 1, dim)) if cls else None)
        self.positions = positions
        self.input_norm = None if norm_first else nn.LayerNorm(dim)
        self.layers = nn.ModuleList(layers)
        self.output_norm = nn.LayerNorm(dim) if norm_first else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        waveforms: Tensor,
        num_samples: Tensor,
        mask: Tensor | None,
        wanted: Sequence[int],
        *,
        masked_alone: bool = False,
    ) -> tuple[Frames, list[Tensor]]:
        """`hear`, then `transform`; shapes as there.

        Where an utterance's output does not depend on its batch, utterances of like length run together, and
        padding is computed for a chunk's longest, not for the batch's.
        """
        dealt = deal_by_length(num_samples, self.chunk) if self.waveform.exact else ()
        if len(dealt) < 2:
            heard = self.hear(waveforms, num_samples)
            return heard, self.transform(heard, mask, wanted, masked_alone=masked_alone)
        parts = []
        for rows in dealt:
            longest = -(-int(num_samples[rows[0]]) // PADDING_STEP) * PADDING_STEP
            heard = self.hear(waveforms[rows, :longest], num_samples[rows])
            masked = None if mask is None else mask[rows, : heard.features.shape[1]]
            parts.append((heard, self.transform(heard, masked, wanted, masked_alone=masked_alone)))
        back, chunks = torch.cat(dealt).argsort(), [heard for heard, _ in parts]
        lengths, frames = self.count_frames(num_samples, waveforms.shape[1])
        counts = torch.stack([heard.lengths.sum() for heard in chunks])
        whole = Frames(
            features=_stack([heard.features for heard in chunks], frames)[back],
            penalty=(torch.stack([heard.penalty for heard in chunks]) * counts).sum() / lengths.sum(),
            valid=frame_mask(lengths, frames),
            lengths=lengths,
        )
        widths = [frames + (self.cls is not None)] * len(wanted)
        if masked_alone:
            assert mask is not None
            widths[-1] = int(mask.sum(-1).max())
        layers = zip(*(outputs for _, outputs in parts), strict=True)
        return whole, [_stack(layer, width)[back] for layer, width in zip(layers, widths, strict=True)]

    def count_frames(self, num_samples: Tensor, width: int) -> tuple[Tensor, int]:
        """Real frames (B,) of utterances of num_samples (B,), and frames T of a row of `width` samples."""
        frames = int(self.waveform.num_frames(torch.tensor(width)))
        if self.waveform.exact:
            return self.waveform.num_frames(num_samples), frames
        # Published code divides the padded signal evenly, and a frame counts that begins in the signal.
        share = width // frames
        return ((num_samples + share - 1) // share).clamp(max=frames), frames

    def hear(self, waveforms: Tensor, num_samples: Tensor) -> Frames:
        """(B, S), (B,) → Frames; the penalty is the mean square of the real frames' raw features."""
        raw = self.waveform(waveforms, num_samples)
        lengths, _ = self.count_frames(num_samples, waveforms.shape[1])
        valid = frame_mask(lengths, raw.shape[1])
        squares = full_precision(raw).square()
        if self.waveform.exact:
            total = squares.mean(-1).masked_fill(~valid, 0).sum()
            penalty = total / lengths.sum()
        else:
            penalty = squares.mean()
        return Frames(self.norm(raw), penalty, valid, lengths)

    def transform(
        self, heard: Frames, mask: Tensor | None, wanted: Sequence[int], *, masked_alone: bool = False
    ) -> list[Tensor]:
        """The outputs of the layers wanted: each (B, 1 + T, D), CLS first, or (B, T, D) without one.

        Args:
            heard: what `hear` gave.
            mask: (B, T) True where a frame is hidden; None for nowhere.
            wanted: layers from 0, rising; those above the last are not run.
            masked_alone: of the last one, give the M masked frames alone, as `gather_masked` does.
        """
        x = self.dropout(self.project(heard.features))
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_vector.to(x.dtype), x)
        padded = not bool(heard.valid.all())
        if padded and self.waveform.exact:
            x = x.masked_fill(~heard.valid[..., None], 0)
        keys = heard.valid if padded else None
        if self.cls is not None:
            keys = None if keys is None else pad(keys, (1, 0), value=True)
        if self.cls_first:
            x = self._with_cls(x)
            x = x + self.positions(x)
        else:
            x = self._with_cls(x + self.positions(x))
        x = self.dropout(x if self.input_norm is None else self.input_norm(x))
        outputs = []
        for index, layer in enumerate(self.layers[: wanted[-1] + 1]):
            queries = None
            if masked_alone and index == wanted[-1]:
                assert mask is not None
                queries = gather_masked(self.frames(x), mask)
            x = layer(x, keys, queries)
            if index in wanted:
                outputs.append(x)
        return outputs

    def normalise_output(self, output: Tensor) -> Tensor:
        """The output (…, D) of the last layer as predictions are made from it."""
        return output if self.output_norm is None else self.output_norm(output)

    def _with_cls(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, 1 + T, D), CLS first; the same where there is none."""
        if self.cls is None:
            return x
        return torch.cat([self.cls.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)

    def frames(self, output: Tensor) -> Tensor:
        """The output of a layer without its CLS: (B, T, D)."""
        return output if self.cls is None else output[:, 1:]


def deal_by_length(num_samples: Tensor, chunk: int) -> tuple[Tensor, ...]:
    """Rows of utterances of num_samples (B,), the longest first, in equal parts of about `chunk` samples."""
    parts = math.ceil(int(num_samples.sum()) / chunk)
    return num_samples.argsort(descending=True, stable=True).chunk(max(1, parts))


def gather_masked(frames: Tensor, mask: Tensor) -> Tensor:
    """The masked frames of each utterance in front, then zeros: (B, T, …), mask (B, T) → (B, M, …)."""
    counts = mask.sum(-1)
    return place(frames[mask], frame_mask(counts, int(counts.max())))


def place(rows: Tensor, present: Tensor) -> Tensor:
    """Rows (N, …) of the N True places of present (B, M), put there, (B, M, …); zeros elsewhere."""
    placed = rows.new_zeros(*present.shape, *rows.shape[1:])
    placed[present] = rows
    return placed


def _stack(chunks: Sequence[Tensor], frames: int) -> Tensor:
    """(b, t, D) of each chunk → (B, frames, D), zeros at the end of those that are shorter."""
    return torch.cat([pad(chunk, (0, 0, 0, frames - chunk.shape[1])) for chunk in chunks])


class SpeechHead(nn.Module):
    """Tapped frames → ResDAVEnet → one attention layer → the speech embedding (Fig. 1, grounding side)."""

    def __init__(self, resdavenet: ResDAVEnet, layer: TransformerLayer, dim: int, *, exact: bool) -> None:
        super().__init__()
        self.resdavenet = resdavenet
        self.cls = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.layer = layer
        self.project = nn.Linear(dim, dim)
        self.exact = exact

    def forward(self, tapped: Tensor, lengths: Tensor) -> Tensor:
        """(B, 1 + T, D) with CLS first, lengths (B,) in frames → (B, D)."""
        cls, frames = tapped[:, :1], tapped[:, 1:]
        x, shorter = self.resdavenet(frames, lengths if self.exact else None)
        if shorter is None:
            shorter = lengths // round(frames.shape[1] / x.shape[1])
        keys = pad(frame_mask(shorter, x.shape[1]), (1, 0), value=True)
        x = torch.cat([self.cls(cls).to(x.dtype), x], dim=1)
        embedding: Tensor = self.project(self.layer(x, keys, x[:, :1])[:, 0])
        return embedding
