"""LibriSpeech and Libri-Light as unpacked: English books read aloud, without images.

    LibriSpeech/SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac   or .wav, or another suffix of a sound file
    LibriSpeech/SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt   lines "SPEAKER-CHAPTER-NNNN TEXT"
    LibriSpeech/SPEAKERS.TXT (optional)                            lines "ID | SEX | SUBSET | MINUTES | NAME"

    small/SPEAKER/BOOK/NAME.flac                                   Libri-Light, also medium and large

Sounds are used in place. The id of a caption is SPEAKER-CHAPTER-NNNN, the #file of ABX items; in Libri-Light,
which has no transcripts, it is SPEAKER/BOOK/NAME.
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from vgsplus.audio import SUFFIXES
from vgsplus.corpora import CorpusWriter, Summary
from vgsplus.corpora.format import ITEM_COLUMNS, CaptionEntry
from vgsplus.corpora.keyed_lines import keyed_lines, numbered_lines
from vgsplus.corpora.prepare import Usable, add_captions
from vgsplus.errors import CorpusError
from vgsplus.parallel import parallel_map
from vgsplus.progress import SILENT, Progress

FOLDER = "LibriSpeech"
TRAINING_SUBSETS = ("train-clean-100", "train-clean-360", "train-other-500")
VALIDATION_SUBSETS = ("dev-clean",)
UNTRANSCRIBED_SUBSETS = ("small", "medium", "large")
"""The subsets of Libri-Light."""
SPEAKERS_FILE = "SPEAKERS.TXT"
SPEAKERS_COLUMNS = 5
ABSENT_SPEAKER = f"speaker of {SPEAKERS_FILE} without a folder"


def prepare_librispeech(
    source: str | Path,
    root: str | Path,
    *,
    train: Sequence[str] = (),
    validation: Sequence[str] | None = None,
    items: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Summary:
    """Prepare subsets of LibriSpeech as a corpus without images at `root`.

    The following are skipped and counted by reason: sounds that are not in the transcript and lines of the
    transcript without a sound, broken headers, formats other than 16 kHz mono, sounds under 0.25 s, and
    speakers of SPEAKERS.TXT without a folder in their subset.

    Args:
        source: the folder LibriSpeech, or the folder that contains it.
        root: the corpus folder to create.
        train: subsets of the split "train". Default: the existing training subsets of LibriSpeech, or else
            of Libri-Light.
        validation: subsets of the split "validation". Default: dev-clean, with Libri-Light if it exists.
        items: folder of ABX item files SUBSET.item, at any depth, which are copied into the corpus.
        overwrite: whether to replace an existing corpus.
        progress: stages "chapters", "sounds" and "checking".

    Raises:
        CorpusError: a subset is missing, named twice or without usable utterances; an utterance has two lines
            in a transcript or two sounds; an item file names sounds that are not in its subset; SPEAKERS.TXT
            is faulty; a sound is truncated; or `root` exists.
    """
    top = Path(source).absolute()
    top = top / FOLDER if (top / FOLDER).is_dir() else top
    trained = tuple(train) or _training_subsets(top)
    if validation is None:
        optional = all(subset in UNTRANSCRIBED_SUBSETS for subset in trained)
        validation = [name for name in VALIDATION_SUBSETS if not optional or (top / name).is_dir()]
    splits = _splits(top, trained, validation)
    chapters = {subset: _chapters(top / subset) for subset in splits}
    item_files = {} if items is None else _item_files(Path(items), splits)
    sexes, speakers = _read_speakers(top / SPEAKERS_FILE)
    unknown = [_unknown_files(path, chapters[subset]) for subset, path in item_files.items()]
    if faults := list(chain.from_iterable(unknown)):
        raise CorpusError(faults)

    def entries() -> Iterator[CaptionEntry | str]:
        folders = [(folder, subset) for subset, found in chapters.items() for folder in found]
        read = partial(_read_chapter, top, splits)
        yield from chain.from_iterable(parallel_map(read, folders, progress, "chapters"))

    def review(writer: CorpusWriter, usable: list[Usable]) -> Iterator[Usable | str]:
        used = {entry.audio.split("/", 1)[0] for entry, _ in usable}
        for subset, found in chapters.items():
            if subset not in used:
                yield (
                    f"{top / subset}: no utterance of its {len(found)} chapters can be used"
                    f"{_main_reason(writer, subset)}."
                )
            present = {folder.parent.name for folder in found}
            for speaker in sorted(speakers[subset] - present):
                writer.skip(ABSENT_SPEAKER, f"{subset}/{speaker}")
        if sexes:
            known = sorted({entry.speaker for entry, _ in usable})
            writer.set_info("sex_of_speakers", {speaker: sexes.get(speaker) for speaker in known})
        for subset, path in item_files.items():
            shutil.copyfile(path, writer.folder / f"{subset}.item")
        yield from usable

    provenance = {
        "source": "LibriSpeech (V. Panayotov, G. Chen, D. Povey, S. Khudanpur, ICASSP 2015), OpenSLR 12",
        "speech": "books of the LibriVox project, read aloud by volunteers",
        "changes": "none: the FLAC files are used where they are",
        "subsets": splits,
    }
    with CorpusWriter(
        root,
        name="librispeech",
        licence="CC BY 4.0",
        provenance=provenance,
        audio_root=top,
        image_root=None,
        overwrite=overwrite,
        progress=progress,
    ) as writer:
        add_captions(writer, entries(), audio_root=top, skip="all", review=review)
        return writer.finish()


# ---- subsets and speakers ---------------------------------------------------------------------------------


def _training_subsets(top: Path) -> tuple[str, ...]:
    for subsets in (TRAINING_SUBSETS, UNTRANSCRIBED_SUBSETS):
        if found := tuple(subset for subset in subsets if (top / subset).is_dir()):
            return found
    raise CorpusError(
        f"{top}: holds none of {', '.join(TRAINING_SUBSETS)}, nor of Libri-Light's "
        f"{', '.join(UNTRANSCRIBED_SUBSETS)}. Name the folder with {FOLDER} in it, or subsets to train on; "
        "`vgsplus data table` prepares other recordings."
    )


def _splits(top: Path, train: Sequence[str], validation: Sequence[str]) -> dict[str, str]:
    """Return the split of each subset."""
    splits: dict[str, str] = {}
    faults = []
    for split, subsets in (("train", train), ("validation", validation)):
        for subset in subsets:
            if subset in splits:
                faults.append(f"{subset}: is named twice. Use a subset once, for training or validation.")
            elif not (top / subset).is_dir():
                faults.append(
                    f"{top / subset}: there is no such subset. Unpack it there, or remove the option."
                )
            splits[subset] = split
    if faults:
        raise CorpusError(faults)
    return splits


def _chapters(subset: Path) -> list[Path]:
    """Return the folders of chapters or books, sorted by speaker and name."""
    folders = [path for path in subset.glob("*/*") if path.is_dir() and "__MACOSX" not in path.parts]
    return sorted(folders, key=lambda path: path.parts)


def _read_speakers(path: Path) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Return the sex of each speaker and the speakers of each subset, both empty if there is no such file."""
    sexes: dict[str, str] = {}
    subsets: dict[str, set[str]] = defaultdict(set)
    lines: dict[str, int] = {}
    faults = []
    for number, line in numbered_lines(path) if path.is_file() else ():
        if line.startswith(";"):
            continue
        # Some names contain a bar.
        cells = [cell.strip() for cell in line.split("|", SPEAKERS_COLUMNS - 1)]
        if len(cells) < SPEAKERS_COLUMNS:
            faults.append(f"{path}:{number}: expected ID | SEX | SUBSET | MINUTES | NAME. Unpack it again.")
            continue
        speaker, sex, subset, *_ = cells
        if speaker in lines:
            faults.append(f"{path}:{number}: {speaker} is in line {lines[speaker]} already. Remove one.")
        lines.setdefault(speaker, number)
        sexes[speaker] = sex
        subsets[subset].add(speaker)
    if faults:
        raise CorpusError(faults)
    return sexes, subsets


