"""LibriSpeech and Libri-Light as they are unpacked: books read aloud in English, to train on sound alone.

    LibriSpeech/SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac   or .wav, or another ending of a sound file
    LibriSpeech/SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt   "SPEAKER-CHAPTER-NNNN TEXT" a line
    LibriSpeech/SPEAKERS.TXT (optional)                            "ID | SEX | SUBSET | MINUTES | NAME"

    small/SPEAKER/BOOK/NAME.flac                                   Libri-Light, also medium and large

The sounds stay where they are. A caption's id is the utterance's, as ABX item files name it; in Libri-Light,
which has no transcripts, it is SPEAKER/BOOK/NAME.
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vgsplus.audio import SUFFIXES, num_samples
from vgsplus.corpora import Caption, CorpusWriter, Summary
from vgsplus.corpora.preparing import MIN_SAMPLES, MIN_SECONDS, reason
from vgsplus.errors import AudioError, CorpusError, VgsplusError
from vgsplus.files import read_text
from vgsplus.parallel import stream_in_parallel
from vgsplus.progress import SILENT, Progress

FOLDER = "LibriSpeech"
TRAINING_SUBSETS = ("train-clean-100", "train-clean-360", "train-other-500")
VALIDATION_SUBSETS = ("dev-clean",)
UNTRANSCRIBED_SUBSETS = ("small", "medium", "large")
"""Of Libri-Light."""
SPEAKERS_FILE = "SPEAKERS.TXT"
SPEAKERS_COLUMNS = 5
ITEM_HEADER = "#file"
LICENCE = "CC BY 4.0"
PROVENANCE = {
    "source": "LibriSpeech (V. Panayotov, G. Chen, D. Povey, S. Khudanpur, ICASSP 2015), OpenSLR 12",
    "speech": "books of the LibriVox project, read aloud by volunteers",
    "changes": "none: the FLAC files are used where they are",
}


@dataclass(frozen=True, slots=True)
class _Chapter:
    """A folder of utterances; `split` is where its captions go."""

    folder: Path
    subset: str
    split: str

    @property
    def speaker(self) -> str:
        return self.folder.parent.name

    @property
    def transcript(self) -> Path | None:
        if self.subset in UNTRANSCRIBED_SUBSETS:
            return None
        return self.folder / f"{self.speaker}-{self.folder.name}.trans.txt"

    def sounds(self) -> list[Path]:
        """Its sound files, but for those that a Mac adds."""
        return sorted(
            path
            for path in self.folder.iterdir()
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("._")
        )


@dataclass(frozen=True, slots=True)
class _Utterances:
    """What a chapter holds: captions, (reason, file) of what is left out, and faults."""

    captions: list[Caption]
    skipped: list[tuple[str, str]]
    faults: list[str]


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
    """Prepare subsets of LibriSpeech as a corpus of speech alone at `root`.

    Left out, and counted by reason: sounds without a line in the transcript and lines without a sound, broken
    headers, other rates than 16 kHz mono, clips under 0.25 s, and speakers whom SPEAKERS.TXT counts to a
    subset that has no folder for them.

    Args:
        source: The folder with LibriSpeech in it, or LibriSpeech itself.
        root: The corpus folder to make.
        train: Subsets to train on; by default those of the three training subsets, or else of Libri-Light's,
            that are there.
        validation: Subsets of the split "validation"; by default dev-clean, which Libri-Light may lack.
        items: A folder with ABX item files SUBSET.item, at any depth, to be copied into the corpus.
        overwrite: Replace a corpus that is there.
        progress: stages "chapters" and "checking", of sounds.

    Raises:
        CorpusError: a subset is absent, named twice or holds nothing usable, an utterance has two lines in a
            transcript or two sounds, an item file names sounds that are not in its subset, SPEAKERS.TXT
            cannot be read or names a speaker twice, a sound breaks off, or `root` is taken.
    """
    top = Path(source).absolute()
    top = top / FOLDER if (top / FOLDER).is_dir() else top
    trained = tuple(train) or _training_subsets(top)
    if validation is None:
        optional = all(subset in UNTRANSCRIBED_SUBSETS for subset in trained)
        validation = [name for name in VALIDATION_SUBSETS if not optional or (top / name).is_dir()]
    splits = _splits(top, trained, validation)
    chapters = {subset: list(_chapters(top, subset, split)) for subset, split in splits.items()}
    item_files = {} if items is None else _item_files(Path(items), splits)
    sexes, subsets = _speakers(top / SPEAKERS_FILE)
    if faults := [
        fault for subset, path in item_files.items() for fault in _strangers(path, chapters[subset])
    ]:
        raise CorpusError(faults)
    with CorpusWriter(
        root,
        name="librispeech",
        version="1",
        provenance=PROVENANCE | {"subsets": splits},
        licence=LICENCE,
        image_root=None,
        audio_root=top,
        overwrite=overwrite,
        progress=progress,
    ) as writer:
        for subset, speaker in _absent_speakers(chapters, subsets):
            writer.skip(f"speaker of {SPEAKERS_FILE} without a folder", f"{subset}/{speaker}")
        speakers = _add_captions(writer, top, chapters, progress)
        if sexes:
            writer.note("sex_of_speakers", {speaker: sexes.get(speaker) for speaker in sorted(speakers)})
        for subset, path in item_files.items():
            shutil.copyfile(path, writer.folder / f"{subset}.item")
        return writer.finish()


# ---- what is there ----------------------------------------------------------------------------------------


def _training_subsets(top: Path) -> tuple[str, ...]:
    for subsets in (TRAINING_SUBSETS, UNTRANSCRIBED_SUBSETS):
        if there := tuple(subset for subset in subsets if (top / subset).is_dir()):
            return there
    raise CorpusError(
        f"{top}: holds none of {', '.join(TRAINING_SUBSETS)}, nor of Libri-Light's "
        f"{', '.join(UNTRANSCRIBED_SUBSETS)}. Name the folder with {FOLDER} in it, or subsets to train on; "
        "`vgsplus data table` takes recordings in other folders."
    )


def _splits(top: Path, train: Sequence[str], validation: Sequence[str]) -> dict[str, str]:
    """The split of each subset."""
    splits: dict[str, str] = {}
    faults = []
    for split, subsets in (("train", train), ("validation", validation)):
        for subset in subsets:
            if subset in splits:
                faults.append(f"{subset}: is named twice. A subset trains or validates, once.")
            elif not (top / subset).is_dir():
                faults.append(f"{top / subset}: there is no such subset. Unpack it there, or leave it out.")
            splits[subset] = split
    if faults:
        raise CorpusError(faults)
    return splits


def _chapters(top: Path, subset: str, split: str) -> Iterator[_Chapter]:
    """The chapters of a subset in the order of their names."""

    def folders(parent: Path) -> list[Path]:
        return sorted(path for path in parent.iterdir() if path.is_dir() and path.name != "__MACOSX")

    for speaker in folders(top / subset):
        for folder in folders(speaker):
            yield _Chapter(folder, subset, split)


def _speakers(path: Path) -> tuple[dict[str, str], dict[str, set[str]]]:
    """The sex of each speaker and the speakers of each subset; both empty where the file is absent."""
    sexes: dict[str, str] = {}
    subsets: dict[str, set[str]] = defaultdict(set)
    lines: dict[str, int] = {}
    faults = []
    for number, line in enumerate(_lines(path) if path.is_file() else (), start=1):
        if not line.strip() or line.startswith(";"):
            continue
        # Some readers' names hold a bar.
        cells = [cell.strip() for cell in line.split("|", SPEAKERS_COLUMNS - 1)]
        if len(cells) < SPEAKERS_COLUMNS:
            faults.append(f"{path}:{number}: expected ID | SEX | SUBSET | MINUTES | NAME. Unpack it again.")
            continue
        speaker, sex, subset, *_ = cells
        if speaker in lines:
            faults.append(f"{path}:{number}: repeats the speaker of line {lines[speaker]}. Remove one.")
        lines.setdefault(speaker, number)
        sexes[speaker] = sex
        subsets[subset].add(speaker)
    if faults:
        raise CorpusError(faults)
    return sexes, subsets


def _absent_speakers(
    chapters: Mapping[str, Sequence[_Chapter]], subsets: Mapping[str, set[str]]
) -> Iterator[tuple[str, str]]:
    """(subset, speaker) of those who are listed and have no folder, as after unpacking in part."""
    for subset, found in chapters.items():
        there = {chapter.speaker for chapter in found}
        for speaker in sorted(subsets.get(subset, set()) - there):
            yield subset, speaker


def _lines(path: Path) -> list[str]:
    """The lines of a text.

    Raises:
        CorpusError: it is not UTF-8.
    """
    try:
        return read_text(path).split("\n")
    except VgsplusError as error:
        raise CorpusError(str(error)) from None


# ---- ABX items --------------------------------------------------------------------------------------------


def _item_files(folder: Path, splits: Mapping[str, str]) -> dict[str, Path]:
    """The item file of each subset that has one below `folder`."""
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


def _strangers(path: Path, chapters: Sequence[_Chapter]) -> Iterator[str]:
    """A fault for each file that the items name and the subset lacks; their times are checked at the end."""
    utterances = {sound.stem for chapter in chapters for sound in chapter.sounds()}
    told: set[str] = set()
    for number, line in enumerate(_lines(path), start=1):
        file = (line.split() or [ITEM_HEADER])[0]
        if number == 1 and file != ITEM_HEADER:
            yield f"{path}:1: must begin with {ITEM_HEADER}, the name of the first column of ABX items."
        elif file != ITEM_HEADER and file not in utterances and file not in told:
            told.add(file)
            yield f"{path}:{number}: there is no sound {file} in {path.stem}. Is the subset unpacked whole?"


# ---- captions ---------------------------------------------------------------------------------------------


def _add_captions(
    writer: CorpusWriter, top: Path, chapters: Mapping[str, Sequence[_Chapter]], progress: Progress
) -> set[str]:
    """Write the captions of all chapters; their speakers."""
    every = [chapter for found in chapters.values() for chapter in found]
    usable: set[str] = set()
    speakers: set[str] = set()
    faults: list[str] = []
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    read = stream_in_parallel(
        lambda chapter: _read_chapter(top, chapter),
        every,
        partial(progress.update, "chapters"),
    )
    for chapter, utterances in zip(every, read, strict=True):
        for caption in utterances.captions:
            writer.add_caption(caption)
            speakers.add(caption.speaker)
            usable.add(chapter.subset)
        faults += utterances.faults
        for why, what in utterances.skipped:
            writer.skip(why, what)
            reasons[chapter.subset][why] += 1
    if faults:
        raise CorpusError(faults)
    if unusable := [
        f"{top / subset}: no utterance of its {len(found)} chapters can be used"
        f"{_most_common(reasons[subset])}."
        for subset, found in chapters.items()
        if subset not in usable
    ]:
        raise CorpusError(unusable)
    return speakers


def _most_common(reasons: Mapping[str, int]) -> str:
    """The reason for which most is left out, for people to read."""
    if not reasons:
        return ": there are no sounds"
    reason, number = max(reasons.items(), key=lambda item: item[1])
    return f": {number} of {sum(reasons.values())} are left out because of this: {reason}"


def _read_chapter(top: Path, chapter: _Chapter) -> _Utterances:
    """The captions of a chapter: its transcript, and the header of every sound."""
    found = _Utterances([], [], [])
    texts = _texts(chapter, found.faults)
    sounds: dict[str, Path] = {}
    for path in chapter.sounds():
        other = sounds.setdefault(path.stem, path)
        if other != path:
            found.faults.append(f"{path}: is the utterance of {other}, too. Remove one of them.")
    for missing in sorted(texts.keys() - sounds.keys()):
        assert chapter.transcript is not None, "texts come from a transcript"
        found.skipped.append(("no sound", f"{chapter.transcript.relative_to(top)}: {missing}"))
    for utterance, path in sounds.items():
        place = path.relative_to(top).as_posix()
        if chapter.transcript is not None and utterance not in texts:
            found.skipped.append(("no line in the transcript", place))
            continue
        try:
            length = num_samples(path)
        except AudioError as error:
            found.skipped.append((reason(error, path), place))
            continue
        if length < MIN_SAMPLES:
            found.skipped.append((f"shorter than {MIN_SECONDS} s", place))
            continue
        whole = f"{chapter.speaker}/{chapter.folder.name}/{utterance}"
        found.captions.append(
            Caption(
                id=utterance if chapter.transcript is not None else "_".join(whole.split()),
                split=chapter.split,
                audio=place,
                num_samples=length,
                speaker=chapter.speaker,
                language="en",
                image=None,
                text=texts.get(utterance),
            )
        )
    return found


def _texts(chapter: _Chapter, faults: list[str]) -> dict[str, str]:
    """The text of each utterance of a chapter; none where there is no transcript."""
    path = chapter.transcript
    texts: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(_lines(path) if path is not None and path.is_file() else (), start=1):
        utterance, _, text = line.strip().partition(" ")
        if not text.strip():
            continue
        if utterance in texts:
            faults.append(f"{path}:{number}: repeats the utterance of line {lines[utterance]}. Remove one.")
        lines.setdefault(utterance, number)
        texts[utterance] = text.strip()
    return texts
