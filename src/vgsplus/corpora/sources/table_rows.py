"""Read a table of recordings: its rows, and all faults of the text."""

import codecs
import csv
import difflib
import io
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from vgsplus.corpora.format import CaptionEntry
from vgsplus.files import as_on_disk, file_identity, is_file

COLUMNS = ("audio", "start", "end", "image", "speaker", "split", "text", "language")
SPLITS = ("train", "validation", "test")
ALIASES = {
    "audio": ("wav", "sound", "recording", "file", "path", "file_name", "filename", "audio_filepath"),
    "image": ("picture", "photo", "img"),
    "language": ("lang", "locale"),
    "text": ("caption", "transcript", "transcription", "sentence"),
    "split": ("set", "subset"),
    "speaker": ("voice", "client_id"),
    "start": ("onset", "begin"),
    "end": ("offset",),
}
"""Names of the columns in other data sets, such as those of Common Voice and Hugging Face."""
COLUMN_NAMES = {alias: column for column, aliases in ALIASES.items() for alias in aliases}
SPLIT_NAMES = {"val": "validation", "dev": "validation", "valid": "validation", "training": "train"}
INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u202a\u202c\u2060\ufeff"
"""Characters of zero width, which may be copied along with names from web pages and documents."""
SECONDS = re.compile(r"\d{1,9}([.,]\d{1,9})?|[.,]\d{1,9}", re.ASCII)
NEARLY = 0.8
"""Minimum similarity of a misspelt column name to the correct one (ratio of difflib)."""


@dataclass(slots=True)
class Table:
    """The contents of a table: valid rows, with absolute paths; faults; the names of the splits."""

    path: Path
    entries: list[CaptionEntry] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    splits: set[str] = field(default_factory=set)

    def fault(self, line: int, message: str, path: Path | None = None) -> None:
        """Add a fault of a line of the table, or of another file."""
        self.faults.append(f"{path or self.path}:{line}: {message}")


def read_table(path: Path) -> Table:
    """Read a table with the columns of `COLUMNS` in any order, separated by commas, semicolons or tabs.

    The encoding is UTF-8, or UTF-16 with byte-order mark. Columns without a name are ignored if they are
    empty, or if it is the first one and numbers the rows. The line number of a row is that of its first line.
    """
    table = Table(path)
    records = read_records(table, {*COLUMNS, *COLUMN_NAMES})
    if not records:
        return table
    (line, names), *rows = records
    columns = _header(table, line, names, _unnamed(table, line, names, rows))
    if columns is None:
        return table
    for row_line, cells in rows:
        _add_row(table, row_line, cells, columns)
    if not table.entries and not table.faults:
        table.fault(line, "no row follows the header. Add a line for each recording.")
    check_rows(table)
    return table


def read_records(table: Table, columns: Collection[str]) -> list[tuple[int, list[str]]]:
    """Return the rows of a table that are not blank, the header first, as (line, cells).

    Faults of the text are added to `table`, for which no row may be returned. The separator is the one with
    which most of `columns` are in the header.
    """
    text = _decoded(table)
    if text is None:
        return []
    stated = re.match(r'"?sep=(.)"?\r?\n', text, re.IGNORECASE)  # the first line of some tables of Excel
    first_line = 1 if stated else 0
    header_line = next((line for line in text.splitlines()[first_line:] if line.strip()), "")
    delimiter = stated[1] if stated else _delimiter(header_line, columns)
    records = list(_records(table, text, delimiter, first_line))
    if not records and not table.faults:
        table.fault(1, "the table is empty. Its first line names the columns.")
    return records


def _decoded(table: Table) -> str | None:
    if not is_file(table.path):
        table.faults.append(f"{table.path}: there is no such table.")
        return None
    data = table.path.read_bytes()
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        # Old programs end a file with Ctrl-Z, and some with zero bytes after it.
        text = data.decode("utf-16" if wide else "utf-8-sig").rstrip("\0\x1a")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        table.fault(
            line, "the table is not UTF-8, but perhaps in the encoding of Windows. Save it as CSV UTF-8."
        )
        return None
    if "\0" in text:
        table.fault(text[: text.index("\0")].count("\n") + 1, "holds a NUL character. Save it as CSV UTF-8.")
        return None
    return text


