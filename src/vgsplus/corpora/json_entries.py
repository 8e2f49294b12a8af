"""Lists of captions in JSON, {"data": […]}, read entry by entry, so that half a million take no memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vgsplus.corpora.faults import CorpusError

BLOCK = 1 << 20
"""Characters read at a time."""
MEND = "Fetch the file again."


def entries_of(path: Path) -> Iterator[Any]:
    """The members of the list "data" in a JSON file, one at a time; other keys are passed over.

    Raises:
        CorpusError: there is no such file, it is not JSON, has no list "data", or breaks off.
    """
    if not path.is_file():
        raise CorpusError(f"{path}: there is no such list of captions.")
    with path.open(encoding="utf-8") as file:
        yield from _members(path, file)


def _members(path: Path, file: IO[str]) -> Iterator[Any]:
    scan = _Scanner(path, file)
    scan.expect("{")
    while True:
        key = scan.value()
        scan.expect(":")
        if key == "data":
            break
        scan.value()
        if scan.separator("}") == "}":
            raise CorpusError(f'{path}: has no list "data". Expected a list of captions.')
    scan.expect("[")
    if scan.peek() == "]":
        return
    while True:
        yield scan.value()
        if scan.separator("]") == "]":
            return


class _Scanner:
    """Values and marks of a JSON text, from a window of the file."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self._path = path
        self._file = file
        self._window = ""
        self._at = 0
        self._decode = json.JSONDecoder().raw_decode
        self._entries = 0

    def peek(self) -> str:
        """The next character that is no blank; "" at the end."""
        while True:
            while self._at < len(self._window):
                if not self._window[self._at].isspace():
                    return self._window[self._at]
                self._at += 1
            if not self._more():
                return ""

    def expect(self, mark: str) -> None:
        found = self.peek()
        if found != mark:
            raise self._fault(f"expected {mark!r}, found {found!r}" if found else "breaks off")
        self._at += 1

    def separator(self, end: str) -> str:
        """Pass a comma or `end`."""
        found = self.peek()
        self.expect(found if found in {",", end} else end)
        return found

    def value(self) -> Any:  # noqa: ANN401 - any JSON value
        self.peek()
        while True:
            try:
                value, end = self._decode(self._window, self._at)
            except ValueError as error:
                # A value that the window cuts off looks like a faulty one.
                if self._more():
                    continue
                raise self._fault(f"is not valid JSON or breaks off ({error})") from None
            # A number at the edge of the window may go on behind it.
            if end < len(self._window) or not self._more():
                self._at = end
                self._entries += 1
                return value

    def _more(self) -> bool:
        try:
            block = self._file.read(BLOCK)
        except UnicodeDecodeError as error:
            raise self._fault(f"is not UTF-8 ({error})") from None
        self._window = self._window[self._at :] + block
        self._at = 0
        return bool(block)

    def _fault(self, what: str) -> CorpusError:
        return CorpusError(f"{self._path}: {what}, after about {self._entries} values. {MEND}")
