"""Unpacking: beside the target, then renamed, so that a folder is whole or not there; nothing outside it."""

import gzip
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from stat import S_ISLNK

from vgsplus.errors import DownloadError
from vgsplus.fetching.download import CHUNK, Progress

MAGIC = {b"\x1f\x8b": "gzip", b"PK": "zip"}
"""How the files begin that can be unpacked."""
BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    RuntimeError,  # of zipfile: encrypted, or compressed in an unknown way
)


def kind_of(path: Path) -> str | None:
    """Which kind of archive a file is, "gzip" or "zip", by its first bytes; None if neither."""
    with path.open("rb") as file:
        return MAGIC.get(file.read(2))


def unpacked_size(path: Path) -> int:
    """The bytes that an archive unpacks to: exactly for a zip; for a tar, at least, its own size."""
    if kind_of(path) != "zip":
        return path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist())
    except zipfile.BadZipFile as error:
        raise _broken(path, error) from None


def unpack(path: Path, folder: Path, result: str, progress: Progress) -> None:
    """Unpack a .tar.gz or .zip so that `folder`/`result` is there, the last thing to appear.

    Where the archive holds `result`, all of it goes into `folder`, replacing single files that are there and
    leaving folders; any other layout becomes the folder `result` as it is.

    Raises:
        DownloadError: it is broken, a member leaves the folder or is a link or device, or the disk is full.
            What was unpacked is removed.
    """
    temporary = folder / f".{path.name}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)
    extract = _unzip if kind_of(path) == "zip" else _untar
    try:
        temporary.mkdir()
        extract(path, temporary, progress)
        _publish(temporary, folder, result)
    except BROKEN as error:
        raise _broken(path, error) from None
    except OSError as error:
        raise DownloadError(
            f"{temporary}: cannot be written ({error.strerror or error}), and is removed. "
            f"{path} stays: make room and give the same command."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _untar(path: Path, folder: Path, progress: Progress) -> None:
    total = path.stat().st_size
    with path.open("rb") as raw, gzip.open(raw) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        while (member := tar.next()) is not None:
            _refuse_unsafe(path, member.name, plain=member.isreg() or member.isdir())
            tar.extract(member, folder, filter="data")
            # tarfile remembers every member; of a million small ones that is a gigabyte.
            tar.members.clear()  # type: ignore[attr-defined]
            progress(f"unpacking {path.name}", raw.tell(), total)
        while stream.read(CHUNK):  # the checksum of gzip stands at the very end
            pass
    progress(f"unpacking {path.name}", total, total)


def _unzip(path: Path, folder: Path, progress: Progress) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            _refuse_unsafe(path, member.filename, plain=not S_ISLNK(member.external_attr >> 16))
        done, total = 0, sum(member.file_size for member in members)
        for member in members:
            target = folder / member.filename
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as file:
                while block := source.read(CHUNK):
                    file.write(block)
                    done += len(block)
                    progress(f"unpacking {path.name}", done, total)


def _refuse_unsafe(path: Path, name: str, *, plain: bool) -> None:
    """Refuse members outside the folder; links too, by which older tarfile modules are led out of it."""
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts or "\\" in name:
        raise DownloadError(
            f"{path}: holds {name!r}, which leaves the folder. Nothing was unpacked; delete it."
        )
    if not plain:
        raise DownloadError(
            f"{path}: holds {name!r}, which is neither a file nor a folder. Nothing was unpacked; "
            "look at it, and unpack it yourself if you trust it."
        )


def _publish(temporary: Path, folder: Path, result: str) -> None:
    """Move what was unpacked to its place, `result` last."""
    target, found = folder / result, temporary / result
    target.parent.mkdir(parents=True, exist_ok=True)
    if not found.exists():
        temporary.rename(target)
        return
    way = [temporary, *(temporary / parent for parent in reversed(PurePosixPath(result).parents[:-1]))]
    for place in way:
        for entry in place.iterdir():
            beside = folder / entry.relative_to(temporary)
            if entry == found or entry in way or beside.is_dir():
                continue
            entry.replace(beside)
    found.rename(target)


def _broken(path: Path, error: Exception) -> DownloadError:
    return DownloadError(f"{path}: is a broken archive ({error}). Delete it and give the same command.")
