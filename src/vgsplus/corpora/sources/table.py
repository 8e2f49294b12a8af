"""A user's own corpus, from a table of recordings, with pictures or without (see docs/own-data.md).

Every fault of the table and its files is found before anything is written, and reported with its line.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vgsplus.audio import (
    SAMPLE_RATE,
    SCALED,
    Signal,
    header,
    is_prepared,
    is_silent,
    is_there,
    load_any,
    write_wav,
)
from vgsplus.corpora import Caption, CorpusWriter, Summary
from vgsplus.corpora.preparing import MIN_SAMPLES, MIN_SECONDS, unique_ids
from vgsplus.corpora.sources.table_rows import Piece, Row, Table, nearest, read_table
from vgsplus.errors import AudioError, CorpusError
from vgsplus.files import is_file
from vgsplus.images import open_image
from vgsplus.parallel import Tick as Progress
from vgsplus.parallel import in_parallel
from vgsplus.regions.pixel_grid import grid_regions
from vgsplus.regions.store import RegionStore

HELD_OUT_SHARE = 0.1
"""Of the pictures, or else recordings, for validation and for test each, where the table names no splits."""
LEAST_TO_SPLIT = 3
TOLERANCE = 0.01
"""Seconds by which a piece may end after its recording: times are often rounded to hundredths."""
PICTURES_AT_ONCE = 512
"""Described before their features go to disk."""


@dataclass(frozen=True, slots=True)
class Sound:
    """A good recording or piece of one: its length at 16 kHz, and a digest of its samples.

    `audio` is where it can be used as it is (see `vgsplus.audio`), None where it has to be converted.
    """

    num_samples: int
    digest: str
    audio: str | None


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that is good: the digest of its file, and its grid's regions where these are wanted."""

    digest: str
    grid: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None


