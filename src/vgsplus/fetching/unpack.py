"""Unpack archives into a temporary folder that is moved into place when complete."""

import gzip
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from stat import S_ISLNK

from vgsplus.errors import DownloadError
from vgsplus.progress import Progress

CHUNK = 1 << 20
BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    RuntimeError,  # zipfile: encrypted, or unknown compression
)
"""Exceptions for broken archives."""


def archive_format(path: Path) -> str | None:
    """Return "gzip" or "zip" by the first bytes of a file, or None."""
    with path.open("rb") as file:
        return {b"\x1f\x8b": "gzip", b"PK": "zip"}.get(file.read(2))


def unpacked_size(path: Path) -> int:
    """Return the number of bytes that a zip unpacks to; for a tar.gz a lower bound, its own size."""
    if archive_format(path) != "zip":
        return path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist())
    except zipfile.BadZipFile as error:
        raise _broken(path, error) from None


def unpack(path: Path, folder: Path, result: str, progress: Progress) -> None:
    """Unpack a .tar.gz or .zip; `folder`/`result` is created last, when everything else is in place.

    If the archive contains `result`, its members are moved to `folder`, where they replace files but not
    folders. Otherwise all of them are moved to `folder`/`result`.

    Raises:
        DownloadError: the archive is broken, a member lies outside `folder` or is a link or device, or the
            disk is full. Unpacked files are removed.
    """
    temporary = folder / f".{path.name}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    extract = _unzip if archive_format(path) == "zip" else _untar
    try:
        temporary.mkdir()
        extract(path, temporary, progress)
        _publish(temporary, folder, result)
    except BROKEN as error:
        raise _broken(path, error) from None
    except OSError as error:
        raise DownloadError(
            f"{temporary}: cannot be written ({error.strerror or error}), and was removed. "
            f"{path} is kept: free disk space, and run the same command again."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _untar(path: Path, folder: Path, progress: Progress) -> None:
    stage, total = f"unpacking {path.name}", path.stat().st_size
    with path.open("rb") as raw, gzip.open(raw) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        while (member := tar.next()) is not None:
            _check_member(path, member.name, plain=member.isreg() or member.isdir())
            tar.extract(member, folder, filter="data")
            # tarfile keeps every member in memory: about 1 GB for a million small files.
            tar.members.clear()  # type: ignore[attr-defined]
            progress.update(stage, raw.tell(), total)
        while stream.read(CHUNK):  # gzip verifies its checksum at the end
            pass
    progress.update(stage, total, total)


def _unzip(path: Path, folder: Path, progress: Progress) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            _check_member(path, member.filename, plain=not S_ISLNK(member.external_attr >> 16))
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
                    progress.update(f"unpacking {path.name}", done, total)


def _check_member(path: Path, name: str, *, plain: bool) -> None:
    """Raise for members outside of the folder and for links, which could lead outside of it."""
    member = PurePosixPath(name)
    if member.is_absolute() or ".." in member.parts or "\\" in name:
        raise DownloadError(
            f"{path}: contains {name!r}, which lies outside of the folder. Nothing was unpacked; delete it."
        )
    if not plain:
        raise DownloadError(
            f"{path}: contains {name!r}, which is neither a file nor a folder. Nothing was unpacked; "
            "inspect it, and unpack it yourself if you trust it."
        )


def _publish(temporary: Path, folder: Path, result: str) -> None:
    """Move the unpacked files to `folder`, `result` last."""
    target, found = folder / result, temporary / result
    target.parent.mkdir(parents=True, exist_ok=True)
    if not found.exists():
        temporary.rename(target)
        return
    parents = [temporary, *(temporary / parent for parent in reversed(PurePosixPath(result).parents[:-1]))]
    for parent in parents:
        for entry in parent.iterdir():
            destination = folder / entry.relative_to(temporary)
            if entry != found and entry not in parents and not destination.is_dir():
                entry.replace(destination)
    found.rename(target)


def _broken(path: Path, error: Exception) -> DownloadError:
    return DownloadError(f"{path}: is a broken archive ({error}). Delete it, and run the same command again.")
