"""Fill a store of regions in parts, resumable after a kill."""

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
    """Open the incomplete store in a folder to resume a task, or create one for a new task.

    The folder contains the store and a journal: a digest of the task, then one record per finished part.

    Args:
        folder: folder of the store. The caller must exclude other processes.
        task: description of the task and its inputs, serialisable as JSON.
        create: creates the store at a path.

    Yields:
        The path of the store, the records of finished parts, and a function to record another one, to be
        called when the rows of that part are on disk.
    """
    path, journal = folder / REGIONS_FILE, folder / JOURNAL
    digest = hashlib.sha256(json.dumps(task, sort_keys=True, default=str).encode()).hexdigest()
    content = journal.read_bytes() if journal.is_file() else b""
    complete = content[: content.rfind(b"\n") + 1]  # without a truncated last line
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
