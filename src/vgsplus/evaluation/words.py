"""Spoken words in a folder, one recording a file, as embeddings of a model for the lexical test.

Shape letters: B batch, T frames, D dimensions, n recordings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from vgsplus import audio
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.embedding import evaluating, padded_batches
from vgsplus.evaluation.lexical import group
from vgsplus.evaluation.sounds import list_faults, measure
from vgsplus.files import as_on_disk, files_below

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from vgsplus.audio import Signal
    from vgsplus.evaluation.sounds import Progress
    from vgsplus.models.vgsplus import VGSPlus


@dataclass(frozen=True, slots=True, kw_only=True)
class Recordings:
    """n recordings, and how many samples each has at 16 kHz."""

    paths: tuple[Path, ...]
    num_samples: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the files, without what follows the last dot."""
        return tuple(path.stem for path in self.paths)


def open_words(folder: str | Path, model: VGSPlus, word_of: Callable[[str], str] | None = None) -> Recordings:
    """Read every sound right in a folder (see `audio.SUFFIXES`) and make sure that the model can embed all.

    Files of any rate and number of channels will do (see `audio.load_any`).

    Raises:
        VgsplusError: no such folder, no sound files in it, files that cannot be read, are silent or too short
            for one frame, links that make one file two, names that make no lexical test (see
            `lexical.group`): all of them are told.
    """
    folder = as_on_disk(Path(folder))
    if not folder.is_dir():
        raise VgsplusError(f"{folder}: there is no such folder.")
    sounds = [path for path in files_below(folder) if path.suffix.lower() in audio.SUFFIXES]
    paths = tuple(path for path in sounds if path.parent == folder)
    if sounds and not paths:
        raise VgsplusError(
            f"{folder}: its sound files lie in folders below it, as {sounds[0]}. Name one of them."
        )
    if not paths:
        raise VgsplusError(f"{folder}: holds no sound files ({', '.join(sorted(audio.SUFFIXES))}).")
    seen: dict[Path, Path] = {}
    faults = [
        f"{path}: is the same file as {first}, by a link, and counts once. Remove one of them."
        for path in paths
        if (first := seen.setdefault(path.resolve(), path)) != path
    ]
    try:
        group([path.stem for path in paths], word_of)
    except VgsplusError as error:
        faults.append(f"{folder}: {error}")
    num_samples, broken = measure(paths, model)
    faults += broken
    if faults:
        raise VgsplusError(list_faults(faults))
    return Recordings(paths=paths, num_samples=tuple(num_samples))


def check_layer(model: VGSPlus, layer: int | None, mode: Literal["utterance", "frame"] = "utterance") -> None:
    """Raise VgsplusError unless the model has this transformer layer, from 1, or what None stands for."""
    layers = len(model.speech.layers)
    if layer is None and mode == "utterance" and not model.config.grounded:
        raise VgsplusError(
            f"The model has no speech embedding, as it has no grounding side: name a layer, 1 to {layers}."
        )
    if layer is not None and not 1 <= layer <= layers:
        raise VgsplusError(f"There is no layer {layer}: the model has layers 1 to {layers}.")


def embed_words(
    model: VGSPlus,
    recordings: Recordings,
    mode: Literal["utterance", "frame"],
    layer: int | None = None,
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Tensor | list[Tensor]:
    """Embed recordings whole, in evaluation mode and float32, and leave the model's modes as they were.

    Args:
        model: a model that already is on `device`.
        recordings: as `open_words` gives them.
        mode: "utterance" for one vector each, "frame" for sequences.
        layer: transformer layer from 1, as in the paper: its frames, or the mean over them. Without one, an
            utterance is the model's speech embedding, and frames are those that the embedding is made from.
        batch_size: recordings in one pass; one in published mode, whose outputs depend on their batch.
        device: where the batches go.
        progress: called with the recordings done and the recordings in all.

    Returns:
        float32 on the CPU in the order of the recordings: (n, D), or n tensors (T, D).

    Raises:
        VgsplusError: no such layer, or values that are not finite.
    """
    check_layer(model, layer, mode)
    if model.config.padding == "published":
        batch_size = 1
    tap = (layer or model.config.shared_layers) - 1

    def embed(waveforms: Tensor, num_samples: Tensor) -> list[Tensor]:
        if mode == "utterance" and layer is None:
            return list(model.embed_speech(waveforms, num_samples).float().cpu())
        layers, valid = model.speech_layers(waveforms, num_samples)
        frames = [tapped[real].float().cpu() for tapped, real in zip(layers[tap], valid, strict=True)]
        return frames if mode == "frame" else [tapped.mean(dim=0) for tapped in frames]

    def read(index: int) -> Signal:
        return audio.normalise(audio.load_any(recordings.paths[index]))

    count = len(recordings.paths)
    found: dict[int, Tensor] = {}
    with evaluating(model), torch.no_grad():
        batches = padded_batches(read, recordings.num_samples, batch_size, torch.device(device))
        for indices, waveforms, num_samples in batches:
            found |= zip(indices, embed(waveforms, num_samples), strict=True)
            if progress:
                progress(len(found), count)
    embeddings = [found[index] for index in range(count)]
    for path, embedding in zip(recordings.paths, embeddings, strict=True):
        if not bool(torch.isfinite(embedding).all()):
            message = f"{path}: the model's embedding of it is not finite."
            raise VgsplusError(f"{message} The model has diverged: evaluate an earlier checkpoint.")
    return embeddings if mode == "frame" else torch.stack(embeddings)
