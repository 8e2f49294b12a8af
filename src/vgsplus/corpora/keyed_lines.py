"""Text files whose lines begin with a unique key, such as transcripts and lists of speakers."""

from collections.abc import Iterator
from pathlib import Path

from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.files import is_file, read_text


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, stripped text) of each line that is not blank.

    Raises:
        CorpusError: the file is absent or not UTF-8.
    """
    if not is_file(path):
        raise CorpusError(f"{path}: there is no such file.")
    try:
        text = read_text(path)
    except VgsplusError as error:
        raise CorpusError(str(error)) from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def keyed_lines(path: Path, faults: list[str]) -> dict[str, tuple[int, str]]:
    """Return (line number, text after the key) by key, which ends at the first space or tab of a line.

    Repeated keys are added to `faults`.

    Raises:
        CorpusError: the file is absent or not UTF-8.
    """
    entries: dict[str, tuple[int, str]] = {}
    for number, line in numbered_lines(path):
        key, _, rest = line.replace("\t", " ").partition(" ")
        if key in entries:
            faults.append(f"{path}:{number}: {key} is in line {entries[key][0]} already. Remove one.")
        else:
            entries[key] = number, rest.strip()
    return entries
