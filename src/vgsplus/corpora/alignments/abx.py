"""ABX items of alignments, by the rules of the item files of the ZeroSpeech challenges and Libri-Light.

A token is a phone between two phones: neither it nor a neighbour is silence, and nothing is between them. In
"triphone" items, those of Libri-Light, a token lasts from the start of the previous phone to the end of the
next one, in "phone" items as long as the phone itself; both name the neighbours. Words have no context.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Literal

import numpy as np

from vgsplus.corpora.alignments.folder import Aligned, read_alignments
from vgsplus.corpora.alignments.segments import Segment
from vgsplus.corpora.format import ITEM_COLUMNS
from vgsplus.corpora.items import TIME_TOLERANCE, Token
from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.files import nfc, write_file
from vgsplus.progress import SILENT, Progress

type Unit = Literal["triphone", "phone", "word"]

SILENCES = ("sil", "sp", "spn", "ssil", "pau", "epi", "h#", "#", "<sil>", "<eps>", "<unk>", "nsn", "noise")
"""Labels of silence and noise: of HTK, Kaldi, the Montreal Forced Aligner, festvox and TIMIT."""
MIN_SECONDS = 0.02
"""Shortest token: one frame of models with 50 frames per second, so that every token has one."""
DECIMALS = 7
"""Decimals of times: samples at 16 kHz are exact."""
SILENT_TOKEN, NO_CONTEXT = "silence or noise", "next to silence, a gap or the end"
TOO_SHORT, NOT_DRAWN = "too short", "not drawn"


@dataclass(frozen=True, slots=True)
class ItemCounts:
    """Number of tokens written, of their phones or words, contexts, speakers and sounds; tokens left out."""

    tokens: int
    labels: int
    contexts: int
    speakers: int
    sounds: int
    left_out: dict[str, int]


def write_items(
    root: Path,
    out: Path,
    *,
    unit: Unit = "triphone",
    audio_root: Path | None = None,
    tier: str | None = None,
    speakers: Path | None = None,
    silences: Sequence[str] = SILENCES,
    strip: str | None = None,
    min_seconds: float = MIN_SECONDS,
    size: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> ItemCounts:
    """Write the ABX items of the alignments at `root` to `out`; see `read_alignments` for most arguments.

    Args:
        root: folder of alignments, or a single one.
        out: the item file.
        unit: see the module.
        audio_root: folder of the sounds.
        tier: tier of TextGrids.
        speakers: table of speakers.
        silences: labels of silence and noise, in upper or lower case; empty labels always are.
        strip: regular expression; what it matches is removed from labels first, such as "[0-2]$" for stress.
        min_seconds: tokens that are shorter are left out.
        size: maximum number of tokens. Contexts (for words, words) are drawn at random, each with all its
            tokens, as long as they fit. Default: all.
        seed: random seed of `size`.
        overwrite: whether to replace `out`.
        progress: see `read_alignments`.

    Raises:
        CorpusError: all faults of the alignments, or no token is left.
        VgsplusError: `strip` is not a regular expression, or `out` exists.
    """
    try:
        pattern = None if strip is None else re.compile(strip)
    except re.error as error:
        raise VgsplusError(f"--strip {strip}: is not a regular expression ({error}).") from None
    if out.exists() and not overwrite:
        raise VgsplusError(f"{out}: exists already. Choose another name, or add --overwrite.")
    alignments = read_alignments(
        root,
        words=unit == "word",
        tier=tier,
        audio_root=audio_root,
        speakers=speakers,
        progress=progress,
    )
    left_out: Counter[str] = Counter()
    tokens = list(
        item_tokens(
            alignments,
            unit,
            left_out,
            silences=silences,
            strip=pattern,
            min_seconds=min_seconds,
        )
    )
    if size is not None:
        drawn = draw_tokens(tokens, unit, size, seed)
        left_out[NOT_DRAWN] = len(tokens) - len(drawn)
        tokens = drawn
    if not tokens:
        why = ", ".join(f"{number} {reason}" for reason, number in left_out.items() if number)
        raise CorpusError(f"{root}: no token is left ({why or 'there are no labels'}).")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, item_text(tokens, unit))
    return ItemCounts(
        tokens=len(tokens),
        labels=len({token.phone for token in tokens}),
        contexts=len({(token.previous, token.following) for token in tokens}),
        speakers=len({token.speaker for token in tokens}),
        sounds=len({token.file for token in tokens}),
        left_out={reason: number for reason, number in left_out.items() if number},
    )


def item_tokens(
    alignments: Iterable[Aligned],
    unit: Unit,
    left_out: Counter[str],
    *,
    silences: Sequence[str] = SILENCES,
    strip: re.Pattern[str] | None = None,
    min_seconds: float = MIN_SECONDS,
) -> Iterator[Token]:
    """Yield the tokens of alignments (see `write_items`), and count those that are left out, by reason."""
    quiet = {"", *(label.casefold() for label in silences)}
    shortest = Decimal(str(min_seconds))

    def plain(segment: Segment) -> Segment:
        label = segment.label if strip is None else strip.sub("", segment.label)
        return replace(segment, label="" if label.casefold() in quiet else nfc(label))

    for aligned in alignments:
        segments = [None, *map(plain, aligned.segments), None]
        for before, segment, after in zip(segments, segments[1:], segments[2:], strict=False):
            assert segment is not None
            onset, offset, around = segment.start, segment.end, ("", "")
            if not segment.label:
                left_out[SILENT_TOKEN] += 1
                continue
            if unit != "word":
                if not (before and after and _adjacent(before, segment) and _adjacent(segment, after)):
                    left_out[NO_CONTEXT] += 1
                    continue
                around = before.label, after.label
                if unit == "triphone":
                    onset, offset = before.start, after.end
            if offset - onset < shortest:
                left_out[TOO_SHORT] += 1
                continue
            yield Token(
                line=segment.line,
                file=aligned.file,
                onset=onset,
                offset=offset,
                phone=segment.label,
                previous=around[0],
                following=around[1],
                speaker=aligned.speaker,
            )


def _adjacent(first: Segment, second: Segment) -> bool:
    """Return whether two segments are phones and nothing is between them."""
    return bool(first.label and second.label) and second.start - first.end <= TIME_TOLERANCE


def draw_tokens(tokens: Sequence[Token], unit: Unit, size: int, seed: int) -> list[Token]:
    """Return at most `size` tokens in order: all of the contexts, or words, that were drawn."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, token in enumerate(tokens):
        groups[(token.phone,) if unit == "word" else (token.previous, token.following)].append(index)
    names = sorted(groups)
    kept: list[int] = []
    for position in np.random.default_rng([seed]).permutation(len(names)):
        group = groups[names[position]]
        if len(kept) + len(group) <= size:
            kept += group
    return [tokens[index] for index in sorted(kept)]


def item_text(tokens: Iterable[Token], unit: Unit) -> str:
    """Return the text of an item file. Those of words have no columns for contexts."""
    columns = [name for name in ITEM_COLUMNS if unit != "word" or not name.endswith("-phone")]
    lines = [" ".join(columns)]
    for token in tokens:
        labels = [label for label in (token.phone, token.previous, token.following) if label]
        times = (f"{time:.{DECIMALS}f}".rstrip("0").rstrip(".") for time in (token.onset, token.offset))
        lines.append(" ".join((token.file, *times, *labels, token.speaker)))
    return "\n".join(lines) + "\n"
