"""ABX errors of every layer of a model, beside log-Mel energies and an untrained model (Fig. 2, Table II).

A model hears each file once for all layers, in float32; of its outputs only the frames that tokens need are
kept, each once. Memory holds one batch's outputs and one layer of kept frames, N · D · 4 bytes, where the
caller names a folder for the others, and all layers where it does not. Scoring adds fastabx's chunks.

Shape letters: T frames of a file, D dimensions, N kept frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

import torch

from vgsplus import audio
from vgsplus.evaluation import layers as extraction
from vgsplus.evaluation.abx import CONDITIONS, Comparisons
from vgsplus.evaluation.abx_frames import FrameTable, check_finite, frame_spans
from vgsplus.evaluation.layers import choose_layers
from vgsplus.evaluation.log_mel import FRAME_RATE, log_mel
from vgsplus.models.published import build_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from vgsplus.evaluation.abx_items import Items
    from vgsplus.models.vgsplus import ModelConfig, VGSPlus


class Progress(Protocol):
    """Is told how far each stage is."""

    def __call__(self, stage: str, done: int, total: int, /) -> None:
        """`done` of `total` steps of a stage are behind."""


def silent(_stage: str, _done: int, _total: int, /) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbxRow:
    """The errors of one kind of features.

    Attributes:
        features: "model", "untrained" or "log-Mel".
        layer: from 1; None where there are no layers.
        context: "within" or "any".
        as_published: whether by Libri-Light's protocol (see `abx.score`).
        errors: {condition: error in [0, 1]}.
    """

    features: str
    layer: int | None
    context: str
    as_published: bool
    errors: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of every kind of features; the published protocol comes beside the corrected one.

    `items` must have been read with their audio.
    """

    items: Items
    conditions: tuple[str, ...] = CONDITIONS
    context: str = "within"
    as_published: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """How the work is done; no number depends on it but by rounding.

    Attributes:
        device: where the model runs and distances are computed.
        batch_seconds: sound in one pass of the model, padding included.
        cache: a folder in which a temporary folder holds the layers' frames, N · D · 4 bytes each; None keeps
            them in memory.
        progress: told how many files, then how many layers are done.
    """

    device: torch.device | str = "cpu"
    batch_seconds: float = 60.0
    cache: Path | None = None
    progress: Progress = silent


def check_question(question: Question, config: ModelConfig) -> None:
    """Find out before any model of these sizes exists what `score_layers` and `score_log_mel` would raise.

    Raises:
        VgsplusError, CorpusError: tokens too short for a frame; items of which no comparison can be made.
    """
    stride = math.prod(stride for _, _, stride in config.conv_layers)
    for frame_rate in (Fraction(audio.SAMPLE_RATE, stride), FRAME_RATE):
        _prepare(question, frame_rate)


def score_layers(
    model: VGSPlus,
    question: Question,
    means: Means = Means(),
    *,
    layers: Sequence[int] | None = None,
    features: str = "model",
) -> list[AbxRow]:
    """ABX errors of a model's layers, from one pass of the model over the sound.

    Frames are placed by what they hear: by whole frames, `layers.frame_lead` of them earlier.

    Args:
        model: a model that already is on the device of `means`; its modes are left as they were.
        question: what is compared.
        means: device, size of batches, where frames are kept.
        layers: numbers from 1; all by default.
        features: what the rows call the model.

    Raises:
        VgsplusError, CorpusError: as `abx.score`; a layer that is not there; frames that cannot be kept.
        AudioError: a sound that cannot be used.
    """
    depth = len(model.speech.layers)
    layers = sorted(choose_layers("all" if layers is None else ",".join(map(str, layers)), depth))
    protocols, table = _prepare(
        question,
        extraction.frame_rate(model),
        lead=extraction.frame_lead(model),
        missing=extraction.frames_missing(model),
    )
    sounds = question.items.audio
    rows: list[AbxRow] = []
    with extraction.LayerStore(layers, means.cache) as store:
        heard = extraction.speech_layers(
            model, sounds, layers, device=means.device, batch_seconds=means.batch_seconds
        )
        for done, (file, outputs) in enumerate(heard, start=1):
            needed = torch.from_numpy(table.keep(file, len(outputs[0])))
            for layer, frames in zip(layers, outputs, strict=True):
                store.add(layer, check_finite(frames[needed.to(frames.device)], f"{file}, layer {layer}"))
            means.progress(f"{features}: files", done, len(sounds))
        for done, layer in enumerate(layers, start=1):
            frames = store.take(layer).to(means.device)
            rows += _rows(question, protocols, frames, table, features=features, layer=layer)
            means.progress(f"{features}: layers", done, len(layers))
    return rows


def score_untrained(
    config: ModelConfig,
    question: Question,
    means: Means = Means(),
    *,
    layers: Sequence[int] | None = None,
    seed: int = 0,
) -> list[AbxRow]:
    """`score_layers` of a model of these sizes that has not learned anything, drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build_model(config)
    return score_layers(fresh.eval().to(means.device), question, means, layers=layers, features="untrained")


def score_log_mel(question: Question, means: Means = Means()) -> list[AbxRow]:
    """ABX errors of log-Mel energies (see `log_mel`), 100 frames a second."""
    protocols, table = _prepare(question, FRAME_RATE)
    kept = []
    for done, (file, path) in enumerate(question.items.audio.items(), start=1):
        frames = torch.from_numpy(log_mel(audio.load_any(path)))
        kept.append(frames[torch.from_numpy(table.keep(file, len(frames)))])
        means.progress("log-Mel: files", done, len(question.items.audio))
    frames = torch.cat(kept).to(means.device)
    return list(_rows(question, protocols, frames, table, features="log-Mel", layer=None))


def _prepare(
    question: Question, frame_rate: float | Fraction, *, lead: int = 0, missing: int = 1
) -> tuple[list[Comparisons], FrameTable]:
    """The comparisons of each protocol, the corrected one first, and a table to keep frames by."""
    spans = frame_spans(question.items, frame_rate)
    protocols = [
        Comparisons(
            question.items, spans, question.conditions, context=question.context, as_published=published
        )
        for published in ((False, True) if question.as_published else (False,))
    ]
    return protocols, FrameTable(question.items, spans, lead=lead, missing=missing)


def _rows(
    question: Question,
    protocols: Sequence[Comparisons],
    frames: Tensor,
    table: FrameTable,
    *,
    features: str,
    layer: int | None,
) -> Iterator[AbxRow]:
    for comparisons in protocols:
        yield AbxRow(
            features=features,
            layer=layer,
            context=question.context,
            as_published=comparisons.as_published,
            errors=comparisons.errors(frames, table),
        )
