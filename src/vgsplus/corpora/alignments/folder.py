"""Find the alignments in a folder, and the sound and the speaker of each."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path

from vgsplus import audio
from vgsplus.corpora.alignments.label_files import (
    read_ctm,
    read_labels,
    read_librispeech_words,
    read_word_items,
)
from vgsplus.corpora.alignments.segments import Segment, Track, time_faults
from vgsplus.corpora.alignments.textgrid import read_textgrid
from vgsplus.corpora.items import TIME_TOLERANCE, SoundIndex
from vgsplus.corpora.keyed_lines import keyed_lines
from vgsplus.errors import AudioError, CorpusError
from vgsplus.files import as_on_disk, files_below, nfc
from vgsplus.parallel import parallel_map
from vgsplus.progress import SILENT, Progress

type Reader = Callable[[Path, list[str]], list[Track]]

LABEL_FOLDERS = frozenset({"lab", "wrd", "phn", "wav", "textgrid"})
"""Folders, in lower case, that hold the files of one kind and are named after it, not after a speaker."""


@dataclass(frozen=True, slots=True)
class Aligned:
    """The segments of a sound: `file` is its #file in ABX items, `path` the alignment, `sound` the file."""

    file: str
    speaker: str
    path: Path
    sound: Path
    segments: tuple[Segment, ...]


def read_alignments(
    root: Path,
    *,
    words: bool = False,
    tier: str | None = None,
    audio_root: Path | None = None,
    speakers: Path | None = None,
    progress: Progress = SILENT,
) -> list[Aligned]:
    """Read all alignments in a folder, at any depth, or a single one; of words also an item file.

    Args:
        root: the folder or file.
        words: whether to read words instead of phones.
        tier: tier of TextGrids. Default: "words" or "phones".
        audio_root: folder of the sounds, at any depth. Default: `root`, or the folder of that file.
        speakers: table with lines "SOUND SPEAKER". Default: the speaker of a tier, or else of the folders: of
            SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN as in LibriSpeech, otherwise the folder of the alignment, or
            of the sound if the file has many (the one above if it is named lab, wrd, phn, wav or textgrid).
        progress: stages "alignments" and "sounds".

    Raises:
        CorpusError: all faults of the alignments, with file and line: of their format and times, alignments
            without a sound or speaker, sounds with several alignments or shorter than their alignment.
    """
    root = as_on_disk(root)
    readers = _readers(words=words, tier=tier or ("words" if words else "phones"))
    if words and root.is_file():  # in a folder, items repeat the alignments that they were made of
        readers[".item"] = read_word_items
    paths = _find(root, readers)
    faults: list[str] = []
    tracks: list[Track] = []
    for found, wrong in parallel_map(partial(_read, readers), paths, progress, "alignments"):
        tracks += found
        faults += wrong
    named = {} if speakers is None else keyed_lines(speakers, faults)
    folder = root if root.is_dir() else root.parent
    sounds = _Sounds(folder, as_on_disk(audio_root) if audio_root is not None else folder)
    aligned = []
    matched: list[tuple[Track, Path]] = []
    for track in tracks:
        sound = sounds.of(track)
        if isinstance(sound, str):
            faults.append(sound)
            continue
        matched.append((track, sound))
        file = sounds.item_name(sound)
        if speakers is None:
            speaker = track.speaker or _speaker(sound if track.name else track.path)
        elif (entry := named.get(file) or named.get(sound.stem)) and entry[1]:
            speaker = entry[1]
        else:
            faults.append(f"{track.path}: {speakers} names no speaker of {file}. Add a line {file} SPEAKER.")
            continue
        if len(file.split()) != 1:
            faults.append(f"{sound}: holds a blank, which ends a column of ABX items. Rename the sound.")
        aligned.append(Aligned(file, nfc("_".join(speaker.split())), track.path, sound, track.segments))
    faults += _repeated(matched)
    ends = parallel_map(_end_fault, matched, progress, "sounds")
    faults += [fault for fault in ends if fault is not None]
    if faults:
        raise CorpusError(faults)
    return aligned


def _readers(*, words: bool, tier: str) -> dict[str, Reader]:
    """Return the reader of each ending of a file name, in lower case."""
    readers: dict[str, Reader] = {
        ".textgrid": lambda path, faults: read_textgrid(path, tier, faults),
        ".ctm": read_ctm,
    }
    own: dict[str, Reader] = {".lab": read_labels, ".phn": read_labels}
    if words:
        own = {".wrd": read_labels, ".alignment.txt": read_librispeech_words}
    return readers | own


