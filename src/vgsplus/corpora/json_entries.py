"""Lists in JSON, {"data": […]}, read entry by entry, so that half a million captions take no memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ijson

from vgsplus.corpora.faults import CorpusError


def entries_of(path: Path, key: str = "data") -> Iterator[Any]:
    """The members of the list `key` in a JSON file, one at a time; other keys are passed over.

    Raises:
        CorpusError: there is no such file, it is not JSON, has no list `key` or an empty one, or breaks off.
    """
    if not path.is_file():
        raise CorpusError(f"{path}: there is no such list of captions.")
    entries = 0
    with path.open("rb") as file:
        try:
            for entry in ijson.items(file, f"{key}.item", use_float=True):
                entries += 1
                yield entry
        except ijson.JSONError as error:
            what = " ".join(str(error).split())
            raise CorpusError(
                f"{path}: is not valid JSON or breaks off after {entries} entries ({what}). "
                "Fetch the file again."
            ) from None
    if not entries:
        raise CorpusError(f'{path}: has no list "{key}", or an empty one. Is it the right file?')
