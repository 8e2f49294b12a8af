"""Making regions.h5 from files of detections: by several processes, no piece twice.

The number of pictures is known before: those that captions name. So regions.h5 is laid out at once, its
arrays as plain blocks of bytes, and processes write the rows where they belong without HDF5. What is done is
noted in a journal, piece by piece, after the rows are on disk; started again on the same files, the work goes
on.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import h5py

from vgsplus.errors import CorpusError
from vgsplus.parallel import Tick as Progress
from vgsplus.regions.published import (
    DetectionError,
    Key,
    PictureNames,
    Piece,
    decode,
    is_header,
    pieces_of,
    place_name,
    records_of,
)
from vgsplus.regions.store import REGIONS_FILE, Dtype, RegionStore, create_store

JOURNAL, PLAN = "journal.jsonl", "plan.json"
NOT_HELD = "no file of --features holds its regions"
RECORDS_FOR_SHAPE = 32
"""Records that are read to learn how many regions and features a picture has."""
WORTH_PROCESSES = 8
"""Pieces from which on processes save more than the seconds that they take to start."""


@dataclass(slots=True)
class Outcome:
    """What a piece held: rows written with their places, records of no caption, faults with their places."""

    records: int = 0
    rows: list[tuple[int, int]] = field(default_factory=list)
    unnamed: int = 0
    faults: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RegionFile:
    """What came of it: the pictures whose regions the file at `path` holds, in the order of its rows."""

    path: Path
    images: list[str]
    missing: list[str]
    unnamed: int


def collect_regions(
    files: Sequence[Path],
    images: Mapping[Key, str],
    folder: Path,
    *,
    names: PictureNames,
    dtype: Dtype,
    partial: bool,
    progress: Progress | None = None,
) -> RegionFile:
    """Gather the regions of `images` (key of `names` to image id) from `files` into regions.h5 in `folder`.

    What an interrupted call left in `folder` is used where it was about the same files and images. Rows go
    in the order of `images`; those of images that no file holds, or only in a faulty record, are left out, if
    `partial`.

    Raises:
        CorpusError: a file is absent; every record that repeats another and, if not `partial`, every fault of
            every record of the images, by file and line; or, if not `partial`, the images that no file holds:
            what was done stays for a call that leaves them out.
    """
    pieces = [piece for path in files for piece in pieces_of(path)]
    row_of = {key: row for row, key in enumerate(images)}
    path = _open_plan(folder, pieces, images, dtype)
    journal = folder / JOURNAL
    done = _read_journal(journal)
    outcomes = {index: outcome for index, outcome in done.items() if index < len(pieces)}
    with journal.open("a", encoding="utf-8") as notes:
        todo = [index for index in range(len(pieces)) if index not in outcomes]
        for index, outcome in _write_pieces(pieces, todo, names, row_of, path):
            outcomes[index] = outcome
            notes.write(json.dumps({"piece": index} | asdict(outcome)) + "\n")
            notes.flush()
            if progress is not None:
                progress(len(outcomes), len(pieces))
    return _settle(pieces, outcomes, list(images.values()), folder, partial=partial)


def _open_plan(folder: Path, pieces: Sequence[Piece], images: Mapping[Key, str], dtype: Dtype) -> Path:
    """The file in `folder`, left by a call about the same, or laid out anew."""
    files = sorted({path for piece in pieces for path in (piece.path, piece.names) if path is not None})
    stats = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    about = json.dumps([dtype, stats, [asdict(piece) for piece in pieces]], default=str)
    digest = hashlib.sha256((about + json.dumps(list(images.items()))).encode()).hexdigest()
    plan = folder / PLAN
    if plan.is_file():
        left = json.loads(plan.read_text(encoding="utf-8"))
        if left.pop("about") == digest:
            return folder / REGIONS_FILE
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    create_store(folder / REGIONS_FILE, list(images.values()), _shape(pieces), dtype)
    half = plan.with_suffix(".half")
    half.write_text(json.dumps({"about": digest}), encoding="utf-8")
    half.replace(plan)
    return folder / REGIONS_FILE


def _shape(pieces: Sequence[Piece]) -> tuple[int, int]:
    """R and F of most of the first records that can be read, so that an odd one does not decide."""
    first = ""
    seen: Counter[tuple[int, int]] = Counter()
    for piece in pieces:
        with _store(piece) as store:
            for record in records_of(piece):
                if is_header(piece, record):
                    continue
                try:
                    regions, dim = decode(piece, record, store).features.shape
                except DetectionError as error:
                    first = first or f"{place_name(piece, record.place, 0)}: image {record.image}: {error}"
                    continue
                seen[regions, dim] += 1
                if seen.total() == RECORDS_FOR_SHAPE:
                    return seen.most_common(1)[0][0]
    if not seen:
        nothing = f"{pieces[0].path}: holds no record"
        raise CorpusError(f"{first or nothing}. No file holds a record that can be used.")
    return seen.most_common(1)[0][0]


def _store(piece: Piece) -> "h5py.File | nullcontext[None]":
    return h5py.File(piece.path) if piece.kind != "tsv" else nullcontext()


def _read_journal(journal: Path) -> dict[int, Outcome]:
    """Pieces that are done; a line that a kill cut short ends them."""
    done: dict[int, Outcome] = {}
    if not journal.is_file():
        return done
    whole = 0
    with journal.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            note = json.loads(line)
            index = note.pop("piece")
            note["rows"] = [(place, row) for place, row in note["rows"]]
            note["faults"] = [(place, what) for place, what in note["faults"]]
            done[index] = Outcome(**note)
    os.truncate(journal, whole)
    return done


def _write_pieces(
    pieces: Sequence[Piece],
    todo: Sequence[int],
    names: PictureNames,
    row_of: Mapping[Key, int],
    path: Path,
) -> Iterator[tuple[int, Outcome]]:
    """Write the rows of the pieces to do, in processes where there are several; (index, outcome) in order."""
    workers = os.cpu_count() or 1
    if workers < 2 or len(todo) < WORTH_PROCESSES:
        yield from ((index, write_piece(pieces[index], names, row_of, path)) for index in todo)
        return
    # Processes started anew: threads and open HDF5 files of this one do not survive a fork.
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(names, row_of, path),
    )
    try:
        waiting: list[tuple[int, Future[Outcome]]] = []
        for index in todo:
            waiting.append((index, pool.submit(_write_in_worker, pieces[index])))
            if len(waiting) > 2 * workers:
                ready, future = waiting.pop(0)
                yield ready, future.result()
        for ready, future in waiting:
            yield ready, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


_worker: tuple[PictureNames, Mapping[Key, int], Path] | None = None


def _start_worker(names: PictureNames, row_of: Mapping[Key, int], path: Path) -> None:
    global _worker  # noqa: PLW0603 - a process of the pool has one task, told once and not with every piece
    # Ctrl-C reaches every process of the terminal; only the first is to say so.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = (names, row_of, path)


def _end_with_parent() -> None:
    """End this process when the first one is killed: the next preparation must be alone with the file."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _write_in_worker(piece: Piece) -> Outcome:
    assert _worker is not None
    return write_piece(piece, *_worker)


