"""One file from one of several addresses: gone on with where it broke off, there only when whole and right.

Until then its bytes lie in NAME.part, and NAME.part.json says which address they are from and by which
validator (ETag, or Last-Modified) that address knew them. What Range and If-Range mean: RFC 9110, 13 and 14.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from vgsplus.errors import DownloadError
from vgsplus.fetching.answers import (
    BrokenError,
    RefusedError,
    failure,
    length_of,
    range_of,
    refusal,
    validator_of,
)
from vgsplus.files import whole_file

CHUNK = 1 << 20
LONGEST_PAUSE = 60.0

type Progress = Callable[[str, int, int | None], None]
"""Called with (stage, bytes done, bytes in all or None where nobody knows) as the work goes on."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a server.

    Attributes:
        timeout: seconds without a byte after which a connection counts as broken.
        attempts: connections in a row that bring nothing new, after which the next address is tried.
        pause: seconds after the first of these; it doubles with each, up to a minute.
    """

    timeout: float = 30.0
    attempts: int = 5
    pause: float = 1.0


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where the bytes of a .part are from, and the strong validator of the file they are the start of."""

    url: str = ""
    validator: str | None = None


class Download:
    """One file on its way to `path`.

    Args:
        path: Where it is to be.
        size: Its bytes, where they are known for certain.
        fault: What is wrong with a complete file at a path, in words; None if nothing is.
        certain: Whether `fault` tells any wrong byte (by a checksum), so that addresses may be mixed.
        room: Called with (bytes that are here, bytes in all) before others come; raises if there is no room.
        progress: Follows the bytes.
    """

    def __init__(
        self,
        path: Path,
        *,
        size: int | None,
        fault: Callable[[Path], str | None],
        certain: bool,
        room: Callable[[int, int], None],
        patience: Patience,
        progress: Progress,
    ) -> None:
        self.path = path
        self.part = path.with_name(f"{path.name}.part")
        self._note = self.part.with_name(f"{self.part.name}.json")
        self._size = size
        self._fault = fault
        self._certain = certain
        self._room = room
        self._patience = patience
        self._progress = progress
        self._open = urllib.request.build_opener().open

    def run(self, urls: Sequence[str]) -> None:
        """Fetch the file from the first of `urls` that gives it.

        Raises:
            DownloadError: none does (the reason of each is told), or the disk is full. What was received
                stays.
        """
        reasons = []
        for url in urls:
            reason = self._try(url)
            if reason is None:
                self.part.replace(self.path)
                self._note.unlink(missing_ok=True)
                return
            reasons.append(f"  {url}: {reason}")
        told = "\n".join([f"{self.path}: no address gives this file.", *reasons])
        kept = f"{self.part} keeps {self._have()} bytes; the same command goes on with them. "
        raise DownloadError(
            f"{told}\n{kept if self._have() else ''}Try again later, or name another address with --mirror."
        )

    # ---- one address --------------------------------------------------------------------------------------

    def _try(self, url: str) -> str | None:
        """Receive the file from one address and check it: why it is not here, or None where it is."""
        inherited = self._have() > 0
        try:
            self._persist(url)
        except RefusedError as refused:
            return str(refused)
        if reason := self._fault(self.part):
            self._discard()
            # The wrong bytes may be those of another day or address.
            return self._try(url) if inherited else f"{reason}; what was received is removed"
        return None

    def _persist(self, url: str) -> None:
        """Connect until the file is whole, or until nothing new comes."""
        furthest, failures = self._received(url), 0
        while True:
            try:
                self._attempt(url)
            except BrokenError as broken:
                if self._received(url) > furthest:
                    furthest, failures = self._received(url), 0
                failures += 1
                if failures >= self._patience.attempts:
                    times = f"{failures} times in a row" if failures > 1 else "once"
                    raise RefusedError(f"{broken} ({times})") from None
                time.sleep(min(self._patience.pause * 2 ** (failures - 1), LONGEST_PAUSE))
            else:
                return

    def _attempt(self, url: str) -> None:
        """Receive what is missing over one connection.

        Raises:
            BrokenError: it ended too early.
            RefusedError: the address has another file, or none.
        """
        if self._size is not None and self._have() == self._size:
            return
        origin = self._origin()
        have = self._reusable(url, origin)
        request = urllib.request.Request(  # noqa: S310 - addresses are checked to be http or https
            url, headers={"User-Agent": "vgsplus", "Accept-Encoding": "identity"}
        )
        if have:
            request.add_header("Range", f"bytes={have}-")
            if origin.url == url and origin.validator is not None:
                request.add_header("If-Range", origin.validator)
        try:
            response = self._open(request, timeout=self._patience.timeout)
        except urllib.error.HTTPError as error:
            with error:
                if self._is_whole(error, have):
                    return
                raise refusal(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise failure(error) from None
        with response:
            first, total = self._place(response, url, origin, have)
            self._receive(response, _Origin(url, validator_of(response)), first, total)

    def _received(self, url: str) -> int:
        """How far this address has brought the file; 0 if the bytes that are here are another's."""
        return self._have() if self._origin().url == url else 0

    def _reusable(self, url: str, origin: _Origin) -> int:
        """How many of the bytes that are here may be the start of what `url` holds: all, or none."""
        have = self._have()
        if self._size is not None and have > self._size:
            return 0
        return have if self._certain or (origin.url == url and origin.validator is not None) else 0

    def _is_whole(self, error: urllib.error.HTTPError, have: int) -> bool:
        """Whether a server has no more bytes because all are here; a range refused otherwise starts again."""
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return False
        if self._size is None and error.headers.get("Content-Range", "").strip() == f"bytes */{have}":
            return True
        self._start_again()
        raise BrokenError(f"has no byte {have}")

    def _place(
        self, response: http.client.HTTPResponse, url: str, origin: _Origin, have: int
    ) -> tuple[int, int | None]:
        """Where the bytes of a response belong, and the size that the server claims; the .part is ready."""
        validator = validator_of(response)
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            first, total = range_of(response)
            known = None not in (origin.validator, validator)
            changed = have > 0 and origin.url == url and known and origin.validator != validator
            if first != have or changed:
                self._start_again()
                raise BrokenError("the file has changed" if changed else "sends another part than asked for")
        elif response.status == HTTPStatus.OK:
            first, total = 0, length_of(response)
        else:
            raise RefusedError(f"answers {response.status} {response.reason}")
        if None not in (self._size, total) and total != self._size:
            raise RefusedError(
                f"its file is {total} bytes, the published one {self._size}: another, or a page of errors"
            )
        total = self._size or total
        if total is not None:
            self._room(first, total)
        if first == 0:
            self._start_again()
        return first, total

    def _receive(
        self, response: http.client.HTTPResponse, origin: _Origin, have: int, total: int | None
    ) -> None:
        """Append a response to the .part, and note where its bytes are from."""
        stage = f"fetching {self.path.name}"
        self._progress(stage, have, total)
        try:
            with whole_file(self._note) as note:
                note.write(json.dumps(asdict(origin)).encode())
            with self.part.open("ab") as file:
                while block := _read(response):
                    have += len(block)
                    if total is not None and have > total:
                        break
                    file.write(block)
                    self._progress(stage, have, total)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DownloadError(
                f"{self.part}: cannot be written ({error.strerror or error}). It keeps {self._have()} bytes: "
                "make room and give the same command, it goes on."
            ) from None
        if total is not None and have > total:
            self._discard()
            raise RefusedError(f"sends more than the {total} bytes of the file")
        if total is not None and have < total:
            raise BrokenError(f"broke off after {have} of {total} bytes")

    # ---- the .part ----------------------------------------------------------------------------------------

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _origin(self) -> _Origin:
        try:
            raw: Any = json.loads(self._note.read_text(encoding="utf-8"))
            return _Origin(str(raw["url"]), None if raw["validator"] is None else str(raw["validator"]))
        except (OSError, ValueError, KeyError, TypeError):
            return _Origin()

    def _start_again(self) -> None:
        if self.part.exists():
            os.truncate(self.part, 0)

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


def _read(response: http.client.HTTPResponse) -> bytes:
    """The next bytes of a response, as they come; none at its end, or where the connection was closed."""
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise failure(error) from None