# ---- ABX items --------------------------------------------------------------------------------------------


def _item_files(folder: Path, splits: Mapping[str, str]) -> dict[str, Path]:
    """Return the item files of subsets in `folder`, at any depth."""
    found = {subset: sorted(folder.rglob(f"{subset}.item")) for subset in splits}
    if not any(found.values()):
        names = ", ".join(f"{subset}.item" for subset in splits)
        raise CorpusError(f"{folder}: holds none of {names}. Name the folder of the ABX item files.")
    if faults := [
        f"{paths[0]}: there is also {paths[1]}. Name a folder that holds one {subset}.item."
        for subset, paths in found.items()
        if len(paths) > 1
    ]:
        raise CorpusError(faults)
    return {subset: paths[0] for subset, paths in found.items() if paths}


def _unknown_files(path: Path, chapters: Sequence[Path]) -> Iterator[str]:
    """Yield a fault for each #file of an item file that is not in the subset."""
    known = {ITEM_COLUMNS[0], *(sound.stem for folder in chapters for sound in _sounds(folder))}
    for number, line in numbered_lines(path):
        file = line.split()[0]
        if number == 1 and file != ITEM_COLUMNS[0]:
            yield f"{path}:1: must begin with {ITEM_COLUMNS[0]}, the name of the first column of ABX items."
        elif file not in known:
            known.add(file)
            yield f"{path}:{number}: there is no sound {file} in {path.stem}. Unpack the subset again."


