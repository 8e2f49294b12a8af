"""fairseq's manifests: read as a corpus of speech alone, and written from any corpus.

    /folder/of/the/sounds
    relative/path.flac<TAB>number of samples
    all.zip:START:SIZE<TAB>number of samples
    long.wav:START:COUNT<TAB>number of samples
    …

The second and third form name a sound stored in an archive by its bytes, and a range of samples of a file
(see `vgsplus.audio`). `train.tsv` is the split "train", `valid.tsv` the split "validation".
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vgsplus.audio import PART, num_samples
from vgsplus.corpora import Caption, Corpus, CorpusWriter, Summary
from vgsplus.corpora.format import INFO_FILE
from vgsplus.corpora.preparing import MIN_SAMPLES, MIN_SECONDS, unique_ids
from vgsplus.errors import AudioError, CorpusError, VgsplusError
from vgsplus.files import as_on_disk, atomic_file, file_identity, is_file, read_text
from vgsplus.parallel import stream_in_parallel
from vgsplus.progress import SILENT, Progress

FILES = {"train": "train.tsv", "validation": "valid.tsv"}
"""The manifest of each split."""
COUNT = re.compile(r"(\d{1,18})(\.0+)?", re.ASCII)
"""A number of samples; pandas writes whole numbers with a decimal point too."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of a manifest: a sound and how many samples it is said to have."""

    manifest: Path
    line: int
    split: str
    audio: Path
    relative: str
    stated: int

    @property
    def place(self) -> str:
        return f"{self.manifest}:{self.line}"