def prepare_table(
    csv_path: Path,
    root: Path,
    *,
    regions: Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Prepare the table at `csv_path` as a corpus at `root`; see `prepare_rows`.

    Raises:
        CorpusError: every fault of the table, with its line; or `root` is taken.
    """
    table = read_table(Path(csv_path))
    provenance = {"source": "table", "table": str(table.path.absolute())}
    return prepare_rows(
        table,
        root,
        name=table.path.stem,
        provenance=provenance,
        regions=regions,
        seed=seed,
        overwrite=overwrite,
        progress=progress,
    )


def prepare_rows(
    table: Table,
    root: Path,
    *,
    name: str,
    provenance: Mapping[str, Any],
    regions: Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Prepare the rows of a table as a corpus at `root`.

    Pictures are described by the cells of a grid, or as the file `regions` holds them (see `region_store`).

    Where the table has no column "split", `seed` deals the pictures 80/10/10 to train, validation and test.
    Rows without a picture then train; where no row has one, the recordings are dealt. Pictures, and sounds
    that are 16 kHz mono WAV (PCM16) or FLAC, are used where they are; other sounds are converted into the
    corpus.

    Raises:
        CorpusError: every fault of the table, with its line, a picture that `regions` lacks included; or
            `root` is taken.
    """
    if not table.rows:
        raise CorpusError(table.faults)
    image_root = _image_root(table)
    with (
        RegionStore(regions) if regions is not None else nullcontext() as store,
        CorpusWriter(
            root,
            name=name,
            version="1",
            provenance=dict(provenance) | ({} if store is None else {"regions": store.provenance}),
            licence="the user's own",
            image_root=image_root,
            overwrite=overwrite,
        ) as writer,
    ):
        sounds = _check_sounds(table, progress)
        digests = _add_pictures(writer, table, image_root, store)
        rows = _with_splits(table, digests, sounds, seed)
        if table.faults:
            raise CorpusError(_by_line(table))
        _add_captions(writer, table, rows, sounds, image_root)
        return writer.finish()


def _image_root(table: Table) -> Path | None:
    """The table's folder where that holds all pictures, else the closest that does; None without any."""
    folder = table.path.parent.absolute()
    parents = [str(row.image.parent) for row in table.rows if row.image is not None]
    if not parents:
        return None
    if all(Path(parent).is_relative_to(folder) for parent in parents):
        return folder
    return Path(os.path.commonpath(parents))


def _check_sounds(table: Table, progress: Progress | None) -> dict[Piece, Sound]:
    """Decode all that the table names; what is wrong goes to the faults of each row that names it."""
    rows: dict[Path, dict[Piece, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in table.rows:
        rows[row.audio][row.piece].append(row)
    sounds: dict[Piece, Sound] = {}
    recordings = [list(pieces) for pieces in rows.values()]
    examined = in_parallel(_examine_recording, recordings, progress)
    for pieces, outcomes in zip(rows.values(), examined, strict=True):
        for (piece, found), outcome in zip(pieces.items(), outcomes, strict=True):
            if isinstance(outcome, Sound):
                sounds[piece] = outcome
                continue
            for row in found:
                table.fault(row.line, outcome, row.path)
    return sounds


def _add_pictures(
    writer: CorpusWriter, table: Table, image_root: Path | None, store: RegionStore | None
) -> dict[Path, str]:
    """Describe every picture the table names: their digests. What is wrong goes to the faults of its rows."""
    rows: dict[Path, list[Row]] = defaultdict(list)
    for row in table.rows:
        if row.image is not None:
            rows[row.image].append(row)
    digests: dict[Path, str] = {}
    describe = partial(_describe_picture, grid=store is None)
    for paths in batched(sorted(rows), PICTURES_AT_ONCE):
        for path, outcome in zip(paths, in_parallel(describe, paths), strict=True):
            if isinstance(outcome, str):
                fault = outcome
            else:
                digests[path] = outcome.digest
                image_id = _image_id(path, image_root)
                found = outcome.grid if store is None else store.find(image_id, outcome.digest)
                if found is not None:
                    writer.add_regions(image_id, *found)
                    continue
                assert store is not None, "the grid describes every picture"
                fault = f"{path}: {store.absence()}"
            for row in rows[path]:
                table.fault(row.line, fault, row.path)
    return digests


def _image_id(path: Path, image_root: Path | None) -> str:
    assert image_root is not None, "a table with a picture has a folder that holds it"
    return path.relative_to(image_root).as_posix()


def _examine_recording(pieces: Sequence[Piece]) -> list[Sound | str]:
    """Each piece of a recording, or what is wrong with it. A recording to be converted is decoded once."""
    path = pieces[0][0]
    try:
        rate, frames = header(path)
        prepared = is_prepared(path)
        signal = None if prepared else load_any(path)
    except AudioError as error:
        hint = "" if is_there(path) else nearest(path)
        return [f"{error}{hint}"] * len(pieces)
    found: list[Sound | str] = []
    for _, start, end in pieces:
        place = f"{path}" if (start, end) == (None, None) else f"{path} from {start or 0:g} s"
        if late := [f"{at:g} s" for at in (start, end) if at is not None and at > frames / rate + TOLERANCE]:
            found.append(f"{path}: {late[0]} is after its end, {frames / rate:.3f} s. Correct the times.")
            continue
        audio = _reference(path, start, end, rate, frames) if prepared else None
        try:
            part = load_any(audio) if audio is not None else _cut(signal, start, end)
        except AudioError as error:
            found.append(str(error))
            continue
        found.append(_examined(part, place, audio))
    return found


def _examined(signal: Signal, place: str, audio: str | None) -> Sound | str:
    if len(signal) < MIN_SAMPLES:
        return f"{place}: lasts {len(signal) / SAMPLE_RATE:.2f} s, less than {MIN_SECONDS} s. Leave it out."
    if is_silent(signal):
        return f"{place}: is silent from start to end. Leave it out."
    return Sound(len(signal), hashlib.sha256(signal.tobytes()).hexdigest(), audio)


def _reference(path: Path, start: float | None, end: float | None, rate: int, frames: int) -> str:
    """A prepared recording, or the range of its samples."""
    if (start, end) == (None, None):
        return str(path)
    first = min(round((start or 0.0) * rate), frames)
    last = frames if end is None else min(round(end * rate), frames)
    return f"{path}:{first}:{last - first}"


def _cut(signal: Signal | None, start: float | None, end: float | None) -> Signal:
    """The samples (samples,) at 16 kHz between two times in seconds."""
    assert signal is not None, "a recording that is not prepared was decoded"
    first, last = (None if at is None else round(at * SAMPLE_RATE) for at in (start, end))
    return signal[first:last]


def _describe_picture(path: Path, *, grid: bool) -> Picture | str:
    try:
        picture = open_image(path)
    except CorpusError as error:
        return f"{error}{'' if is_file(path) else nearest(path)}"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Picture(digest, grid_regions(picture) if grid else None)


def _with_splits(
    table: Table, digests: Mapping[Path, str], sounds: Mapping[Piece, Sound], seed: int
) -> list[tuple[Row, str]]:
    """Each row with its split: the table's, or dealt so that rows that share a file stay together."""
    good = [row for row in table.rows if row.image is None or row.image in digests]
    if any(row.split is not None for row in good):
        pictures = {row.image: digests[row.image] for row in good if row.image is not None}
        _check_copies(table, [(row, row.image, pictures[row.image]) for row in good if row.image is not None])
        heard = [(row, row.audio, sounds[row.piece].digest) for row in good if row.piece in sounds]
        _check_copies(table, heard)
        return [(row, row.split or "train") for row in good]
    groups = _linked(good, digests) if digests else _copies(good, sounds)
    members = sorted(set(groups.values()))
    what = "picture" if any(row.image is not None for row in table.rows) else "recording"
    if len(members) < LEAST_TO_SPLIT and len(good) == len(table.rows):
        table.faults.append(
            f"{table.path}: {len(members)} {what}(s) cannot be dealt to train, validation and test. "
            f"Name {LEAST_TO_SPLIT} or more, or add a column 'split'."
        )
    held = max(1, round(len(members) * HELD_OUT_SHARE))
    order = np.random.default_rng([seed]).permutation(len(members))
    names = ["validation"] * held + ["test"] * held + ["train"] * len(members)
    splits = {members[index]: name for index, name in zip(order, names, strict=False)}
    # What is held out with pictures is asked about pictures, so other recordings train.
    return [(row, splits[groups[row.audio]] if row.audio in groups else "train") for row in good]


def _check_copies(table: Table, files: Iterable[tuple[Row, Path, str]]) -> None:
    """Faults of files in two splits that are the same under two names, by their digests."""
    homes: dict[str, tuple[Row, Path]] = {}
    for row, path, digest in files:
        home, other = homes.setdefault(digest, (row, path))
        if other != path and home.split != row.split:
            table.fault(
                row.line,
                f"{path.name} in {row.split!r} is a copy of {other.name} in {home.split!r} (line "
                f"{home.line}). Keep both in one split.",
                row.path,
            )


def _copies(rows: Sequence[Row], sounds: Mapping[Piece, Sound]) -> dict[Path, str]:
    """A group for each recording: recordings of the same samples share theirs."""
    first: dict[str, str] = {}
    groups: dict[Path, str] = {}
    for row in rows:
        digest = sounds[row.piece].digest if row.piece in sounds else str(row.audio)
        groups.setdefault(row.audio, first.setdefault(digest, str(row.audio)))
    return groups


def _linked(rows: Sequence[Row], digests: Mapping[Path, str]) -> dict[Path, str]:
    """A group for each recording of a picture.

    Pictures of one digest, and those that one recording describes, share theirs.
    """
    group = {row.image: digests[row.image] for row in rows if row.image is not None}
    described: dict[Path, list[Path]] = defaultdict(list)
    for row in rows:
        if row.image is not None:
            described[row.audio].append(row.image)
    for images in described.values():
        together = {group[image] for image in images}
        if len(together) > 1:
            name = min(together)
            group = {image: name if own in together else own for image, own in group.items()}
    return {audio: group[images[0]] for audio, images in described.items()}


def _by_line(table: Table) -> list[str]:
    """The faults in the order of their lines, those of the whole table last."""

    def line(fault: str) -> float:
        number = fault.removeprefix(f"{table.path}:").split(":")[0]
        return int(number) if number.isdecimal() else float("inf")

    return sorted(table.faults, key=line)


def _add_captions(
    writer: CorpusWriter,
    table: Table,
    rows: Sequence[tuple[Row, str]],
    sounds: Mapping[Piece, Sound],
    image_root: Path | None,
) -> None:
    """Write captions.jsonl, and the sounds that have to be converted."""
    converted: dict[Piece, str] = {}
    ids = unique_ids([row.id or _name(table, row) for row, _ in rows], [row.line for row, _ in rows])
    for (row, split), caption_id in zip(rows, ids, strict=True):
        sound = sounds[row.piece]
        audio = sound.audio or converted.setdefault(row.piece, f"{caption_id}.wav")
        writer.add_caption(
            Caption(
                id=caption_id,
                split=split,
                audio=audio,
                num_samples=sound.num_samples,
                speaker=row.speaker,
                language=row.language,
                image=None if row.image is None else _image_id(row.image, image_root),
                text=row.text,
            )
        )
    recordings: dict[Path, dict[Piece, Path]] = defaultdict(dict)
    for piece, name in converted.items():
        recordings[piece[0]][piece] = writer.folder / "audio" / name
    for factors in in_parallel(_convert, list(recordings.values())):
        for factor in factors:
            if factor != 1.0:
                writer.count_change(SCALED)


def _convert(targets: Mapping[Piece, Path]) -> list[float]:
    """Write pieces of a recording as 16 kHz mono WAV; the factors that `write_wav` gives."""
    signal = load_any(next(iter(targets))[0])
    factors = []
    for (_, start, end), target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        factors.append(write_wav(target, _cut(signal, start, end)))
    return factors


def _name(table: Table, row: Row) -> str:
    """A row's recording: its path without ending from the table's folder, or else its name; and the times."""
    folder = table.path.parent.absolute()
    path = row.audio.relative_to(folder) if row.audio.is_relative_to(folder) else Path(row.audio.name)
    name = "_".join(path.with_suffix("").as_posix().split()) or "_"
    if (row.start, row.end) == (None, None):
        return name
    end = "end" if row.end is None else f"{round(row.end * 1000):07d}"
    return f"{name}-{round((row.start or 0.0) * 1000):07d}-{end}"
