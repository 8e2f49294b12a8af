"""Boundaries of words: by the attention of the CLS token, by minimum cuts, by energy, or uniform.

Attention is turned into words as in VG-HuBERT (Peng and Harwath, Interspeech 2022, and the README of its
code): a frame is attended to if the weight of a head is among the largest of that head; consecutive frames of
this kind are a word, single ones are not, and a boundary lies midway between two words. The first and the
last boundary lie midway between a word and the edge of the sound. In long gaps further words may be inserted.

Minimum cuts divide the frames of a layer into parts that are similar within and differ from the rest
(Malioutov and Barzilay, ACL 2006), as for the syllables of VG-HuBERT (Peng et al., Interspeech 2023).

Shape letters: B sounds, S samples, T frames, H heads, D dimensions.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks
from torch import Tensor, nn

from vgsplus import audio
from vgsplus.audio import Signal
from vgsplus.models.segments import Segments
from vgsplus.models.transformer import SelfAttention
from vgsplus.models.vgsplus import VGSPlus

type Boundaries = list[float]
"""Times in seconds, ascending; a word lasts from each to the next."""

SPEECH_HEAD, ALL_HEADS = "speech head", "all"
WINDOW, HOP = 0.025, 0.010
"""Seconds of an energy, and from one to the next."""
SMOOTHING = 2.0
"""Standard deviation of the Gaussian that smooths energies, in hops."""
FLOOR = 1e-10
MIN_SIMILARITY = 1e-7


# ---- attention of the CLS token ----------------------------------------------------------------------------


def attention_modules(model: VGSPlus) -> dict[str, SelfAttention]:
    """Return the attention of each layer that has a CLS token: "1", "2", … and "speech head"."""
    layers = {} if model.speech.cls is None else dict(enumerate(model.speech.layers, start=1))
    found = {str(number): layer.attention for number, layer in layers.items()}
    if model.config.grounded:
        found[SPEECH_HEAD] = model.speech_head.layer.attention
    return {name: module for name, module in found.items() if isinstance(module, SelfAttention)}


def layer_outputs(
    model: VGSPlus, waveforms: Tensor, num_samples: Tensor
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Yield for each sound how much the CLS token of each layer attends to its frames, and hidden states.

    Args:
        model: in evaluation mode.
        waveforms: (B, S) float32, normalised and padded with zeros.
        num_samples: (B,) int64.

    Yields:
        {layer of `attention_modules`: (H, T) on the CPU}; T of the speech head is that of its ResDAVEnet. The
        weights of a head add up to one with that of the CLS token, which is left out. Then {layer: (T, D)} of
        the transformer layers, on the CPU without the CLS token.
    """
    weights: dict[str, tuple[Tensor, Segments]] = {}

    def record(name: str, module: nn.Module, inputs: tuple[Tensor, Segments]) -> None:
        assert isinstance(module, SelfAttention)
        weights[name] = module.first_row_weights(*inputs[:2]).float().cpu(), inputs[1]

    with ExitStack() as stack:
        for name, module in attention_modules(model).items():
            stack.enter_context(module.register_forward_pre_hook(partial(record, name)))
        features = model.speech.extract_features(waveforms, num_samples.cpu())
        states = model.speech(features, None, range(len(model.speech.layers)))
        if model.config.grounded:
            model.speech_head(states[model.config.shared_layers - 1], features.segments)
    attention = {
        name: [part.T for part in _without_token(rows, segments)]
        for name, (rows, segments) in weights.items()
    }
    segments = features.segments.with_token
    hidden = {
        str(number): _without_token(state.float().cpu(), segments)
        for number, state in enumerate(states, start=1)
    }
    for sound in range(len(num_samples)):
        yield (
            {name: parts[sound] for name, parts in attention.items()},
            {name: parts[sound] for name, parts in hidden.items()},
        )


def _without_token(rows: Tensor, segments: Segments) -> list[Tensor]:
    """Return the rows of each sequence without its first row and its padding."""
    parts = torch.split(rows[: segments.num_rows], list(segments.lengths))
    return [part[1:valid] for part, valid in zip(parts, segments.valid, strict=True)]


def frame_centres(model: VGSPlus, layer: str, frames: int) -> NDArray[np.float64]:
    """Return the times (T,) in seconds of the centres of the receptive fields of frames of a layer."""
    encoder = model.speech.waveform
    # An output of ResDAVEnet is centred at one frame of every so many, as its kernels are odd.
    factor = 2 ** len(model.speech_head.resdavenet.stages) if layer == SPEECH_HEAD else 1
    samples = encoder.receptive_field / 2 + factor * encoder.stride * np.arange(frames)
    return np.asarray(samples / audio.SAMPLE_RATE, dtype=np.float64)


