"""Kaldi's data folders, as the rows of a table of recordings: speech alone, with speakers and texts.

    wav.scp     RECORDING FILE                   a sound of any format, its path from the working directory
    segments    UTTERANCE RECORDING START END    seconds, END -1 for the recording's; without this file each
                                                 recording is an utterance
    utt2spk     UTTERANCE SPEAKER
    text        UTTERANCE WORDS …                optional
    utt2lang    UTTERANCE LANGUAGE               optional

Other files of the folder are not read. (Kaldi documentation, "Data preparation".)
"""

from collections.abc import Mapping
from pathlib import Path

from vgsplus.corpora import Summary
from vgsplus.corpora.format import CaptionEntry
from vgsplus.corpora.sources.table import prepare_rows
from vgsplus.corpora.sources.table_rows import SECONDS, Table, absolute, check_rows
from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.files import as_on_disk, is_file, read_text
from vgsplus.progress import SILENT, Progress

TO_THE_END = "-1"

type Entries = dict[str, tuple[int, str]]
"""What follows the key of each line, and the line's number, by the key."""


def prepare_kaldi(
    folders: Mapping[str, Path], root: Path, *, overwrite: bool = False, progress: Progress = SILENT
) -> Summary:
    """Prepare Kaldi data folders, by split, as a corpus of speech alone at `root`.

    A caption's id is the utterance's. Sounds that are 16 kHz mono WAV (PCM16) or FLAC are used where they
    are, others are converted into the corpus.

    Raises:
        CorpusError: every fault of the folders, with its file and line; or `root` is taken.
    """
    table = Table(folders["train"])
    for split, folder in folders.items():
        _read_folder(table, folder, split)
    _check_utterances(table)
    check_rows(table)
    if table.faults:
        raise CorpusError(table.faults)
    return prepare_rows(
        table,
        root,
        name=folders["train"].absolute().name,
        provenance={
            "source": "kaldi",
            "folders": {split: str(folder.absolute()) for split, folder in folders.items()},
        },
        overwrite=overwrite,
        progress=progress,
    )


def _read_folder(table: Table, folder: Path, split: str) -> None:
    """Add the utterances of a folder to the rows of a table, and what is wrong with it to its faults."""
    if not folder.is_dir():
        table.faults.append(f"{folder}: there is no such folder of wav.scp and utt2spk.")
        return
    recordings = _recordings(table, folder)
    speakers = _entries(table, folder / "utt2spk")
    texts = _entries(table, folder / "text", optional=True)
    languages = _entries(table, folder / "utt2lang", optional=True)
    segmented = is_file(folder / "segments")
    place = folder / ("segments" if segmented else "wav.scp")
    segments = (
        _segments(table, place) if segmented else {key: (line, key) for key, (line, _) in recordings.items()}
    )
    for utterance, (line, segment) in segments.items():
        recording, *times = segment.split()
        if recording not in recordings:
            table.fault(line, f"there is no recording {recording} in wav.scp.", place)
            continue
        if utterance not in speakers:
            table.fault(line, f"utterance {utterance} has no speaker in utt2spk.", place)
            continue
        _, audio = recordings[recording]
        start, end = (
            (None if time == TO_THE_END else float(time) for time in times) if times else (None, None)
        )
        table.entries.append(
            CaptionEntry(
                origin=f"{place}:{line}",
                audio=audio,
                start=start,
                end=end,
                speaker="_".join(speakers[utterance][1].split()),
                split=split,
                text=texts.get(utterance, (0, ""))[1] or None,
                language=languages.get(utterance, (0, ""))[1] or "und",
                id=utterance,
            )
        )
    table.splits.add(split)


def _entries(table: Table, path: Path, *, optional: bool = False) -> Entries:
    """The lines of a file of Kaldi's, by their keys; a key that comes twice is a fault."""
    if not is_file(path):
        if not optional:
            table.faults.append(f"{path}: there is no such file; a data folder of Kaldi has one.")
        return {}
    try:
        lines = read_text(path).split("\n")
    except (OSError, VgsplusError) as error:
        table.faults.append(str(error))
        return {}
    entries: Entries = {}
    for number, line in enumerate(lines, start=1):
        key, _, rest = line.strip().replace("\t", " ").partition(" ")
        if not key:
            continue
        if key in entries:
            table.fault(number, f"{key} is in line {entries[key][0]} already. Remove one.", path)
        elif not rest.strip() and not optional:
            table.fault(number, f"nothing follows {key}.", path)
        else:
            entries[key] = number, rest.strip()
    return entries


def _recordings(table: Table, folder: Path) -> Entries:
    """The recordings of wav.scp with their files; those that are made by commands are faults."""
    path = folder / "wav.scp"
    found: Entries = {}
    for key, (line, name) in _entries(table, path).items():
        if name.endswith("|"):
            table.fault(
                line,
                f"{key} is the output of a command, and no command is run. Name the sound file itself; .sph, "
                ".flac, .mp3 and others are read as they are.",
                path,
            )
            continue
        here, beside = (as_on_disk(absolute(base, name)) for base in (Path.cwd(), folder))
        audio = here if is_file(here) or not is_file(beside) else beside
        found[key] = line, str(audio)
    return found


def _segments(table: Table, path: Path) -> Entries:
    """The utterances of segments as "RECORDING START END", the times checked."""
    found: Entries = {}
    for key, (line, rest) in _entries(table, path).items():
        fields = rest.split()
        if len(fields) != 3:
            table.fault(line, "expected utterance, recording, start and end.", path)
            continue
        _, start, end = fields
        if not SECONDS.fullmatch(start) or not (end == TO_THE_END or SECONDS.fullmatch(end)):
            table.fault(line, f"start {start} and end {end} must be seconds, such as 12.5.", path)
        elif end != TO_THE_END and float(end) <= float(start):
            table.fault(line, f"end {end} must be after start {start}.", path)
        else:
            found[key] = line, rest
    return found


def _check_utterances(table: Table) -> None:
    """Add the faults of utterances that are in two folders, or whose ids lead out of one."""
    first: dict[str, CaptionEntry] = {}
    for entry in table.entries:
        other = first.setdefault(entry.id, entry)
        if other is not entry:
            table.faults.append(f"{entry.origin}: utterance {entry.id} is in {other.origin} already.")
        if Path(entry.id).is_absolute() or ".." in Path(entry.id).parts:
            table.faults.append(f"{entry.origin}: {entry.id} cannot name a file of the corpus. Rename it.")
