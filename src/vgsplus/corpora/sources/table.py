"""A corpus from a table of recordings, with or without images (see docs/own-data.md)."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np

from vgsplus.corpora import CorpusWriter, Summary
from vgsplus.corpora.prepare import Usable, add_captions, add_image_regions, unique_ids
from vgsplus.corpora.sources.table_rows import Table, read_table
from vgsplus.errors import CorpusError
from vgsplus.files import file_digest
from vgsplus.parallel import parallel_map
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.pixel_grid import PIXEL_GRID
from vgsplus.regions.store import RegionStore, provenance_of

HELD_OUT_FRACTION = 0.1
"""Fraction of the images, or else recordings, in validation and in test, if the table has no splits."""
MIN_TO_SPLIT = 3


class TableOptions(TypedDict, total=False):
    """Options of all sources that are tables.

    Attributes:
        regions: file of region features (see `regions.store`). Default: compute them with the pixel grid.
        seed: random seed of the splits. Default: 0.
        overwrite: whether to replace an existing corpus. Default: False.
        progress: stages "sounds", "pictures" and "checking".
    """

    regions: Path | None
    seed: int
    overwrite: bool
    progress: Progress


def prepare_table(csv_path: Path, root: Path, **options: Unpack[TableOptions]) -> Summary:
    """Prepare the table at `csv_path` as a corpus at `root`; see `prepare_rows`.

    Raises:
        CorpusError: all faults of the table, with their lines; or `root` exists.
    """
    table = read_table(Path(csv_path))
    provenance = {"source": "table", "table": str(table.path.absolute())}
    return prepare_rows(table, root, name=table.path.stem, provenance=provenance, **options)


def prepare_rows(
    table: Table,
    root: Path,
    *,
    name: str,
    provenance: dict[str, Any],
    how_to_split: str = "add a column 'split'",
    **options: Unpack[TableOptions],
) -> Summary:
    """Prepare the rows of a table as a corpus at `root`.

    If the table has no splits, 80/10/10 % of the images are assigned to train, validation and test at random,
    and rows without an image to train; if there are no images, recordings are assigned. Images, and sounds
    that are 16 kHz mono WAV (PCM16) or FLAC, are used in place; other sounds are converted into the corpus.
    `how_to_split` tells, in the message about too few images, how a user assigns splits.

    Raises:
        CorpusError: all faults of the table, with their lines, including images that are not in `regions`; or
            `root` exists.
    """
    regions, seed, progress = options.get("regions"), options.get("seed", 0), options.get("progress", SILENT)
    if not table.entries:
        raise CorpusError(table.faults)
    image_root = _image_root(table)
    if regions is not None and image_root is None:
        useless = f"{regions}: describes pictures, but {table.path} has none. Leave it out."
        raise CorpusError([*table.faults, useless])
    entries = [
        replace(
            entry, id=own, image=entry.image and Path(entry.image).relative_to(image_root or "").as_posix()
        )
        for entry, own in zip(table.entries, unique_ids(table.entries), strict=True)
    ]

    def review(_: CorpusWriter, usable: list[Usable]) -> Iterator[Usable | str]:
        images = list(dict.fromkeys(entry.image for entry, _ in usable if entry.image is not None))
        paths = [(image_root or Path()) / image for image in images]
        digests = dict(zip(images, parallel_map(file_digest, paths), strict=True))
        if any(entry.split is not None for entry, _ in usable):
            copies = [(pair, pair[0].image, digests[pair[0].image]) for pair in usable if pair[0].image]
            yield from _copy_faults(copies)
            yield from _copy_faults([(pair, pair[0].audio, pair[1].digest) for pair in usable])
            yield from usable
        else:
            yield from _assign_splits(table, usable, digests, seed, how_to_split)

    def add_images(writer: CorpusWriter, images: Sequence[str]) -> Mapping[str, str]:
        images = sorted(images, key=Path)
        return add_image_regions(writer, images, image_root or Path(), store=store)

    described_by = PIXEL_GRID if regions is None else provenance_of(regions)
    with (
        RegionStore(regions) if regions is not None else nullcontext() as store,
        CorpusWriter(
            root,
            name=name,
            licence="the user's own",
            provenance=provenance | ({} if image_root is None else {"regions": described_by}),
            image_root=image_root,
            overwrite=options.get("overwrite", False),
            progress=progress,
        ) as writer,
    ):
        add_captions(writer, [*table.faults, *entries], add_images=add_images, review=review)
        return writer.finish()


def _image_root(table: Table) -> Path | None:
    """Return the folder of the table if it contains all images, else the deepest one that does, or None.

    A folder of recordings is its own.
    """
    folder = (table.path if table.path.is_dir() else table.path.parent).absolute()
    parents = [str(Path(entry.image).parent) for entry in table.entries if entry.image is not None]
    if not parents:
        return None
    if all(Path(parent).is_relative_to(folder) for parent in parents):
        return folder
    return Path(os.path.commonpath(parents))


def _copy_faults(files: Sequence[tuple[Usable, str, str]]) -> Iterator[str]:
    """Yield a fault for each copy of a file in another split; `files` are (caption, path, digest)."""
    first: dict[str, tuple[Usable, str]] = {}
    for (entry, sound), path, digest in files:
        (other, _), other_path = first.setdefault(digest, ((entry, sound), path))
        if other_path != path and other.split != entry.split:
            line = "" if other.origin == entry.origin else f" (line {other.line})"
            yield (
                f"{entry.origin}: {Path(path).name} in {entry.split!r} is a copy of {Path(other_path).name} "
                f"in {other.split!r}{line}. Keep both in one split."
            )


def _assign_splits(
    table: Table, usable: list[Usable], digests: Mapping[str, str], seed: int, how_to_split: str
) -> Iterator[Usable | str]:
    """Assign random splits; rows that share an image or a recording are in the same split."""
    groups = _groups_by_image(usable, digests) if digests else _groups_by_sound(usable)
    members = sorted(set(groups.values()))
    if len(members) < MIN_TO_SPLIT and len(usable) == len(table.entries):
        what = "picture" if digests else "recording"
        yield (
            f"{table.path}: {len(members)} {what}(s) cannot be split into train, validation and test. "
            f"Name {MIN_TO_SPLIT} or more, or {how_to_split}."
        )
    held = max(1, round(len(members) * HELD_OUT_FRACTION))
    order = np.random.default_rng([seed]).permutation(len(members))
    names = ["validation"] * held + ["test"] * held + ["train"] * len(members)
    splits = {members[index]: name for index, name in zip(order, names, strict=False)}
    for entry, sound in usable:
        # Retrieval requires images, so recordings without one are in train.
        split = splits[groups[entry.audio]] if entry.audio in groups else "train"
        yield replace(entry, split=split), sound


def _groups_by_sound(usable: list[Usable]) -> dict[str, str]:
    """Return the group of each recording; recordings of equal samples are in one group."""
    first: dict[str, str] = {}
    groups: dict[str, str] = {}
    for entry, sound in usable:
        groups.setdefault(entry.audio, first.setdefault(sound.digest, entry.audio))
    return groups


def _groups_by_image(usable: list[Usable], digests: Mapping[str, str]) -> dict[str, str]:
    """Return the group of each recording with an image.

    Images of equal contents, and images of one recording, are in one group.
    """
    group = dict(digests)
    described: dict[str, list[str]] = defaultdict(list)
    for entry, _ in usable:
        if entry.image is not None:
            described[entry.audio].append(entry.image)
    for images in described.values():
        together = {group[image] for image in images}
        if len(together) > 1:
            name = min(together)
            group = {image: name if own in together else own for image, own in group.items()}
    return {audio: group[images[0]] for audio, images in described.items()}
