"""Read text, find files whatever the Unicode form of their names, write atomically, lock."""

import errno
import fcntl
import functools
import hashlib
import os
import shutil
import socket
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path

from vgsplus.errors import VgsplusError
from vgsplus.remote import RemotePath

GIT_LFS = b"version https://git-lfs"
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""Errors from file systems without lock support (some clusters); locking is skipped there."""


def read_text(path: Path) -> str:
    """Read a UTF-8 file, without the byte-order mark of Windows programs.

    Raises:
        VgsplusError: it is not UTF-8; names the line of the first invalid byte.
        OSError: it does not exist or cannot be read.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise VgsplusError(f"{path}:{line}: is not UTF-8 text. Save it as UTF-8.") from None


def is_file(path: Path) -> bool:
    """Return whether a file exists; False instead of an error for invalid names (too long, or with NUL)."""
    if isinstance(path, RemotePath):
        return path.is_file()
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for these names


def file_identity(path: Path) -> object:
    """Return a key that is equal for all links to a file and spellings of its path.

    It is the path itself if there is no such file.
    """
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return path
    return stat.st_dev, stat.st_ino


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_pointer(path: Path) -> bool:
    """Return whether a file is what Git leaves in place of a large file that Git LFS did not fetch."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(GIT_LFS)) == GIT_LFS


def nfc(text: str) -> str:
    """Return a text in the composed Unicode form NFC, for comparisons of names."""
    return unicodedata.normalize("NFC", text)


def as_on_disk(path: Path) -> Path:
    """Return a path spelled in the Unicode form that it has on disk; the path itself if nothing matches.

    "ü" is one character (NFC) in most lists of files, but two (NFD) in file names written by macOS.
    """
    if str(path).isascii() or os.path.exists(path):  # noqa: PTH110 - Path.exists raises for some names
        return path
    found = Path(path.anchor)
    for name in path.parts[1 if path.anchor else 0 :]:
        try:
            if (exact := found / name).exists():
                found = exact
                continue
            found /= _names_by_nfc(found, found.stat().st_mtime_ns)[nfc(name)]
        except (OSError, ValueError, KeyError):
            return path
    return found


@functools.lru_cache(maxsize=64)
def _names_by_nfc(folder: Path, _: int) -> dict[str, str]:
    """Map the NFC form of each name in a folder to the name; the mtime `_` invalidates the cache."""
    return {nfc(path.name): path.name for path in folder.iterdir()}


def files_below(folder: Path) -> Iterator[Path]:
    """Yield every file at any depth below a folder, sorted by path; links are followed.

    Links to a folder that contains them are skipped, as are the files "._NAME" and "__MACOSX" of macOS.

    Raises:
        VgsplusError: a folder cannot be read.
    """

    def walk(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
        real = folder.resolve()
        if real in above:
            return
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            raise VgsplusError(f"{folder}: cannot be read ({error.strerror}).") from None
        for path in paths:
            if path.name.startswith("._") or path.name == "__MACOSX":
                continue
            if path.is_dir():
                yield from walk(path, above | {real})
            elif path.is_file():
                yield path

    yield from walk(folder, frozenset())


@contextmanager
def atomic_file(path: Path) -> Iterator[BufferedWriter]:
    """Open a file for writing that is renamed to `path` once it is complete and flushed to disk.

    It is written as the hidden sibling `.NAME.writing`, which is removed after an error. If the process is
    killed, the next call overwrites it.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file by `atomic_file`, text as UTF-8."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Create a folder that is renamed to `path` at the end of the block.

    It is created as the hidden sibling `.NAME.writing`, which is removed after an error or, if the process is
    killed, by the next call. The files directly in it are flushed to disk before the folder is renamed. With
    `replace`, an existing folder is replaced, and restored if the new one cannot be renamed.

    Raises:
        OSError: the folder cannot be written, or `path` exists and is not to be replaced.
    """
    temporary, replaced = (path.with_name(f".{path.name}.{state}") for state in ("writing", "replaced"))
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        if replace and path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            path.rename(replaced)
        try:
            temporary.rename(path)
        except OSError:
            if replace and replaced.exists():
                replaced.rename(path)
            raise
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if replace:
        shutil.rmtree(replaced, ignore_errors=True)


def _sync(path: Path) -> None:
    """Flush a file or the entries of a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Lock a file, which is removed on exit. The system releases the lock if the process is killed.

    Raises:
        BlockingIOError: another process holds it; its `strerror` names that process, as "process 7 on host".
        OSError: the file cannot be written.
    """
    with path.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another process may have released and removed the file after it was opened here.
            busy = not (path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno())))
        except OSError as error:
            if not isinstance(error, BlockingIOError) and error.errno not in NO_LOCKS:
                raise
            busy = isinstance(error, BlockingIOError)
        if busy:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise BlockingIOError(errno.EWOULDBLOCK, holder, str(path))
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        os.register_at_fork(after_in_child=lock.close)  # a forked worker would keep the lock
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
