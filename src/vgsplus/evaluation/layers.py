"""The outputs of every layer of a model from one pass over the sound, a bounded piece at a time.

Shape letters: B utterances, S samples, T frames, D dimensions, N kept frames.
"""

from __future__ import annotations

import math
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from vgsplus import audio
from vgsplus.errors import AudioError, VgsplusError
from vgsplus.evaluation.abx_frames import check_finite
from vgsplus.evaluation.embedding import evaluating

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from io import BufferedRandom

    from numpy.typing import ArrayLike
    from torch import Tensor

    from vgsplus.audio import Signal
    from vgsplus.models.vgsplus import VGSPlus

READERS = 4


def frame_rate(model: VGSPlus) -> Fraction:
    """Frames a second of a model's speech layers, from the strides of its convolutions."""
    return Fraction(audio.SAMPLE_RATE, model.speech.waveform.stride)


def frame_lead(model: VGSPlus) -> int:
    """Whole frames by which the centre of what frame t hears lies behind (t + 1/2) strides.

    0 for the paper's convolutions, which hear 25 ms every 20 ms; 2 for the toy preset's 95 ms.
    """
    encoder = model.speech.waveform
    return round((encoder.receptive_field - encoder.stride) / (2 * encoder.stride))


def frames_missing(model: VGSPlus) -> int:
    """The most frames centred in a sound for which the encoder, which pads nothing, has too little sound."""
    encoder = model.speech.waveform
    return math.ceil(encoder.receptive_field / encoder.stride + 0.5) - frame_lead(model)


def choose_layers(text: str, depth: int) -> tuple[int, ...]:
    """The layers that "all", or numbers from 1 as "1,2,8", mean in a model of `depth` layers.

    In the order asked, each once.

    Raises:
        VgsplusError: not a number, or a layer that the model does not have.
    """
    if text == "all":
        return tuple(range(1, depth + 1))
    numbers = [part.strip() for part in text.split(",")]
    if wrong := [part for part in numbers if not (part.isdecimal() and 1 <= int(part) <= depth)]:
        raise VgsplusError(f"There is no layer {wrong[0]!r}: name layers from 1 to {depth}, as 1,2, or all.")
    return tuple(dict.fromkeys(int(part) for part in numbers))


def speech_layers(
    model: VGSPlus,
    sounds: Mapping[str, Path],
    layers: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    batch_seconds: float = 60.0,
) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """Each file with the outputs (T, D) of its layers, float32 on `device`, longest file first.

    A batch runs through the model once for all layers. Sounds are heard whole, at 16 kHz, normalised as in
    training, in float32. In `published` padding an output depends on its batch, so that files go one by one.

    Args:
        model: a model that already is on `device`; its modes are left as they were.
        sounds: {file id: sound file of any rate}.
        layers: the transformer layers wanted, from 1.
        device: where the batches go.
        batch_seconds: sound in one pass, padding included; a longer file goes alone.

    Raises:
        AudioError: a file that cannot be used.
        VgsplusError: a file too short for one frame.
    """
    seconds = {file: audio.duration(path) for file, path in sounds.items()}
    limit = 0.0 if model.config.padding == "published" else batch_seconds
    with ThreadPoolExecutor(READERS) as pool, evaluating(model):
        for files in _batches(seconds, limit):
            signals = list(pool.map(audio.load_any, [sounds[file] for file in files]))
            waves = [torch.from_numpy(audio.normalise(signal)) for signal in signals]
            lengths = torch.tensor([len(wave) for wave in waves])
            frames = model.speech.waveform.num_frames(lengths)
            if int(frames.min()) < 1:
                file = files[int(frames.argmin())]
                raise VgsplusError(f"{sounds[file]}: is too short for a single frame. Leave its items out.")
            padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
            with torch.no_grad():
                outputs, valid = model.speech_layers(padded.to(device), lengths.to(device))
            for row, file in enumerate(files):
                yield file, tuple(outputs[layer - 1][row][valid[row]].float() for layer in layers)


