"""Speech signals: reading prepared files fast, bringing any file to 16 kHz mono, writing, normalising.

A prepared file is 16 kHz mono, of any format that libsndfile reads. Signals are float32 arrays (samples,).

A path may also name a part of a file, as fairseq names sounds in archives:

    shard.tar:START:SIZE    SIZE bytes from START of a tar or zip archive: a sound file stored in it as it is
    long.wav:START:COUNT    COUNT samples from START, at the file's own rate, of a sound file

A file that has exactly such a name wins.
"""

import io
import os
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from vgsplus.errors import AudioError
from vgsplus.files import as_on_disk, is_file

SAMPLE_RATE = 16_000
SILENCE = 1e-4
"""A signal that nowhere leaves its mean by more than this (-80 dBFS) counts as silent."""
CANCELLED = 0.05
"""Channels whose mean is this much quieter than the loudest of them (-26 dB) are of opposite polarity."""
QUIET = 2.0**-6
"""A peak below which 16 bits would keep fewer than 9 of a signal (-36 dBFS)."""
RATES = range(1_000, 1_000_001)
"""Plausible sample rates in Hz; a header that states another one is broken."""
SAMPLES_PER_BYTE = 10_000
"""More than any codec packs into a byte (FLAC packs 65,535 equal samples into 14)."""
ALWAYS_PLAUSIBLE = 1_000_000
"""Samples that a header may state without a look at the size of the file, which takes time."""
UNKNOWN_LENGTH = 2**63 - 1
"""What libsndfile reports for a FLAC file that was encoded from a stream."""
DATA_SIZES = re.compile(r"^ *(?:data|riff|SSND|Data Size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
"""Sizes of the samples in WAV, of the file in W64, of the samples in AIFF and AU, as stated and as found."""
STREAMED = 0x7FFF0000
"""Bytes from which on a size in a WAV header means that the writer did not know it yet."""
INEXACT_SEEK = frozenset({"MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III", "OPUS", "VORBIS"})
"""Codecs in which the samples after a seek differ from those of a file decoded from its start.

In Vorbis those of the last page do.
"""
SUFFIXES = frozenset(
    {".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".nist", ".oga", ".ogg"}
    | {".opus", ".rf64", ".snd", ".sph", ".voc", ".w64", ".wav"}
)
"""Endings of sound files, in lower case, of the formats that libsndfile reads without being told more."""
MEND = "Leave this file out or replace it."
SCALED = "scaled to use the range of 16 bits"
"""What a summary says of sounds for which `write_wav` returned another factor than 1."""

DECODER_ERRORS = (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OSError, MemoryError)
"""What soundfile raises for files that libsndfile cannot open, seek or decode."""

MAX_HEADER = 4096
"""Bytes that a file without samples may have."""

PART = re.compile(r"(?P<file>.+):(?P<start>\d{1,18}):(?P<count>\d{1,18})", re.DOTALL)
ARCHIVES = (".tar", ".zip")

type Signal = npt.NDArray[np.float32]


# ---- reading ----------------------------------------------------------------------------------------------


def read(path: str | Path, max_samples: int | None = None, *, crop: float = 0.0) -> Signal:
    """Read a prepared file, or only `max_samples` of it: float32 (samples,).

    `crop` in [0, 1) says where these lie in a longer file: 0 at its start, towards 1 at its end. Samples of
    floating-point files may exceed ±1.

    Raises:
        AudioError: the file is absent, broken, empty, not 16 kHz or not mono.
    """
    return read_crop(path, max_samples, crop)[0]


def read_crop(path: str | Path, max_samples: int | None = None, crop: float = 0.0) -> tuple[Signal, bool]:
    """As `read`, and whether the crop was moved because it would have held no sound.

    A silent crop normalises to zeros, from which a model learns nothing and for which losses vanish. It is
    moved to begin where the sound next begins, or to end where it last ended.
    """
    with _open(path) as sound:
        _require_prepared(sound)
        wanted = sound.frames if max_samples is None else min(sound.frames, max_samples)
        start = int(crop * (sound.frames - wanted + 1))
        signal = sound.decode(start, wanted)[:, 0]
        if wanted == sound.frames or not is_silent(signal):
            return signal, False
    with _open(path) as sound:
        whole = sound.decode(0, sound.frames)[:, 0]
    (voiced,) = np.nonzero(np.abs(whole - signal.mean()) > SILENCE)
    if len(voiced) == 0:
        return signal, False
    later = voiced[voiced >= start]
    start = int(later[0]) if len(later) else int(voiced[-1]) + 1 - wanted
    start = min(max(start, 0), len(whole) - wanted)
    return whole[start : start + wanted].copy(), True


def num_samples(path: str | Path) -> int:
    """The length of a prepared file in samples at 16 kHz, from its header alone.

    Raises:
        AudioError: the file is absent, broken, empty, not 16 kHz or not mono, or its header states no length.
    """
    with _open(path) as sound:
        _require_prepared(sound)
        return sound.frames


def load_any(path: str | Path) -> Signal:
    """Read a file of any rate and channels as 16 kHz mono: float32 (samples,).

    Channels are averaged; soxr at very high quality resamples. Samples of floating-point files may exceed ±1.

    Raises:
        AudioError: the file is absent or broken, its header states no length, or it holds no samples,
            non-finite samples, only silence, or channels that cancel each other out.
    """
    with _open(path) as sound:
        _require_length(sound)
        rate = sound.file.samplerate
        signal = sound.decode(0, sound.frames)
    if not np.isfinite(signal).all():
        raise AudioError(f"{path}: holds samples that are not finite numbers. {MEND}")
    mono = signal.mean(axis=1, dtype=np.float32)
    if signal.shape[1] > 1:
        _require_audible_mean(path, signal, mono)
    if rate != SAMPLE_RATE:
        mono = resample(mono, rate)
    if len(mono) == 0:
        raise AudioError(f"{path}: holds no samples. {MEND}")
    if is_silent(mono):
        raise AudioError(
            f"{path}: is silent from start to end (nowhere louder than -80 dBFS). Leave it out or amplify it."
        )
    return mono


def duration(path: str | Path) -> float:
    """The length of a file of any rate in seconds, from its header alone.

    Raises:
        AudioError: the file is absent or broken, or its header states no length.
    """
    with _open(path) as sound:
        _require_length(sound)
        return float(sound.frames / sound.file.samplerate)


def header(path: str | Path) -> tuple[int, int]:
    """The sample rate of a file in Hz and its length in samples at that rate, from its header alone.

    Raises:
        AudioError: the file is absent or broken, or its header states no length.
    """
    with _open(path) as sound:
        _require_length(sound)
        return sound.file.samplerate, sound.frames


def is_prepared(path: str | Path) -> bool:
    """Whether a readable file can be trained from as it is: 16 kHz mono WAV (PCM16) or FLAC.

    Raises:
        AudioError: the file is absent or broken.
    """
    with _open(path) as sound:
        file = sound.file
        fits = (file.samplerate, file.channels) == (SAMPLE_RATE, 1)
        plain = file.format == "FLAC" or (file.format in ("WAV", "WAVEX") and file.subtype == "PCM_16")
        # The header of a WAV file that states no size would be repaired anew at each reading.
        return fits and plain and not isinstance(file.name, _Repaired)


def is_there(path: str | Path) -> bool:
    """Whether there is such a file, or the file that it is a part of."""
    part = _part(os.fspath(path))
    return is_file(as_on_disk(Path(part["file"] if part else path)))


# ---- signals ----------------------------------------------------------------------------------------------


def resample(signal: Signal, rate: int) -> Signal:
    """Bring (samples,) from `rate` Hz to 16 kHz with soxr at very high quality."""
    resampled: Signal = soxr.resample(signal, rate, SAMPLE_RATE, quality="VHQ").astype(np.float32, copy=False)
    return resampled


def is_silent(samples: Signal) -> bool:
    """Whether (samples,) nowhere leaves its mean by more than -80 dBFS."""
    few = samples[::64]  # enough to tell most sounds, in a tenth of the time
    if few.max() - few.min() > 2 * SILENCE:
        return False
    return bool(np.abs(samples - samples.mean()).max() <= SILENCE)


def normalise(samples: Signal) -> Signal:
    """Bring (samples,) to zero mean and unit (population) standard deviation.

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


# ---- writing ----------------------------------------------------------------------------------------------


def write_wav(path: str | Path | BinaryIO, samples: Signal) -> float:
    """Write (samples,) as a 16 kHz mono WAV PCM16; returns the factor by which they were multiplied.

    That is 1 for signals whose peak fits 16 bits. Louder ones, which would be clipped, and those so quiet
    that 16 bits would keep little of them, are scaled to a peak just below full scale.
    """
    peak = float(np.abs(samples).max(initial=0.0))
    factor = 1.0 if QUIET <= peak <= 1.0 or peak == 0.0 else 32767 / 32768 / peak
    _write_pcm16(path, samples if factor == 1.0 else samples * np.float32(factor))
    return factor


def contents(path: str | Path, *, decode: bool = False) -> tuple[str, bytes]:
    """The ending and the bytes of a file that holds the prepared sound at `path` and nothing else.

    A sound file or a member of an archive stays as it is, but for FLAC of 16 bits where `decode`: the same
    samples as WAV. A range of samples becomes a WAV file of its own, of 16 bits or else of float32.

    Raises:
        AudioError: the file is absent, broken, empty, not 16 kHz or not mono.
    """
    with _open(path) as sound:
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
    # Full scale of the other sign, 1.0, has no number in 16 bits; the next one is taken.
    pcm = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    soundfile.write(path, pcm, SAMPLE_RATE, subtype="PCM_16", format="WAV")


# ---- files and parts of files -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sound:
    """A sound file, open at its start, of which `frames` samples from `first` on are meant."""

    path: str | Path
    file: soundfile.SoundFile
    first: int
    frames: int
    ranged: bool

    def decode(self, start: int, count: int) -> Signal:
        """Decode `count` samples from `start` on: float32 (samples, channels). Once an opened file."""
        file, start = self.file, self.first + start
        exact = file.seekable() and file.subtype not in INEXACT_SEEK
        pcm16 = file.subtype == "PCM_16"
        try:
            if start and exact:
                file.seek(start)
            skipped = 0 if exact else start
            decoded = file.read(skipped + count, dtype="int16" if pcm16 else "float32", always_2d=True)
            decoded = decoded[skipped:]
        except DECODER_ERRORS as error:
            raise AudioError(f"{self.path}: breaks off while decoding ({error}). {MEND}") from None
        if len(decoded) < count:
            raise AudioError(
                f"{self.path}: ends after {start + len(decoded)} of {start + count} samples. {MEND}"
            )
        # The same numbers as libsndfile's own scaling, in less time than that takes.
        signal: Signal = decoded * np.float32(1 / 32768) if pcm16 else decoded
        return signal


class _Repaired(io.BytesIO):
    """A WAV file in memory whose header has been given the size that it left at 0."""


def _part(name: str) -> re.Match[str] | None:
    """How a path names a part of a file, None where it is a file of its own."""
    part = PART.fullmatch(name)
    return None if part is None or is_file(Path(name)) else part


@contextmanager
def _open(path: str | Path) -> Iterator[_Sound]:
    name = os.fspath(path)
    if "\0" in name:
        raise AudioError(f"{path!r}: there is no such sound file; a file's name holds no NUL.")
    part = _part(name)
    member = part is not None and part["file"].lower().endswith(ARCHIVES)
    try:
        file = _sound_file(path, part, member=member)
    except DECODER_ERRORS as error:
        raise _cannot_open(path, part, error, member=member) from None
    with file:
        first = int(part["start"]) if part and not member else 0
        frames = int(part["count"]) if part and not member else int(file.frames)
        if part and not member and frames == 0:
            raise AudioError(f"{path}: names 0 samples. Correct the range.")
        if part and not member and first + frames > file.frames:
            raise AudioError(
                f"{path}: the file has {file.frames} samples, fewer than {first} + {frames}. "
                "Correct the range."
            )
        yield _Sound(path, file, first, frames, ranged=part is not None and not member)


def _sound_file(path: str | Path, part: re.Match[str] | None, *, member: bool) -> soundfile.SoundFile:
    source = Path(part["file"] if part else path)
    stored = _member_bytes(path, part) if member and part is not None else None
    if stored is not None:
        file = soundfile.SoundFile(io.BytesIO(stored))
    else:
        try:
            file = soundfile.SoundFile(os.fspath(source))
        except (soundfile.LibsndfileError, UnicodeEncodeError):
            source = as_on_disk(source)
            if _misleads(source):
                file = soundfile.SoundFile(io.BytesIO(source.read_bytes()))
            elif source != Path(part["file"] if part else path):
                file = soundfile.SoundFile(os.fspath(source))
            else:
                raise
    # libsndfile takes what is there of a file cut short, and says so only in its log.
    if sizes := DATA_SIZES.search(file.extra_info):
        stated, there = map(int, sizes.groups())
        if there < stated < STREAMED:
            file.close()
            raise AudioError(
                f"{path}: breaks off before the end that its header states ({there} of {stated} B). {MEND}"
            )
    if file.format in ("WAV", "WAVEX") and file.frames == 0:
        repaired = _with_size(source.read_bytes() if stored is None else stored)
        if repaired is not None:
            file.close()
            return soundfile.SoundFile(repaired)
    return file


def _misleads(path: Path) -> bool:
    """Whether libsndfile cannot open a good file by its path.

    Its name may be in no encoding that Python knows, or a Mac's "._" companion may be taken for a part of it.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return is_file(path)
    return is_file(path) and is_file(path.with_name(f"._{path.name}"))


def _with_size(wav: bytes) -> _Repaired | None:
    """A WAV file whose data chunk states 0 bytes, with the size of all that follows; None if nothing does.

    Recorders that are switched off while they record leave the size at 0.
    """
    offset = 12
    while offset + 8 <= len(wav):
        name, size = struct.unpack_from("<4sI", wav, offset)
        offset += 8
        if name == b"data":
            rest = len(wav) - offset
            if size or not rest or _is_chunks(wav[offset:]):
                return None
            return _Repaired(wav[: offset - 4] + struct.pack("<I", rest) + wav[offset:])
        offset += size + size % 2
    return None


def _is_chunks(rest: bytes) -> bool:
    """Whether bytes are RIFF chunks to their end, as those that may follow a data chunk that is empty."""
    offset = 0
    while offset + 8 <= len(rest) and rest[offset : offset + 4].isascii():
        size = struct.unpack_from("<I", rest, offset + 4)[0]
        offset += 8 + size + size % 2
    return offset in (len(rest), len(rest) + 1)


def _member_bytes(path: str | Path, part: re.Match[str]) -> bytes:
    start, size = int(part["start"]), int(part["count"])
    with as_on_disk(Path(part["file"])).open("rb", buffering=0) as archive:
        end = os.fstat(archive.fileno()).st_size
        if start + size > end:
            raise AudioError(f"{path}: the archive has {end} bytes, fewer than {start} + {size}.")
        return os.pread(archive.fileno(), size, start)


def _cannot_open(
    path: str | Path, part: re.Match[str] | None, error: BaseException, *, member: bool
) -> AudioError:
    """Why a sound could not be opened, as truly as can be told."""
    source = as_on_disk(Path(part["file"] if part else path))
    if not is_file(source):
        if os.path.isdir(source):  # noqa: PTH112 - as in `is_file`
            return AudioError(f"{path}: is a folder, not a sound file.")
        return AudioError(f"{path}: there is no such sound file.")
    if member and part is not None and source.suffix.lower() == ".zip" and _is_compressed(source, part):
        return AudioError(
            f"{path}: is compressed in its archive. Store it as it is (zip -0), or unpack the archive."
        )
    # Without libsndfile's prefix, which names the file once more, or an object in memory.
    why = error.error_string if isinstance(error, soundfile.LibsndfileError) else error
    return AudioError(f"{path}: cannot be read as sound ({why}). {MEND}")


def _is_compressed(archive: Path, part: re.Match[str]) -> bool:
    """Whether the member of a zip archive that a range of bytes lies in is compressed."""
    start = int(part["start"])
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if member.header_offset <= start]
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    nearest = max(members, key=lambda member: member.header_offset, default=None)
    return nearest is not None and nearest.compress_type != zipfile.ZIP_STORED


def _require_length(sound: _Sound) -> None:
    file = sound.file
    if file.samplerate not in RATES:
        raise AudioError(f"{sound.path}: states a sample rate of {file.samplerate} Hz. {MEND}")
    if sound.frames >= UNKNOWN_LENGTH:
        raise AudioError(
            f"{sound.path}: its header does not state how long it is. Write it again, or leave it out."
        )
    if 0 < sound.frames * file.channels <= ALWAYS_PLAUSIBLE:
        return
    size = len(file.name.getvalue()) if isinstance(file.name, io.BytesIO) else Path(file.name).stat().st_size
    if sound.frames * file.channels > size * SAMPLES_PER_BYTE:
        raise AudioError(
            f"{sound.path}: its header states {sound.frames} samples, which {size} bytes cannot hold. {MEND}"
        )
    if sound.frames == 0 and size > MAX_HEADER:
        raise AudioError(
            f"{sound.path}: its header states a length of 0, but the file has {size} bytes. "
            "Write it again, or leave it out."
        )


def _require_prepared(sound: _Sound) -> None:
    file = sound.file
    if file.samplerate != SAMPLE_RATE or file.channels != 1:
        raise AudioError(
            f"{sound.path}: {file.samplerate} Hz, {file.channels} channel(s); expected {SAMPLE_RATE} Hz "
            "mono. `vgsplus data table` converts such files."
        )
    _require_length(sound)
    if sound.frames == 0:
        raise AudioError(f"{sound.path}: holds no samples. {MEND}")


def _require_audible_mean(path: str | Path, channels: Signal, mean: Signal) -> None:
    """Raise where channels (samples, C) with sound cancel each other out in their mean (samples,)."""
    if len(mean) == 0:
        return
    loudest = channels.std(axis=0).max()
    if loudest > SILENCE and mean.std() < CANCELLED * loudest:
        raise AudioError(
            f"{path}: its channels have opposite polarity and cancel each other out when they are averaged. "
            "Keep one of them."
        )
