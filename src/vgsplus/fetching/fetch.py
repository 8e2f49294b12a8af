"""Download an archive, verify it and unpack it."""

from pathlib import Path

from vgsplus.errors import DownloadError
from vgsplus.fetching.archives import Archive
from vgsplus.fetching.download import Download, find_fault, require_space
from vgsplus.fetching.unpack import unpack, unpacked_size
from vgsplus.files import lock_file
from vgsplus.progress import SILENT, Progress


def fetch(
    archive: Archive, folder: Path, *, mirrors: tuple[str, ...] = (), progress: Progress = SILENT
) -> Path:
    """Download and unpack an archive in `folder`, unless it is unpacked already; return the unpacked folder.

    The archive is kept; an existing one is verified, not downloaded. An interrupted download is resumed. Web
    folders in `mirrors` are tried first, in order. The stages of `progress` are in bytes downloaded, verified
    and unpacked.

    Raises:
        DownloadError: the file is not available at any address, disk space is insufficient, another process
            is downloading it, an existing file is not the published one, or the archive cannot be unpacked.
    """
    result, path = folder / archive.unpacks_to, folder / archive.file
    for mirror in mirrors:
        if not mirror.startswith(("http://", "https://")):
            raise DownloadError(f"--mirror {mirror}: must begin with http:// or https://")
    if result.exists():
        return result
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(f"{folder}: cannot be written ({error.strerror}). Name another folder.") from None
    try:
        with lock_file(folder / f".{archive.file}.lock"):
            if result.exists():
                return result
            if not path.exists():
                Download(archive, path, progress).run(archive.addresses(mirrors))
            elif fault := find_fault(archive, path, progress):
                raise DownloadError(f"{path}: {fault}. Delete it to download it again.")
            require_space(folder, unpacked_size(path), f"{path}: to unpack it")
            unpack(path, folder, archive.unpacks_to, progress)
    except BlockingIOError as error:
        raise DownloadError(f"{path}: {error.strerror} is downloading it. Wait for it to end.") from None
    return result
