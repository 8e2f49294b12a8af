"""Speech signals: read, convert to 16 kHz mono, normalise, write.

Signals are float32 arrays (samples,) at 16 kHz. Paths may name parts of files (see `vgsplus.audio_files`).
"""

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from vgsplus.audio_files import HINT_REPLACE, OpenSound, open_sound
from vgsplus.errors import AudioError

SAMPLE_RATE = 16_000
SILENCE = 1e-4
"""Maximum deviation from the mean of a silent signal (-80 dBFS)."""
CANCELLED = 0.05
"""Channels have opposite polarity if the ratio of their mean to the loudest one is less (-26 dB)."""
QUIET = 2.0**-6
"""Peak below which fewer than 9 of 16 bits would be used (-36 dBFS)."""
SUFFIXES = frozenset(
    {".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".nist", ".oga", ".ogg"}
    | {".opus", ".rf64", ".snd", ".sph", ".voc", ".w64", ".wav"}
)
"""Suffixes, in lower case, of the formats that libsndfile identifies by their header."""
SCALED = "scaled to use the range of 16 bits"
"""Label in summaries of sounds for which `write_wav` returned a factor other than 1."""

type Signal = npt.NDArray[np.float32]


def read(path: str | Path, max_samples: int | None = None) -> Signal:
    """Read a 16 kHz mono file, or a crop from its start (see `read_crop`): float32 (samples,).

    Files may have any format that libsndfile reads. Samples of floating-point files may exceed ±1.

    Raises:
        AudioError: the file is missing, broken, empty, not 16 kHz or not mono.
    """
    return read_crop(path, max_samples)[0]


def read_crop(path: str | Path, max_samples: int | None, crop: float = 0.0) -> tuple[Signal, bool]:
    """Read like `read`; also return whether the crop was moved because it was silent.

    The position `crop` in [0, 1) is 0 at the start of the file, towards 1 at its end.
    A silent crop contains only noise or zeros, so a model learns nothing from it. It is moved later, to start
    with the next sample that is not silent, or else earlier, to end with the last one.
    """
    with open_sound(path) as sound:
        _require_16khz_mono(sound)
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
    """Return the number of samples of a 16 kHz mono file, from its header.

    Raises:
        AudioError: the file is missing, broken, empty, not 16 kHz or not mono, or states no length.
    """
    with open_sound(path) as sound:
        _require_16khz_mono(sound)
        return sound.frames


def load_any(path: str | Path) -> Signal:
    """Read a file of any sample rate and number of channels as 16 kHz mono: float32 (samples,).

    Channels are averaged, then resampled (see `resample`). Samples of floating-point files may exceed ±1.

    Raises:
        AudioError: the file is missing or broken, its header states no length, it has no samples, non-finite
            samples or only silence, or its channels cancel each other out.
    """
    with open_sound(path) as sound:
        sound.check_header()
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
    if len(mono) < 2:
        raise AudioError(f"{path}: holds {'only one sample' if len(mono) else 'no samples'}. {HINT_REPLACE}")
    if is_silent(mono):
        raise AudioError(
            f"{path}: is silent from start to end (nowhere louder than -80 dBFS). Skip or amplify it."
        )
    return mono


def header(path: str | Path) -> tuple[int, int]:
    """Return the sample rate in Hz and the number of samples per channel of a file, from its header.

    Raises:
        AudioError: the file is missing or broken, or its header states no length.
    """
    with open_sound(path) as sound:
        sound.check_header()
        return sound.file.samplerate, sound.frames


def duration(path: str | Path) -> float:
    """Return the duration of a file of any sample rate in seconds, from its header; see `header`."""
    rate, samples = header(path)
    return samples / rate


def needs_conversion(path: str | Path) -> bool:
    """Return whether a file is not 16 kHz mono WAV (PCM16) or FLAC, which corpora use in place.

    Raises:
        AudioError: the file is missing or broken.
    """
    with open_sound(path) as sound:
        file = sound.file
        suitable = (file.samplerate, file.channels) == (SAMPLE_RATE, 1)
        plain = file.format == "FLAC" or (file.format in ("WAV", "WAVEX") and file.subtype == "PCM_16")
        # A repaired header would have to be repaired at every reading.
        return not (suitable and plain) or sound.repaired


def _require_16khz_mono(sound: OpenSound) -> None:
    file = sound.file
    if file.samplerate != SAMPLE_RATE or file.channels != 1:
        raise AudioError(
            f"{sound.path}: {file.samplerate} Hz, {file.channels} channel(s); expected {SAMPLE_RATE} Hz "
            "mono. `vgsplus data table` converts such files."
        )
    sound.check_header()
    if sound.frames == 0:
        raise AudioError(f"{sound.path}: holds no samples. {HINT_REPLACE}")


# ---- signals ----------------------------------------------------------------------------------------------


def resample(signal: Signal, rate: int) -> Signal:
    """Resample (samples,) from `rate` Hz to 16 kHz with soxr, quality "VHQ"."""
    resampled: Signal = soxr.resample(signal, rate, SAMPLE_RATE, quality="VHQ").astype(np.float32, copy=False)
    return resampled


def is_silent(samples: Signal) -> bool:
    """Return whether no sample of (samples,) deviates from the mean by more than -80 dBFS."""
    few = samples[::64]  # suffices for most sounds, in a tenth of the time
    if few.max() - few.min() > 2 * SILENCE:
        return False
    return bool(np.abs(samples - samples.mean()).max() <= SILENCE)


def normalise(samples: Signal) -> Signal:
    """Normalise (samples,) to zero mean and unit (population) standard deviation.

    A constant signal becomes zeros.
    """
    centred = samples - samples.mean()
    with np.errstate(over="ignore"):  # the squares of floating-point samples beyond 1e16 overflow
        deviation = np.sqrt(np.dot(centred, centred) / len(centred))
    if np.isinf(deviation):
        return normalise(samples / np.abs(samples).max())
    if deviation <= np.finfo(np.float32).eps:
        return np.zeros_like(samples)
    centred *= np.float32(1 / deviation)
    return centred


def write_wav(path: str | Path | BinaryIO, samples: Signal) -> float:
    """Write (samples,) as 16 kHz mono WAV PCM16; return the factor by which they were scaled.

    Signals that would be clipped, and signals with a peak below -36 dBFS, are scaled to a peak just below
    full scale. The factor is 1 for all others.
    """
    peak = float(np.abs(samples).max(initial=0.0))
    factor = 1.0 if QUIET <= peak <= 1.0 or peak == 0.0 else 32767 / 32768 / peak
    _write_pcm16(path, samples if factor == 1.0 else samples * np.float32(factor))
    return factor


def contents(path: str | Path, *, decode: bool = False) -> tuple[str, bytes]:
    """Return the suffix and the bytes of a sound file with exactly the samples of `path`, 16 kHz mono.

    Files and members of archives are returned unchanged, except 16-bit FLAC, which is converted to WAV if
    `decode`. A range of samples is converted to WAV, of 16 bits or float32 like the file.

    Raises:
        AudioError: the file is missing, broken, empty, not 16 kHz or not mono.
    """
    with open_sound(path) as sound:
        _require_16khz_mono(sound)
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
    # +1.0 is beyond the range of 16 bits and becomes 32767.
    pcm = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    soundfile.write(path, pcm, SAMPLE_RATE, subtype="PCM_16", format="WAV")
