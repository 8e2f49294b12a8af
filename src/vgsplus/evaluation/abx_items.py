"""ABX item files: one phone token a line, checked whole before any model runs.

    #file onset offset #phone prev-phone next-phone speaker

The columns of the ZeroSpeech challenges, separated by blanks, in the order that the header gives; `#file`
names a sound by its stem or by the end of its path without suffix, times are in seconds.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from vgsplus import audio
from vgsplus.corpora.faults import CorpusError
from vgsplus.corpora.validation import TIME_TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

COLUMNS = ("#file", "onset", "offset", "#phone", "prev-phone", "next-phone", "speaker")
AUDIO_SUFFIXES = frozenset({".flac", ".wav", ".ogg"})
READERS = 4


class ItemError(CorpusError):
    """What is wrong with an ABX item file; `faults` holds every fault, the message the first 20."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One line of an item file: a phone between two others, from `onset` to `offset` seconds of a file."""

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
    """An item file without faults: its tokens in their order and, where asked for, the sound of each file."""

    path: Path
    tokens: tuple[Token, ...]
    audio: Mapping[str, Path] = field(default_factory=dict)

    def where(self, token: Token) -> str:
        """The token's place for an error: file and line."""
        return f"{self.path}:{token.line}"

    def by_file(self) -> dict[str, list[int]]:
        """The indices of the tokens of each file, files in the order of their first token."""
        found: dict[str, list[int]] = defaultdict(list)
        for index, token in enumerate(self.tokens):
            found[token.file].append(index)
        return dict(found)


def read_items(
    path: str | Path,
    *,
    conditions: Sequence[str] = ("within", "across"),
    audio_root: str | Path | None = None,
) -> Items:
    """Read an item file and refuse it with every fault at once, each with its line.

    Args:
        path: the item file.
        conditions: what it is to be scored on; "across" needs two speakers.
        audio_root: a folder that must hold the sound of every file, in any folder below it, as .flac, .wav or
            .ogg; None where features come from elsewhere.

    Raises:
        ItemError: absent, not text, a header or a line that lacks columns, times that are no numbers,
            negative, in the wrong order or behind the end of the sound, a file without sound or with several,
            a single phone or speaker, no items.
    """
    path = Path(path)
    rows = _rows(path)
    if not rows:
        raise ItemError(f"{path}: is empty. Its first line must be: {' '.join(COLUMNS)}")
    (line, header), *rest = rows
    if missing := [column for column in COLUMNS if header.count(column) != 1]:
        raise ItemError(
            f"{path}:{line}: the header must name {', '.join(missing)} once. Expected: {' '.join(COLUMNS)}"
        )
    if not rest:
        raise ItemError(f"{path}: holds no items, only a header. Give it a line a phone token.")
    faults: list[str] = []
    tokens = tuple(_tokens(path, header, rest, faults))
    if len({token.phone for token in tokens}) == 1:
        faults.append(f"{path}: holds one phone only, {tokens[0].phone!r}; ABX tells at least two apart.")
    if "across" in conditions and len({token.speaker for token in tokens}) == 1:
        speaker = tokens[0].speaker
        faults.append(f"{path}: holds one speaker only, {speaker!r}; score it within speakers alone.")
    items = Items(path=path, tokens=tokens)
    if audio_root is not None:
        sounds = _find_audio(items, Path(audio_root), faults)
        faults += _late_tokens(items, sounds)
        items = Items(path=path, tokens=tokens, audio=sounds)
    if faults:
        raise ItemError(faults)
    return items


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """The lines that are not blank: number from 1 and fields."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ItemError(f"{path}: there is no such item file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ItemError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
    numbered = enumerate(text.split("\n"), start=1)
    return [(number, fields) for number, line in numbered if (fields := line.split())]


def _tokens(
    path: Path, header: list[str], rows: Sequence[tuple[int, list[str]]], faults: list[str]
) -> Iterator[Token]:
    """The tokens of the lines that hold one; what is wrong with the others goes to `faults`."""
    places = [header.index(column) for column in COLUMNS]
    for number, fields in rows:
        if len(fields) != len(header):
            faults.append(f"{path}:{number}: has {len(fields)} columns, the header names {len(header)}.")
            continue
        file, onset, offset, phone, previous, following, speaker = (fields[place] for place in places)
        if fault := _time_fault(onset, offset):
            faults.append(f"{path}:{number}: {fault}")
            continue
        yield Token(
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
    try:
        start, end = float(onset), float(offset)
    except ValueError:
        start = end = math.nan
    if not (math.isfinite(start) and math.isfinite(end)):
        return f"onset {onset} and offset {offset} must be numbers, in seconds."
    if start < 0:
        return f"onset {onset} is negative; times count from the start of the sound."
    if Decimal(offset) <= Decimal(onset):
        return f"offset {offset} must be behind onset {onset}."
    return None


# ---- sound ------------------------------------------------------------------------------------------------


def _find_audio(items: Items, root: Path, faults: list[str]) -> dict[str, Path]:
    """The sound of each file below `root`; a fault for each that has none or several."""
    if not root.is_dir():
        faults.append(f"{root}: there is no such folder of sounds.")
        return {}
    sounds: dict[str, list[Path]] = defaultdict(list)
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            place = Path(folder, name)
            if place.suffix.lower() in AUDIO_SUFFIXES:
                sounds[place.stem].append(place)
    found = {}
    for file, indices in items.by_file().items():
        places = _matches(sounds, root, file)
        if len(places) == 1:
            found[file] = places[0]
            continue
        first = items.where(items.tokens[indices[0]])
        if places:
            listed = " and ".join(str(place) for place in sorted(places)[:2])
            faults.append(f"{first}: file {file} may be {listed}. Name it by more of its path.")
        else:
            many = f" ({len(indices)} lines)" if len(indices) > 1 else ""
            kinds = ", ".join(sorted(AUDIO_SUFFIXES))
            faults.append(f"{first}: there is no {file} ({kinds}) below {root}{many}.")
    return found


def _matches(sounds: Mapping[str, list[Path]], root: Path, file: str) -> list[Path]:
    """The sounds whose path ends with the file's name; the one whose path below `root` is that name wins."""
    wanted = PurePosixPath(file).parts
    paths = {place: place.relative_to(root).with_suffix("").parts for place in sounds.get(wanted[-1], ())}
    exact = [place for place, parts in paths.items() if parts == wanted]
    return exact or [place for place, parts in paths.items() if parts[-len(wanted) :] == wanted]


def _late_tokens(items: Items, sounds: Mapping[str, Path]) -> Iterator[str]:
    """A fault for each token that ends behind its sound, and for each sound without a readable header."""
    indices = items.by_file()

    def faults_of(file: str) -> list[str]:
        try:
            seconds = audio.duration(sounds[file])
        except audio.AudioError as error:
            return [f"{items.where(items.tokens[indices[file][0]])}: {error}"]
        limit = Decimal(seconds) + TIME_TOLERANCE
        late = [token for token in map(items.tokens.__getitem__, indices[file]) if token.offset > limit]
        return [
            f"{items.where(token)}: offset {token.offset} is behind the end of {file}, {seconds:.3f} s."
            for token in late
        ]

    with ThreadPoolExecutor(READERS) as pool:
        for faults in pool.map(faults_of, sounds):
            yield from faults
