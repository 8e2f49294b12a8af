"""Collect the regions of a corpus from published files into one store, with several processes.

The images are known in advance from the captions. So the store is created at its final size, and each process
writes the rows of its parts of the files in place. After a kill, the remaining parts are processed.
"""

import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import Any

from vgsplus.errors import CorpusError
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.published import Part, split_file
from vgsplus.regions.resume import resumable_store
from vgsplus.regions.store import Dtype, RegionStore, create_store

NO_REGIONS = "no file of --features holds its regions"
RECORDS_FOR_SHAPE = 32
"""Number of records from which R and F are determined."""
WORTH_PROCESSES = 8
"""Minimum number of parts for which it pays to start processes, which takes seconds."""

type ImageKey = Callable[[str], int | str | None]
"""Maps all names of an image, in captions and in files of regions, to one key; other names to None."""


def collect_regions(
    files: Sequence[Path],
    images: Mapping[int | str, str],
    folder: Path,
    *,
    image_key: ImageKey,
    dtype: Dtype,
    partial: bool,
    progress: Progress = SILENT,
) -> tuple[Path, dict[str, str], int]:
    """Collect the regions of images from files (see `published`) into a store, one row per image, in order.

    Args:
        files: TSV or HDF5.
        images: image ids by key.
        folder: folder of the store and its journal. An interrupted call with the same inputs is resumed.
        image_key: maps image names in `files` to keys.
        dtype: data type of the stored features.
        partial: whether to skip images without valid regions.
        progress: stage "regions", counted in parts of the files.

    Returns:
        The path of the store (in `folder`), the reason for each skipped image by its id, and the number of
        records of images that are not in `images`.

    Raises:
        CorpusError: a file is missing; several records of one image; unless `partial`, all faulty records
            with their file and line, or all images without regions (the store is then kept for the next
            call).
    """
    parts = [part for path in files for part in split_file(path)]
    row_of = {key: row for row, key in enumerate(images)}
    image_ids = list(images.values())
    paths = sorted({path for part in parts for path in (part.path, part.names) if path is not None})
    stats = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    task = [dtype, stats, [astuple(part) for part in parts], list(images.items())]

    def create(path: Path) -> None:
        create_store(path, image_ids, _find_shape(parts), dtype)

    with resumable_store(folder, task, create) as (path, outcomes, record):
        todo = parts[len(outcomes) :]
        for outcome in _write_parts(todo, image_key, row_of, path):
            record(outcome)
            outcomes.append(outcome)
            progress.update("regions", len(outcomes), len(parts))
    try:
        rows = _filled_rows(parts, outcomes, image_ids, partial=partial)
    except CorpusError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    missing = {image_ids[row]: NO_REGIONS for row in sorted(set(range(len(image_ids))) - set(rows))}
    if missing and not partial:
        raise CorpusError([f"{image}: {fault}" for image, fault in missing.items()])
    if missing:
        path = _keep_rows(path, rows)
    return path, missing, sum(outcome["unnamed"] for outcome in outcomes)


def _find_shape(parts: Sequence[Part]) -> tuple[int, int]:
    """Return the most frequent (R, F) among the first records, some of which may be faulty."""
    found: Counter[tuple[int, int]] = Counter()
    fault = ""
    records = ((part, *record) for part in parts for record in part.records())
    for part, index, image, decode in records:
        if decode is None:
            continue
        try:
            features, _ = decode()
            found[features.shape] += 1
        except ValueError as error:
            fault = fault or f"{part.place(index, 0)}: image {image}: {error}"
        if found.total() == RECORDS_FOR_SHAPE:
            break
    if not found:
        raise CorpusError(f"{fault or f'{parts[0].path}: holds no record'}. No file holds a valid record.")
    return found.most_common(1)[0][0]


