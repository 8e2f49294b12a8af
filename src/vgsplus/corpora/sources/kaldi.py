"""Data folders of Kaldi: recordings without images.

    wav.scp     RECORDING FILE                   sound of any format; path relative to the working directory
    segments    UTTERANCE RECORDING START END    seconds, END -1: end of the recording; optional, by default
                                                 each recording is one utterance
    utt2spk     UTTERANCE SPEAKER
    text        UTTERANCE WORDS …                optional
    utt2lang    UTTERANCE LANGUAGE               optional

Other files of the folder are ignored. See "Data preparation" in the documentation of Kaldi.
"""

from collections.abc import Mapping
from pathlib import Path

from vgsplus.corpora import Summary
from vgsplus.corpora.format import CaptionEntry
from vgsplus.corpora.keyed_lines import keyed_lines
from vgsplus.corpora.sources.table import prepare_rows
from vgsplus.corpora.sources.table_rows import SECONDS, Table, absolute, check_rows
from vgsplus.errors import CorpusError
from vgsplus.files import as_on_disk, is_file
from vgsplus.progress import SILENT, Progress

TO_THE_END = "-1"

type Entries = dict[str, tuple[int, str]]
"""Line number and text after the key, by the key."""
type Segment = tuple[str, float | None, float | None]
"""Recording, start and end in seconds; None for the start or end of the recording."""


def prepare_kaldi(
    folders: Mapping[str, Path], root: Path, *, overwrite: bool = False, progress: Progress = SILENT
) -> Summary:
    """Prepare Kaldi data folders, by split, as a corpus without images at `root`.

    Caption ids are utterance ids. Sounds that are 16 kHz mono WAV (PCM16) or FLAC are used in place, others
    are converted into the corpus.

    Raises:
        CorpusError: all faults of the folders, with file and line; or `root` exists.
    """
    table = Table(folders["train"])
    for split, folder in folders.items():
        _read_folder(table, folder, split)
    _check_utterances(table)
    check_rows(table)
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
    """Add the utterances and faults of a folder to the table."""
    if not folder.is_dir():
        table.faults.append(f"{folder}: there is no such folder of wav.scp and utt2spk.")
        return
    recordings = _recordings(table, folder)
    speakers = _entries(table, folder / "utt2spk")
    texts = _entries(table, folder / "text", optional=True)
    languages = _entries(table, folder / "utt2lang", optional=True)
    segmented = is_file(folder / "segments")
    place = folder / ("segments" if segmented else "wav.scp")
    if segmented:
        segments = _segments(table, place)
    else:
        segments = {key: (line, (key, None, None)) for key, (line, _) in recordings.items()}
    for utterance, (line, (recording, start, end)) in segments.items():
        if recording not in recordings:
            table.fault(line, f"there is no recording {recording} in wav.scp.", place)
            continue
        if utterance not in speakers:
            table.fault(line, f"utterance {utterance} has no speaker in utt2spk.", place)
            continue
        _, audio = recordings[recording]
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
    """Return the lines of a file by key; faults are added to the table."""
    if not is_file(path):
        if not optional:
            table.faults.append(f"{path}: there is no such file; data folders of Kaldi require it.")
        return {}
    try:
        entries = keyed_lines(path, table.faults)
    except CorpusError as error:
        table.faults += error.faults
        return {}
    for key, (line, rest) in list(entries.items()):
        if not rest and not optional:
            table.fault(line, f"nothing follows {key}.", path)
            del entries[key]
    return entries


def _recordings(table: Table, folder: Path) -> Entries:
    """Return the recordings of wav.scp with their files; commands are faults."""
    path = folder / "wav.scp"
    found: Entries = {}
    for key, (line, name) in _entries(table, path).items():
        if name.endswith("|"):
            table.fault(
                line,
                f"{key} is the output of a command, and commands are not executed. Name the sound file; "
                ".sph, .flac, .mp3 and other formats are supported.",
                path,
            )
            continue
        here, in_folder = (as_on_disk(absolute(base, name)) for base in (Path.cwd(), folder))
        audio = here if is_file(here) or not is_file(in_folder) else in_folder
        found[key] = line, str(audio)
    return found


def _segments(table: Table, path: Path) -> dict[str, tuple[int, Segment]]:
    """Return the utterances of the file segments with their lines."""
    found: dict[str, tuple[int, Segment]] = {}
    for key, (line, rest) in _entries(table, path).items():
        fields = rest.split()
        if len(fields) != 3:
            table.fault(line, "expected utterance, recording, start and end.", path)
            continue
        recording, start, end = fields
        if not SECONDS.fullmatch(start) or not (end == TO_THE_END or SECONDS.fullmatch(end)):
            table.fault(line, f"start {start} and end {end} must be seconds, such as 12.5.", path)
        elif end != TO_THE_END and float(end) <= float(start):
            table.fault(line, f"end {end} must be after start {start}.", path)
        else:
            found[key] = line, (recording, float(start), None if end == TO_THE_END else float(end))
    return found


def _check_utterances(table: Table) -> None:
    """Add faults for utterances in two folders, and for ids that are not relative paths."""
    first: dict[str, CaptionEntry] = {}
    for entry in table.entries:
        other = first.setdefault(entry.id, entry)
        if other is not entry:
            table.faults.append(f"{entry.origin}: utterance {entry.id} is in {other.origin} already.")
        if Path(entry.id).is_absolute() or ".." in Path(entry.id).parts:
            table.faults.append(f"{entry.origin}: {entry.id} cannot name a file of the corpus. Rename it.")