def prepare_manifests(
    train: str | Path,
    valid: str | Path | None,
    root: str | Path,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Summary:
    """Prepare the sounds that manifests name as a corpus of speech alone at `root`; they stay where they are.

    A first line that is no absolute path is taken from the working directory, as fairseq takes it. A
    caption's id is the sound's path without its ending, and the range of a part of a file; speaker, language
    and text are unknown. Sounds under 0.25 s are left out and counted.

    Args:
        train: The manifest of the split "train".
        valid: That of the split "validation", if any.
        root: The corpus folder to make.
        overwrite: Replace a corpus that is there.
        progress: stages "sounds" and "checking".

    Raises:
        CorpusError: every fault of the manifests, with its line: no such file, not two columns, a sound that
            is absent, broken, not 16 kHz mono, of another length than stated or named twice; or `root` is
            taken.
    """
    faults: list[str] = []
    manifests = {"train": Path(train)} | ({} if valid is None else {"validation": Path(valid)})
    rows = [row for split, path in manifests.items() for row in _rows(path, split, faults)]
    faults += _repeats(rows)
    audio_root = os.path.commonpath([row.audio.parent for row in rows]) if rows else "audio"
    with CorpusWriter(
        root,
        name="manifest",
        version="1",
        provenance={
            "source": "manifests",
            "manifests": {split: str(path.absolute()) for split, path in manifests.items()},
        },
        licence="the user's own",
        image_root=None,
        audio_root=audio_root,
        overwrite=overwrite,
        progress=progress,
    ) as writer:
        ids = unique_ids([_name(row) for row in rows], [row.line for row in rows])
        checked = stream_in_parallel(_fault, rows, partial(progress.update, "sounds"))
        for row, caption_id, fault in zip(rows, ids, checked, strict=True):
            if fault is not None:
                faults.append(f"{row.place}: {fault}")
            elif row.stated < MIN_SAMPLES:
                writer.skip(f"shorter than {MIN_SECONDS} s", row.place)
            elif not faults:
                writer.add_caption(_caption(row, caption_id, audio_root))
        if faults:
            raise CorpusError(faults)
        return writer.finish()


def write_manifests(corpus: Corpus, folder: str | Path, *, overwrite: bool = False) -> dict[Path, int]:
    """Write train.tsv, and valid.tsv where the corpus has a split "validation": sounds in each, by file.

    The first line is the closest folder that holds all sounds of the corpus; a sound of several captions is
    named once.

    Raises:
        CorpusError: there is no split "train", a path holds a tab or a line break, or a manifest is there
            already (unless `overwrite`).
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
            f"{path}: is there already. Choose another folder or ask to overwrite it."
            for path in targets.values()
            if path.exists()
        ]
    if faults:
        raise CorpusError(faults)
    folder.mkdir(parents=True, exist_ok=True)
    top = Path(os.path.commonpath([path.parent for path in every]))
    for split, path in targets.items():
        _write(path, top, sounds[split])
    return {path: len(sounds[split]) for split, path in targets.items()}


# ---- reading ----------------------------------------------------------------------------------------------


def _rows(path: Path, split: str, faults: list[str]) -> Iterator[_Row]:
    """The lines of a manifest that name a sound; what is wrong with the others goes to `faults`."""
    if not is_file(path):
        faults.append(f"{path}: there is no such manifest.")
        return
    try:
        first, *lines = read_text(path).split("\n")
    except VgsplusError as error:
        faults.append(f"{error} Names of other encodings have to be changed on disk, too.")
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
        yield _Row(path, number, split, _found_on_disk(_absolute(top / cells[0])), cells[0], int(count[1]))


def _root_fault(first: str) -> str | None:
    """What is wrong with the first line of a manifest."""
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
    """What a line holds in place of two columns, for people to read."""
    if len(cells) == 1:
        return "; there is no tab (blanks do not separate columns)"
    return f"; there are {len(cells)} columns" if len(cells) > 2 else ""


def _found_on_disk(path: Path) -> Path:
    """The path, or part of a file, under the Unicode form in which it is on disk."""
    part = PART.fullmatch(str(path))
    if part is None or is_file(path):
        return as_on_disk(path)
    return Path(f"{as_on_disk(Path(part['file']))}:{part['start']}:{part['count']}")


def _absolute(path: Path) -> Path:
    """The path from the root, without '..'; links stay as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve follows links


def _repeats(rows: list[_Row]) -> Iterator[str]:
    """Sounds that are named twice, under whichever names."""
    homes: dict[tuple[object, ...], _Row] = {}
    for row in rows:
        part = None if is_file(row.audio) else PART.fullmatch(str(row.audio))
        # A range of all samples is the file itself.
        file, first, count = (
            (row.audio, 0, row.stated)
            if part is None
            else (Path(part["file"]), int(part["start"]), int(part["count"]))
        )
        key = (file_identity(file), first, count)
        home = homes.setdefault(key, row)
        if home is not row:
            yield f"{row.place}: repeats {home.place} ({row.relative}). Remove one."


def _fault(row: _Row) -> str | None:
    """What is wrong with a line's sound, by its header."""
    try:
        length = num_samples(row.audio)
    except AudioError as error:
        return str(error)
    if length != row.stated:
        return f"{row.audio} has {length} samples, not {row.stated}. Write the manifest again."
    return None


def _name(row: _Row) -> str:
    """A row's path without ending, and its range where it names a part of a file."""
    part = None if is_file(row.audio) else PART.fullmatch(row.relative)
    path = Path(part["file"] if part else row.relative)
    path = path.with_suffix("") if path.name else path
    behind = f"-{part['start']}-{part['count']}" if part else ""
    return "_".join(f"{path.as_posix()}{behind}".split())


def _caption(row: _Row, caption_id: str, audio_root: str) -> Caption:
    return Caption(
        id=caption_id,
        split=row.split,
        audio=row.audio.relative_to(audio_root).as_posix(),
        num_samples=row.stated,
        speaker="unknown",
        language="und",
        image=None,
        text=None,
    )


# ---- writing ----------------------------------------------------------------------------------------------


def _write(path: Path, top: Path, sounds: Mapping[Path, int]) -> None:
    with atomic_file(path) as file:
        file.write(f"{top}\n".encode())
        for sound, length in sounds.items():
            file.write(f"{sound.relative_to(top)}\t{length}\n".encode())
