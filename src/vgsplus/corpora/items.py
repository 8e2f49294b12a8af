"""ABX item files: one phone token per line, in the variants of the field.

    #file onset offset #phone prev-phone next-phone speaker

These are the columns of the ZeroSpeech challenges, separated by spaces or tabs, in the order of the header.
Also accepted are `file` for `#file`, `phone` for `#phone`, `talker` for `speaker`, one column `context` for
both neighbouring phones (ZeroSpeech 2015), no context, and further columns, which are ignored. Times are in
seconds. `#file` names a sound by the end of its path, with or without its suffix.
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
"""The columns of every item file, with their alternative names."""
CONTEXTS = (("prev-phone", "next-phone"), ("context",))
"""The columns of the context of a phone; the first group that a header names completely is used."""
ALSO_TAKEN = (
    "Also taken: file for #file, phone for #phone, talker for speaker, and context for prev-phone next-phone"
)
TIME_TOLERANCE = Decimal("0.01")
"""Seconds by which a token may end after its sound: alignments round to hundredths."""
SAME_DECIMALS = 4
"""Precision of comparing times: 0.1 may be written as 0.10000000149."""
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")
LONGEST_NUMBER = 100
"""Maximum characters of a time, because exact arithmetic on long numbers is slow."""
LATEST = 10**9
"""Seconds (30 years). Times in milliseconds or samples, a common mistake, lie below it."""
FORBIDDEN = re.compile(r"[^\S \t]|[\x00-\x08\x0e-\x1f\x7f-\x9f]")
"""Control characters, and blanks that some programs take for the end of a column or line."""
SHOWN_CHARACTERS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One line of an item file: a phone from `onset` to `offset` seconds of a file.

    `previous` and `following` are the neighbouring phones, or the column `context` and "".
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
    """An item file: its tokens in order, whether it has contexts, and optionally the sound of each file."""

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
    held = {column: [name for name in header if name in names] for column, names in NAMES.items()}
    wrong = [column for column, found in held.items() if len(found) != 1]
    wrong += [name for names in CONTEXTS for name in names if header.count(name) > 1]
    if wrong:
        raise CorpusError(
            f"{path}:{line}: the header must name {', '.join(wrong)} once. "
            f"Expected: {' '.join(ITEM_COLUMNS)}. {ALSO_TAKEN}."
        )
    context = next((names for names in CONTEXTS if all(name in header for name in names)), ())
    places = [header.index(name) for name in (*(found[0] for found in held.values()), *context)]
    parsed = [(number, _token(number, row, len(header), places)) for number, row in rest]
    faults = [f"{path}:{number}: {fault}" for number, fault in parsed if isinstance(fault, str)]
    tokens = tuple(token for _, token in parsed if isinstance(token, Token))
    return Items(path=path, tokens=tokens, has_contexts=bool(context)), faults


def repeat_faults(items: Items, sounds: Mapping[str, Hashable] | None = None) -> Iterator[str]:
    """Yield a fault for each token whose sound, onset and offset are those of an earlier token, to 0.1 ms.

    Args:
        items: the item file.
        sounds: identifies the sound of a name, if several names mean one sound.
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
            yield f"{place} is in line {first.line} already and counts once. Leave one of the lines out."
        else:
            yield (
                f"{place} is {_described(token)} here and {_described(first)} in line {first.line}. "
                "Leave the wrong line out."
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
                    f"{first.line}, and would count as another label. Write both in one form, as NFC."
                )


class SoundIndex:
    """Finds sounds by their names in item files.

    A name with suffix, as "dev/a.wav", is the file of exactly that name, else the sound whose path without
    suffix ends with it. In both cases a path relative to `root` that equals the name has precedence. NFC and
    NFD are one name.
    """

    def __init__(self, root: Path, paths: Iterable[Path]) -> None:
        self._depth = len(root.parts)
        self._sounds: dict[str, list[Path]] = defaultdict(list)
        for path in paths:
            for name in {path.name, path.stem}:
                self._sounds[nfc(name)].append(path)

    def find(self, file: str) -> list[Path]:
        """Return the sounds that a name may mean."""
        wanted = PurePosixPath(nfc(file)).parts
        candidates = self._sounds.get(wanted[-1], []) if wanted else []
        for whole in (True, False):
            parts = {path: _parts(path if whole else path.with_suffix("")) for path in candidates}
            ending = [path for path in candidates if parts[path][-len(wanted) :] == wanted]
            if ending:
                exact = [path for path in ending if len(path.parts) - self._depth == len(wanted)]
                return exact or ending
        return []


def shown(text: str) -> str:
    """Return a field for an error, shortened if it is very long."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _parts(path: Path) -> tuple[str, ...]:
    return PurePosixPath(nfc(str(path.absolute()))).parts


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
    """The token of a line, or its fault; `places` are those of file, times, phone, speaker and context."""
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
        return f"{times} must be seconds, and no sound lasts so long."
    return None
