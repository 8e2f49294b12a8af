"""ABX errors of every layer of a model, of log-Mel energies and of an untrained model (Fig. 2, Table II).

One float32 pass over each file computes all layers. Only the N frames that tokens need are kept. With a
folder for temporary files, memory holds one layer at a time (N · D · 4 bytes), otherwise all layers; and, in
addition, the outputs of one batch and the distances that fastabx computes at a time.

Shape letters: S samples, T frames of a file, D dimensions, N selected frames, M Mel bands, F frequencies.
"""

import io
import itertools
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vgsplus import audio
from vgsplus.audio import SAMPLE_RATE, Signal
from vgsplus.corpora.items import Items
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.abx import CONDITIONS, AbxScorer
from vgsplus.evaluation.abx_items import TokenFrames, frame_spans
from vgsplus.evaluation.hidden_states import (
    check_finite,
    frame_rate,
    iterate_hidden_states,
    max_missing_frames,
    parse_layers,
    receptive_field_shift,
)
from vgsplus.functional import gather_objects, own_share
from vgsplus.models.published import build_model
from vgsplus.models.vgsplus import ModelConfig, VGSPlus
from vgsplus.progress import SILENT, Progress

WINDOW, HOP, FFT, BANDS = 400, 160, 512, 80
FRAME_RATE = SAMPLE_RATE / HOP
FLOOR = 1e-10
"""Smallest energy of a band, so that its logarithm is finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbxTask:
    """An ABX test, to be scored on features of any kind.

    Attributes:
        items: an item file, read with `audio_root`.
        conditions: "within" speakers, "across" speakers, or both.
        context: "within" or "any" (see `abx.score`).
        as_published: whether to score by Libri-Light's protocol in addition to the corrected one.
    """

    items: Items
    conditions: tuple[str, ...] = CONDITIONS
    context: str = "within"
    as_published: bool = False

    def scorers(self, rate: float | Fraction) -> list[AbxScorer]:
        """Return the scorer of each protocol at a frame rate, the corrected one first.

        Raises:
            VgsplusError, CorpusError: tokens are too short for a frame, or there is nothing to compare.
        """
        spans = frame_spans(self.items, rate)
        return [
            AbxScorer(self.items, spans, self.conditions, context=self.context, as_published=published)
            for published in ((False, True) if self.as_published else (False,))
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class AbxRow:
    """The errors of one kind of features.

    Attributes:
        features: "model", "untrained" or "log-Mel".
        layer: from 1; None for features without layers.
        context: "within" or "any".
        as_published: whether by Libri-Light's protocol (see `abx.score`).
        errors: {condition: error in [0, 1]}.
    """

    features: str
    layer: int | None
    context: str
    as_published: bool
    errors: dict[str, float]


def check_task(task: AbxTask, config: ModelConfig) -> None:
    """Check the items at the frame rates of a model and of log-Mel energies, before the model is built.

    Raises:
        VgsplusError, CorpusError: as `AbxTask.scorers`.
    """
    stride = math.prod(stride for _, _, stride in config.conv_layers)
    for rate in (Fraction(SAMPLE_RATE, stride), FRAME_RATE):
        task.scorers(rate)


def score_layers(
    model: VGSPlus,
    task: AbxTask,
    *,
    layers: Sequence[int] | None = None,
    features: str = "model",
    device: torch.device | str = "cpu",
    batch_seconds: float = 60.0,
    cache: Path | None = None,
    progress: Progress = SILENT,
) -> list[AbxRow]:
    """Return the ABX errors of a model's layers, from one pass of the model over the sounds.

    The time of a frame is the centre of its receptive field, rounded to whole frames
    (`receptive_field_shift`). The processes of a run share the layers, and must all call this.

    Args:
        model: a model on `device`; its train/eval modes are restored.
        task: the test.
        layers: transformer layers from 1; all by default.
        features: name of the model in the rows and in the progress.
        device: where the model runs and distances are computed.
        batch_seconds: seconds of sound in one pass, padding included.
        cache: a folder for temporary files of the layers' frames, N · D · 4 bytes each; None keeps them in
            memory.
        progress: receives the stages "FEATURES: files" and "FEATURES: layers".

    Raises:
        VgsplusError, CorpusError: as `abx.score`; the model lacks a layer, or `cache` cannot be written.
        AudioError: a sound that cannot be used.
    """
    text = "all" if layers is None else ",".join(map(str, layers))
    layers = own_share(sorted(parse_layers(text, len(model.speech.layers))))
    rate, sounds = frame_rate(model), task.items.audio if layers else {}
    scorers = task.scorers(rate)
    tokens = TokenFrames(
        task.items,
        frame_spans(task.items, rate),
        frame_shift=receptive_field_shift(model),
        tolerance=max_missing_frames(model),
    )
    store = LayerStore(layers, cache)
    hidden_states = iterate_hidden_states(model, sounds, layers, device=device, batch_seconds=batch_seconds)
    for done, (file, outputs) in enumerate(hidden_states, start=1):
        needed = torch.from_numpy(tokens.select(file, len(outputs[0])))
        for layer, frames in zip(layers, outputs, strict=True):
            selected = frames[needed.to(frames.device)]
            store.add(layer, check_finite(selected, f"Features of {file}, layer {layer}"))
        progress.update(f"{features}: files", done, len(sounds))
    rows: list[AbxRow] = []
    for done, layer in enumerate(layers, start=1):
        frames = store.take(layer).to(device)
        rows += _rows(task, scorers, frames, tokens, features=features, layer=layer)
        progress.update(f"{features}: layers", done, len(layers))
    return sorted(itertools.chain(*gather_objects(rows)), key=lambda row: row.layer or 0)


def untrained_model(config: ModelConfig, seed: int = 0) -> VGSPlus:
    """Return a model of these sizes in evaluation mode, initialised from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(config).eval()


