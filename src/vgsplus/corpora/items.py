"""ABX item files: one phone token per line, in all variants of the format.

    #file onset offset #phone prev-phone next-phone speaker

These are the columns of the ZeroSpeech challenges, separated by spaces or tabs, in any order. Also accepted:
`file` for `#file`, `phone` for `#phone`, `talker` for `speaker`, one column `context` instead of both
neighbouring phones (ZeroSpeech 2015), and no context. Further columns are ignored. Times are in seconds.
`#file` is the end of the path of a sound, with or without its suffix.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from vgsplus.corpora.format import ITEM_COLUMNS
from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.files import as_on_disk, nfc, read_text

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

NAMES = {
    "#file": ("#file", "file"),
    "onset": ("onset",),
    "offset": ("offset",),
    "#phone": ("#phone", "phone"),
    "speaker": ("speaker", "talker"),
}
"""The required columns, with their alternative names."""
CONTEXTS = (("prev-phone", "next-phone"), ("context",))
"""Columns of the context of a phone; the first group that is complete in the header is used."""
TIME_TOLERANCE = Decimal("0.01")
"""Seconds by which a token may exceed its sound, because alignments are rounded to hundredths."""
SAME_DECIMALS = 4
"""Decimals for comparisons of times, because 0.1 may be written as 0.10000000149."""
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")
LONGEST_NUMBER = 100
"""Maximum number of characters of a time, because exact arithmetic with long numbers is slow."""
LATEST = 10**9
"""Maximum time in seconds (30 years)."""
FORBIDDEN = re.compile(r"[^\S \t]|[\x00-\x08\x0e-\x1f\x7f-\x9f]")
"""Control characters, and white space that some programs treat as the end of a column or line."""
SHOWN_CHARACTERS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One line of an item file: a phone from `onset` to `offset` seconds of a file.

    `previous` and `following` are the neighbouring phones, or the column `context` and an empty string.
    """

    line: int
    file: str
    onset: Decimal
    offset: Decimal
    phone: str
    previous: str
    following: str
    speaker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """An item file: its tokens in order, whether it has contexts, and optionally the path of each #file."""

    path: Path
    tokens: tuple[Token, ...]
    has_contexts: bool = True
    audio: Mapping[str, Path] = field(default_factory=dict)

    def where(self, token: Token) -> str:
        """Return "FILE:LINE" of a token."""
        return f"{self.path}:{token.line}"

    def by_file(self) -> dict[str, list[int]]:
        """Return the indices of the tokens of each file, by first occurrence."""
        found: dict[str, list[int]] = defaultdict(list)
        for index, token in enumerate(self.tokens):
            found[token.file].append(index)
        return dict(found)


def parse_items(path: Path) -> tuple[Items, list[str]]:
    """Return the tokens of an item file, and a fault "FILE:LINE: …" for each line that cannot be read.

    Raises:
        CorpusError: the file is absent or not text, or its header lacks columns.
    """
    path = as_on_disk(path)
    rows = _rows(path)
    if not rows:
        raise CorpusError(f"{path}: is empty. Its first line must be: {' '.join(ITEM_COLUMNS)}")
    (line, first), *rest = rows
    if fault := _character_fault(first):
        raise CorpusError(f"{path}:{line}: {fault}")
    header = _fields(first)
    found = {column: [name for name in header if name in names] for column, names in NAMES.items()}
    wrong = [column for column, names in found.items() if len(names) != 1]
    wrong += [name for names in CONTEXTS for name in names if header.count(name) > 1]
    if wrong:
        raise CorpusError(
            f"{path}:{line}: the header must name {', '.join(wrong)} once. "
            f"Expected: {' '.join(ITEM_COLUMNS)}. Also accepted: file for #file, phone for #phone, talker "
            "for speaker, and context for both neighbours."
        )
    context = next((names for names in CONTEXTS if all(name in header for name in names)), ())
    places = [header.index(name) for name in (*(names[0] for names in found.values()), *context)]
    parsed = [(number, _token(number, row, len(header), places)) for number, row in rest]
    faults = [f"{path}:{number}: {fault}" for number, fault in parsed if isinstance(fault, str)]
    tokens = tuple(token for _, token in parsed if isinstance(token, Token))
    return Items(path=path, tokens=tokens, has_contexts=bool(context)), faults


def repeat_faults(items: Items, sounds: Mapping[str, Hashable] | None = None) -> Iterator[str]:
    """Yield a fault for each token that repeats sound, onset and offset (to 0.1 ms) of an earlier one.

    `sounds` maps #file to an identifier of its sound, because several names may mean one sound.
    """
    seen: dict[tuple[Hashable, Decimal, Decimal], Token] = {}
    for token in items.tokens:
        sound = (sounds or {}).get(token.file, nfc(token.file))
        times = round(token.onset, SAME_DECIMALS), round(token.offset, SAME_DECIMALS)
        first = seen.setdefault((sound, *times), token)
        if first is token:
            continue
        place = f"{items.where(token)}: {shown(token.file)} from {token.onset} to {token.offset} s"
        labels = (token.phone, token.previous, token.following, token.speaker)
        if labels == (first.phone, first.previous, first.following, first.speaker):
            yield f"{place} is in line {first.line} already and counts once. Remove one of the lines."
        else:
            yield (
                f"{place} is {_described(token)} here and {_described(first)} in line {first.line}. "
                "Remove the wrong line."
            )


