"""fairseq's manifests: read as a corpus of speech alone, and written from any corpus.

    /folder/of/the/sounds
    relative/path.flac<TAB>number of samples
    …

`train.tsv` is the split "train", `valid.tsv` the split "validation".
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vgsplus.audio import AudioError, num_samples
from vgsplus.corpora.format import Caption, Corpus, CorpusError, CorpusWriter, Summary
from vgsplus.corpora.preparing import MIN_SAMPLES, MIN_SECONDS, Progress, stream_in_parallel
from vgsplus.corpora.reader import INFO_FILE
from vgsplus.files import whole_file

FILES = {"train": "train.tsv", "validation": "valid.tsv"}
"""The manifest of each split."""


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
    progress: Progress | None = None,
    checking: Progress | None = None,
) -> Summary:
    """Prepare the sounds that manifests name as a corpus of speech alone at `root`; they stay where they are.

    A first line that is no absolute path is taken from the working directory, as fairseq takes it. A
    caption's id is the sound's path without its ending; speaker, language and text are unknown. Sounds under
    0.25 s are left out and counted.

    Args:
        train: The manifest of the split "train".
        valid: That of the split "validation", if any.
        root: The corpus folder to make.
        overwrite: Replace a corpus that is there.
        progress: Called as progress(headers read, sounds in all).
        checking: Called as checking(sounds decoded, sounds in all), while the finished corpus is checked.

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
        progress=checking,
    ) as writer:
        ids: set[str] = set()
        for row, fault in zip(rows, stream_in_parallel(_fault, rows, progress), strict=True):
            if fault is not None:
                faults.append(f"{row.place}: {fault}")
            elif row.stated < MIN_SAMPLES:
                writer.skip(f"shorter than {MIN_SECONDS} s", row.place)
            elif not faults:
                writer.add_caption(_caption(row, ids, audio_root))
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
    if not path.is_file():
        faults.append(f"{path}: there is no such manifest.")
        return
    try:
        first, *lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        faults.append(f"{path}: is not UTF-8 text. Write it again.")
        return
    top = _absolute(Path(first.strip()))
    if "\t" in first.strip() or not first.strip() or not top.is_dir():
        faults.append(f"{path}:1: must be the folder of the sounds, is {first.strip()!r}.")
        return
    if not any(line.strip() for line in lines):
        faults.append(f"{path}: names no sound. Add lines of a path, a tab and a number of samples.")
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        relative, tab, count = line.rstrip("\r").partition("\t")
        if not tab or not relative or not (count.isascii() and count.isdecimal()):
            faults.append(f"{path}:{number}: expected a path, a tab and a number of samples.")
            continue
        yield _Row(path, number, split, _absolute(top / relative), relative, int(count))


def _absolute(path: Path) -> Path:
    """The path from the root, without '..'; links stay as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve follows links


def _repeats(rows: list[_Row]) -> Iterator[str]:
    homes: dict[Path, _Row] = {}
    for row in rows:
        home = homes.setdefault(row.audio, row)
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


def _caption(row: _Row, ids: set[str], audio_root: str) -> Caption:
    caption_id = "_".join(Path(row.relative).with_suffix("").as_posix().split())
    if caption_id in ids:
        caption_id += f"-{row.split}-{row.line}"
    ids.add(caption_id)
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
    with whole_file(path) as file:
        file.write(f"{top}\n".encode())
        for sound, length in sounds.items():
            file.write(f"{sound.relative_to(top)}\t{length}\n".encode())