def attention_boundaries(
    weights: NDArray[np.floating],
    threshold: float,
    centres: NDArray[np.float64],
    seconds: float,
    insert_threshold: float = math.inf,
) -> Boundaries:
    """Find the words of a sound by attention (see the module).

    Args:
        weights: (H, T) of one head or several, of which one suffices.
        threshold: share of the frames that a head does not attend to, in [0, 1).
        centres: (T,) times of the frames in seconds.
        seconds: length of the sound.
        insert_threshold: seconds of a gap, between words or beside them, beyond which words of two frames are
            inserted into it, half as far apart (as in the code of Peng et al., Interspeech 2023).
    """
    attended = (weights >= np.quantile(weights, threshold, axis=1, keepdims=True)).any(axis=0)
    changes = np.flatnonzero(np.diff(np.r_[False, attended, False]))
    spans = changes.reshape(-1, 2)
    longer = spans[spans[:, 1] - spans[:, 0] > 1]
    spans = longer if len(longer) else spans
    half = np.diff(centres).mean() / 2 if len(centres) > 1 else 0.0
    starts, ends = centres[spans[:, 0]] - half, centres[spans[:, 1] - 1] + half
    words = list(zip(starts.tolist(), ends.tolist(), strict=True))
    for left, right in zip([0.0, *ends.tolist()], [*starts.tolist(), seconds], strict=True):
        if right - left > insert_threshold:
            step = insert_threshold / 2
            onsets = (left + number * step for number in range(1, int((right - left) / step)))
            words += [(onset, min(right, onset + 4 * half)) for onset in onsets]
    words.sort()
    inner = [(before[1] + after[0]) / 2 for before, after in pairwise(words)]
    return [max(0.0, words[0][0]) / 2, *inner, (min(seconds, words[-1][1]) + seconds) / 2]


# ---- minimum cuts ------------------------------------------------------------------------------------------


def min_cut_boundaries(
    states: NDArray[np.floating], words: int, centres: NDArray[np.float64], seconds: float
) -> Boundaries:
    """Divide the frames of a sound into `words` parts by the normalised minimum cut.

    The similarity of two frames is their inner product, less the lowest of the sound. The parts have the
    lowest sum of cut / volume, where a part's cut is its similarity to all other frames, and its volume that
    to all frames, its own included.

    Args:
        states: (T, D).
        words: number of parts, at most T.
        centres: (T,) times of the frames in seconds.
        seconds: length of the sound.
    """
    similarity = np.asarray(states @ states.T, dtype=np.float64)
    similarity += MIN_SIMILARITY - similarity.min()
    size = len(similarity)
    sums = np.zeros((size + 1, size + 1))
    sums[1:, 1:] = similarity.cumsum(axis=0).cumsum(axis=1)
    # Of the part [start, end), start down and end across.
    corner = np.diag(sums)
    inside = corner[None] - sums - sums.T + corner[:, None]
    cut = sums[-1][None] - sums[-1][:, None] - inside
    with np.errstate(invalid="ignore"):
        # With half of `inside`, as in the code of VG-HuBERT, frames that are all alike become parts of one
        # frame and a long rest: on the toy corpus F1 is 11 %, not 33 %.
        cost = np.where(np.triu(np.ones_like(cut, dtype=bool), 1), cut / (cut + inside), np.inf)
    best, before = cost[0], []
    for _ in range(min(words, size) - 1):
        sums_of_costs = best[:, None] + cost
        before.append(sums_of_costs.argmin(axis=0))
        best = sums_of_costs.min(axis=0)
    edges = [size]
    for starts in reversed(before):
        edges.append(int(starts[edges[-1]]))
    inner = [float((centres[edge - 1] + centres[edge]) / 2) for edge in reversed(edges[1:])]
    return [0.0, *inner, seconds]


# ---- baselines ---------------------------------------------------------------------------------------------


def uniform_boundaries(seconds: float, words: int) -> Boundaries:
    """Divide a sound into words of equal length."""
    return [float(time) for time in np.linspace(0, seconds, words + 1)]


def energy_boundaries(signal: Signal, words: int) -> Boundaries:
    """Divide a sound (S,) at 16 kHz at the deepest valleys of its energy, into `words` words at most.

    Valleys of the logarithm of the smoothed energy are ranked by prominence: how far the energy rises on both
    sides before it falls lower.
    """
    seconds = len(signal) / audio.SAMPLE_RATE
    window, hop = round(WINDOW * audio.SAMPLE_RATE), round(HOP * audio.SAMPLE_RATE)
    padded = np.pad(np.asarray(signal, dtype=np.float64), (0, max(0, window - len(signal))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    level = gaussian_filter1d(np.log(np.square(frames).mean(axis=1) + FLOOR), SMOOTHING)
    valleys, found = find_peaks(-level, prominence=0)
    deepest = valleys[np.argsort(-found["prominences"], kind="stable")[: words - 1]]
    times = (np.sort(deepest) * hop + window / 2) / audio.SAMPLE_RATE
    return [0.0, *(float(time) for time in times), seconds]


def number_of_words(seconds: float, rate: float) -> int:
    """Return the number of words of a sound at `rate` words a second, at least one."""
    return max(1, round(seconds * rate))


def head_groups(heads: int) -> dict[str, Sequence[int]]:
    """Return the groups of heads of a layer: all together, and each alone, by number from 1."""
    return {ALL_HEADS: range(heads)} | {str(head + 1): (head,) for head in range(heads)}