def label_faults(items: Items) -> Iterator[str]:
    """Yield a fault for each phone, context or speaker that is written in two Unicode forms (NFC and NFD)."""
    seen: dict[str, tuple[str, Token]] = {}
    reported: set[str] = set()
    for token in items.tokens:
        for label in (token.phone, token.previous, token.following, token.speaker):
            if label.isascii():
                continue
            form, first = seen.setdefault(nfc(label), (label, token))
            if form != label and label not in reported:
                reported.add(label)
                yield (
                    f"{items.where(token)}: {shown(label)} is written in another Unicode form than in line "
                    f"{first.line}, and would count as another label. Write both in NFC."
                )


class SoundIndex:
    """Finds sounds by their names in item files.

    A name, such as "dev/a.wav", matches the sounds whose paths end with it; if there are none, those whose
    paths without suffix end with it. Among several, a sound whose path relative to `root` equals the name is
    preferred. Names are compared in NFC.
    """

    def __init__(self, root: Path, paths: Iterable[Path]) -> None:
        self._depth = len(root.parts)
        self._sounds: dict[str, list[tuple[Path, tuple[tuple[str, ...], ...]]]] = defaultdict(list)
        for path in paths:
            parts = PurePosixPath(nfc(str(path.absolute()))).parts
            # Kept, because many sounds may have one name, as in TIMIT.
            forms = parts, (*parts[:-1], nfc(path.stem))
            for name in {path.name, path.stem}:
                self._sounds[nfc(name)].append((path, forms))

    def find(self, file: str) -> list[Path]:
        """Return the sounds that match a name."""
        wanted = PurePosixPath(nfc(file)).parts
        candidates = self._sounds.get(wanted[-1], []) if wanted else []
        for form in (0, 1):
            ending = [path for path, forms in candidates if forms[form][-len(wanted) :] == wanted]
            if ending:
                exact = [path for path in ending if len(path.parts) - self._depth == len(wanted)]
                return exact or ending
        return []


def shown(text: str) -> str:
    """Return a field for a message, truncated if it is very long."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _described(token: Token) -> str:
    around = " ".join(filter(None, (token.previous, token.following)))
    context = f" in context {shown(around)}" if around else ""
    return f"phone {shown(token.phone)}{context} by {shown(token.speaker)}"


def _fields(line: str) -> list[str]:
    return re.split(r"[ \t]+", line.strip(" \t"))


def _character_fault(line: str) -> str | None:
    if found := FORBIDDEN.search(line):
        return f"holds the character U+{ord(found[0]):04X}. Separate columns by spaces or tabs."
    return None


def _rows(path: Path) -> list[tuple[int, str]]:
    """(number from 1, text) of each line that is not blank."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise CorpusError(f"{path}: there is no such item file.") from None
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}).") from None
    except VgsplusError as error:
        raise CorpusError(str(error)) from None
    numbered = enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1)
    return [(number, line) for number, line in numbered if line.strip(" \t")]


def _token(number: int, line: str, columns: int, places: Sequence[int]) -> Token | str:
    """Parse a line; `places` are the columns of file, onset, offset, phone, speaker and context."""
    fields = _fields(line)
    if fault := _character_fault(line):
        return fault
    if len(fields) != columns:
        return f"has {len(fields)} columns, the header names {columns}."
    file, onset, offset, phone, speaker, *context = (fields[place] for place in places)
    if fault := _time_fault(onset, offset):
        return fault
    previous, following, *_ = (*context, "", "")
    return Token(
        line=number,
        file=file,
        onset=Decimal(onset),
        offset=Decimal(offset),
        phone=phone,
        previous=previous,
        following=following,
        speaker=speaker,
    )


def _time_fault(onset: str, offset: str) -> str | None:
    times = f"onset {shown(onset)} and offset {shown(offset)}"
    if not all(len(time) <= LONGEST_NUMBER and NUMBER.fullmatch(time) for time in (onset, offset)):
        return f"{times} must be numbers, in seconds."
    start, end = Decimal(onset), Decimal(offset)
    if start < 0:
        return f"onset {shown(onset)} is negative; times count from the start of the sound."
    if end <= start:
        return f"offset {shown(offset)} must be after onset {shown(onset)}."
    if end > LATEST:
        return f"{times} must be seconds, less than {LATEST:,}."
    return None