def _write_parts(
    parts: Sequence[Part], image_key: ImageKey, row_of: Mapping[int | str, int], path: Path
) -> Iterator[dict[str, Any]]:
    """Yield the result of `write_part` for each part, computed by several processes if there are many."""
    workers = os.cpu_count() or 1
    if workers < 2 or len(parts) < WORTH_PROCESSES:
        yield from (write_part(part, image_key, row_of, path) for part in parts)
        return
    # Spawned, because a fork would copy the open HDF5 files of this process, but not its threads.
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(image_key, row_of, path),
    ) as pool:
        yield from pool.map(_write_in_worker, parts)


_worker: tuple[ImageKey, Mapping[int | str, int], Path]


def _start_worker(*arguments: Any) -> None:  # noqa: ANN401 - those of `write_part`, sent once, not with each part
    global _worker  # noqa: PLW0603
    _worker = arguments
    # Ctrl-C interrupts all processes of the terminal; only the main process must handle it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Exit when the parent is killed, because a resumed call may write to the same store."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _write_in_worker(part: Part) -> dict[str, Any]:
    return write_part(part, *_worker)


def write_part(
    part: Part, image_key: ImageKey, row_of: Mapping[int | str, int], path: Path
) -> dict[str, Any]:
    """Write the regions of one part of a file to the store at `path`, and flush them to disk.

    Returns:
        "records": number of records; "rows": (index in the part, row of the store) of valid ones; "unnamed":
        number of records of images without a row; "faults": (index in the part, message).
    """
    records, unnamed = 0, 0
    rows: list[tuple[int, int]] = []
    written: set[int] = set()
    faults: list[tuple[int, str]] = []
    with RegionStore(path, writable=True) as store:
        for index, image, decode in part.records():
            records += 1
            if decode is None:
                continue
            key = image_key(image)
            if key is None:
                fault = f"img_id {image!r} is not the name of an image such as {next(iter(row_of))}"
                faults.append((index, fault))
            elif key not in row_of:
                unnamed += 1
            else:
                row = row_of[key]
                try:
                    features, boxes = decode()
                    if row not in written:  # repeats are reported by `_filled_rows`
                        store.write(row, features, boxes)
                except ValueError as error:
                    faults.append((index, f"image {image}: {error}"))
                else:
                    rows.append((index, row))
                    written.add(row)
        store.sync()
    return {"records": records, "rows": rows, "unnamed": unnamed, "faults": faults}


def _filled_rows(
    parts: Sequence[Part], outcomes: Sequence[Mapping[str, Any]], images: Sequence[str], *, partial: bool
) -> list[int]:
    """Return the rows written; raise if there are none, for repeats and, unless `partial`, for faults."""
    faults: list[str] = []
    places: dict[int, str] = {}
    lines: Counter[Path] = Counter()
    for part, outcome in zip(parts, outcomes, strict=True):
        before = lines[part.path]
        if not partial:
            faults += [f"{part.place(index, before)}: {fault}" for index, fault in outcome["faults"]]
        for index, row in outcome["rows"]:
            place = part.place(index, before)
            if row in places:
                faults.append(f"{place}: image {images[row]} is also in {places[row]}. Remove one.")
            places.setdefault(row, place)
        lines[part.path] += outcome["records"]
    if faults:
        raise CorpusError(faults)
    if not places:
        files = ", ".join(dict.fromkeys(str(part.path) for part in parts))
        raise CorpusError(f"{files}: hold no image of the captions. Name other files with --features.")
    return sorted(places)


def _keep_rows(path: Path, rows: Sequence[int]) -> Path:
    """Copy rows to a new store."""
    kept = path.with_name("kept.h5")
    with RegionStore(path) as source:
        create_store(kept, [source.image_ids[row] for row in rows], source.shape[1:], source.dtype)
        with RegionStore(kept, writable=True) as target:
            for index, row in enumerate(rows):
                features, boxes = source.read([row])
                target.write(index, features[0], boxes[0])
    return kept
