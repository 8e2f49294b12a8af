"""Fetching an archive: room, one process at a time, the download, its checksum, the unpacked folder."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vgsplus.errors import DownloadError
from vgsplus.fetching.archives import Archive, Checksum
from vgsplus.fetching.download import CHUNK, Download, Patience, Progress
from vgsplus.fetching.unpacking import kind_of, unpack, unpacked_size
from vgsplus.files import HeldError, holding

SCHEMES = ("http://", "https://")


def fetch(
    archive: Archive,
    folder: Path,
    *,
    mirrors: tuple[str, ...] = (),
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fetch an archive into `folder` and unpack it there, unless it is unpacked; the unpacked folder.

    The archive itself stays; one that is there is checked and used. An interrupted fetch is gone on with.

    Args:
        archive: An entry of the table.
        folder: Where the archive and what it unpacks to are to be; made if it is not there.
        mirrors: Folders of the web that may hold the archive under its own name, tried first, in order.
        patience: How long to wait for servers.
        progress: Called as progress(stage, bytes done, bytes in all or None).

    Raises:
        DownloadError: no address gives the file, there is no room, another process fetches it, the file
            that is there is not the published one, or the archive cannot be unpacked.
    """
    result, path = folder / archive.unpacks_to, folder / archive.file
    for mirror in mirrors:
        if not mirror.startswith(SCHEMES):
            raise DownloadError(f"--mirror {mirror}: must begin with http:// or https://")
    if result.exists():
        return result
    report = progress or _silence
    with _alone(folder, archive.file):
        if result.exists():
            return result
        if path.exists():
            if reason := _fault(archive, path, report):
                raise DownloadError(f"{path}: {reason}. Move it away to have it fetched.")
        else:
            _download(archive, path, mirrors, patience or Patience(), report)
        _require_room(folder, unpacked_size(path), f"{path}: to unpack it")
        unpack(path, folder, archive.unpacks_to, report)
    return result


def _download(
    archive: Archive, path: Path, mirrors: tuple[str, ...], patience: Patience, progress: Progress
) -> None:
    def room(have: int, total: int) -> None:
        unpacked = total  # at least: they are compressed
        _require_room(path.parent, total - have + unpacked, f"{path}: to fetch and unpack it, at least")

    download = Download(
        path,
        size=archive.size,
        fault=lambda part: _fault(archive, part, progress),
        certain=archive.checksum is not None,
        room=room,
        patience=patience,
        progress=progress,
    )
    download.run(archive.addresses(mirrors))


def _fault(archive: Archive, path: Path, progress: Progress) -> str | None:
    """What shows that a complete file is not the published archive, in words."""
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        return f"is {size} bytes, the published file {archive.size}"
    if archive.checksum is not None:
        digest = _digest(path, archive.checksum, progress)
        if digest != archive.checksum.value:
            return f"has the {archive.checksum.kind} {digest}, the published file {archive.checksum.value}"
    elif kind_of(path) is None:
        return "is no archive by its first bytes, perhaps a page that says why"
    return None


def _digest(path: Path, checksum: Checksum, progress: Progress) -> str:
    digest = hashlib.new(checksum.kind, usedforsecurity=False)
    done, total = 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
            done += len(block)
            progress(f"checking {path.name}", done, total)
    return digest.hexdigest()


def _require_room(folder: Path, needed: int, purpose: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{purpose}, {needed} bytes are needed, and {free} are free. Make room or name another folder."
        )


@contextmanager
def _alone(folder: Path, file: str) -> Iterator[None]:
    """While it is entered, no other process fetches this file into this folder."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(holding(folder / f".{file}.lock"))
        except HeldError as holder:
            raise DownloadError(f"{folder / file}: {holder} is fetching it. Wait for that to end.") from None
        except OSError as error:
            raise DownloadError(
                f"{folder}: cannot be written ({error.strerror}). Name another folder."
            ) from None
        yield


def _silence(_stage: str, _done: int, _total: int | None) -> None:
    pass
