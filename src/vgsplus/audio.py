"""Speech signals: reading prepared files fast, bringing any file to 16 kHz mono, writing, normalising.

A prepared file is 16 kHz mono (WAV PCM16 or FLAC). Signals are float32 arrays (samples,) in [-1, 1].

A path "shard.tar:START:SIZE" is the SIZE bytes from START of a tar file, a sound that lies in it as it is, as
fairseq names sounds in archives.
"""

import io
import os
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from vgsplus.errors import VgsplusError

SAMPLE_RATE = 16_000
SILENCE = 1e-4
"""A signal that nowhere leaves its mean by more than this (-80 dBFS) counts as silent."""
UNKNOWN_LENGTH = 2**63 - 1
"""What libsndfile tells of a FLAC file that was encoded from a stream."""
DATA_SIZES = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
STREAMED = 0x7FFF0000
"""Bytes from which on a size in a WAV header means that the writer did not know it yet."""
SUFFIXES = frozenset(
    {
        ".aif",
        ".aifc",
        ".aiff",
        ".au",
        ".caf",
        ".flac",
        ".mp3",
        ".nist",
        ".oga",
        ".ogg",
        ".opus",
        ".rf64",
        ".snd",
        ".sph",
        ".voc",
        ".w64",
        ".wav",
    }
)
"""Endings of sound files, in lower case, of the formats that libsndfile reads without being told more."""
MEND = "Leave this file out or replace it."

MEMBER = re.compile(r"(?P<archive>.+\.tar):(?P<start>\d+):(?P<size>\d+)", re.DOTALL)

type Signal = npt.NDArray[np.float32]


class AudioError(VgsplusError):
    """A sound file that cannot be used: absent, broken, of a wrong rate, empty, silent."""


def read(path: str | Path, max_samples: int | None = None, *, crop: float = 0.0) -> Signal:
    """Read a prepared file, or only `max_samples` of it: float32 (samples,).

    `crop` in [0, 1) says where these lie in a longer file: 0 at its start, towards 1 at its end.

    Raises:
        AudioError: the file is absent, broken, empty, not 16 kHz or not mono.
    """
    with _open(path) as file:
        _require_prepared(file, path)
        wanted = file.frames if max_samples is None else min(file.frames, max_samples)
        start = int(crop * (file.frames - wanted + 1))
        signal = _decode(file, path, wanted, start)
    if len(signal) < wanted:
        raise AudioError(f"{path}: ends after {start + len(signal)} of {start + wanted} samples. {MEND}")
    return signal[:, 0]


def num_samples(path: str | Path) -> int:
    """The length of a prepared file in samples at 16 kHz, from its header alone.

    Raises:
        AudioError: the file is absent, broken, empty, not 16 kHz or not mono, or its header states no length.
    """
    with _open(path) as file:
        _require_prepared(file, path)
        return int(file.frames)


def load_any(path: str | Path) -> Signal:
    """Read a file of any rate and channels as 16 kHz mono: float32 (samples,).

    Channels are averaged; soxr at very high quality resamples.

    Raises:
        AudioError: the file is absent or broken, its header states no length, or it holds no samples,
            non-finite samples or only silence.
    """
    with _open(path) as file:
        _require_length(file, path)
        rate = file.samplerate
        signal = _decode(file, path, -1)
    if not np.isfinite(signal).all():
        raise AudioError(f"{path}: holds samples that are not finite numbers. {MEND}")
    mono = signal.mean(axis=1, dtype=np.float32)
    if rate != SAMPLE_RATE:
        mono = resample(mono, rate)
    if len(mono) == 0:
        raise AudioError(f"{path}: holds no samples. {MEND}")
    if is_silent(mono):
        raise AudioError(f"{path}: is silent from start to end. {MEND}")
    return mono


def duration(path: str | Path) -> float:
    """The length of a file of any rate in seconds, from its header alone.

    Raises:
        AudioError: the file is absent or broken, or its header states no length.
    """
    with _open(path) as file:
        _require_length(file, path)
        return float(file.frames / file.samplerate)


def resample(signal: Signal, rate: int) -> Signal:
    """Bring (samples,) from `rate` Hz to 16 kHz with soxr at very high quality."""
    resampled: Signal = soxr.resample(signal, rate, SAMPLE_RATE, quality="VHQ").astype(np.float32, copy=False)
    return resampled