def _main_reason(writer: CorpusWriter, subset: str) -> str:
    """Return the most frequent reason for which utterances of a subset were skipped."""
    reasons = Counter(reason for reason, what in writer.skipped if what.startswith(f"{subset}/"))
    if not reasons:
        return ": there are no sounds"
    reason, number = reasons.most_common(1)[0]
    return f": {number} of {reasons.total()} are skipped for this reason: {reason}"


# ---- utterances -------------------------------------------------------------------------------------------


def _read_chapter(
    top: Path, splits: Mapping[str, str], chapter: tuple[Path, str]
) -> list[CaptionEntry | str]:
    """Return the utterances of a (folder, subset): sounds, and lines of the transcript without a sound."""
    folder, subset = chapter
    speaker = folder.parent.name
    transcript = folder / f"{speaker}-{folder.name}.trans.txt"
    transcribed = subset not in UNTRANSCRIBED_SUBSETS
    faults: list[str] = []
    lines = keyed_lines(transcript, faults) if transcribed and transcript.is_file() else {}
    texts = {utterance: text for utterance, (_, text) in lines.items() if text}
    found: list[CaptionEntry | str] = list(faults)
    sounds: dict[str, Path] = {}
    for path in _sounds(folder):
        other = sounds.setdefault(path.stem, path)
        if other != path:
            found.append(f"{path}: is the same utterance as {other}. Remove one of them.")
    for utterance in sorted(texts.keys() - sounds.keys()):
        origin = f"{transcript.relative_to(top)}: {utterance}"
        found.append(CaptionEntry(origin=origin, audio=utterance, id=utterance, problem="no sound"))
    for utterance, path in sounds.items():
        audio = path.relative_to(top).as_posix()
        untranscribed = "_".join(f"{speaker}/{folder.name}/{utterance}".split())
        found.append(
            CaptionEntry(
                origin=audio,
                audio=audio,
                id=utterance if transcribed else untranscribed,
                split=splits[subset],
                speaker=speaker,
                language="en",
                text=texts.get(utterance),
                problem="no line in the transcript" if transcribed and utterance not in texts else None,
            )
        )
    return found


def _sounds(folder: Path) -> list[Path]:
    """Return the sound files of a chapter, without the files "._NAME" of macOS."""
    files = (path for path in folder.iterdir() if not path.name.startswith("._"))
    return sorted(path for path in files if path.suffix.lower() in SUFFIXES)
