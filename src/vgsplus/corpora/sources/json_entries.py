"""Lists in JSON, {"data": […]}, read entry by entry, so that half a million captions take no memory."""

import codecs
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import ijson

from vgsplus.errors import CorpusError
from vgsplus.files import is_file


def entries_of(path: Path, key: str = "data") -> Iterator[Any]:
    """The members of the list `key` in a JSON file, one at a time; other keys are passed over.

    Raises:
        CorpusError: there is no such file, it is not JSON, has no list `key` or an empty one, or breaks off.
    """
    if not is_file(path):
        raise CorpusError(f"{path}: there is no such list of captions.")
    entries = 0
    with path.open("rb") as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        try:
            for entry in ijson.items(file, f"{key}.item", use_float=True):
                entries += 1
                yield entry
        except (ijson.JSONError, ValueError, OverflowError, RecursionError) as error:
            what = " ".join(str(error).split())
            raise CorpusError(
                f"{path}: is not valid JSON or breaks off after {entries} entries ({what}). "
                "Fetch the file again."
            ) from None
    if not entries:
        raise CorpusError(f'{path}: has no list "{key}", or an empty one. Is it the right file?')


def as_text(value: Any) -> str | None:  # noqa: ANN401 - as the file has it
    """A value that names something, a text or a whole number, as text without blanks around it; else None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return (value.strip() or None) if isinstance(value, str) else None


def fields_of(item: Any, names: Sequence[str], *, unbroken: Collection[str] = ()) -> dict[str, str] | str:  # noqa: ANN401
    """The values of an entry's fields as texts, or what is wrong with them; `unbroken` may hold no blanks."""
    values = item if isinstance(item, dict) else {}
    found = {name: as_text(values.get(name)) for name in names}
    texts = {name: text for name, text in found.items() if text is not None}
    faults = []
    if absent := [name for name in names if values.get(name) in (None, "")]:
        faults.append(f"lacks {', '.join(absent)}")
    faults += [
        f"has {name} = {str(values[name])[:40]!r}, which is no text"
        for name in names
        if name not in texts and name not in absent
    ]
    faults += [
        f"has a blank in {name} {text!r}"
        for name, text in texts.items()
        if name in unbroken and len(text.split()) > 1
    ]
    return "; ".join(faults) or texts
