"""SpokenCOCO's lists of captions, read entry by entry, so that half a million of them take no memory.

grouped     {"data": [{"image": "val2014/COCO_val2014_….jpg",
                       "captions": [{"text": …, "speaker": …, "uttid": …, "wav": …}, …]}, …]}
unrolled    {"data": [{"image": …, "caption": {"text": …, "speaker": …, "uttid": …, "wav": …}}, …]}
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from vgsplus.corpora.faults import CorpusError

BLOCK = 1 << 20
"""Characters read at a time."""
FIELDS = ("text", "speaker", "uttid", "wav")
MEND = "Fetch the file again."


class SpokenCaption(NamedTuple):
    """A caption as a list names it; `entry` counts from 1, `wav` is relative to the folder of the wavs."""

    entry: int
    image: str
    text: str
    speaker: str
    uttid: str
    wav: str


def read_list(path: Path) -> Iterator[SpokenCaption | str]:
    """The captions of a list in its order; in place of one that cannot be read, its fault "file: entry n: …".

    Raises:
        CorpusError: there is no such file, it is not JSON, has no list "data", or breaks off.
    """
    if not path.is_file():
        raise CorpusError(f"{path}: there is no such list of captions.")
    with path.open(encoding="utf-8") as file:
        for entry, item in enumerate(_entries(path, file), start=1):
            for caption in _captions_of(item):
                yield (
                    f"{path}: entry {entry}: {caption}"
                    if isinstance(caption, str)
                    else SpokenCaption(entry, item["image"], *caption)
                )


def _captions_of(item: Any) -> Iterator[tuple[str, str, str, str] | str]:  # noqa: ANN401 - as the file has it
    """(text, speaker, uttid, wav) of each caption of an entry, or what is wrong with it."""
    image = item.get("image") if isinstance(item, dict) else None
    if not isinstance(image, str) or not image:
        yield 'names no "image"'
        return
    captions = [item["caption"]] if "caption" in item else item.get("captions")
    if not isinstance(captions, list) or not captions:
        yield f'{image} has neither a "caption" nor a list of "captions"'
        return
    for caption in captions:
        values = caption if isinstance(caption, dict) else {}
        faulty = [
            field for field in FIELDS if not isinstance(values.get(field), str) or not values[field].strip()
        ]
        if any(any(letter.isspace() for letter in str(values.get(field))) for field in ("uttid", "speaker")):
            faulty.append("an uttid and a speaker without blanks")
        if faulty:
            yield f"a caption of {image} lacks {', '.join(faulty)}"
        else:
            yield values["text"], values["speaker"], values["uttid"], values["wav"]


def _entries(path: Path, file: IO[str]) -> Iterator[Any]:
    """The members of the list "data", one at a time; other keys are passed over."""
    scan = _Scanner(path, file)
    scan.expect("{")
    while True:
        key = scan.value()
        scan.expect(":")
        if key == "data":
            break
        scan.value()
        if scan.separator("}") == "}":
            raise CorpusError(f'{path}: has no list "data". Expected a list of captions of SpokenCOCO.')
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