def _delimiter(header: str, columns: Collection[str]) -> str:
    """Return the separator with which the header has the most of `columns`."""

    def known(delimiter: str) -> tuple[int, int]:
        cells = [plain(cell) for cell in header.replace('"', "").split(delimiter)]
        return sum(cell in columns for cell in cells), len(cells)

    return max(",;\t", key=known)


def _records(table: Table, text: str, delimiter: str, first_line: int) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of each row that is not blank, up to the first fault of the quoting."""
    source = io.StringIO(text, newline="")
    for _ in range(first_line):
        source.readline()
    try:
        reader = csv.reader(source, delimiter=delimiter, strict=True, skipinitialspace=True)
    except (TypeError, ValueError) as error:
        table.fault(1, f"its separator {delimiter!r} cannot be used ({error}). Use a comma.")
        return
    while True:
        line = first_line + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            table.fault(line, f"cannot be split into cells ({error}). Look for a quotation mark left open.")
            return
        if any(cell.strip() for cell in cells):
            yield line, cells


def plain(name: str) -> str:
    """Return a name in lower case, without blanks and invisible characters around it."""
    return name.strip(f"{INVISIBLE} \t\r\n\xa0").lower()


def _unnamed(
    table: Table, line: int, names: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]]
) -> set[int]:
    """Return unnamed columns to ignore: empty ones, and a first one that numbers the rows (pandas)."""
    ignored = set()
    for index, name in enumerate(names):
        if plain(name):
            continue
        cells = [row[index].strip() for _, row in rows if index < len(row)]
        if not any(cells) or (index == 0 and cells == [str(number) for number in range(len(cells))]):
            ignored.add(index)
        else:
            example = next(cell for cell in cells if cell)
            table.fault(line, f"column {index + 1} has no name, but holds {example!r}. Name or remove it.")
    return ignored


def _header(table: Table, line: int, cells: Sequence[str], ignored: set[int]) -> list[str] | None:
    """Return the columns in order, "" for those to ignore; None if rows cannot be read."""
    columns = ["" if index in ignored else plain(cell) for index, cell in enumerate(cells)]
    if not any(_meant(column) for column in columns):
        table.fault(
            line,
            f"the header is missing. The first line names the columns: {', '.join(COLUMNS)} (any order).",
        )
        return None
    for index, column in enumerate(columns):
        if column and column in columns[:index]:
            table.fault(line, f"two columns are named {column!r}. Rename or remove one.")
        elif column and column not in COLUMNS:
            hint = f"The columns are {', '.join(COLUMNS)}; remove others."
            if near := _meant(column):
                hint = f"Did you mean {near!r}?"
            table.fault(line, f"unknown column {cells[index]!r}. {hint}")
    if "audio" not in columns:
        table.fault(line, "there is no column 'audio'. It names the sound file of each row.")
        return None
    return columns


def _meant(column: str) -> str | None:
    """Return the column of a name, an alias or a misspelt name, or None."""
    near = iter(difflib.get_close_matches(column, COLUMNS, cutoff=NEARLY))
    return COLUMN_NAMES.get(column) or next(near, None)


def _add_row(table: Table, line: int, cells: Sequence[str], columns: Sequence[str]) -> None:
    if len(cells) != len(columns):
        table.fault(
            line,
            f"has {len(cells)} cells, the header {len(columns)}. "
            "Put a cell that holds the separator between quotation marks.",
        )
        return
    values = {column: cell.strip() for column, cell in zip(columns, cells, strict=True) if column}
    empty = [column for column in ("audio", "split") if values.get(column) == ""]
    for column in empty:
        table.fault(line, f"the cell under {column!r} is empty.")
    split = values.get("split")
    if split:
        table.splits.add(split)
        if not is_split(split):
            table.fault(line, f"unknown split {split!r}. {_split_hint(split)}")
    audio, image = (located(table, line, values.get(column, "")) for column in ("audio", "image"))
    start, end = (_seconds(table, line, column, values.get(column, "")) for column in ("start", "end"))
    if start is not None and end is not None and end <= start:
        table.fault(line, f"end {values['end']} must be after start {values['start']}, both in seconds.")
        return
    if empty or audio is None or (values.get("image") and image is None):
        return
    table.entries.append(
        CaptionEntry(
            origin=f"{table.path}:{line}",
            audio=str(audio),
            id=_name(table.path.parent.absolute(), audio, start, end),
            start=start,
            end=end,
            image=None if image is None else str(image),
            # Blanks separate the columns of ABX item files.
            speaker="_".join(values.get("speaker", "").split()) or "unknown",
            split=split,
            text=values.get("text") or None,
            language=values.get("language") or "und",
        )
    )


def _seconds(table: Table, line: int, column: str, cell: str) -> float | None:
    """Parse seconds with decimal point or comma; None for an empty or faulty cell."""
    if not cell:
        return None
    if SECONDS.fullmatch(cell):
        return float(cell.replace(",", "."))
    table.fault(line, f"{column} {cell!r} must be a number of seconds, such as 12.5.")
    return None


def is_split(name: str | None) -> bool:
    """Return whether a split has this name: train, validation, test or test_NAME."""
    return name is not None and (name in SPLITS or name.startswith("test_"))


def _split_hint(split: str) -> str:
    name = plain(split)
    near = SPLIT_NAMES.get(name) or next(iter(difflib.get_close_matches(name, SPLITS)), None)
    names = "The splits are train, validation, test and test_NAME."
    return f"Did you mean {near!r}? {names}" if near else names


def located(table: Table, line: int, cell: str) -> Path | None:
    """Return the file in a cell, relative to the folder of the table; None for an empty or faulty cell.

    If there is no such file, backslashes as separators and the other Unicode form are tried.
    """
    name = cell.strip(f"{INVISIBLE} \xa0")
    if name.lower().startswith("file://"):
        name = unquote(name[len("file://") :].removeprefix("localhost"))
    elif "://" in name:
        table.fault(line, f"{name} is an address. Download the file, and name it here.")
        return None
    if not name:
        return None
    path = absolute(table.path.parent, name)
    if is_file(path):
        return path
    converted = as_on_disk(absolute(table.path.parent, name.replace("\\", "/")))
    return converted if is_file(converted) else as_on_disk(path)


def absolute(folder: Path, name: str) -> Path:
    """Return the absolute path, without "..", of a file name that is relative to a folder."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # ~NAME of an unknown user
        path = Path(name)
    return Path(os.path.abspath(folder / path))  # noqa: PTH100 - resolve follows links


