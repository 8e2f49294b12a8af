"""Unpack archives into a temporary folder that is renamed when complete; nothing is written outside it."""

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
    RuntimeError,  # of zipfile: encrypted, or compressed in an unknown way
)


def kind_of(path: Path) -> str | None:
    """Return the kind of an archive by its first bytes, "gzip" or "zip", or None."""
    with path.open("rb") as file:
        return {b"\x1f\x8b": "gzip", b"PK": "zip"}.get(file.read(2))


def unpacked_size(path: Path) -> int:
    """Return the bytes that a zip unpacks to; of a tar, a lower bound, its own size."""
    if kind_of(path) != "zip":
        return path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist())
    except zipfile.BadZipFile as error:
        raise _broken(path, error) from None


def unpack(path: Path, folder: Path, result: str, progress: Progress) -> None:
    """Unpack a .tar.gz or .zip so that `folder`/`result` appears, as the last thing.

    If the archive holds `result`, all its contents go into `folder`, replacing files but not folders;
    otherwise the folder `result` is created for them.

    Raises:
        DownloadError: it is broken, a member leaves the folder or is a link or device, or the disk is full.
            What was unpacked is removed.
    """
    temporary = folder / f".{path.name}.writing"
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
            f"{path} is kept: free disk space and run the same command."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _untar(path: Path, folder: Path, progress: Progress) -> None:
    stage, total = f"unpacking {path.name}", path.stat().st_size
    with path.open("rb") as raw, gzip.open(raw) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        while (member := tar.next()) is not None:
            _refuse_unsafe(path, member.name, plain=member.isreg() or member.isdir())
            tar.extract(member, folder, filter="data")
            # tarfile remembers every member; of a million small ones that is a gigabyte.
            tar.members.clear()  # type: ignore[attr-defined]
            progress.update(stage, raw.tell(), total)
        while stream.read(CHUNK):  # the checksum of gzip stands at the very end
            pass
    progress.update(stage, total, total)


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
                    progress.update(f"unpacking {path.name}", done, total)


def _refuse_unsafe(path: Path, name: str, *, plain: bool) -> None:
    """Refuse members outside the folder, and links, through which older tarfile modules leave it."""
    member = PurePosixPath(name)
    if member.is_absolute() or ".." in member.parts or "\\" in name:
        raise DownloadError(
            f"{path}: holds {name!r}, which leaves the folder. Nothing was unpacked; delete it."
        )
    if not plain:
        raise DownloadError(
            f"{path}: holds {name!r}, which is neither a file nor a folder. Nothing was unpacked; "
            "inspect it, and unpack it yourself if you trust it."
        )


def _publish(temporary: Path, folder: Path, result: str) -> None:
    """Move what was unpacked to its place, `result` last."""
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
    return DownloadError(f"{path}: is a broken archive ({error}). Delete it and run the same command.")
