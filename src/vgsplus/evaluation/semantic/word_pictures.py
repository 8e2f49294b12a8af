"""Tables of spoken words and pictures for the semantic test."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vgsplus.corpora.sources.table_rows import Table, located, plain, read_records
from vgsplus.errors import CorpusError
from vgsplus.evaluation.hidden_states import check_audio
from vgsplus.files import is_file
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.parallel import parallel_map
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.images import open_image

COLUMNS = ("word", "category", "sound", "picture")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WordPictures:
    """Recordings of spoken words, and pictures.

    Attributes:
        words: word of each of N recordings.
        categories: their categories.
        sounds: their files.
        pictures: M files.
        own: (N, M), whether a picture is of the category of a recording.
    """

    words: tuple[str, ...]
    categories: tuple[str, ...]
    sounds: tuple[Path, ...]
    pictures: tuple[Path, ...]
    own: NDArray[np.bool_]


def read_word_pictures(path: Path) -> WordPictures:
    """Read a table with the columns `sound`, `picture`, and `word` or `category` or both, in any order.

    A row has a recording of a word, a picture of a category, or both. Without a word or category, the one is
    the other. A picture with several rows is of several categories. Files are relative to the folder of the
    table; its format is otherwise that of `corpora.sources.table_rows.read_table`.

    Raises:
        CorpusError: all faults of the table, with their lines: of its columns and cells, files that do not
            exist, a recording in two rows, a word of two categories, and a category of which there are no
            pictures, or no others.
    """
    table = Table(Path(path))
    sounds: dict[Path, tuple[int, str, str]] = {}
    pictures: dict[Path, set[str]] = {}
    category_of: dict[str, tuple[int, str]] = {}
    records = read_records(table, COLUMNS)
    columns = _columns(table, *records[0]) if records else []
    if table.faults:
        raise CorpusError(table.faults)
    for line, word, category, sound, picture in _rows(table, records[1:], columns):
        if sound is not None:
            first_line, first = category_of.setdefault(word, (line, category))
            if first != category:
                table.fault(line, f"{word!r} is of {category!r} here and of {first!r} in line {first_line}.")
            if sound in sounds:
                table.fault(line, f"{sound} is in line {sounds[sound][0]} already. Remove one.")
            sounds.setdefault(sound, (line, word, category))
        if picture is not None:
            pictures.setdefault(picture, set()).add(category)
    if not table.faults:
        table.faults += _missing(table, category_of, pictures)
    if table.faults:
        raise CorpusError(table.faults)
    spoken = list(sounds.values())
    shown = {category: [category in own for own in pictures.values()] for _, category in category_of.values()}
    return WordPictures(
        words=tuple(word for _, word, _ in spoken),
        categories=tuple(category for *_, category in spoken),
        sounds=tuple(sounds),
        pictures=tuple(pictures),
        own=np.array([shown[category] for *_, category in spoken], dtype=bool),
    )


def check_files(table: WordPictures, model: VGSPlus, progress: Progress = SILENT) -> None:
    """Decode all files; raise CorpusError with those that cannot be decoded, are too short or silent."""

    def check(path: Path) -> str | None:
        try:
            open_image(path)
        except CorpusError as error:
            return str(error)
        return None

    faults = check_audio(table.sounds, model, progress=progress)[1]
    faults += [fault for fault in parallel_map(check, table.pictures, progress, "checking") if fault]
    if faults:
        raise CorpusError(faults)


def _columns(table: Table, line: int, cells: list[str]) -> list[str]:
    """Return the columns of the header; faults are added to the table."""
    columns = [plain(cell) for cell in cells]
    for column in columns:
        if column not in COLUMNS or columns.count(column) > 1:
            table.fault(line, f"column {column!r} is unknown or repeated. The columns: {', '.join(COLUMNS)}.")
    if missing := [column for column in ("sound", "picture") if column not in columns]:
        table.fault(line, f"there is no column {missing[0]!r}. The columns: {', '.join(COLUMNS)}.")
    if not {"word", "category"} & {*columns}:
        table.fault(line, "there is no column 'word' or 'category'.")
    return columns


def _rows(
    table: Table, records: list[tuple[int, list[str]]], columns: list[str]
) -> Iterator[tuple[int, str, str, Path | None, Path | None]]:
    """Yield (line, word, category, sound, picture) of each row; faults are added to the table."""
    for line, cells in records:
        if len(cells) != len(columns):
            table.fault(line, f"has {len(cells)} cells, the header {len(columns)}.")
            continue
        values = {column: cell.strip() for column, cell in zip(columns, cells, strict=True)}
        word = values.get("word") or values.get("category") or ""
        if not word or not (values["sound"] or values["picture"]):
            table.fault(line, "names no word or category, or neither a sound nor a picture.")
            continue
        sound, picture = (_file(table, line, values[kind], kind) for kind in ("sound", "picture"))
        yield line, word, values.get("category") or word, sound, picture


def _file(table: Table, line: int, cell: str, kind: str) -> Path | None:
    """Return the file in a cell, or None if it is empty or there is no such file, which is a fault."""
    path = located(table, line, cell)
    if path is not None and not is_file(path):
        table.fault(line, f"{path}: there is no such {kind}.")
        return None
    return path


def _missing(
    table: Table, category_of: dict[str, tuple[int, str]], pictures: dict[Path, set[str]]
) -> list[str]:
    """Return faults of words that cannot be scored."""
    if not category_of:
        return [f"{table.path}: names no sound. Add a row for each recording of a word."]
    faults = []
    for line, category in category_of.values():
        number = sum(category in own for own in pictures.values())
        if number == 0:
            faults.append(f"{table.path}:{line}: there is no picture of {category!r}. Add one or more.")
        elif number == len(pictures):
            faults.append(
                f"{table.path}:{line}: all pictures are of {category!r}. Add pictures of other categories."
            )
    return faults