def write_wav(path: str | Path | BinaryIO, samples: Signal) -> None:
    """Write (samples,) in [-1, 1] as a 16 kHz mono WAV PCM16; what lies outside is clipped."""
    pcm = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    soundfile.write(path, pcm, SAMPLE_RATE, subtype="PCM_16", format="WAV")


def flac_as_wav(path: str | Path) -> bytes | None:
    """The samples of a prepared FLAC file of 16 bits as the bytes of a WAV file; None for any other file.

    Raises:
        AudioError: the file is absent, broken, empty, not 16 kHz or not mono.
    """
    with _open(path) as file:
        if (file.format, file.subtype) != ("FLAC", "PCM_16"):
            return None
    wav = io.BytesIO()
    write_wav(wav, read(path))
    return wav.getvalue()


def is_silent(samples: Signal) -> bool:
    """Whether (samples,) nowhere leaves its mean by more than -80 dBFS."""
    return bool(np.abs(samples - samples.mean()).max() <= SILENCE)


def normalise(samples: Signal) -> Signal:
    """Bring (samples,) to zero mean and unit (population) standard deviation.

    A constant signal, as the crop of a clip that starts with digital silence may be, becomes zeros.
    """
    centred = samples - samples.mean()
    deviation = np.sqrt(np.dot(centred, centred) / len(centred))
    if deviation <= np.finfo(np.float32).eps:
        return np.zeros_like(samples)
    centred *= np.float32(1 / deviation)
    return centred


def is_there(path: str | Path) -> bool:
    """Whether there is such a file, or such an archive."""
    member = MEMBER.fullmatch(str(path))
    return Path(member["archive"] if member else path).is_file()


def _open(path: str | Path) -> soundfile.SoundFile:
    name = os.fspath(path)
    member = MEMBER.fullmatch(name)
    try:
        file = soundfile.SoundFile(io.BytesIO(_member_bytes(member)) if member else name)
    except (soundfile.LibsndfileError, OSError) as error:
        if not is_there(path):
            raise AudioError(f"{path}: there is no such sound file.") from None
        raise AudioError(f"{path}: cannot be read as sound ({error}). {MEND}") from None
    # libsndfile takes what is there of a WAV file cut short, and says so only in its log.
    if file.format in ("WAV", "WAVEX") and (sizes := DATA_SIZES.search(file.extra_info)):
        stated, there = map(int, sizes.groups())
        if there < stated < STREAMED:
            file.close()
            raise AudioError(
                f"{path}: breaks off before the end that its header states ({there} of {stated} B). {MEND}"
            )
    return file


def _member_bytes(member: re.Match[str]) -> bytes:
    with Path(member["archive"]).open("rb", buffering=0) as archive:
        return os.pread(archive.fileno(), int(member["size"]), int(member["start"]))


def _require_length(file: soundfile.SoundFile, path: str | Path) -> None:
    if file.frames >= UNKNOWN_LENGTH:
        raise AudioError(
            f"{path}: its header does not state how long it is. Write it again, or leave it out."
        )


def _require_prepared(file: soundfile.SoundFile, path: str | Path) -> None:
    if file.samplerate != SAMPLE_RATE or file.channels != 1:
        raise AudioError(
            f"{path}: {file.samplerate} Hz, {file.channels} channel(s); expected {SAMPLE_RATE} Hz mono. "
            "Prepare the corpus again (vgsplus data …), which resamples."
        )
    if file.frames == 0:
        raise AudioError(f"{path}: holds no samples. {MEND}")
    _require_length(file, path)


def _decode(file: soundfile.SoundFile, path: str | Path, frames: int, start: int = 0) -> Signal:
    """Decode up to `frames` samples (-1: all) from `start` on: float32 (samples, channels)."""
    pcm16 = file.subtype == "PCM_16"
    try:
        if start:
            file.seek(start)
        decoded = file.read(frames, dtype="int16" if pcm16 else "float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path}: breaks off while decoding ({error}). {MEND}") from None
    # The same numbers as libsndfile's own scaling, in less time than that takes.
    signal: Signal = decoded * np.float32(1 / 32768) if pcm16 else decoded
    return signal