def embed(model: VGSPlus, sound: str | Path | ArrayLike | Tensor) -> dict[int, Tensor]:
    """The frames of one sound in every transformer layer: {layer from 1: (T, D) float32 on the CPU}.

    The sound is heard whole, normalised as in training, in evaluation mode; the model's modes are left as
    they were.

    Args:
        model: as `vgsplus.load` gives it, on any device.
        sound: a file of any rate and channels, or samples (S,) at 16 kHz of any scale.

    Raises:
        AudioError: a file that cannot be used, samples that are not (S,) finite real numbers, or too few for
            a frame.
        VgsplusError: the model's outputs are not finite.
    """
    if isinstance(sound, str | Path):
        name, signal = str(sound), audio.load_any(sound)
    else:
        name, signal = "the samples", _samples(sound)
    needed = model.speech.waveform.receptive_field
    if len(signal) < needed:
        raise AudioError(f"{name}: {len(signal)} samples at 16 kHz; one frame needs {needed}.")
    wave = torch.from_numpy(audio.normalise(signal))[None].to(next(model.parameters()).device)
    with evaluating(model), torch.no_grad():
        outputs, valid = model.speech_layers(wave, torch.tensor([len(signal)], device=wave.device))
    return {
        layer: check_finite(output[valid].float().cpu(), f"{name}, layer {layer}")
        for layer, output in enumerate(outputs, start=1)
    }


def _samples(values: ArrayLike | Tensor) -> Signal:
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float32).numpy()
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        raise AudioError(
            f"Samples must be real numbers (S,) of one channel at 16 kHz, not {array.dtype} {array.shape}."
        )
    if not np.isfinite(array).all():
        raise AudioError("The samples hold values that are not finite numbers.")
    return array.astype(np.float32)


def _batches(seconds: Mapping[str, float], limit: float) -> Iterator[list[str]]:
    """Files in order of falling length, as many at once as `limit` seconds hold when padded to the first."""
    batch: list[str] = []
    for file in sorted(seconds, key=lambda name: -seconds[name]):
        if batch and (len(batch) + 1) * seconds[batch[0]] > limit:
            yield batch
            batch = []
        batch.append(file)
    yield batch


class LayerStore:
    """Frames of several layers, filled a file at a time and taken a layer at a time.

    With a folder, frames lie in files of a temporary folder in it, and memory holds one layer, N · D · 4
    bytes; without one, memory holds all layers. Use it as a context manager: files go when it closes.
    """

    def __init__(self, layers: Sequence[int], folder: Path | None = None) -> None:
        self._chunks: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        self._folder, self._stack, self._width = folder, ExitStack(), 0
        self._files: dict[int, BufferedRandom] = {}

    def __enter__(self) -> Self:
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                inner = tempfile.TemporaryDirectory(prefix=".layers-", dir=self._folder)
                place = Path(self._stack.enter_context(inner))
                for layer in self._chunks:
                    self._files[layer] = self._stack.enter_context((place / f"{layer}.f32").open("w+b"))
            except OSError as error:
                raise self._unwritable(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._chunks.clear()
        self._stack.close()

    def add(self, layer: int, frames: Tensor) -> None:
        """Append frames (n, D) to a layer.

        Raises:
            VgsplusError: they cannot be written.
        """
        frames = frames.cpu()
        if not self._files:
            self._chunks[layer].append(frames)
            return
        self._width = frames.shape[1]
        try:
            self._files[layer].write(frames.contiguous().numpy().data)
        except OSError as error:
            raise self._unwritable(error) from error

    def take(self, layer: int) -> Tensor:
        """All frames (N, D) of a layer, which the store then forgets.

        Raises:
            VgsplusError: the last of them could not be written.
        """
        if not self._files:
            return torch.cat(self._chunks.pop(layer))
        file = self._files.pop(layer)
        try:
            file.seek(0)  # writes what is still in the buffer
        except OSError as error:
            raise self._unwritable(error) from error
        frames = torch.from_numpy(np.fromfile(file, dtype=np.float32).reshape(-1, self._width))
        file.truncate(0)
        return frames

    def _unwritable(self, error: OSError) -> VgsplusError:
        return VgsplusError(
            f"{self._folder}: the frames of {len(self._chunks)} layers cannot be kept there ({error}). Make "
            "room, name another folder, or score fewer layers at a time."
        )
