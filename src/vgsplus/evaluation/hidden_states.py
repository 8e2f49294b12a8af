"""Run a model over sounds, in batches of similar length: hidden states of its layers, or embeddings.

Shape letters: B sounds, S samples, T frames, D dimensions.
"""

import io
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vgsplus import audio
from vgsplus.audio import Signal
from vgsplus.audio_files import HINT_REPLACE
from vgsplus.errors import AudioError, VgsplusError
from vgsplus.functional import check_stop
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.parallel import parallel_map
from vgsplus.progress import SILENT, Progress

# ---- frames and layers ------------------------------------------------------------------------------------


def frame_rate(model: VGSPlus) -> Fraction:
    """Return the number of frames per second, from the strides of the convolutions."""
    return Fraction(audio.SAMPLE_RATE, model.speech.waveform.stride)


def receptive_field_shift(model: VGSPlus) -> int:
    """Return how many frames the centre of frame t's receptive field is after (t + 1/2) strides, rounded.

    0 for the paper's convolutions (25 ms every 20 ms), 2 for the toy preset's (95 ms every 20 ms).
    """
    encoder = model.speech.waveform
    return round((encoder.receptive_field - encoder.stride) / (2 * encoder.stride))


def max_missing_frames(model: VGSPlus) -> int:
    """Return the maximum number of frames that an unpadded encoder lacks at the end of a sound."""
    encoder = model.speech.waveform
    return math.ceil(encoder.receptive_field / encoder.stride + 0.5) - receptive_field_shift(model)


def parse_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """Parse "all", or layers from 1 as "1,2,8", into distinct layer numbers in the given order.

    Raises:
        VgsplusError: not a number, or a layer that the model does not have.
    """
    if text == "all":
        return tuple(range(1, num_layers + 1))
    numbers = [part.strip() for part in text.split(",")]
    if wrong := [part for part in numbers if not (part.isdecimal() and 1 <= int(part) <= num_layers)]:
        raise VgsplusError(
            f"There is no layer {wrong[0]!r}: name layers from 1 to {num_layers}, as 1,2, or all."
        )
    return tuple(dict.fromkeys(int(part) for part in numbers))


def check_finite(values: Tensor, what: str) -> Tensor:
    """Return the values if all are finite, or raise VgsplusError; `what` names them in the message."""
    if not bool(torch.isfinite(values).all()):
        raise VgsplusError(f"{what} are not finite. The model has diverged: evaluate an earlier checkpoint.")
    return values


# ---- the loop over sounds ---------------------------------------------------------------------------------


@contextmanager
def inference(
    model: torch.nn.Module, device: torch.device | str = "cpu", precision: torch.dtype | None = None
) -> Iterator[None]:
    """Evaluation mode without gradients, with autocast on `device` to `precision` (None: no autocast).

    On exit the training flag of every module is restored.
    """
    modes = [(module, module.training) for module in model.modules()]
    autocast = torch.autocast(torch.device(device).type, precision, enabled=precision is not None)
    for module, _ in modes:
        module.training = False
    try:
        with torch.no_grad(), autocast:
            yield
    finally:
        for module, training in modes:
            module.training = training


def batch_by_length[K](
    lengths: Mapping[K, float], *, size: float = math.inf, total: float = math.inf
) -> Iterator[list[K]]:
    """Split keys into batches, longest first, so that a lack of memory shows in the first batch.

    Args:
        lengths: {key: length in any unit}.
        size: maximum number of items in a batch.
        total: maximum length of a batch, padding included; a longer item is a batch of its own.
    """
    batch: list[K] = []
    for key in sorted(lengths, key=lambda key: -lengths[key]):
        if batch and (len(batch) >= size or (len(batch) + 1) * lengths[batch[0]] > total):
            yield batch
            batch = []
        batch.append(key)
    if batch:
        yield batch


def map_sounds[K, T](
    model: torch.nn.Module,
    function: Callable[[Tensor, Tensor], Iterable[T]],
    read: Callable[[K], Signal],
    batches: Iterable[Sequence[K]],
    *,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    min_samples: int = 0,
) -> Iterator[tuple[K, T]]:
    """Yield (key, output) of every sound in the order of the batches.

    Args:
        model: a model on `device`; its train/eval modes are restored.
        function: maps waveforms (B, S), zero-padded, and num_samples (B,) to B outputs, called under
            `inference`.
        read: returns the normalised signal of a key; called by several threads.
        batches: keys, as from `batch_by_length`.
        device: where the batches are moved.
        precision: dtype of autocast, None for none.
        min_samples: length to which shorter batches are padded.
    """
    for keys in batches:
        check_stop()
        waveforms, num_samples = pad_signals(list(parallel_map(read, keys)), min_samples)
        with inference(model, device, precision):
            outputs = list(function(waveforms.to(device), num_samples.to(device)))
        yield from zip(keys, outputs, strict=True)


def pad_signals(signals: Sequence[Signal], min_samples: int = 0) -> tuple[Tensor, Tensor]:
    """Return waveforms (B, S), zero-padded to the longest or to `min_samples`, and num_samples (B,)."""
    waves = [torch.from_numpy(signal) for signal in signals]
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    padded = torch.nn.functional.pad(padded, (0, max(0, min_samples - padded.shape[1])))
    return padded, torch.tensor([len(wave) for wave in waves])


