"""ABX errors of every layer of a model, of log-Mel energies and of an untrained model (Fig. 2, Table II).

One float32 pass over each file computes all layers. Only the N frames that tokens need are kept. With a
folder for temporary files, memory holds one layer at a time (N · D · 4 bytes), otherwise all layers; and, in
addition, the outputs of one batch and the distances of a block. Rows may be saved as they are found.

Shape letters: S samples, T frames of a file, D dimensions, N selected frames, M Mel bands, F frequencies.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from importlib.metadata import version
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
from vgsplus.evaluation.export import weights_digest, writing
from vgsplus.evaluation.hidden_states import (
    LayerStore,
    check_finite,
    frame_rate,
    iterate_hidden_states,
    max_missing_frames,
    parse_layers,
    receptive_field_shift,
)
from vgsplus.files import file_digest, write_file
from vgsplus.functional import check_stop, gather_objects, own_share
from vgsplus.models.published import build_model
from vgsplus.models.vgsplus import ModelConfig, VGSPlus
from vgsplus.parallel import parallel_map
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


# ---- results in a file ------------------------------------------------------------------------------------


class AbxResults:
    """Keep rows in a JSON file, so that an evaluation that was interrupted continues with what is missing.

    The file holds, for each kind of features, a digest of the weights, items, sounds and options. Rows of
    other inputs are replaced.

    Args:
        path: the file, written anew after each layer.
        task: the test.
        changed: called with all rows known so far, in order, whenever there are more.

    Raises:
        VgsplusError: the file is broken.
    """

    def __init__(self, path: Path, task: AbxTask, changed: Callable[[Sequence[AbxRow]], object]) -> None:
        self._path, self._task, self._changed = path, task, changed
        self._rows: dict[str, list[AbxRow]] = {}
        self._saved: dict[str, tuple[str, list[AbxRow]]] = {}
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            for features, kind in found.items():
                self._saved[features] = kind["inputs"], [AbxRow(**row) for row in kind["rows"]]
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise VgsplusError(
                f"{path}: is broken ({error!r}). Remove it; all errors are then computed again."
            ) from None

    def known(
        self, features: str, layers: Sequence[int | None], model: VGSPlus | None = None
    ) -> list[AbxRow]:
        """Return the rows of those layers that an earlier call with the same inputs has finished.

        Args:
            features: kind of the features; call it once for each kind, before `add`.
            layers: the layers that are to be scored.
            model: the model that computes the features, or None.
        """
        inputs = self._task_digest + ("" if model is None else f" {weights_digest(model)} {model.config}")
        digest = hashlib.sha256(inputs.encode()).hexdigest()
        if features not in self._saved or self._saved[features][0] != digest:
            self._saved[features] = digest, []
        protocols = (False, True)[: 1 + self._task.as_published]
        found = {(row.layer, row.as_published): row for row in self._saved[features][1]}
        rows = [
            found[layer, protocol]
            for layer in layers
            if all((layer, protocol) in found for protocol in protocols)
            for protocol in protocols
        ]
        self._rows[features] = rows
        if rows:
            self._changed(list(itertools.chain(*self._rows.values())))
        return list(rows)

    def add(self, rows: Sequence[AbxRow]) -> None:
        """Save further rows; raises VgsplusError if they cannot be written."""
        for row in rows:
            self._rows[row.features] = sorted(
                [*self._rows[row.features], row], key=lambda row: row.layer or 0
            )
            digest, saved = self._saved[row.features]
            places = {(other.layer, other.as_published): other for other in [*saved, row]}
            self._saved[row.features] = digest, list(places.values())
        content = {
            features: {"inputs": digest, "rows": [asdict(row) for row in saved]}
            for features, (digest, saved) in self._saved.items()
        }
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._path, json.dumps(content, indent=1) + "\n")
        self._changed(list(itertools.chain(*self._rows.values())))

    @cached_property
    def _task_digest(self) -> str:
        task, sounds = self._task, self._task.items.audio
        options = [version("vgsplus"), task.context, task.conditions, file_digest(task.items.path)]
        contents = parallel_map(file_digest, list(sounds.values()))
        return json.dumps([*options, list(zip(sounds, contents, strict=True))])


# ---- scoring ----------------------------------------------------------------------------------------------


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
    results: AbxResults | None = None,
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
        results: of `task`, in the first process: layers that it holds are not scored again.
        progress: receives the stages "FEATURES: files" and "FEATURES: pairs of tokens", and a line for each
            row that is found.

    Raises:
        VgsplusError, CorpusError: as `abx.score`; the model lacks a layer, or `cache` or `results` cannot be
            written.
        AudioError: a sound that cannot be used.
    """
    text = "all" if layers is None else ",".join(map(str, layers))
    asked = sorted(parse_layers(text, len(model.speech.layers)))
    rows = [*gather_objects(results.known(features, asked, model) if results else [])[0]]
    layers = own_share([layer for layer in asked if layer not in {row.layer for row in rows}])
    if not (rounds := max(gather_objects(len(layers)))):
        return rows
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
    advance = _advancing(f"{features}: pairs of tokens", scorers, len(layers), progress)
    for number in range(rounds):
        own: list[AbxRow] = []
        if number < len(layers):
            frames = store.take(layers[number]).to(device)
            own = _rows(task, scorers, frames, tokens, advance, features=features, layer=layers[number])
        found = list(itertools.chain(*gather_objects(own)))
        rows += found
        _finish(found, results, progress)
    return sorted(rows, key=lambda row: row.layer or 0)


