"""Collect the regions of a corpus from published files into one store, by several processes.

The images are known in advance: those of the captions. So the store is created at once, and each process
writes the rows of its part of a file in place. After a kill the work resumes with the parts that are missing.
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
from itertools import islice
from pathlib import Path
from typing import Any

from vgsplus.errors import CorpusError
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.published import Part, split_file
from vgsplus.regions.resume import resumable_store
from vgsplus.regions.store import Dtype, RegionStore, create_store

NOT_HELD = "no file of --features holds its regions"
RECORDS_FOR_SHAPE = 32
"""Records that are read to find out R and F."""
WORTH_PROCESSES = 8
"""Number of parts from which on processes save more than the seconds that they take to start."""

type ImageKey = Callable[[str], int | str | None]
"""Returns the same key for all names of an image, in captions and in files of regions; None: not an image."""


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
    """Collect the regions of images from files of `published` into a store, with a row per image in order.

    Args:
        files: TSV or HDF5.
        images: image ids by their key.
        folder: for the store and the state of the work, which an interrupted call may have left there.
        image_key: returns the key of an image name in `files`.
        dtype: of the stored features.
        partial: whether to skip images without regions or with faulty ones only.
        progress: stage "regions", of parts of the files.

    Returns:
        The store (in `folder`), why images have no row in it, and the number of records of other images.

    Raises:
        CorpusError: a file is missing; records that repeat an image; unless `partial`, all faulty records,
            by file and line, or all images without regions (what was collected can then be reused).
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
    missing = {image_ids[row]: NOT_HELD for row in sorted(set(range(len(image_ids))) - set(rows))}
    if missing and not partial:
        raise CorpusError([f"{image}: {fault}" for image, fault in missing.items()])
    if missing:
        path = _keep_rows(path, rows)
    return path, missing, sum(outcome["unnamed"] for outcome in outcomes)


def _find_shape(parts: Sequence[Part]) -> tuple[int, int]:
    """Return (R, F) of most of the first records, so that a faulty one does not decide."""
    fault = ""

    def shapes() -> Iterator[tuple[int, int]]:
        nonlocal fault
        for part in parts:
            for index, image, decode in part.records():
                if decode is not None:
                    try:
                        features, _ = decode()
                    except ValueError as error:
                        fault = fault or f"{part.place(index, 0)}: image {image}: {error}"
                    else:
                        yield features.shape

    found = Counter(islice(shapes(), RECORDS_FOR_SHAPE))
    if not found:
        raise CorpusError(
            f"{fault or f'{parts[0].path}: holds no record'}. No file holds a record that can be used."
        )
    return found.most_common(1)[0][0]


def _write_parts(
    parts: Sequence[Part], image_key: ImageKey, row_of: Mapping[int | str, int], path: Path
) -> Iterator[dict[str, Any]]:
    """Yield what `write_part` returns for each part; many parts are written by several processes."""
    workers = os.cpu_count() or 1
    if workers < 2 or len(parts) < WORTH_PROCESSES:
        yield from (write_part(part, image_key, row_of, path) for part in parts)
        return
    # Spawned: threads and open HDF5 files of this process do not survive a fork.
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
    # Ctrl-C reaches all processes of the terminal; only the first one reports it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent is killed, so that it does not write into the resumed work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _write_in_worker(part: Part) -> dict[str, Any]:
    return write_part(part, *_worker)


def write_part(
    part: Part, image_key: ImageKey, row_of: Mapping[int | str, int], path: Path
) -> dict[str, Any]:
    """Write the regions in a part to the store at `path`, and flush them to disk.

    Returns:
        Number of "records", "rows" as (index in the part, row), number of "unnamed" records of other images,
        and "faults" as (index in the part, what is wrong).
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
                    if row not in written:  # repeats are reported when all parts are known
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
    """Return the rows that were written, or raise for repeats, for faults unless `partial`, and for none."""
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
        raise CorpusError(f"{files}: hold no image of the captions. Name others with --features.")
    return sorted(places)


def _keep_rows(path: Path, rows: Sequence[int]) -> Path:
    """Copy these rows to a store of their own."""
    kept = path.with_name("kept.h5")
    with RegionStore(path) as source:
        create_store(kept, [source.image_ids[row] for row in rows], source.shape[1:], source.dtype)
        with RegionStore(kept, writable=True) as target:
            for index, row in enumerate(rows):
                features, boxes = source.read([row])
                target.write(index, features[0], boxes[0])
    return kept