def map_files[T](
    model: VGSPlus,
    function: Callable[[Tensor, Tensor], Iterable[T]],
    sounds: Mapping[str, Path],
    *,
    device: torch.device | str = "cpu",
    batch_size: float = math.inf,
    batch_seconds: float = math.inf,
) -> Iterator[tuple[str, T]]:
    """Call `map_sounds` on complete files {name: sound of any rate}, longest first, in float32.

    With `published` padding an output depends on its batch, so every file is a batch of its own.

    Raises:
        AudioError: a file that cannot be used.
        VgsplusError: a file is too short for one frame.
    """

    def read(name: str) -> Signal:
        signal = audio.load_any(sounds[name])
        if len(signal) < model.speech.waveform.receptive_field:
            raise VgsplusError(f"{sounds[name]}: is too short for one frame. Remove it from the input.")
        return audio.normalise(signal)

    seconds = {name: audio.duration(path) for name, path in sounds.items()}
    size = 1 if model.config.padding == "published" else batch_size
    batches = batch_by_length(seconds, size=size, total=batch_seconds)
    yield from map_sounds(model, function, read, batches, device=device)


def hidden_states(
    model: VGSPlus, layers: Sequence[int], waveforms: Tensor, num_samples: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the float32 outputs (T, D) of layers (from 1) for each of B sounds, without padding frames.

    Other arguments as in `VGSPlus.speech_layers`.
    """
    outputs, mask = model.speech_layers(waveforms, num_samples)
    for row, frames in enumerate(mask):
        yield tuple(outputs[layer - 1][row][frames].float() for layer in layers)


def iterate_hidden_states(
    model: VGSPlus,
    sounds: Mapping[str, Path],
    layers: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    batch_seconds: float = 60.0,
) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """Yield (name, outputs (T, D) of each layer) of every file, longest first, float32 on `device`.

    All layers come from one pass over the complete sound at 16 kHz, normalised as in training.

    Args:
        model: a model on `device`; its train/eval modes are restored.
        sounds: {name: sound file of any rate}.
        layers: transformer layers, from 1.
        device: where the batches are moved.
        batch_seconds: seconds of sound in one pass, padding included; a longer file is processed alone.

    Raises:
        AudioError: a file that cannot be used.
        VgsplusError: a file too short for one frame.
    """
    function = partial(hidden_states, model, layers)
    yield from map_files(model, function, sounds, device=device, batch_seconds=batch_seconds)


class LayerStore:
    """Store the frames of several layers, added file by file and read layer by layer: N frames at the end.

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


# ---- one sound --------------------------------------------------------------------------------------------


def layers_of(model: VGSPlus, sound: str | Path | ArrayLike | Tensor) -> dict[int, Tensor]:
    """Return the hidden states of all layers of one sound: {layer from 1: (T, D) float32 on the CPU}.

    The complete sound is normalised as in training; the model runs in evaluation mode and its modes are
    restored.

    Args:
        model: as `vgsplus.load` returns it, on any device.
        sound: a file of any rate and channels, or samples (S,) at 16 kHz of any scale.

    Raises:
        AudioError: a file that cannot be used, samples that are not (S,) finite real numbers, or too few for
            a frame.
        VgsplusError: the model's outputs are not finite.
    """
    name, signal = str(sound) if isinstance(sound, str | Path) else "the samples", read_sound(model, sound)
    layers = range(1, len(model.speech.layers) + 1)
    function, device = partial(hidden_states, model, layers), next(model.parameters()).device
    ((_, outputs),) = map_sounds(model, function, lambda _: audio.normalise(signal), [[name]], device=device)
    return {
        layer: check_finite(output.cpu(), f"Features of {name}, layer {layer}")
        for layer, output in zip(layers, outputs, strict=True)
    }


def read_sound(model: VGSPlus, sound: str | Path | ArrayLike | Tensor) -> Signal:
    """Return the samples of a file, or samples as float32; arguments and errors as for `layers_of`."""
    if isinstance(sound, str | Path):
        name, signal = str(sound), audio.load_any(sound)
    else:
        name, signal = "the samples", _as_signal(sound)
    needed = model.speech.waveform.receptive_field
    if len(signal) < needed:
        raise AudioError(f"{name}: {len(signal)} samples at 16 kHz; one frame needs {needed}.")
    if not audio.normalise(signal).any():
        raise AudioError(f"{name}: silent, they deviate from their mean by less than 1e-7.")
    return signal


def _as_signal(values: ArrayLike | Tensor) -> Signal:
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float32).numpy()
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        raise AudioError(
            f"Samples must be real numbers (S,) of one channel at 16 kHz, not {array.dtype} {array.shape}."
        )
    with np.errstate(over="ignore"):
        signal = array.astype(np.float32)
    if not np.isfinite(signal).all():
        raise AudioError("The samples hold values that are not finite numbers of 32 bits.")
    return signal


# ---- checks -----------------------------------------------------------------------------------------------


def check_audio(
    paths: Sequence[Path], model: VGSPlus, *, min_frames: int = 1, progress: Progress = SILENT
) -> tuple[list[int], list[str]]:
    """Decode sound files of any rate and find those that cannot be read, are silent or are too short.

    A sound is too short if the model's convolutions compute fewer than `min_frames` from it. `progress`
    receives the stage "checking".

    Returns:
        The lengths of the usable sounds, in samples at 16 kHz, and a message for each of the others.
    """
    needed = "one frame" if min_frames == 1 else f"{min_frames} frames"

    def check(path: Path) -> int | str:
        try:
            num_samples = len(audio.load_any(path))
        except AudioError as error:
            return str(error)
        if int(model.speech.waveform.num_frames(torch.tensor(num_samples))) < min_frames:
            return f"{path}: {num_samples} samples at 16 kHz are too short for {needed}. {HINT_REPLACE}"
        return num_samples

    results = list(parallel_map(check, paths, progress, "checking"))
    return [n for n in results if isinstance(n, int)], [fault for fault in results if isinstance(fault, str)]
