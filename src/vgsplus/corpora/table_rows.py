"""Reading a user's table of recordings: rows with their line numbers, and every fault of the table's text.

What the table's files hold is checked in `table`.
"""

import csv
import difflib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REQUIRED = ("audio",)
COLUMNS = (*REQUIRED, "image", "speaker", "split", "text", "language")
SPLITS = ("train", "validation", "test")
# What people call them elsewhere.
COLUMN_NAMES = {
    "wav": "audio",
    "sound": "audio",
    "recording": "audio",
    "file": "audio",
    "picture": "image",
    "photo": "image",
    "img": "image",
    "lang": "language",
    "caption": "text",
    "transcript": "text",
    "sentence": "text",
    "set": "split",
    "subset": "split",
    "voice": "speaker",
}
SPLIT_NAMES = {"val": "validation", "dev": "validation", "valid": "validation", "training": "train"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the table, its files as absolute paths.

    `image` is None for speech alone, `split` where the table has no such column.
    """

    line: int
    audio: Path
    image: Path | None
    speaker: str
    split: str | None
    text: str | None
    language: str


@dataclass(slots=True)
class Table:
    """What a table says: rows that can be read, faults as "FILE:LINE: what, and what to do", splits named."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    splits: set[str] = field(default_factory=set)

    def fault(self, line: int, message: str) -> None:
        """Record a fault of a line."""
        self.faults.append(f"{self.path}:{line}: {message}")


def read_table(path: Path) -> Table:
    """Read a table with the columns of `COLUMNS` in any order, separated by commas, semicolons or tabs.

    A line number is that of the line on which the row starts, also where a quoted cell spans lines.
    """
    table = Table(path)
    text = _decoded(table)
    if text is None:
        return table
    header_line = next((line for line in text.splitlines() if line.strip()), "")
    records = _records(table, text, _delimiter(header_line))
    first = next(records, None)
    if first is None:
        if not table.faults:
            table.fault(1, "the table is empty. Its first line names the columns: audio,image,…")
        return table
    columns = _header(table, *first)
    if columns is None:
        return table
    for line, cells in records:
        _add_row(table, line, cells, columns)
    if not table.rows and not table.faults:
        table.fault(first[0], "no row follows the header. Add a line for each recording.")
    _check_rows(table)
    return table


def _decoded(table: Table) -> str | None:
    if not table.path.is_file():
        table.faults.append(f"{table.path}: there is no such table.")
        return None
    data = table.path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        table.fault(line, "the table is not UTF-8. Save it as CSV UTF-8.")
        return None


def _delimiter(header: str) -> str:
    """The separator that finds the most known columns in the header."""

    def known(delimiter: str) -> tuple[int, int]:
        cells = [_plain(cell) for cell in header.replace('"', "").split(delimiter)]
        return sum(cell in COLUMNS or cell in COLUMN_NAMES for cell in cells), len(cells)

    return max(",;\t", key=known)


def _records(table: Table, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of each row that is not blank; a fault of the quoting ends them."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            table.fault(line, f"cannot be split into cells ({error}). Look for a quotation mark left open.")
            return
        if any(cell.strip() for cell in cells):
            yield line, cells


def _plain(name: str) -> str:
    return name.strip().lower()


def _header(table: Table, line: int, cells: Sequence[str]) -> list[str] | None:
    """The columns in the table's order, or None where rows cannot be read by them."""
    columns = [_plain(cell) for cell in cells]
    if not any(column in COLUMNS or column in COLUMN_NAMES for column in columns) and not _similar(columns):
        table.fault(
            line,
            f"the header is missing. The first line names the columns: {', '.join(COLUMNS)} (any order).",
        )
        return None
    for index, column in enumerate(columns):
        if column in columns[:index]:
            table.fault(line, f"two columns are named {column!r}. Rename or remove one.")
        elif column not in COLUMNS:
            table.fault(line, f"unknown column {cells[index]!r}. {_column_hint(column)}")
    for column in REQUIRED:
        if column not in columns:
            table.fault(line, f"there is no column {column!r}. It names the sound file of each row.")
    return columns if set(REQUIRED) <= set(columns) else None


def _similar(columns: Sequence[str]) -> bool:
    return any(difflib.get_close_matches(column, COLUMNS) for column in columns)


def _column_hint(column: str) -> str:
    near = COLUMN_NAMES.get(column) or next(iter(difflib.get_close_matches(column, COLUMNS)), None)
    return f"Did you mean {near!r}?" if near else f"The columns are {', '.join(COLUMNS)}; remove others."


def _add_row(table: Table, line: int, cells: Sequence[str], columns: Sequence[str]) -> None:
    if len(cells) != len(columns):
        table.fault(
            line,
            f"has {len(cells)} cells, the header {len(columns)}. "
            "Put a cell that holds the separator between quotation marks.",
        )
        return
    values = {column: cell.strip() for column, cell in zip(columns, cells, strict=True)}
    empty = [column for column in (*REQUIRED, "split") if values.get(column) == ""]
    for column in empty:
        table.fault(line, f"the cell under {column!r} is empty.")
    split = values.get("split")
    if split:
        table.splits.add(split)
        if not _is_split(split):
            table.fault(line, f"unknown split {split!r}. {_split_hint(split)}")
    if empty:
        return
    table.rows.append(
        Row(
            line=line,
            audio=_absolute(table.path, values["audio"]),
            image=_absolute(table.path, values["image"]) if values.get("image") else None,
            # Blanks separate the columns of ABX item files.
            speaker="_".join(values.get("speaker", "").split()) or "unknown",
            split=split,
            text=values.get("text") or None,
            language=values.get("language") or "und",
        )
    )


def _is_split(name: str | None) -> bool:
    return name is not None and (name in SPLITS or name.startswith("test_"))


def _split_hint(split: str) -> str:
    plain = _plain(split)
    near = SPLIT_NAMES.get(plain) or next(iter(difflib.get_close_matches(plain, SPLITS)), None)
    names = "The splits are train, validation, test and test_NAME."
    return f"Did you mean {near!r}? {names}" if near else names


def _absolute(table: Path, cell: str) -> Path:
    """A file named in the table, relative to the table's folder; two spellings of one path become one."""
    return Path(os.path.abspath(table.parent / Path(cell).expanduser()))  # noqa: PTH100 - resolve follows links


def _check_rows(table: Table) -> None:
    """Faults between rows: the same row twice, a picture or a recording in two splits, no train split."""
    pairs: dict[tuple[Path, Path | None], int] = {}
    homes: dict[tuple[str, Path], Row] = {}
    for row in table.rows:
        pair = (row.audio, row.image)
        if pair in pairs:
            table.fault(row.line, f"repeats line {pairs[pair]} (the same audio and image). Remove one.")
        pairs.setdefault(pair, row.line)
        for kind, path in (("image", row.image), ("audio", row.audio)):
            if path is None:
                continue
            home = homes.setdefault((kind, path), row)
            if home.split != row.split and _is_split(home.split) and _is_split(row.split):
                table.fault(
                    row.line,
                    f"{kind} {path.name} is in {row.split!r} here and in {home.split!r} in line {home.line}. "
                    "Keep all its rows in one split.",
                )
    # A misspelt split may have meant "train".
    if table.splits and "train" not in table.splits and all(map(_is_split, table.splits)):
        table.faults.append(f"{table.path}: no row has the split 'train'. Give it to most of the rows.")
