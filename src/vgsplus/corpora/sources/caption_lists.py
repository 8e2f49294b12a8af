"""What lists of captions read aloud say: a source tells how they are read and how its pictures are named."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vgsplus.errors import CorpusError
from vgsplus.regions.collect import ImageKey


class SpokenCaption(NamedTuple):
    """A caption as a list names it, at `place` ("file: entry n" or "file:line").

    `wav` is relative to the folder of the wavs; `speaker` is None where the lists name none.
    """

    place: str
    image: str
    text: str | None
    speaker: str | None
    uttid: str
    wav: str


type Read = Callable[[], Iterator[tuple[str | None, SpokenCaption | str]]]
"""(split or None, caption or its fault) of every caption, the same each time."""


@dataclass(frozen=True, slots=True)
class Source:
    """A corpus as its distributors lay it out.

    Args:
        name: The corpus's name, in corpus.json.
        title: The same for people to read.
        licence: What it is distributed under.
        pictures: Where its pictures are from, for people to read.
        image_key: Returns the same key for all names of a picture; None: not one of its pictures.
        files: What it is read from, by what it is.
        read: Reads its lists; a caption of the split None is left out.
        notes: Further keys of corpus.json, from the number of pictures of each split.
    """

    name: str
    title: str
    licence: str
    pictures: str
    image_key: ImageKey
    files: Mapping[str, Path]
    read: Read
    notes: Callable[[Mapping[str, int]], Mapping[str, Any]] = lambda _: {}


def walk(source: Source) -> Iterator[tuple[str | None, SpokenCaption]]:
    """(split, caption) of every good caption, the same each time."""
    for split, caption in source.read():
        if isinstance(caption, SpokenCaption):
            yield split, caption


def lists_by_name(
    folders: Sequence[Path], patterns: Mapping[str, str], besides: Collection[str] = ()
) -> dict[str, Path]:
    """The lists in `folders` by split, whose whole names match the pattern of a split not in `besides`.

    Raises:
        CorpusError: two files claim the same split.
    """
    found: dict[str, Path] = {}
    for split, pattern in patterns.items():
        if split in besides:
            continue
        paths = (path for folder in folders for path in folder.glob("*.json"))
        matching = sorted(path for path in paths if re.fullmatch(pattern, path.name))
        if len(matching) > 1:
            names = ", ".join(path.name for path in matching)
            option = split.replace("_", "-")
            raise CorpusError(f"{folders[0]}: holds {names}. Choose one with --{option}.")
        if matching:
            found[split] = matching[0]
    return found
