"""Open sound files, ranges of their samples, and sound files in archives.

A path may name a part of a file, as in manifests of fairseq:

    shard.tar:START:SIZE    SIZE bytes at byte START of a tar or zip archive: an uncompressed sound file
    long.wav:START:COUNT    COUNT samples from sample START on, at the sample rate of the file

An existing file of exactly that name takes precedence. An archive may also be named by its URL (see
`vgsplus.remote`).
"""

import io
import os
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from vgsplus.errors import AudioError
from vgsplus.files import as_on_disk, is_file
from vgsplus.remote import RemotePath, fetch_ranges, locate

RATES = range(1_000, 1_000_001)
"""Valid sample rates in Hz; a header with another one is treated as broken."""
SAMPLES_PER_BYTE = 10_000
"""Upper bound for all codecs (FLAC encodes 65,535 equal samples in 14 bytes)."""
ALWAYS_PLAUSIBLE = 1_000_000
"""Number of samples up to which the size of the file is not queried to check the header, to save time."""
MAX_HEADER = 4096
"""Maximum size of a file without samples in bytes."""
UNKNOWN_LENGTH = 2**63 - 1
"""Number of samples that libsndfile reports for a FLAC file that was encoded from a stream."""
DATA_SIZES = re.compile(r"^ *(?:data|riff|SSND|Data Size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
"""Matches stated and actual bytes of the samples (in W64 of the file) in the log of libsndfile."""
STREAMED = 0x7FFF0000
"""Sizes in a WAV header from this on mean that the size was unknown when the header was written."""
INEXACT_SEEK = frozenset({"MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III", "OPUS", "VORBIS"})
"""Codecs whose samples after a seek differ from those decoded from the start (Vorbis: in the last page)."""
DECODER_ERRORS = (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OSError, MemoryError)
"""Exceptions of soundfile if libsndfile cannot open, seek or decode a file."""
PART = re.compile(r"(?P<file>.+):(?P<start>\d{1,18}):(?P<count>\d{1,18})", re.DOTALL)
"""Matches a path that names a part of a file."""
ARCHIVES = (".tar", ".zip")
HINT_REPLACE = "Skip this file or replace it."


@dataclass(frozen=True, slots=True)
class OpenSound:
    """An open sound file, or a range of its samples.

    Attributes:
        path: the path as given, for messages.
        file: the open file, positioned at its start.
        first: first sample of the range.
        frames: number of samples of the range, per channel.
        ranged: whether the path names a range of samples.
        repaired: whether the header stated a size of 0 and was repaired in memory.
    """

    path: str | Path
    file: soundfile.SoundFile
    first: int
    frames: int
    ranged: bool
    repaired: bool

    def decode(self, start: int, count: int) -> npt.NDArray[np.float32]:
        """Decode `count` samples from `start` on: float32 (samples, channels). Can be called only once.

        Raises:
            AudioError: the file is truncated or cannot be decoded.
        """
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
            raise AudioError(f"{self.path}: cannot be decoded ({error}). {HINT_REPLACE}") from None
        if len(decoded) < count:
            raise AudioError(
                f"{self.path}: ends after {start + len(decoded)} of {start + count} samples. {HINT_REPLACE}"
            )
        # Equal to libsndfile's scaling, but faster.
        signal: npt.NDArray[np.float32] = decoded * np.float32(1 / 32768) if pcm16 else decoded
        return signal

    def check_header(self) -> None:
        """Check the header.

        Raises:
            AudioError: its sample rate or number of samples is missing or impossible.
        """
        file = self.file
        if file.samplerate not in RATES:
            raise AudioError(f"{self.path}: states a sample rate of {file.samplerate} Hz. {HINT_REPLACE}")
        if self.frames >= UNKNOWN_LENGTH:
            raise AudioError(
                f"{self.path}: its header does not state its length. Write the file again, or skip it."
            )
        samples = self.frames * file.channels
        if 0 < samples <= ALWAYS_PLAUSIBLE:
            return
        in_memory = isinstance(file.name, io.BytesIO)
        size = len(file.name.getvalue()) if in_memory else Path(file.name).stat().st_size
        if samples > size * SAMPLES_PER_BYTE:
            raise AudioError(
                f"{self.path}: its header states {self.frames} samples, which {size} bytes cannot hold. "
                f"{HINT_REPLACE}"
            )
        if self.frames == 0 and size > MAX_HEADER:
            raise AudioError(
                f"{self.path}: its header states a length of 0, but the file has {size} bytes. "
                "Write the file again, or skip it."
            )


def sound_exists(path: str | Path) -> bool:
    """Return whether a file exists; for a part of a file, whether that file exists."""
    return is_file(as_on_disk(parse_path(os.fspath(path))[0]))


def fetch_parts(paths: Iterable[str | Path]) -> None:
    """Bring those parts of archives that are named by URLs into the cache, several at a time."""
    parts = [parse_path(os.fspath(path)) for path in paths]
    fetch_ranges((file, *part) for file, part in parts if isinstance(file, RemotePath) and part)


def parse_path(name: str) -> tuple[Path, tuple[int, int] | None]:
    """Split a path into its file and the (start, count) of a part, or None."""
    part = PART.fullmatch(name)
    if part is None or is_file(Path(name)):
        return locate(name), None
    return locate(part["file"]), (int(part["start"]), int(part["count"]))


@contextmanager
def open_sound(path: str | Path) -> Iterator[OpenSound]:
    """Open a sound file, a range of its samples, or a sound file in an archive.

    Raises:
        AudioError: the file is missing or broken, or the part exceeds it.
    """
    name = os.fspath(path)
    if "\0" in name:
        raise AudioError(f"{path!r}: there is no such sound file; file names cannot contain NUL.")
    source, part = parse_path(name)
    member = None
    if part is not None and str(source).lower().endswith(ARCHIVES):
        member, part = part, None
    try:
        stored = _read_member(path, source, *member) if member else None
        file, repaired = _open_file(path, source, stored)
    except DECODER_ERRORS as error:
        raise _opening_error(path, source, member, error) from None
    with file:
        first, frames = part or (0, int(file.frames))
        if part and frames == 0:
            raise AudioError(f"{path}: names 0 samples. Correct the range.")
        if part and first + frames > file.frames:
            raise AudioError(
                f"{path}: the file has {file.frames} samples, fewer than {first} + {frames}. "
                "Correct the range."
            )
        yield OpenSound(path, file, first, frames, ranged=part is not None, repaired=repaired)


def _read_member(path: str | Path, archive: Path, start: int, size: int) -> bytes:
    if isinstance(archive, RemotePath):
        if start + size > archive.size:
            raise AudioError(f"{path}: the archive has {archive.size} bytes, fewer than {start} + {size}.")
        return archive.read_range(start, size)
    with as_on_disk(archive).open("rb", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        if start + size > end:
            raise AudioError(f"{path}: the archive has {end} bytes, fewer than {start} + {size}.")
        return os.pread(file.fileno(), size, start)


def _open_file(path: str | Path, source: Path, stored: bytes | None) -> tuple[soundfile.SoundFile, bool]:
    """Open `stored`, the bytes of a file, or else `source`; also return whether the header was repaired."""
    if stored is not None:
        file = soundfile.SoundFile(io.BytesIO(stored))
    else:
        try:
            file = soundfile.SoundFile(os.fspath(source))
        except (soundfile.LibsndfileError, UnicodeEncodeError):
            named, source = source, as_on_disk(source)
            if _opens_by_content_only(source):
                file = soundfile.SoundFile(io.BytesIO(source.read_bytes()))
            elif source != named:
                file = soundfile.SoundFile(os.fspath(source))
            else:
                raise
    # libsndfile reads truncated files without an error and mentions it only in its log.
    if sizes := DATA_SIZES.search(file.extra_info):
        stated, actual = map(int, sizes.groups())
        if actual < stated < STREAMED:
            file.close()
            raise AudioError(
                f"{path}: is shorter than its header states ({actual} of {stated} bytes). {HINT_REPLACE}"
            )
    if file.format in ("WAV", "WAVEX") and file.frames == 0:
        repaired = _repair_size(source.read_bytes() if stored is None else stored)
        if repaired is not None:
            file.close()
            return soundfile.SoundFile(io.BytesIO(repaired)), True
    return file, False


def _opens_by_content_only(path: Path) -> bool:
    """Return whether libsndfile cannot open an existing file by its path.

    Its name may not be valid UTF-8, or libsndfile may try to read its resource fork "._NAME" of macOS.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return is_file(path)
    return is_file(path) and is_file(path.with_name(f"._{path.name}"))


def _repair_size(wav: bytes) -> bytes | None:
    """Set the size of a WAV data chunk of 0 bytes to that of the rest of the file, if bytes follow.

    A recorder that is switched off while recording leaves the size at 0.
    """
    offset = 12
    while offset + 8 <= len(wav):
        name, size = struct.unpack_from("<4sI", wav, offset)
        offset += 8
        if name == b"data":
            rest = len(wav) - offset
            if size or not rest or _is_chunks(wav[offset:]):
                return None
            return wav[: offset - 4] + struct.pack("<I", rest) + wav[offset:]
        offset += size + size % 2
    return None


def _is_chunks(rest: bytes) -> bool:
    """Return whether bytes consist of RIFF chunks, which may follow an empty data chunk."""
    offset = 0
    while offset + 8 <= len(rest) and rest[offset : offset + 4].isascii():
        size = struct.unpack_from("<I", rest, offset + 4)[0]
        offset += 8 + size + size % 2
    return offset in (len(rest), len(rest) + 1)


def _opening_error(
    path: str | Path, source: Path, member: tuple[int, int] | None, error: BaseException
) -> AudioError:
    source = as_on_disk(source)
    if not is_file(source):
        if os.path.isdir(source):  # noqa: PTH112 - as in `is_file`
            return AudioError(f"{path}: is a folder, not a sound file.")
        return AudioError(f"{path}: there is no such sound file.")
    if member and source.suffix.lower() == ".zip" and _is_compressed(source, member[0]):
        return AudioError(
            f"{path}: is compressed in its archive. Store it uncompressed (zip -0), or unpack the archive."
        )
    # libsndfile's prefix with the name of the file is omitted.
    why = error.error_string if isinstance(error, soundfile.LibsndfileError) else error
    return AudioError(f"{path}: cannot be read as sound ({why}). {HINT_REPLACE}")


def _is_compressed(archive: Path, start: int) -> bool:
    """Return whether the member of a zip archive that contains the byte `start` is compressed."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if member.header_offset <= start]
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    nearest = max(members, key=lambda member: member.header_offset, default=None)
    return nearest is not None and nearest.compress_type != zipfile.ZIP_STORED