def check_rows(table: Table) -> None:
    """Add faults of several rows: repeated rows, images or sounds in two splits, no split "train"."""
    pairs: dict[tuple[object, ...], CaptionEntry] = {}
    seen: dict[tuple[str, object], dict[str | None, list[CaptionEntry]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in table.entries:
        audio, image = Path(row.audio), row.image and Path(row.image)
        pair = (file_identity(audio), row.start, row.end, image and file_identity(image))
        if (first := pairs.setdefault(pair, row)) is not row:
            what = "the same audio and image" if image else "the same audio"
            table.faults.append(f"{row.origin}: repeats line {first.line} ({what}). Remove one.")
        for kind, path in (("image", image), ("audio", audio)):
            if not path:
                continue
            by_split = seen[kind, file_identity(path)]
            others = (other for split, rows in by_split.items() if split != row.split for other in rows)
            conflict = next((other for other in others if _shares(kind, row, other)), None)
            by_split[row.split].append(row)
            if conflict is not None:
                table.faults.append(
                    f"{row.origin}: {kind} {path.name} is in {row.split!r} here and in {conflict.split!r} in "
                    f"line {conflict.line}. Keep all its rows in one split."
                )
    # With a misspelt split, "train" may only seem to be missing.
    if table.splits and "train" not in table.splits and all(map(is_split, table.splits)):
        table.faults.append(f"{table.path}: no row has the split 'train'. Give it to most of the rows.")


def _shares(kind: str, row: CaptionEntry, other: CaptionEntry) -> bool:
    """Return whether two rows with the same file, in different splits, are a fault."""
    ends = [float("inf") if one.end is None else one.end for one in (row, other)]
    overlap = (row.start or 0.0) < ends[1] and (other.start or 0.0) < ends[0]
    return is_split(row.split) and is_split(other.split) and (kind == "image" or overlap)


def _name(folder: Path, audio: Path, start: float | None, end: float | None) -> str:
    """Return the id of a row: the path without suffix, relative to `folder` if inside, and the times."""
    path = audio.relative_to(folder) if audio.is_relative_to(folder) else Path(audio.name)
    name = "_".join(path.with_suffix("").as_posix().split()) or "_"
    if (start, end) == (None, None):
        return name
    last = "end" if end is None else f"{round(end * 1000):07d}"
    return f"{name}-{round((start or 0.0) * 1000):07d}-{last}"
