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

import numpy as np
import numpy.typing as npt

from vgsplus.audio import SAMPLE_RATE, SCALED, AudioError, is_prepared, load_any, write_wav
from vgsplus.corpora.format import Caption, CorpusError, CorpusWriter, Summary
from vgsplus.corpora.preparing import (
    MIN_SAMPLES,
    MIN_SECONDS,
    PictureError,
    Progress,
    in_parallel,
    open_picture,
)
from vgsplus.corpora.region_store import RegionStore
from vgsplus.corpora.regions import grid_regions
from vgsplus.corpora.table_rows import Row, Table, read_table

HELD_OUT_SHARE = 0.1
"""Of the pictures, or else recordings, for validation and for test each, where the table names no splits."""
LEAST_TO_SPLIT = 3
PICTURES_AT_ONCE = 512
"""Described before their features go to disk."""


@dataclass(frozen=True, slots=True)
class Sound:
    """A good recording: its length at 16 kHz, and whether it can be used where it is."""

    num_samples: int
    prepared: bool


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
    """Prepare the table at `csv_path` as a corpus at `root`.

    Pictures are described by the cells of a grid, or as the file `regions` holds them (see `region_store`).

    Where the table has no column "split", `seed` deals the pictures 80/10/10 to train, validation and test.
    Rows without a picture then train; where no row has one, the recordings are dealt. Pictures, and sounds
    that are 16 kHz mono WAV (PCM16) or FLAC, are used where they are; other sounds are converted into the
    corpus.

    Raises:
        CorpusError: every fault of the table, with its line, a picture that `regions` lacks included; or
            `root` is taken.
    """
    table = read_table(Path(csv_path))
    if not table.rows:
        raise CorpusError(table.faults)
    image_root = _image_root(table)
    with (
        RegionStore(regions) if regions is not None else nullcontext() as store,
        CorpusWriter(
            root,
            name=table.path.stem,
            version="1",
            provenance={"source": "table", "table": str(table.path.absolute())}
            | ({} if store is None else {"regions": store.provenance}),
            licence="the user's own",
            image_root=image_root,
            overwrite=overwrite,
        ) as writer,
    ):
        sounds = _check_sounds(table, progress)
        digests = _add_pictures(writer, table, image_root, store)
        rows = _with_splits(table, digests, seed)
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


def _check_sounds(table: Table, progress: Progress | None) -> dict[Path, Sound]:
    """Decode every sound the table names; what is wrong goes to the faults of each row that names it."""
    lines: dict[Path, list[int]] = defaultdict(list)
    for row in table.rows:
        lines[row.audio].append(row.line)
    sounds: dict[Path, Sound] = {}
    for path, outcome in zip(lines, in_parallel(_examine_sound, list(lines), progress), strict=True):
        if isinstance(outcome, Sound):
            sounds[path] = outcome
        else:
            for line in lines[path]:
                table.fault(line, outcome)
    return sounds


def _add_pictures(
    writer: CorpusWriter, table: Table, image_root: Path | None, store: RegionStore | None
) -> dict[Path, str]:
    """Describe every picture the table names: their digests. What is wrong goes to the faults of its rows."""
    lines: dict[Path, list[int]] = defaultdict(list)
    for row in table.rows:
        if row.image is not None:
            lines[row.image].append(row.line)
    digests: dict[Path, str] = {}
    describe = partial(_describe_picture, grid=store is None)
    for paths in batched(sorted(lines), PICTURES_AT_ONCE):
        for path, outcome in zip(paths, in_parallel(describe, paths), strict=True):
            if isinstance(outcome, str):
                fault = outcome
            else:
                digests[path] = outcome.digest
                image_id = _image_id(path, image_root)
                found = outcome.grid if store is None else store.regions(image_id, outcome.digest)
                if found is not None:
                    writer.add_regions(image_id, *found)
                    continue
                assert store is not None, "the grid describes every picture"
                fault = f"{path}: {store.absence()}"
            for line in lines[path]:
                table.fault(line, fault)
    return digests


def _image_id(path: Path, image_root: Path | None) -> str:
    assert image_root is not None, "a table with a picture has a folder that holds it"
    return path.relative_to(image_root).as_posix()


def _examine_sound(path: Path) -> Sound | str:
    try:
        signal = load_any(path)
    except AudioError as error:
        return str(error)
    if len(signal) < MIN_SAMPLES:
        return f"{path}: lasts {len(signal) / SAMPLE_RATE:.2f} s, less than {MIN_SECONDS} s. Leave it out."
    return Sound(len(signal), is_prepared(path))


def _describe_picture(path: Path, *, grid: bool) -> Picture | str:
    try:
        picture = open_picture(path)
    except PictureError as error:
        return str(error)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Picture(digest, grid_regions(picture) if grid else None)


def _with_splits(table: Table, digests: Mapping[Path, str], seed: int) -> list[tuple[Row, str]]:
    """Each row with its split: the table's, or dealt so that rows that share a file stay together."""
    good = [row for row in table.rows if row.image is None or row.image in digests]
    if any(row.split is not None for row in good):
        _check_same_pictures(table, good, digests)
        return [(row, row.split or "train") for row in good]
    groups = _linked(good, digests) if digests else {row.audio: str(row.audio) for row in good}
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


def _check_same_pictures(table: Table, rows: Iterable[Row], digests: Mapping[Path, str]) -> None:
    homes: dict[str, Row] = {}
    for row in rows:
        if row.image is None:
            continue
        home = homes.setdefault(digests[row.image], row)
        if home.image is not None and home.image != row.image and home.split != row.split:
            table.fault(
                row.line,
                f"{row.image.name} in {row.split!r} is a copy of {home.image.name} in {home.split!r} (line "
                f"{home.line}). Keep both in one split.",
            )


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
    sounds: Mapping[Path, Sound],
    image_root: Path | None,
) -> None:
    """Write captions.jsonl, and the sounds that have to be converted."""
    audio = writer.folder / "audio"
    converted: dict[Path, str] = {}
    ids: set[str] = set()
    for row, split in rows:
        caption_id = _caption_id(table, row)
        if caption_id in ids:
            caption_id += f"-{row.line}"
        ids.add(caption_id)
        if not sounds[row.audio].prepared:
            converted.setdefault(row.audio, f"{caption_id}.wav")
        writer.add_caption(
            Caption(
                id=caption_id,
                split=split,
                audio=converted.get(row.audio, str(row.audio)),
                num_samples=sounds[row.audio].num_samples,
                speaker=row.speaker,
                language=row.language,
                image=None if row.image is None else _image_id(row.image, image_root),
                text=row.text,
            )
        )

    def convert(item: tuple[Path, str]) -> float:
        source, name = item
        target = audio / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return write_wav(target, load_any(source))

    for factor in in_parallel(convert, list(converted.items())):
        if factor != 1.0:
            writer.count_change(SCALED)


def _caption_id(table: Table, row: Row) -> str:
    """The recording's path without ending, relative to the table's folder or else its name alone."""
    folder = table.path.parent.absolute()
    path = row.audio.relative_to(folder) if row.audio.is_relative_to(folder) else Path(row.audio.name)
    return "_".join(path.with_suffix("").as_posix().split())
