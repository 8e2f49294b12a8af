"""Where the objects are that words name: a table of words, their times and boxes.

    #file onset offset word x1 y1 x2 y2

The columns are separated by spaces or tabs. `#file` is the id of a caption, times are in seconds from its
start, and a box is (x1, y1, x2, y2) as fractions of the width and height of its picture, from the top left.
Several objects of one word have a line each, with the same times.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from vgsplus.audio import SAMPLE_RATE
from vgsplus.corpora import Caption
from vgsplus.corpora.alignments.segments import seconds
from vgsplus.corpora.format import BOX_COLUMNS
from vgsplus.corpora.items import TIME_TOLERANCE, shown
from vgsplus.corpora.keyed_lines import numbered_lines
from vgsplus.errors import CorpusError

type Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class NamedObject:
    """A word from `onset` to `offset` seconds of a caption, and the boxes of what it names."""

    caption: Caption
    word: str
    onset: float
    offset: float
    boxes: tuple[Box, ...]


def read_named_objects(path: Path, captions: Mapping[str, Caption]) -> list[NamedObject]:
    """Read a table of words and boxes.

    Args:
        path: the table.
        captions: those that it may name, by id.

    Raises:
        CorpusError: all faults with their lines: another header, a line of another number of columns, a
            caption that is unknown or has no picture, times that are no numbers, in no order or after the end
            of the caption, a box that is none; or there are no words.
    """
    lines = list(numbered_lines(path))
    if not lines or tuple(lines[0][1].split()) != BOX_COLUMNS:
        raise CorpusError(f"{path}:1: the header must be: {' '.join(BOX_COLUMNS)}")
    faults: list[str] = []
    found: dict[tuple[str, str, float, float], list[Box]] = defaultdict(list)
    for number, line in lines[1:]:
        cells = line.split()
        fault = _fault(cells, captions)
        if fault is not None:
            faults.append(f"{path}:{number}: {fault}")
            continue
        onset, offset, x1, y1, x2, y2 = (float(cell) for cell in cells[1:3] + cells[4:])
        found[cells[0], cells[3], onset, offset].append((x1, y1, x2, y2))
    if not faults and not found:
        faults.append(f"{path}: holds no words, only a header.")
    if faults:
        raise CorpusError(faults)
    return [
        NamedObject(captions[file], word, onset, offset, tuple(boxes))
        for (file, word, onset, offset), boxes in found.items()
    ]


def _fault(cells: list[str], captions: Mapping[str, Caption]) -> str | None:
    if len(cells) != len(BOX_COLUMNS):
        return f"has {len(cells)} columns, the header names {len(BOX_COLUMNS)}."
    caption = captions.get(cells[0])
    if caption is None or caption.image is None:
        what = "is not in this split" if caption is None else "has no picture"
        return f"the caption {shown(cells[0])} {what}. Remove the line, or name another --split or --words."
    length = Decimal(caption.num_samples) / SAMPLE_RATE
    onset, offset, *corners = (seconds(cell) for cell in cells[1:3] + cells[4:])
    if onset is None or offset is None or not 0 <= onset < offset <= length + TIME_TOLERANCE:
        return (
            f"onset {shown(cells[1])} and offset {shown(cells[2])} must be seconds, the onset before "
            f"the offset, in a caption of {length:.3f} s."
        )
    x1, y1, x2, y2 = (-1 if corner is None else corner for corner in corners)
    if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
        return (
            f"the box {shown(' '.join(cells[4:]))} must be x1 y1 x2 y2 as fractions of the width and height, "
            "0 ≤ x1 < x2 ≤ 1 and 0 ≤ y1 < y2 ≤ 1."
        )
    return None
