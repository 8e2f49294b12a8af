"""TextGrids of Praat, in the long and the short text format.

A text file of Praat is a sequence of numbers, texts in quotation marks and flags such as <exists>; everything
else, such as "xmin =" or "intervals [1]:", is comment, and the short format is the long one without comments
("TextGrid file formats" in the manual of Praat). Packages that read TextGrids do not know the lines of
intervals, and praatio 6.2 drops minus signs and the end of a short file that is cut short, hence this reader.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal

from vgsplus.corpora.alignments.segments import Segment, Track, read_alignment, seconds
from vgsplus.corpora.items import shown
from vgsplus.errors import CorpusError

INTERVALS, POINTS = "IntervalTier", "TextTier"
TOKEN = re.compile(
    r'(?P<text>"(?:[^"]|"")*")|(?P<flag><\w+>)|(?P<comment>![^\n]*|\S*\[\d*\]:?)|(?P<word>[^\s"]+|")'
)


@dataclass(slots=True)
class _Tier:
    line: int
    kind: str
    name: str
    segments: list[Segment]


def read_textgrid(path: Path, tier: str, faults: list[str]) -> list[Track]:
    """Read the tiers of a TextGrid that are named `tier`, or "SPEAKER - `tier`"; faults are appended.

    Upper and lower case are equal. Intervals without text are segments with an empty label.

    Raises:
        CorpusError: it is no TextGrid, is cut short, or is not text.
    """
    tiers = _Parser(path, faults).tiers()
    name, ending = tier.casefold(), f" - {tier}".casefold()
    chosen = [one for one in tiers if one.name.casefold() == name or one.name.casefold().endswith(ending)]
    if not chosen:
        names = ", ".join(one.name for one in tiers) or "none"
        faults.append(f"{path}: has no tier {tier!r}. Its tiers are: {names}. Name one by --tier.")
    tracks = []
    lines: dict[str, int] = {}
    for one in chosen:
        place = f"{path}:{one.line}: tier {one.name!r}"
        if one.name in lines:
            faults.append(f"{place} is in line {lines[one.name]} already. Rename or remove one.")
        elif one.kind == POINTS:
            faults.append(f"{place} holds points, not intervals. Name another tier by --tier.")
        elif not any(segment.label for segment in one.segments):
            faults.append(f"{place} is empty: none of its intervals has a label.")
        else:
            speaker = None if one.name.casefold() == name else one.name[: -len(ending)]
            tracks.append(Track(path, tuple(one.segments), speaker=speaker))
        lines.setdefault(one.name, one.line)
    return tracks


def textgrid_text(tiers: Mapping[str, Sequence[Segment]], end: Decimal) -> str:
    """Return a TextGrid from 0 to `end` seconds in the long format.

    Each tier {name: segments in order, within these times} becomes one of intervals, with empty ones between.
    """
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {end}"]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, (name, segments) in enumerate(tiers.items(), start=1):
        intervals: list[tuple[Decimal, Decimal, str]] = []
        reached = Decimal(0)
        for segment in segments:
            if segment.start > reached:
                intervals.append((reached, segment.start, ""))
            reached = segment.end
            intervals.append((segment.start, reached, segment.label))
        if reached < end:
            intervals.append((reached, end, ""))
        lines += [
            f"    item [{number}]:",
            f'        class = "{INTERVALS}"',
            f"        name = {_quoted(name)}",
        ]
        lines += ["        xmin = 0", f"        xmax = {end}", f"        intervals: size = {len(intervals)}"]
        for index, (start, stop, label) in enumerate(intervals, start=1):
            lines += [
                f"        intervals [{index}]:",
                f"            xmin = {start}",
                f"            xmax = {stop}",
            ]
            lines.append(f"            text = {_quoted(label)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


class _Parser:
    """Reads the numbers, texts and flags of a TextGrid one after the other."""

    def __init__(self, path: Path, faults: list[str]) -> None:
        self._path, self._faults = path, faults
        self._content = read_alignment(path)
        self._tokens = TOKEN.finditer(self._content)
        self._position, self._line = 0, 1

    def tiers(self) -> list[_Tier]:
        """Return all tiers. Numbers that cannot be read are added to the faults."""
        start = self._content.lstrip()[:40]
        if not start.startswith('File type = "ooTextFile'):
            raise CorpusError(
                f"{self._path}:1: is not a TextGrid in a text format of Praat. Save it by Praat as text file."
            )
        self._text("the type of the file")
        if (kind := self._text("the class of the object")) != "TextGrid":
            raise self._error(f"holds a {shown(kind)} of Praat, not a TextGrid.")
        self._number("the start of the TextGrid")
        self._number("the end of the TextGrid")
        if self._next("flag", "<exists>") != "<exists>":
            return []
        return [self._tier(number + 1) for number in range(self._count("the number of tiers"))]

    def _tier(self, number: int) -> _Tier:
        kind = self._text(f"the class of tier {number}")
        if kind not in (INTERVALS, POINTS):
            raise self._error(f"tier {number} is of class {shown(kind)!r}, not {INTERVALS} or {POINTS}.")
        name = self._text(f"the name of tier {number}")
        tier = _Tier(self._line, kind, name, [])
        self._number(f"the start of tier {name!r}")
        self._number(f"the end of tier {name!r}")
        for index in range(self._count(f"the size of tier {name!r}")):
            where = f"of tier {name!r}, {'interval' if kind == INTERVALS else 'point'} {index + 1}"
            start = self._number(f"the time {where}")
            line = self._line
            end = self._number(f"the end {where}") if kind == INTERVALS else start
            label = self._text(f"the label {where}")
            if start is not None and end is not None:
                tier.segments.append(Segment(line, start, end, label))
        return tier

    def _text(self, what: str) -> str:
        return self._next("text", what)[1:-1].replace('""', '"').strip()

    def _number(self, what: str) -> Decimal | None:
        found = self._next("word", what)
        if (value := seconds(found)) is None:
            self._faults.append(f"{self._path}:{self._line}: {what} is {shown(found)!r}, which is no number.")
        return value

    def _count(self, what: str) -> int:
        found = self._next("word", what)
        if not re.fullmatch(r"[0-9]{1,9}", found):
            raise self._error(f"{what} is {shown(found)!r}, which is no whole number.")
        return int(found)

    def _next(self, kind: Literal["text", "flag", "word"], what: str) -> str:
        """Return the next text, flag or number, which must be of this kind."""
        assigned = False
        for token in self._tokens:
            found, group = token[0], token.lastgroup
            self._line += self._content.count("\n", self._position, token.start())
            self._position = token.start()
            if group == "comment":
                continue
            if group == "word" and not (assigned or any(letter.isdigit() for letter in found)):
                # A word of the long format; what follows "=" is a value, even if it is no number.
                assigned = found == "="
                if found != '"':
                    continue
            if group != kind:
                raise self._error(f"expected {what}, found {shown(found)}.")
            return found
        self._line += self._content.count("\n", self._position)
        raise self._error(f"ends before {what}: the file is cut short.")

    def _error(self, message: str) -> CorpusError:
        return CorpusError(f"{self._path}:{self._line}: {message}")
