"""Alignments in lines of text: CTM, labels of ESPS xlabel and TIMIT, words of LibriSpeech and of item files.

    *.ctm             FILE CHANNEL START DURATION LABEL …      seconds; ";;" begins a comment
    *.lab, *.wrd      lines of a header, "#", then: END COLOUR LABEL      seconds; from the end before
    *.PHN, *.WRD      START END LABEL                          samples at 16 kHz
    *.alignment.txt   UTTERANCE ",GO,,DO," "0.490,0.890,…"     words and their ends; from the end before
    *.item            see `corpora.items`                      seconds; of words, in any order

An empty word of the last is silence, as is a label of xlabel that is missing.
"""

import re
from collections import defaultdict
from decimal import Decimal
from pathlib import Path

from vgsplus.corpora.alignments.segments import Segment, Track, read_alignment, seconds
from vgsplus.corpora.items import parse_items, shown

TIMIT_RATE = 16_000
WORDS = re.compile(r'(\S+)\s+"([^"]*)"\s+"([^"]*)"')


def read_ctm(path: Path, faults: list[str]) -> list[Track]:
    """Read the segments of each file and channel of a CTM file; faults are appended."""
    found: dict[tuple[str, str], list[Segment]] = defaultdict(list)
    for number, line in _lines(path):
        if line.startswith(";;"):
            continue
        cells = line.split()
        if len(cells) < 5:
            faults.append(f"{path}:{number}: expected FILE CHANNEL START DURATION LABEL, has {len(cells)}.")
            continue
        name, channel, start, duration, label = cells[:5]
        if times := _times(f"{path}:{number}", faults, start=start, duration=duration):
            found[name, channel].append(Segment(number, times[0], times[0] + times[1], label))
    return [Track(path, tuple(segments), name) for (name, _), segments in found.items()]


def read_labels(path: Path, faults: list[str]) -> list[Track]:
    """Read labels of ESPS xlabel, which have a line "#", or else of TIMIT; faults are appended."""
    lines = _lines(path)
    header = next((index for index, (_, line) in enumerate(lines) if line == "#"), None)
    if header is None and path.suffix.lower() == ".lab":
        faults.append(f'{path}: has no line "#", which ends the header of labels of xlabel.')
        return []
    segments = _timit(path, lines, faults) if header is None else _xlabel(path, lines[header + 1 :], faults)
    if not segments and not faults:
        faults.append(f"{path}: is empty: it holds no labels.")
    return [Track(path, tuple(segments))]


def _xlabel(path: Path, lines: list[tuple[int, str]], faults: list[str]) -> list[Segment]:
    segments: list[Segment] = []
    for number, line in lines:
        # Further fields of a label follow a semicolon.
        time, _, label = [*line.split(";", 1)[0].split(None, 2), "", "", ""][:3]
        if times := _times(f"{path}:{number}", faults, end=time):
            start = segments[-1].end if segments else Decimal(0)
            segments.append(Segment(number, start, times[0], label.strip()))
    return segments


def _timit(path: Path, lines: list[tuple[int, str]], faults: list[str]) -> list[Segment]:
    segments = []
    for number, line in lines:
        cells = line.split(None, 2)
        if len(cells) != 3 or not all(re.fullmatch("[0-9]{1,15}", cell) for cell in cells[:2]):
            faults.append(f"{path}:{number}: expected START END LABEL, with whole numbers of samples.")
            continue
        start, end = (Decimal(cell) / TIMIT_RATE for cell in cells[:2])
        segments.append(Segment(number, start, end, cells[2]))
    return segments


def read_librispeech_words(path: Path, faults: list[str]) -> list[Track]:
    """Read the words of each utterance of a chapter; faults are appended."""
    tracks = []
    for number, line in _lines(path):
        parts = WORDS.fullmatch(line)
        if parts is None:
            faults.append(f'{path}:{number}: expected UTTERANCE "WORDS" "TIMES".')
            continue
        words, ends = parts[2].split(","), parts[3].split(",")
        if len(words) != len(ends):
            faults.append(f"{path}:{number}: has {len(words)} words and {len(ends)} times.")
            continue
        segments = []
        start = Decimal(0)
        for word, end in zip(words, ends, strict=True):
            times = _times(f"{path}:{number}", faults, end=end)
            # Every utterance ends with a silence, which may have no duration.
            if times and (word or times[0] != start):
                segments.append(Segment(number, start, times[0], word))
            start = times[0] if times else start
        tracks.append(Track(path, tuple(segments), parts[1]))
    return tracks


def read_word_items(path: Path, faults: list[str]) -> list[Track]:
    """Read the words of each sound of an item file, sorted by time; faults are appended."""
    items, wrong = parse_items(path)
    faults += wrong
    if items.has_contexts:
        faults.append(
            f"{path}: holds phones in context, not words. Make items of words by "
            "`vgsplus data items --unit word`, or name the alignments."
        )
    elif not items.tokens and not wrong:
        faults.append(f"{path}: holds no items, only a header.")
    found: dict[str, list[Segment]] = defaultdict(list)
    for token in sorted(items.tokens, key=lambda token: token.onset):
        found[token.file].append(Segment(token.line, token.onset, token.offset, token.phone))
    return [Track(path, tuple(found[file]), file) for file in items.by_file()]


def _lines(path: Path) -> list[tuple[int, str]]:
    """(number from 1, stripped text) of each line that is not blank."""
    lines = enumerate(read_alignment(path).split("\n"), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def _times(place: str, faults: list[str], **texts: str) -> list[Decimal]:
    """Return times in seconds, or an empty list and a fault for each that is no number."""
    times = {name: seconds(text) for name, text in texts.items()}
    wrong = [name for name, time in times.items() if time is None]
    faults += [f"{place}: {name} {shown(texts[name])} must be a number, in seconds." for name in wrong]
    return [] if wrong else [time for time in times.values() if time is not None]