def _ending(path: Path, readers: Mapping[str, Reader]) -> str | None:
    return next((ending for ending in readers if path.name.lower().endswith(ending)), None)


def _find(root: Path, readers: Mapping[str, Reader]) -> list[Path]:
    if not root.exists():
        raise CorpusError(f"{root}: there is no such file or folder of alignments.")
    kinds = ", ".join(readers)
    if root.is_file():
        if _ending(root, readers) is None:
            raise CorpusError(f"{root}: is not an alignment by its name. Names end with {kinds}.")
        return [root]
    if paths := [path for path in files_below(root) if _ending(path, readers) is not None]:
        return paths
    raise CorpusError(f"{root}: holds no alignments. Their names end with {kinds}.")


def _read(readers: Mapping[str, Reader], path: Path) -> tuple[list[Track], list[str]]:
    """Return the tracks of a file and its faults."""
    faults: list[str] = []
    tracks: list[Track] = []
    try:
        tracks = readers[_ending(path, readers) or ""](path, faults)
    except CorpusError as error:
        faults += error.faults
    for track in tracks:
        faults += time_faults(path, track.segments)
    return tracks, faults


# ---- sounds and speakers ----------------------------------------------------------------------------------


class _Sounds:
    """The sounds below a folder, found by their alignments."""

    def __init__(self, folder: Path, root: Path) -> None:
        if not root.is_dir():
            raise CorpusError(f"{root}: there is no such folder of sounds. Name it by --audio.")
        paths = [path for path in files_below(root) if path.suffix.lower() in audio.SUFFIXES]
        self._folder, self._root = folder, root
        self._index = SoundIndex(root, paths)

    def of(self, track: Track) -> Path | str:
        """Return the sound of a track, or a fault.

        It has the name of the alignment, or the name in it. Of several, it is the one whose path has the most
        folder names in common with that of the alignment.
        """
        inside = track.path.relative_to(self._folder)
        name = Path(track.name) if track.name else inside.with_name(inside.name[: -len(inside.suffix)])
        place = f"{track.path}:{track.segments[0].line}" if track.name and track.segments else f"{track.path}"
        found = self._index.find(name.as_posix()) or self._index.find(name.name)
        if not found:
            return (
                f"{place}: there is no sound {name.name} below {self._root}. Name the folder of the sounds "
                "by --audio, or remove the alignment."
            )
        own = {*inside.parts, *name.parts}
        shared = [len(own & {*path.relative_to(self._root).parts[:-1]}) for path in found]
        best = [path for path, number in zip(found, shared, strict=True) if number == max(shared)]
        if len(best) > 1:
            return f"{place}: may be the alignment of {best[0]} or {best[1]}. Rename the sounds."
        return best[0]

    def item_name(self, sound: Path) -> str:
        """Return the shortest name by which an item file finds a sound."""
        path = sound.relative_to(self._root)
        names = (path.stem, path.with_suffix("").as_posix(), path.as_posix())
        return next((name for name in names if self._index.find(name) == [sound]), names[-1])


def _speaker(path: Path) -> str:
    """Return the speaker of an alignment or sound by its folders (see `read_alignments`)."""
    *_, above, folder, name = ("", *Path(os.path.abspath(path)).parts)  # noqa: PTH100 - resolve follows links
    is_librispeech = name.startswith(f"{above}-{folder}-")
    return above if is_librispeech or folder.lower() in LABEL_FOLDERS else folder


def _repeated(matched: Sequence[tuple[Track, Path]]) -> Iterator[str]:
    """Yield a fault for each sound with a second alignment in another file."""
    first: dict[Path, Path] = {}
    told: set[tuple[Path, Path]] = set()
    for track, sound in matched:
        other = first.setdefault(sound, track.path)
        if other != track.path and (sound, track.path) not in told:
            told.add((sound, track.path))
            yield f"{track.path}: is an alignment of {sound}, and so is {other}. Remove one of them."


def _end_fault(track_and_sound: tuple[Track, Path]) -> str | None:
    """Return a fault if the segments exceed their sound, or if it cannot be read."""
    track, sound = track_and_sound
    try:
        rate, frames = audio.header(sound)
    except AudioError as error:
        return str(error)
    length = Decimal(frames) / rate
    for segment in track.segments:
        if segment.end > length + TIME_TOLERANCE:
            return (
                f"{track.path}:{segment.line}: {segment.end} s is after the end of {sound}, {length:.3f} s. "
                "Is it the alignment of another sound?"
            )
    return None
