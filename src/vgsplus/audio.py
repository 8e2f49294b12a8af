"""Speech signals: read prepared files, convert any file to 16 kHz mono, write, normalise.

A prepared file is 16 kHz mono, of any format that libsndfile reads. Signals are float32 arrays (samples,).
Paths may name parts of files (see `vgsplus.audio_files`).
"""

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from vgsplus.audio_files import HINT_REPLACE, Sound, open_sound
from vgsplus.errors import AudioError

SAMPLE_RATE = 16_000
SILENCE = 1e-4
"""Largest deviation from the mean (-80 dBFS) of a signal that counts as silent."""
CANCELLED = 0.05
"""Channels whose mean is this much quieter than the loudest of them (-26 dB) are of opposite polarity."""
QUIET = 2.0**-6
"""Peak below which 16 bits would keep fewer than 9 of a signal (-36 dBFS)."""
SUFFIXES = frozenset(
    {".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".nist", ".oga", ".ogg"}
    | {".opus", ".rf64", ".snd", ".sph", ".voc", ".w64", ".wav"}
)
"""Suffixes of sound files, in lower case, of the formats that libsndfile reads without further settings."""
SCALED = "scaled to use the range of 16 bits"
"""Label in summaries of sounds for which `write_wav` returned a factor other than 1."""

type Signal = npt.NDArray[np.float32]


def read(path: str | Path, max_samples: int | None = None, *, crop: float = 0.0) -> Signal:
    """Read a prepared file, or only `max_samples` of it: float32 (samples,).

    Samples of floating-point files may exceed ±1.

    Args:
        path: the file.
        max_samples: length of the crop, if the file is longer.
        crop: position of the crop in [0, 1): 0 at the start, towards 1 at the end of the file.

    Raises:
        AudioError: the file is absent, broken, empty, not 16 kHz or not mono.
    """
    return read_crop(path, max_samples, crop)[0]


def read_crop(path: str | Path, max_samples: int | None = None, crop: float = 0.0) -> tuple[Signal, bool]:
    """Read as `read`, and return also whether the crop was moved because it would have been silent.

    A silent crop contains only noise or zeros, so the model learns nothing from it. It is moved to begin
    where the sound next begins, or to end where it last ended.
    """
    with open_sound(path) as sound:
        _require_prepared(sound)
        length = sound.frames if max_samples is None else min(sound.frames, max_samples)
        start = int(crop * (sound.frames - length + 1))
        signal = sound.decode(start, length)[:, 0]
        if length == sound.frames or not is_silent(signal):
            return signal, False
    with open_sound(path) as sound:
        complete = sound.decode(0, sound.frames)[:, 0]
    (voiced,) = np.nonzero(np.abs(complete - signal.mean()) > SILENCE)
    if len(voiced) == 0:
        return signal, False
    later = voiced[voiced >= start]
    start = int(later[0]) if len(later) else int(voiced[-1]) + 1 - length
    start = min(max(start, 0), len(complete) - length)
    return complete[start : start + length].copy(), True


def num_samples(path: str | Path) -> int:
    """Return the length of a prepared file in samples at 16 kHz, from its header alone.

    Raises:
        AudioError: the file is absent, broken, empty, not 16 kHz or not mono, or its header states no length.
    """
    with open_sound(path) as sound:
        _require_prepared(sound)
        return sound.frames


def load_any(path: str | Path) -> Signal:
    """Read a file of any rate and channels as 16 kHz mono: float32 (samples,).

    Channels are averaged; soxr resamples at very high quality. Samples of floating-point files may exceed ±1.

    Raises:
        AudioError: the file is absent or broken, its header states no length, or it holds no samples,
            non-finite samples, only silence, or channels that cancel each other out.
    """
    with open_sound(path) as sound:
        sound.require_length()
        rate = sound.file.samplerate
        signal = sound.decode(0, sound.frames)
    if not np.isfinite(signal).all():
        raise AudioError(f"{path}: holds samples that are not finite numbers. {HINT_REPLACE}")
    mono = signal.mean(axis=1, dtype=np.float32)
    if signal.shape[1] > 1 and len(mono):
        loudest = signal.std(axis=0).max()
        if loudest > SILENCE and mono.std() < CANCELLED * loudest:
            raise AudioError(
                f"{path}: its channels have opposite polarity and cancel each other out when they are "
                "averaged. Keep one of them."
            )
    if rate != SAMPLE_RATE:
        mono = resample(mono, rate)
    if len(mono) == 0:
        raise AudioError(f"{path}: holds no samples. {HINT_REPLACE}")
    if is_silent(mono):
        raise AudioError(
            f"{path}: is silent from start to end (nowhere louder than -80 dBFS). Skip or amplify it."
        )
    return mono


def header(path: str | Path) -> tuple[int, int]:
    """Return the sample rate of a file in Hz and its length in samples at that rate, from its header alone.

    Raises:
        AudioError: the file is absent or broken, or its header states no length.
    """
    with open_sound(path) as sound:
        sound.require_length()
        return sound.file.samplerate, sound.frames


def duration(path: str | Path) -> float:
    """Return the length of a file of any rate in seconds; see `header`."""
    rate, samples = header(path)
    return samples / rate


def is_prepared(path: str | Path) -> bool:
    """Return whether training can read a file as it is: 16 kHz mono WAV (PCM16) or FLAC.

    Raises:
        AudioError: the file is absent or broken.
    """
    with open_sound(path) as sound:
        file = sound.file
        suitable = (file.samplerate, file.channels) == (SAMPLE_RATE, 1)
        plain = file.format == "FLAC" or (file.format in ("WAV", "WAVEX") and file.subtype == "PCM_16")
        return suitable and plain and not sound.repaired  # it would be repaired at each reading


def _require_prepared(sound: Sound) -> None:
    file = sound.file
    if file.samplerate != SAMPLE_RATE or file.channels != 1:
        raise AudioError(
            f"{sound.path}: {file.samplerate} Hz, {file.channels} channel(s); expected {SAMPLE_RATE} Hz "
            "mono. `vgsplus data table` converts such files."
        )
    sound.require_length()
    if sound.frames == 0:
        raise AudioError(f"{sound.path}: holds no samples. {HINT_REPLACE}")


# ---- signals ----------------------------------------------------------------------------------------------


def resample(signal: Signal, rate: int) -> Signal:
    """Resample (samples,) from `rate` Hz to 16 kHz with soxr at very high quality."""
    resampled: Signal = soxr.resample(signal, rate, SAMPLE_RATE, quality="VHQ").astype(np.float32, copy=False)
    return resampled


def is_silent(samples: Signal) -> bool:
    """Return whether no sample of (samples,) deviates from the mean by more than -80 dBFS."""
    few = samples[::64]  # decides for most sounds, in a tenth of the time
    if few.max() - few.min() > 2 * SILENCE:
        return False
    return bool(np.abs(samples - samples.mean()).max() <= SILENCE)


def normalise(samples: Signal) -> Signal:
    """Normalise (samples,) to zero mean and unit (population) standard deviation.

    A constant signal becomes zeros.
    """
    centred = samples - samples.mean()
    with np.errstate(over="ignore"):  # the squares of floating-point samples beyond 1e16 may be too large
        deviation = np.sqrt(np.dot(centred, centred) / len(centred))
    if np.isinf(deviation):
        return normalise(samples / np.abs(samples).max())
    if deviation <= np.finfo(np.float32).eps:
        return np.zeros_like(samples)
    centred *= np.float32(1 / deviation)
    return centred


def write_wav(path: str | Path | BinaryIO, samples: Signal) -> float:
    """Write (samples,) as 16 kHz mono WAV PCM16; return the factor by which they were multiplied.

    The factor is 1 if the peak fits 16 bits. Louder signals, which would be clipped, and signals so quiet
    that 16 bits would keep little of them are scaled to a peak just below full scale.
    """
    peak = float(np.abs(samples).max(initial=0.0))
    factor = 1.0 if QUIET <= peak <= 1.0 or peak == 0.0 else 32767 / 32768 / peak
    _write_pcm16(path, samples if factor == 1.0 else samples * np.float32(factor))
    return factor


def contents(path: str | Path, *, decode: bool = False) -> tuple[str, bytes]:
    """Return the suffix and the bytes of a file that holds the prepared sound at `path` and nothing else.

    Sound files and members of archives are unchanged, except that 16-bit FLAC becomes WAV with `decode`. A
    range of samples becomes a WAV file of its own, of 16 bits or else of float32.

    Raises:
        AudioError: the file is absent, broken, empty, not 16 kHz or not mono.
    """
    with open_sound(path) as sound:
        _require_prepared(sound)
        file = sound.file
        flac = (file.format, file.subtype) == ("FLAC", "PCM_16")
        if sound.ranged or (decode and flac):
            signal = sound.decode(0, sound.frames)[:, 0]
            wav = io.BytesIO()
            if file.subtype == "PCM_16":
                _write_pcm16(wav, signal)
            else:
                soundfile.write(wav, signal, SAMPLE_RATE, subtype="FLOAT", format="WAV")
            return ".wav", wav.getvalue()
        if isinstance(file.name, io.BytesIO):
            return f".{file.format.lower()}", file.name.getvalue()
        return Path(file.name).suffix.lower(), Path(file.name).read_bytes()


def _write_pcm16(path: str | Path | BinaryIO, samples: Signal) -> None:
    # +1.0 has no 16-bit value; the nearest is taken.
    pcm = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    soundfile.write(path, pcm, SAMPLE_RATE, subtype="PCM_16", format="WAV")
