"""Download a file from one of several addresses, resumable and verified.

The file NAME is created when it is complete. Until then its bytes are in NAME.part, and NAME.part.json
contains the address that they were received from, and the validator (ETag or Last-Modified) of the file
there. Range and If-Range: RFC 9110, sections 13 and 14.
"""

import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

from vgsplus.errors import DownloadError
from vgsplus.fetching.archives import Archive
from vgsplus.fetching.unpack import CHUNK, archive_format
from vgsplus.files import atomic_file
from vgsplus.progress import Progress

TIMEOUT = 30.0
"""Seconds without data after which a connection is closed."""
ATTEMPTS = 5
"""Consecutive connections without new bytes after which the next address is tried."""
PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds to wait after the first of these connections, doubled after each, and their maximum."""
TRANSIENT = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
"""Client errors after which the request is repeated, as after all server errors (500 and above)."""


class _TransientError(Exception):
    """A request failed and should be repeated."""


class _PermanentError(Exception):
    """The file is not available at an address."""


class Download:
    """Download of an archive to `path`; the stages of `progress` are in bytes downloaded and verified."""

    def __init__(self, archive: Archive, path: Path, progress: Progress) -> None:
        self.path = path
        self.part = path.with_name(f"{path.name}.part")
        self._origin_file = path.with_name(f"{path.name}.part.json")
        self._archive = archive
        self._progress = progress
        self._open = urllib.request.build_opener().open

    def run(self, urls: Sequence[str]) -> None:
        """Download the file from the first of `urls` where it is available.

        Raises:
            DownloadError: the file is not available at any address (the message states why, for each), or the
                disk is full. The bytes received are kept.
        """
        reasons = []
        for url in urls:
            try:
                self._download(url)
            except _PermanentError as error:
                reasons.append(f"  {url}: {error}")
            else:
                self.part.replace(self.path)
                self._origin_file.unlink(missing_ok=True)
                return
        size = self._size()
        kept = f"{size} bytes are kept in {self.part}; the same command resumes. " if size else ""
        raise DownloadError(
            "\n".join([f"{self.path}: could not be downloaded.", *reasons])
            + f"\n{kept}Try again later, or name another address with --mirror."
        )

    def _download(self, url: str) -> None:
        """Receive the file from one address and verify it."""
        resumed = self._size() > 0
        self._receive_all(url)
        if fault := find_fault(self._archive, self.part, self._progress):
            self._discard()
            if not resumed:
                raise _PermanentError(f"{fault}; the bytes received were deleted")
            self._download(url)  # once more, because the bytes received earlier may be of another version

    def _receive_all(self, url: str) -> None:
        """Connect until the file is complete, or until several connections brought no new bytes."""
        received, failures = self._received(url), 0
        while True:
            try:
                self._connect(url)
            except _TransientError as error:
                failures = 1 if self._received(url) > received else failures + 1
                received = max(received, self._received(url))
                if failures >= ATTEMPTS:
                    times = f"{failures} times in a row" if failures > 1 else "once"
                    raise _PermanentError(f"{error} ({times})") from None
                time.sleep(min(PAUSE * 2 ** (failures - 1), LONGEST_PAUSE))
            else:
                return

    def _connect(self, url: str) -> None:
        """Receive the missing bytes over one connection."""
        size, start = self._size(), self._size()
        if size == self._archive.size:
            return
        origin, validator = self._origin()
        validator = validator if origin == url else None
        too_long = self._archive.size is not None and size > self._archive.size
        if too_long or (self._archive.checksum is None and validator is None):
            start = 0
        headers = {"User-Agent": "vgsplus", "Accept-Encoding": "identity"}
        if start:
            headers |= {"Range": f"bytes={start}-"} | ({"If-Range": validator} if validator else {})
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - addresses are http or https
        try:
            response = self._open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            with error:
                if not self._is_complete(error, start):
                    raise _status_error(error) from None
            return
        except (OSError, http.client.HTTPException) as error:
            raise _connection_error(error) from None
        with response:
            first, total = self._prepare_part(response, start, validator)
            self._receive(response, url, first, total)

    def _is_complete(self, error: urllib.error.HTTPError, start: int) -> bool:
        """Return whether a range was refused because no bytes are missing; if not, restart from byte 0."""
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return False
        if (
            self._archive.size is None
            and error.headers.get("Content-Range", "").strip() == f"bytes */{start}"
        ):
            return True
        self._discard()
        raise _TransientError(f"refused the range from byte {start}")

    def _prepare_part(
        self, response: http.client.HTTPResponse, start: int, validator: str | None
    ) -> tuple[int, int | None]:
        """Check a response; delete the .part if it starts at byte 0. Return its first byte, the file size."""
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            content_range = response.headers.get("Content-Range", "")
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range.strip())
            if match is None:
                raise _PermanentError(f"sent a part with the invalid Content-Range {content_range!r}")
            first, total = int(match[1]), None if match[2] == "*" else int(match[2])
            changed = start > 0 and None not in (validator, new := _validator(response)) and validator != new
            if first != start or changed:
                self._discard()
                raise _TransientError(
                    "the file has changed" if changed else "sent another part than requested"
                )
        elif response.status == HTTPStatus.OK:
            length = response.headers.get("Content-Length", "")
            first, total = 0, int(length) if length.isdecimal() else None
        else:
            raise _PermanentError(f"responded {response.status} {response.reason}")
        size = self._archive.size
        if None not in (size, total) and total != size:
            raise _PermanentError(
                f"its file has {total} bytes, the published one {size}; it is another file, or an error page"
            )
        total = size or total
        if total is not None:  # the unpacked files are at least as large as the archive
            require_space(
                self.path.parent, 2 * total - first, f"{self.path}: to download and unpack it, at least"
            )
        if first == 0:
            self._discard()
        return first, total

    def _receive(
        self, response: http.client.HTTPResponse, url: str, received: int, total: int | None
    ) -> None:
        """Append a response to the .part, and write its address and validator to NAME.part.json."""
        stage = f"downloading {self.path.name}"
        self._progress.update(stage, received, total)
        try:
            with atomic_file(self._origin_file) as file:
                file.write(json.dumps({"url": url, "validator": _validator(response)}).encode())
            with self.part.open("ab") as file:
                while block := _read(response):
                    received += len(block)
                    if total is not None and received > total:
                        break
                    file.write(block)
                    self._progress.update(stage, received, total)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DownloadError(
                f"{self.part}: cannot be written ({error.strerror or error}). {self._size()} bytes are kept: "
                "free disk space, and run the same command to resume."
            ) from None
        if total is not None and received > total:
            self._discard()
            raise _PermanentError(f"sent more than the {total} bytes of the file")
        if total is not None and received < total:
            raise _TransientError(f"the connection was closed after {received} of {total} bytes")

    # ---- the .part ----------------------------------------------------------------------------------------

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _origin(self) -> tuple[str, str | None]:
        """Return the address and validator of the bytes in the .part; ("", None) if unknown."""
        try:
            origin = json.loads(self._origin_file.read_text(encoding="utf-8"))
            return str(origin["url"]), None if origin["validator"] is None else str(origin["validator"])
        except (OSError, ValueError, KeyError, TypeError):
            return "", None

    def _received(self, url: str) -> int:
        """Return the size of the .part, 0 if its bytes are from another address."""
        return self._size() if self._origin()[0] == url else 0

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self._origin_file.unlink(missing_ok=True)


def find_fault(archive: Archive, path: Path, progress: Progress) -> str | None:
    """Return why a complete file is not the published archive (by size, checksum or first bytes), or None."""
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        return f"has {size} bytes, the published file {archive.size}"
    if archive.checksum is None:
        return None if archive_format(path) else "is not a .tar.gz or .zip file; it may be an error page"
    kind, published = archive.checksum
    digest, done = hashlib.new(kind, usedforsecurity=False), 0
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
            done += len(block)
            progress.update(f"verifying {path.name}", done, size)
    found = digest.hexdigest()
    return None if found == published else f"has the {kind} checksum {found}, the published file {published}"


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise DownloadError if fewer than `needed` bytes are free in `folder`."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{purpose}, {needed} bytes are needed, and {free} are free. Free disk space, or name another "
            "folder."
        )


def _validator(response: http.client.HTTPResponse) -> str | None:
    """Return the value for If-Range: a strong ETag, else the date. Weak ETags are not allowed there."""
    tag, date = response.headers.get("ETag"), response.headers.get("Last-Modified")
    found = tag if tag is not None and not tag.startswith("W/") else date
    return None if found is None else str(found)


def _read(response: http.client.HTTPResponse) -> bytes:
    """Return the next bytes of a response; none at its end or if the connection was closed."""
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _connection_error(error) from None


def _connection_error(error: OSError | http.client.HTTPException) -> _TransientError | _PermanentError:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _PermanentError(f"its certificate is not trusted ({cause.verify_message})")
    if isinstance(cause, TimeoutError):
        return _TransientError("did not respond in time")
    return _TransientError(str(cause) or type(cause).__name__)


def _status_error(error: urllib.error.HTTPError) -> _TransientError | _PermanentError:
    message = f"responded {error.code} {error.reason}".strip()
    retry = error.code in TRANSIENT or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR
    return _TransientError(message) if retry else _PermanentError(message)
