"""Make a store of regions in parts, so that the work can be resumed after a kill."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vgsplus.regions.store import REGIONS_FILE

JOURNAL = "resume.jsonl"


@contextmanager
def resumable_store(
    folder: Path, task: object, create: Callable[[Path], None]
) -> Iterator[tuple[Path, list[Any], Callable[[Any], None]]]:
    """Resume the store in a folder, or create it if the folder holds none of the same task.

    The folder holds the store and a journal: a digest of the task, then the records of the finished parts.

    Args:
        folder: belongs to one process at a time.
        task: describes the work and its inputs, as values for JSON.
        create: creates the store at a path.

    Yields:
        The path of the store, the records of the parts that are finished, and a function that records
        another one; the rows of that part must be on disk.
    """
    path, journal = folder / REGIONS_FILE, folder / JOURNAL
    digest = hashlib.sha256(json.dumps(task, sort_keys=True, default=str).encode()).hexdigest()
    content = journal.read_bytes() if journal.is_file() else b""
    complete = content[: content.rfind(b"\n") + 1]  # without a line that a kill cut off
    found, *records = map(json.loads, complete.splitlines() or [b"null"])
    if found != digest:
        journal.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        create(path)
        complete, records = json.dumps(digest).encode() + b"\n", []
        journal.write_bytes(complete)
    with journal.open("r+b") as lines:
        lines.truncate(len(complete))
        lines.seek(len(complete))

        def record(part: Any) -> None:  # noqa: ANN401 - any JSON value
            lines.write(json.dumps(part).encode() + b"\n")
            lines.flush()

        yield path, records, record
