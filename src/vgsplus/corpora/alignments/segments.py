"""Labelled segments of a sound, and what is checked of them whatever their file."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

from vgsplus.corpora.items import FORBIDDEN, LATEST, LONGEST_NUMBER, NUMBER, TIME_TOLERANCE, shown
from vgsplus.errors import CorpusError


@dataclass(frozen=True, slots=True)
class Segment:
    """A phone, word or silence from `start` to `end` seconds, in line `line` of its file."""

    line: int
    start: Decimal
    end: Decimal
    label: str


@dataclass(frozen=True, slots=True)
class Track:
    """The segments of a sound in order: a tier of a TextGrid, a channel of a CTM file, or a file of labels.

    `name` is the sound as the file names it, or "" if only the name of the file does; `speaker` is None if
    the file names none.
    """

    path: Path
    segments: tuple[Segment, ...]
    name: str = ""
    speaker: str | None = None


def read_alignment(path: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte-order mark, as Praat writes it.

    Raises:
        CorpusError: it is neither; names the line.
    """
    data = path.read_bytes()
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CorpusError(f"{path}:{line}: is neither UTF-8 nor UTF-16 text. Save it as UTF-8.") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def seconds(text: str) -> Decimal | None:
    """Return a time in seconds, or None if the text is not a number below `LATEST`."""
    if len(text) > LONGEST_NUMBER or not NUMBER.fullmatch(text) or abs(Decimal(text)) > LATEST:
        return None
    return Decimal(text)


def time_faults(path: Path, segments: Sequence[Segment]) -> Iterator[str]:
    """Yield the faults of segments: times that are negative or not in order, overlaps, labels with blanks."""
    for segment in segments:
        place = f"{path}:{segment.line}"
        if segment.start < 0:
            yield f"{place}: start {segment.start} is negative; times count from the start of the sound."
        if segment.end <= segment.start:
            yield f"{place}: end {segment.end} must be after start {segment.start}."
        if FORBIDDEN.search(segment.label) or " " in segment.label or "\t" in segment.label:
            yield (
                f"{place}: label {shown(segment.label)!r} holds a blank or control character, which ends a "
                "column of ABX items. Replace it."
            )
    for before, segment in pairwise(segments):
        place = f"{path}:{segment.line}"
        if segment.start < before.start:
            yield (
                f"{place}: starts at {segment.start} s, before line {before.line}, at {before.start} s. Sort "
                "the times."
            )
        # Times are often rounded to hundredths, start and end each by itself.
        elif segment.start < before.end - TIME_TOLERANCE:
            yield (
                f"{place}: starts at {segment.start} s and overlaps line {before.line}, which ends at "
                f"{before.end} s."
            )