def score_log_mel(
    task: AbxTask, *, device: torch.device | str = "cpu", progress: Progress = SILENT
) -> list[AbxRow]:
    """Return the ABX errors of log-Mel energies (see `log_mel`), 100 frames per second."""
    scorers, tokens = task.scorers(FRAME_RATE), TokenFrames(task.items, frame_spans(task.items, FRAME_RATE))
    selected = []
    for done, (file, path) in enumerate(task.items.audio.items(), start=1):
        frames = torch.from_numpy(log_mel(audio.load_any(path)))
        selected.append(frames[torch.from_numpy(tokens.select(file, len(frames)))])
        progress.update("log-Mel: files", done, len(task.items.audio))
    return list(_rows(task, scorers, torch.cat(selected).to(device), tokens, features="log-Mel", layer=None))


def _rows(
    task: AbxTask,
    scorers: Sequence[AbxScorer],
    frames: Tensor,
    tokens: TokenFrames,
    *,
    features: str,
    layer: int | None,
) -> Iterator[AbxRow]:
    for scorer in scorers:
        yield AbxRow(
            features=features,
            layer=layer,
            context=task.context,
            as_published=scorer.as_published,
            errors=scorer.errors(frames, tokens),
        )


class LayerStore:
    """Store the frames of several layers, added file by file and read layer by layer.

    They are in anonymous temporary files in `folder`, one per layer, or in memory if there is no folder.
    """

    def __init__(self, layers: Sequence[int], folder: Path | None = None) -> None:
        self._folder, self._width = folder, 0
        self._files: dict[int, io.BufferedIOBase] = {}
        with self._writing():
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            for layer in layers:
                self._files[layer] = (
                    io.BytesIO() if folder is None else tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
                )

    def add(self, layer: int, frames: Tensor) -> None:
        """Append frames (n, D) to a layer; raises VgsplusError if they cannot be written."""
        self._width = frames.shape[1]
        with self._writing():
            self._files[layer].write(frames.cpu().contiguous().numpy().data)

    def take(self, layer: int) -> Tensor:
        """Return all frames (N, D) of a layer, float32, and remove them; raises as `add`."""
        with self._writing(), self._files.pop(layer) as file:
            values = bytearray(file.seek(0, os.SEEK_END))  # flushes the buffer
            file.seek(0)
            file.readinto(values)
        return torch.frombuffer(values, dtype=torch.float32).reshape(-1, self._width)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise VgsplusError(
                f"{self._folder}: the frames of the layers cannot be written there ({error}). Free disk "
                "space, name another folder, or score fewer layers at a time."
            ) from error


# ---- log-Mel energies -------------------------------------------------------------------------------------


def log_mel(signal: Signal) -> NDArray[np.float32]:
    """Return log energies in 80 Mel bands (T, M) of a 16 kHz signal (S,), T = S // 160.

    Hann windows of 25 ms every 10 ms, power spectrum, triangular filters that divide the Mel scale (2595
    log10(1 + f / 700)) evenly from 0 to 8000 Hz. Frame t is centred at (t + 1/2) · 10 ms; the signal is
    zero-padded. Each band has zero mean over the utterance, because angles between frames would otherwise
    depend mostly on loudness and channel.
    """
    frames = len(signal) // HOP
    margin = (WINDOW - HOP) // 2
    padded = np.pad(signal, (margin, margin))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:frames]
    power = np.abs(np.fft.rfft(windows * np.hanning(WINDOW + 1)[:-1], FFT)) ** 2  # (T, F)
    energies = np.log(np.maximum(power @ mel_filters().T, FLOOR))
    centred: NDArray[np.float32] = (energies - energies.mean(axis=0)).astype(np.float32)
    return centred


def mel_filters() -> NDArray[np.float64]:
    """Return triangular filters (M, F) of height 1 over the frequencies of the spectrum."""
    highest = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, BANDS + 2) / 2595) - 1)
    frequencies = np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (frequencies - low) / (centre - low)
    falling = (high - frequencies) / (high - centre)
    return np.maximum(0, np.minimum(rising, falling))
