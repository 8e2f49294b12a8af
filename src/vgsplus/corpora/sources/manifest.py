"""fairseq manifests: read them as a corpus without images, or write them from any corpus.

    /folder/of/the/sounds
    relative/path.flac<TAB>number of samples
    all.zip:START:SIZE<TAB>number of samples
    long.wav:START:COUNT<TAB>number of samples
    …

The first line is the folder of the sounds. all.zip:START:SIZE is a sound in an archive, long.wav:START:COUNT
a range of samples (see `vgsplus.audio_files`). train.tsv is the split "train", valid.tsv "validation".
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vgsplus.audio_files import PART, parse_path
from vgsplus.corpora import Corpus, CorpusWriter, Summary
from vgsplus.corpora.format import INFO_FILE, CaptionEntry
from vgsplus.corpora.prepare import add_captions, unique_ids
from vgsplus.corpora.sounds import TOO_SHORT
from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.files import as_on_disk, atomic_file, file_identity, is_file, read_text
from vgsplus.progress import SILENT, Progress

FILES = {"train": "train.tsv", "validation": "valid.tsv"}
"""The manifest of each split."""
COUNT = re.compile(r"(\d{1,18})(\.0+)?", re.ASCII)
"""Matches a number of samples; pandas may write 16000.0."""


def prepare_manifests(
    train: Sequence[str | Path],
    valid: Sequence[str | Path],
    root: str | Path,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Summary:
    """Prepare the sounds of manifests as a corpus without images at `root`. Sounds are used in place.

    `train` and `valid` are the manifests of the splits "train" and "validation"; the latter may be empty. A
    relative path in the first line is relative to the working directory, as in fairseq. The id of a caption
    is the path of the sound without suffix, and the range of a part; speaker, language and text are unknown.
    Sounds under 0.25 s are skipped and counted. The stages of `progress` are "sounds" and "checking".

    Raises:
        CorpusError: all faults of the manifests, with their lines: no such file, not two columns, a sound
            that is missing, broken, not 16 kHz mono, of another length than stated or named twice; or `root`
            exists.
    """
    faults: list[str] = []
    manifests = {"train": train, "validation": valid}
    entries = [
        entry
        for split, paths in manifests.items()
        for path in paths
        for entry in _read_manifest(Path(path), split, faults)
    ]
    faults += _repeats(entries)
    audio_root = os.path.commonpath([Path(entry.audio).parent for entry in entries]) if entries else "audio"
    entries = [
        replace(entry, id=caption_id, audio=Path(entry.audio).relative_to(audio_root).as_posix())
        for entry, caption_id in zip(entries, unique_ids(entries), strict=True)
    ]
    provenance = {
        "source": "manifests",
        "manifests": {
            split: [str(Path(path).absolute()) for path in paths] for split, paths in manifests.items()
        },
    }
    with CorpusWriter(
        root,
        name="manifest",
        licence="the user's own",
        provenance=provenance,
        audio_root=audio_root,
        image_root=None,
        overwrite=overwrite,
        progress=progress,
    ) as writer:
        add_captions(writer, [*faults, *entries], audio_root=Path(audio_root), skip={TOO_SHORT})
        return writer.finish()


def write_manifests(corpus: Corpus, folder: str | Path, *, overwrite: bool = False) -> dict[Path, int]:
    """Write train.tsv, and valid.tsv for a split "validation"; return the number of sounds in each file.

    The first line is the deepest folder that contains all sounds of the corpus. Sounds of several captions
    are listed once.

    Raises:
        CorpusError: there is no split "train", a path holds a tab or a line break, or a manifest exists
            (unless `overwrite`).
    """
    folder = Path(folder)
    sounds = {
        split: {
            _absolute(corpus.audio_path(caption)): caption.num_samples for caption in corpus.captions(split)
        }
        for split in FILES
        if split == "train" or split in corpus.splits
    }
    every = [path for found in sounds.values() for path in found]
    faults = [
        f"{corpus.root / INFO_FILE}: {str(path)!r} holds a tab or a line break; a manifest cannot. Rename it."
        for path in every
        if set("\t\n\r") & set(str(path))
    ]
    targets = {split: folder / FILES[split] for split in sounds}
    if not overwrite:
        faults += [
            f"{path}: exists. Choose another folder, or add --overwrite."
            for path in targets.values()
            if path.exists()
        ]
    if faults:
        raise CorpusError(faults)
    folder.mkdir(parents=True, exist_ok=True)
    top = Path(os.path.commonpath([path.parent for path in every]))
    for split, path in targets.items():
        with atomic_file(path) as file:
            file.write(f"{top}\n".encode())
            for sound, length in sounds[split].items():
                file.write(f"{sound.relative_to(top)}\t{length}\n".encode())
    return {path: len(sounds[split]) for split, path in targets.items()}


# ---- reading ----------------------------------------------------------------------------------------------


def _read_manifest(path: Path, split: str, faults: list[str]) -> Iterator[CaptionEntry]:
    """Yield the sounds of a manifest, with absolute paths; append faults to `faults`."""
    if not is_file(path):
        faults.append(f"{path}: there is no such manifest.")
        return
    try:
        first, *lines = read_text(path).split("\n")
    except VgsplusError as error:
        faults.append(f"{error} File names in other encodings must be renamed, too.")
        return
    top = Path(first.strip())
    if fault := _root_fault(first.strip()):
        faults.append(f"{path}:1: {fault}")
        return
    if not any(line.strip() for line in lines):
        faults.append(f"{path}: names no sound. Add lines of a path, a tab and a number of samples.")
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        cells = line.rstrip("\r").split("\t")
        count = COUNT.fullmatch(cells[-1])
        if len(cells) != 2 or not cells[0] or count is None:
            faults.append(f"{path}:{number}: expected a path, a tab and a number of samples{_found(cells)}.")
            continue
        audio = _on_disk(_absolute(top / cells[0]))
        yield CaptionEntry(
            origin=f"{path}:{number}",
            audio=str(audio),
            id=_name(cells[0], audio),
            split=split,
            num_samples=int(count[1]),
        )


def _root_fault(first: str) -> str | None:
    """Return the fault of the first line of a manifest, or None."""
    if not first:
        return "must be the folder of the sounds, is empty."
    if first.startswith("{"):
        return "is JSON, not the folder of the sounds. Write it as CSV for `vgsplus data table`."
    if "\t" in first and {"audio", "path"} & set(first.split("\t")):
        return (
            "names columns, not the folder of the sounds. `vgsplus data table` reads such lists: keep the "
            "columns audio, speaker and text."
        )
    if "\t" in first or not os.path.isdir(first):  # noqa: PTH112 - Path.is_dir raises for names too long
        return f"must be the folder of the sounds, is {first!r}."
    return None


def _found(cells: list[str]) -> str:
    """Describe a line that does not have two columns."""
    if len(cells) == 1:
        return "; there is no tab (blanks do not separate columns)"
    return f"; there are {len(cells)} columns" if len(cells) > 2 else ""


def _on_disk(path: Path) -> Path:
    """Return a path, or part of a file, in its Unicode form on disk."""
    part = PART.fullmatch(str(path))
    if part is None or is_file(path):
        return as_on_disk(path)
    return Path(f"{as_on_disk(Path(part['file']))}:{part['start']}:{part['count']}")


def _absolute(path: Path) -> Path:
    """Return an absolute path without ".."; links are not resolved."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve follows links


def _repeats(entries: list[CaptionEntry]) -> Iterator[str]:
    """Yield a fault for each sound that is named twice, also by different names."""
    first: dict[tuple[object, ...], CaptionEntry] = {}
    for entry in entries:
        file, part = parse_path(entry.audio)
        # A range of all samples is the file itself.
        key = (file_identity(file), *(part or (0, entry.num_samples)))
        if (other := first.setdefault(key, entry)) is not entry:
            yield f"{entry.origin}: repeats {other.origin}. Remove one."


def _name(relative: str, audio: Path) -> str:
    """Return the id of a sound: its path without suffix, and the range of a part of a file."""
    part = None if is_file(audio) else PART.fullmatch(relative)
    path = Path(part["file"] if part else relative)
    path = path.with_suffix("") if path.name else path
    span = f"-{part['start']}-{part['count']}" if part else ""
    return "_".join(f"{path.as_posix()}{span}".split())