def untrained_model(config: ModelConfig, seed: int = 0) -> VGSPlus:
    """Return a model of these sizes in evaluation mode, initialised from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(config).eval()


def score_log_mel(
    task: AbxTask,
    *,
    device: torch.device | str = "cpu",
    results: AbxResults | None = None,
    progress: Progress = SILENT,
) -> list[AbxRow]:
    """Return the ABX errors of log-Mel energies (see `log_mel`), 100 frames per second.

    Arguments as in `score_layers`, but the processes of a run do not share the work.
    """
    if results and (rows := results.known("log-Mel", [None])):
        return rows
    scorers, tokens = task.scorers(FRAME_RATE), TokenFrames(task.items, frame_spans(task.items, FRAME_RATE))
    selected = []
    for done, (file, path) in enumerate(task.items.audio.items(), start=1):
        frames = torch.from_numpy(log_mel(audio.load_any(path)))
        selected.append(frames[torch.from_numpy(tokens.select(file, len(frames)))])
        progress.update("log-Mel: files", done, len(task.items.audio))
    advance = _advancing("log-Mel: pairs of tokens", scorers, 1, progress)
    rows = _rows(
        task, scorers, torch.cat(selected).to(device), tokens, advance, features="log-Mel", layer=None
    )
    _finish(rows, results, progress)
    return rows


def _rows(
    task: AbxTask,
    scorers: Sequence[AbxScorer],
    frames: Tensor,
    tokens: TokenFrames,
    advance: Callable[[int], object],
    *,
    features: str,
    layer: int | None,
) -> list[AbxRow]:
    return [
        AbxRow(
            features=features,
            layer=layer,
            context=task.context,
            as_published=scorer.as_published,
            errors=scorer.errors(frames, tokens, advance),
        )
        for scorer in scorers
    ]


def _advancing(
    stage: str, scorers: Sequence[AbxScorer], layers: int, progress: Progress
) -> Callable[[int], object]:
    """Return a function that takes numbers of pairs, and reports their sum of those of all layers."""
    total = layers * sum(scorer.pairs for scorer in scorers)
    done = 0

    def advance(pairs: int) -> None:
        nonlocal done
        check_stop()
        done += pairs
        progress.update(stage, done, total)

    advance(0)
    return advance


def _finish(rows: Sequence[AbxRow], results: AbxResults | None, progress: Progress) -> None:
    """Save rows, and print a line for each."""
    if results:
        results.add(rows)
    for row in rows:
        name = row.features + (f", layer {row.layer}" if row.layer else "")
        errors = ", ".join(f"{100 * error:.2f} % {condition}" for condition, error in row.errors.items())
        progress.note(f"{name}: {errors} speakers{', as published' if row.as_published else ''}")


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
