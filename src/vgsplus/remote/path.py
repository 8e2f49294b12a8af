"""Paths of files in object stores and on web servers, read by ranges with fsspec.

A range is read once: it is kept in the cache (`vgsplus.remote.cache`) under the version of its file, which is
its size, and its ETag or date. A file that changes while it is in use is an error.
"""

import functools
import io
import itertools
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vgsplus.errors import CorpusError, DownloadError, VgsplusError
from vgsplus.remote import cache

if TYPE_CHECKING:
    from aiohttp import ClientResponse
    from fsspec import AbstractFileSystem

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?=[^/])")
"""Matches the start of a URL, also of one that was a Path, which keeps one slash."""
HTTP = ("http", "https")
BLOCK, SMALL = 1 << 20, 1 << 14
"""Bytes of a block, and of the shortest range that is not read as a part of a block."""
AT_ONCE = 16
"""Ranges that are requested at the same time."""
TIMEOUT = 30.0
"""Seconds without data after which a connection is closed."""
ATTEMPTS, ATTEMPTS_REFUSED = 10, 3
"""Requests before an error: 4 minutes with the pauses. Of those that the store refuses: 3 seconds."""
PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds to wait after the first failure, doubled after each, and their maximum."""
REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
VERSION_FIELDS = ("ETag", "etag", "generation", "LastModified", "Last-Modified", "last_modified", "mtime")
"""What drivers call the version of a file."""


class _MissingError(DownloadError):
    """There is no such file."""


class _Version(NamedTuple):
    """A version of a file.

    Attributes:
        size: bytes.
        name: differs between versions.
        condition: the value for If-Range (RFC 9110, section 13.1.5): a strong ETag, else the date.
    """

    size: int
    name: str
    condition: str | None


_versions: dict[str, _Version] = {}
"""Of the files that this process, or the one that it was forked from, has read."""


def locate(path: str | Path) -> Path:
    """Return a `RemotePath` for a URL, and a Path for everything else."""
    return RemotePath(path) if URL.match(os.fspath(path)) else Path(path)


class RemotePath(Path):
    """The URL of a file or folder. Folders cannot be listed: web servers have no common way to do so.

    Methods raise DownloadError if a file cannot be read, after attempts for four minutes, and CorpusError if
    it has changed since it was first read.
    """

    def __str__(self) -> str:
        """Return the URL, of whose two slashes a Path keeps one."""
        return URL.sub(r"\1://", super().__str__(), count=1)

    def forget_versions(self) -> None:
        """Let files below this one be of another version than those read so far."""
        for url in [url for url in _versions if url.startswith(f"{self}/")]:
            del _versions[url]

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self._version().size

    @property
    def version(self) -> str:
        """A name that another version of the file, as far as the server tells them apart, does not have."""
        version = self._version()
        return f"{version.size} {version.name}"

    def read_range(self, start: int, size: int) -> bytes:
        """Return `size` bytes from byte `start`, fewer at the end of the file."""
        if size < SMALL:
            return self.read_in_blocks(start, size)
        version = self._version()
        return self._read(version, start, min(size, version.size - start))

    def read_in_blocks(self, start: int, size: int) -> bytes:
        """Like `read_range`, but request and keep the blocks that hold these bytes."""
        version, pieces = self._version(), []
        end = min(start + size, version.size)
        for block in range(start // BLOCK * BLOCK, end, BLOCK):
            first, last = max(start, block), min(end, block + BLOCK)
            pieces.append(
                self._read(version, block, min(BLOCK, version.size - block), first - block, last - first)
            )
        return b"".join(pieces)

    def keeps(self, start: int, size: int) -> bool:
        """Return whether the range of `size` bytes from byte `start` is known to be in the cache."""
        version = _versions.get(str(self))
        if version is None:
            return False
        size = min(size, version.size - start)
        return cache.has(self._name(version, start, size), size)

    def read_bytes(self) -> bytes:
        """Return the content of the file."""
        return self.read_in_blocks(0, self.size)

    def open(self, mode: str = "rb") -> io.BufferedReader:  # type: ignore[override]
        """Open the file, which is read in blocks."""
        assert mode == "rb"
        return io.BufferedReader(_RemoteFile(self), BLOCK)

    def is_file(self) -> bool:
        """Return whether there is such a file."""
        try:
            self._version()
        except _MissingError:
            return False
        return True

    def exists(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002 - of the base class
        """Return whether there is such a file."""
        return self.is_file()

    def is_dir(self) -> bool:
        """Return True: every URL may be the start of others."""
        return True

    def absolute(self) -> "RemotePath":
        """Return the path itself."""
        return self

    def iterdir(self) -> Iterator["RemotePath"]:  # type: ignore[override]
        """Return nothing, because folders cannot be listed."""
        return iter(())

    def glob(self, *_: object, **__: object) -> Iterator["RemotePath"]:  # type: ignore[override]
        """Return nothing, because folders cannot be listed."""
        return iter(())

    def _version(self) -> _Version:
        url = str(self)
        if url not in _versions:
            info = _patiently(url, lambda: _file_system(url).info(url))
            if info.get("size") is None:
                raise DownloadError(f"{url}: the server does not state its size. Use another server.")
            fields = [f"{key}={info[key]}" for key in VERSION_FIELDS if info.get(key) is not None]
            tag = info.get("ETag")
            condition = info.get("Last-Modified") if tag is None or tag.startswith("W/") else tag
            _versions[url] = _Version(int(info["size"]), " ".join(fields), condition)
        return _versions[url]

    def _read(
        self, version: _Version, start: int, size: int, first: int = 0, count: int | None = None
    ) -> bytes:
        """Return a range of `size` bytes from byte `start`, or `count` bytes of it from its byte `first`."""
        if size <= 0:
            return b""
        name = self._name(version, start, size)
        kept = cache.load(name, size, first, count)
        if kept is not None:
            return kept
        content = _patiently(str(self), lambda: _request(str(self), version, start, size))
        cache.save(name, content)
        return content if count is None else content[first : first + count]

    def _name(self, version: _Version, start: int, size: int) -> str:
        return f"{self} {version.size} {version.name} {start} {size}"


class _RemoteFile(io.RawIOBase):
    """An open file: reads a block or the rest of one at a time."""

    def __init__(self, path: RemotePath) -> None:
        self._path, self._position = path, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._path.size}[whence]
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any buffer
        size = min(len(buffer), BLOCK - self._position % BLOCK)
        content = self._path.read_in_blocks(self._position, size)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def fetch_ranges(ranges: Iterable[tuple[RemotePath, int, int]]) -> None:
    """Bring ranges (file, start, size) into the cache, several at a time."""
    kept_as = (
        (file, start // BLOCK * BLOCK, BLOCK) if size < SMALL else (file, start, size)
        for file, start, size in ranges
    )
    missing = [part for part in dict.fromkeys(kept_as) if not part[0].keeps(*part[1:])]
    if missing:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            deque(pool.map(lambda part: part[0].read_range(*part[1:]), missing), maxlen=0)


def _scheme(url: str) -> str:
    return url.partition(":")[0].lower()


# ---- requests ---------------------------------------------------------------------------------------------


def _file_system(url: str) -> "AbstractFileSystem":
    """Return the driver for a URL.

    Raises:
        DownloadError: it is unknown or not installed.
    """
    scheme = _scheme(url)
    try:
        return _open_file_system(scheme, os.getpid())
    except ImportError as error:
        raise DownloadError(f"{url}: the driver for {scheme}:// is not installed ({error}).") from None
    except ValueError as error:
        raise DownloadError(f"{url}: cannot be opened ({error}).") from None


@functools.cache
def _open_file_system(scheme: str, _process: int) -> "AbstractFileSystem":
    """Open a driver in this process: connections do not outlive a fork."""
    import fsspec  # noqa: PLC0415 - of use only where a corpus is remote

    options: dict[str, Any] = {}
    if scheme in HTTP:
        from aiohttp import ClientTimeout  # noqa: PLC0415 - likewise

        options["client_kwargs"] = {
            "trust_env": True,  # proxies
            "timeout": ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT),
            "headers": {"Accept-Encoding": "identity"},
            "raise_for_status": _check_response,
        }
    return fsspec.filesystem(scheme, skip_instance_cache=True, **options)


def _request(url: str, version: _Version, start: int, size: int) -> bytes:
    """Request a range; of an HTTP server, only of this version of the file."""
    driver = _file_system(url)
    options = {}
    if _scheme(url) in HTTP and version.condition is not None:
        options["headers"] = driver.kwargs.get("headers", {}) | {"If-Range": version.condition}
    content: bytes = driver.cat_file(url, start, start + size, **options)
    if len(content) != size:
        raise OSError(f"sent {len(content)} of {size} bytes")
    return content


async def _check_response(response: "ClientResponse") -> None:
    """Refuse the response to a request of a range before its content is received, if it is another one.

    Raises:
        ClientResponseError: the request failed.
        CorpusError: the file has changed.
        DownloadError: the server ignores ranges.
    """
    response.raise_for_status()
    asked = response.request_info.headers
    part = re.fullmatch(r"bytes=(\d+)-(\d+)", asked.get("Range", ""))
    if part is None:
        return
    versions = {response.headers.get(name) for name in ("ETag", "Last-Modified")} - {None}
    if versions and asked.get("If-Range", next(iter(versions))) not in versions:
        raise CorpusError(
            f"{response.url}: has changed since it was opened. Open the corpus again; a run: resume it."
        )
    whole = response.status == HTTPStatus.OK
    if whole and response.content_length != int(part[2]) + 1 - int(part[1]):
        raise DownloadError(f"{response.url}: the server does not support ranges. Use another server.")


def _patiently[T](url: str, request: Callable[[], T]) -> T:
    """Return what a request returns, repeated if it fails.

    Raises:
        DownloadError: it failed every time.
    """
    for attempt in itertools.count(1):
        try:
            return request()
        except VgsplusError:
            raise
        except Exception as error:  # noqa: BLE001 - drivers raise exceptions of many types
            # fsspec reports every failure of an HTTP server to describe a file as a missing file.
            cause = error.__cause__ or error
        status = getattr(cause, "status", None)
        refused = status in REFUSED or isinstance(cause, (FileNotFoundError, PermissionError))
        if attempt >= (ATTEMPTS_REFUSED if refused else ATTEMPTS):
            break
        time.sleep(min(PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE))
    missing = status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE) or isinstance(cause, FileNotFoundError)
    why = f"responded {status} {getattr(cause, 'message', '')}".strip() if status else str(cause)
    raise (_MissingError if missing else DownloadError)(
        f"{url}: cannot be read ({why or type(cause).__name__}; {attempt} attempts). Check the address, the "
        "network and the access rights, or try again later."
    )
