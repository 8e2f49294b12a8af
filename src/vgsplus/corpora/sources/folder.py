"""A folder of recordings, alone or with images that are paired by their names (see docs/own-data.md).

NAME.wav            recording of the image NAME; or of the image dog, if it is dog_1, dog-2, … and there is no
                    image of that name
NAME.jpg            image, in the folder of its recordings or in one above it, of which the nearest counts
NAME.txt            transcript of the recording NAME, beside it; optional
SPEAKER/            recordings of a speaker, at any depth; others are of the speaker "unknown"
train/, test/ …     splits, above the folders of speakers; optional, but then everything is in one of them
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from vgsplus import audio
from vgsplus.corpora import Summary
from vgsplus.corpora.format import CaptionEntry
from vgsplus.corpora.keyed_lines import keyed_lines
from vgsplus.corpora.sources.table import TableOptions, prepare_rows
from vgsplus.corpora.sources.table_rows import SPLIT_NAMES, SPLITS, Table, is_split
from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.files import as_on_disk, files_below, is_file, nfc, read_text
from vgsplus.regions.extract import SUFFIXES as IMAGE_SUFFIXES

NUMBERED = re.compile(r"(.+)[_-][0-9]+")
"""Name of one of several recordings of an image."""

type Named = dict[tuple[Path, str], list[Path]]
"""Files by folder and name without suffix."""


def prepare_folder(
    folder: Path, root: Path, *, speakers: Path | None = None, **options: Unpack[TableOptions]
) -> Summary:
    """Prepare the recordings and images in `folder` as a corpus at `root`; see `table.prepare_rows`.

    `speakers` is a table with lines "SOUND SPEAKER", where SOUND is the path in the folder without suffix, or
    its last part, with blanks as "_". Default: the speakers are the folders.

    Raises:
        CorpusError: faults of names, links and speakers, before a file is decoded; or faults of the files; or
            `root` exists or is in `folder`.
    """
    folder = as_on_disk(Path(folder)).absolute()
    if Path(root).resolve().is_relative_to(folder.resolve()):
        raise CorpusError(f"{root}: is inside {folder}, which is searched for sounds. Choose another folder.")
    table = read_folder(folder, speakers)
    if table.faults:
        raise CorpusError(table.faults)
    return prepare_rows(
        table,
        root,
        name=folder.name,
        provenance={"source": "folder", "folder": str(folder)},
        how_to_split="arrange them in the folders train, validation and test",
        **options,
    )


def read_folder(folder: Path, speakers: Path | None = None) -> Table:
    """Pair the recordings and images in a folder; see `prepare_folder`.

    Without any image, it is a folder of speech alone.

    Raises:
        CorpusError: there is no such folder, or it holds no recordings.
    """
    if not folder.is_dir():
        raise CorpusError(f"{folder}: there is no such folder.")
    table = Table(folder)
    files = list(files_below(folder))
    sounds = [path for path in files if path.suffix.lower() in audio.SUFFIXES]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not sounds:
        raise CorpusError(f"{folder}: holds no sounds ({', '.join(sorted(audio.SUFFIXES))}).")
    _check_links(table, [*sounds, *images])
    _check_splits(table, [*sounds, *images])
    if table.faults:
        return table
    _check_names(table, sounds, images)
    images_by_name = _by_name(images)
    for sound in sounds:
        split = sound.relative_to(folder).parts[0] if table.splits else None
        image = _image_of(sound, folder / (split or ""), images_by_name)
        table.entries.append(
            CaptionEntry(
                origin=str(folder),
                audio=str(sound),
                id=_id(folder, sound),
                image=None if image is None else str(image),
                speaker=_speaker(folder / (split or ""), sound),
                split=split,
                text=_text(table, sound.with_suffix(".txt")),
            )
        )
    if images:
        _check_pairs(table, files, images)
    if speakers is not None:
        table.entries = list(_with_speakers(table, speakers))
    return table


def _check_links(table: Table, paths: Sequence[Path]) -> None:
    """Add faults of links out of the folder, and of two names of one file."""
    folder = table.path.resolve()
    first: dict[Path, Path] = {}
    for path in paths:
        target = path.resolve()
        if not target.is_relative_to(folder):
            table.faults.append(f"{path}: is a link to {target}, outside the folder. Copy the file instead.")
        elif (other := first.setdefault(target, path)) != path:
            table.faults.append(f"{path}: is the same file as {other}, through a link. Remove one of them.")


def _check_splits(table: Table, paths: Iterable[Path]) -> None:
    """Find the folders that are splits, and add faults of files that are in none of them."""
    folders = sorted(path.name for path in table.path.iterdir() if path.is_dir())
    table.splits.update(name for name in folders if is_split(name))
    for name in folders:
        plain = SPLIT_NAMES.get(name.lower(), name.lower())
        if plain in SPLITS and name not in SPLITS:
            table.faults.append(f"{table.path / name}: is no split by its name. Did you mean '{plain}'?")
    if table.splits and "train" not in table.splits:
        table.faults.append(f"{table.path}: there is no folder 'train' beside '{min(table.splits)}'.")
    for path in paths if table.splits else ():
        if path.relative_to(table.path).parts[0] not in table.splits:
            names = ", ".join(sorted(table.splits))
            table.faults.append(f"{path}: is in none of the splits {names}. Move it to one of these folders.")


def _check_names(table: Table, sounds: Iterable[Path], images: Iterable[Path]) -> None:
    """Add faults of files that cannot be told apart by their names."""
    for first, *others in _by_name(images).values():
        table.faults += [f"{path}: {first.name} has the same name. Keep one of them." for path in others]
    for first, *others in _by_name(sounds).values():
        numbered = f"{first.stem}_1 and {first.stem}_2"
        table.faults += [
            f"{path}: {first.name} has the same name. Keep one of them, or number both: {numbered}."
            for path in others
        ]
    by_id: dict[str, Path] = {}
    for sound in sounds:
        other = by_id.setdefault(_id(table.path, sound), sound)
        if nfc(str(other.with_suffix(""))) != nfc(str(sound.with_suffix(""))):
            table.faults.append(
                f"{sound}: has the name of {other}, as blanks are read as '_'. Rename one of them."
            )


def _check_pairs(table: Table, files: Iterable[Path], images: Iterable[Path]) -> None:
    """Add faults of sounds without an image and of images without a sound."""
    similar: Named = {}
    for path in files:
        similar.setdefault((path.parent, nfc(path.stem).lower()), []).append(path)

    def what_to_do(path: Path, name: str, wanted: frozenset[str]) -> str:
        for other in similar.get((path.parent, name.lower()), ()):
            if other.suffix.lower() in wanted:
                return f"There is {other.name}: correct upper and lower case."
            if other.suffix.lower() not in audio.SUFFIXES | IMAGE_SUFFIXES | {".txt"}:
                return f"There is {other.name}, whose format is not read: convert it."
        return "Add it, or remove this file."

    for entry in table.entries:
        if entry.image is None:
            path = Path(entry.audio)
            names = _names_of(path)
            table.faults.append(
                f"{path}: there is no picture {' or '.join(names)} beside or above it. "
                f"{what_to_do(path, names[-1], IMAGE_SUFFIXES)}"
            )
    described = {entry.image for entry in table.entries}
    table.faults += [
        f"{image}: there is no sound of this picture. {what_to_do(image, nfc(image.stem), audio.SUFFIXES)}"
        for image, *_ in _by_name(images).values()
        if str(image) not in described
    ]


def _by_name(paths: Iterable[Path]) -> Named:
    named: Named = {}
    for path in paths:
        named.setdefault((path.parent, nfc(path.stem)), []).append(path)
    return named


def _id(folder: Path, sound: Path) -> str:
    """Return the path of a recording in the folder without suffix; blanks separate columns of item files."""
    return "_".join(sound.relative_to(folder).with_suffix("").as_posix().split())


def _speaker(top: Path, sound: Path) -> str:
    """Return the name of the folder in `top` that holds a recording."""
    folders = sound.relative_to(top).parts[:-1] if sound.is_relative_to(top) else ()
    return "_".join(folders[0].split()) if folders else "unknown"


def _with_speakers(table: Table, path: Path) -> Iterator[CaptionEntry]:
    """Yield the entries with the speakers of a table with lines "SOUND SPEAKER"."""
    named = keyed_lines(path, table.faults)
    for entry in table.entries:
        _, speaker = named.get(entry.id) or named.get(entry.id.rpartition("/")[2]) or (0, "")
        if not speaker:
            table.faults.append(f"{path}: names no speaker of {entry.id}. Add a line: {entry.id} SPEAKER")
        yield replace(entry, speaker="_".join(speaker.split()))


def _names_of(sound: Path) -> list[str]:
    """Return the names that the image of a recording may have, the preferred one first."""
    name = nfc(sound.stem)
    numbered = NUMBERED.fullmatch(name)
    return [name, numbered[1]] if numbered else [name]


def _image_of(sound: Path, top: Path, images: Named) -> Path | None:
    """Return the image of a recording, in its folder or in the nearest one above it up to `top`."""
    folders = [folder for folder in sound.parents if folder.is_relative_to(top)]
    found = (images.get((folder, name)) for name in _names_of(sound) for folder in folders)
    return next((paths[0] for paths in found if paths), None)


def _text(table: Table, path: Path) -> str | None:
    """Return the transcript in a file, without line breaks; None if there is none."""
    if not is_file(path):
        return None
    try:
        return " ".join(read_text(path).split()) or None
    except VgsplusError as error:
        table.faults.append(str(error))
        return None