def write_piece(piece: Piece, names: PictureNames, row_of: Mapping[Key, int], path: Path) -> Outcome:
    """Write the rows of a piece's images into the file, and see them to disk."""
    outcome = Outcome()
    taken: set[int] = set()
    with _store(piece) as store, RegionStore(path, writable=True) as target:
        for record in records_of(piece):
            outcome.records += 1
            if is_header(piece, record):
                continue
            key = names.key(record.image)
            row = row_of.get(key) if key is not None else None
            if key is None:
                outcome.faults.append((record.place, f"img_id {record.image!r} {names.keyless}"))
            elif row is None:
                outcome.unnamed += 1
            else:
                try:
                    found = decode(piece, record, store)
                    if row not in taken:  # a repeat is reported when the pieces are put together
                        target.write(row, found.features, found.boxes)
                except (DetectionError, ValueError) as error:
                    outcome.faults.append((record.place, f"image {record.image}: {error}"))
                else:
                    outcome.rows.append((record.place, row))
                    taken.add(row)
        target.sync()
    return outcome


def _settle(
    pieces: Sequence[Piece],
    outcomes: Mapping[int, Outcome],
    images: Sequence[str],
    folder: Path,
    *,
    partial: bool,
) -> RegionFile:
    """Report the faults of all pieces, or name the rows and leave out those that no file filled."""
    faults: list[str] = []
    places: dict[int, str] = {}
    lines: dict[Path, int] = {}
    for index, piece in enumerate(pieces):
        outcome, before = outcomes[index], lines.get(piece.path, 0)
        if not partial:
            faults += [f"{place_name(piece, place, before)}: {what}" for place, what in outcome.faults]
        for place, row in outcome.rows:
            name = place_name(piece, place, before)
            if row in places:
                faults.append(f"{name}: image {images[row]} is there already: {places[row]}")
            places.setdefault(row, name)
        lines[piece.path] = before + outcome.records
    if faults:
        shutil.rmtree(folder, ignore_errors=True)
        raise CorpusError(faults)
    rows = sorted(places)
    if not rows:
        shutil.rmtree(folder, ignore_errors=True)
        files = ", ".join(dict.fromkeys(str(piece.path) for piece in pieces))
        raise CorpusError(f"{files}: hold no picture of the captions. Name others with --features.")
    missing = [image for row, image in enumerate(images) if row not in places]
    if missing and not partial:
        raise CorpusError([f"{image}: {NOT_HELD}" for image in missing])
    kept = [images[row] for row in rows]
    if missing:
        _keep_rows(folder, rows)
    unnamed = sum(outcome.unnamed for outcome in outcomes.values())
    return RegionFile(folder / REGIONS_FILE, kept, missing, unnamed)


def _keep_rows(folder: Path, rows: Sequence[int]) -> None:
    """Make the file anew with these rows alone."""
    smaller = folder / "fewer.h5"
    (folder / PLAN).unlink()  # the file changes: whatever happens from here on starts anew
    with RegionStore(folder / REGIONS_FILE) as source:
        create_store(smaller, [source.image_ids[row] for row in rows], source.shape[1:], source.dtype)
        with RegionStore(smaller, writable=True) as target:
            for index, row in enumerate(rows):
                features, boxes = source.read([row])
                target.write(index, features[0], boxes[0])
    smaller.replace(folder / REGIONS_FILE)
