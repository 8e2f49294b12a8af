"""Read the sounds of listed captions: headers of sounds used in place, samples of sounds to convert."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vgsplus.audio import (
    SAMPLE_RATE,
    Signal,
    header,
    is_silent,
    load_any,
    needs_conversion,
    num_samples,
    write_wav,
)
from vgsplus.audio_files import sound_exists
from vgsplus.corpora.format import CaptionEntry
from vgsplus.errors import AudioError
from vgsplus.parallel import parallel_map
from vgsplus.progress import Progress

MIN_SECONDS = 0.25
"""Minimum length of a caption: 12 frames, for one masked span (10 frames) and some context."""
MIN_SAMPLES = int(MIN_SECONDS * SAMPLE_RATE)
TOO_SHORT = f"shorter than {MIN_SECONDS} s"
EMPTY = "holds no samples"
TIME_TOLERANCE = 0.01
"""Seconds by which a segment may exceed its recording, because times are often rounded."""


@dataclass(frozen=True, slots=True)
class Sound:
    """A usable sound: `audio` of the caption in the corpus, number of samples at 16 kHz.

    If it was decoded, `digest` is the SHA-256 of its samples. `scaled` is whether its level was changed.
    """

    audio: str
    num_samples: int
    digest: str = ""
    scaled: bool = False


def read_headers(
    entries: Sequence[CaptionEntry], audio_root: Path, progress: Progress
) -> Iterator[Sound | str]:
    """Return each sound, to be used in place, or its fault."""

    def read(entry: CaptionEntry) -> Sound | str:
        path = audio_root / entry.audio
        try:
            length = num_samples(path)
        except AudioError as error:
            return str(error)
        if entry.num_samples not in (None, length):
            return f"{path}: has {length} samples, not {entry.num_samples}. Correct the list."
        return Sound(entry.audio, length) if length >= MIN_SAMPLES else _too_short(path, length)

    return parallel_map(read, entries, progress, "sounds")


def read_recordings(
    entries: Sequence[CaptionEntry], folder: Path, *, convert_all: bool, progress: Progress
) -> Iterator[Sound | str]:
    """Decode each recording once; return the sound of each entry or its fault.

    Sounds that cannot be used in place, or all if `convert_all`, are written to `folder`.
    """
    recordings: dict[str, list[CaptionEntry]] = defaultdict(list)
    for entry in entries:
        recordings[entry.audio].append(entry)
    read = partial(_read_recording, folder, convert_all)
    found = parallel_map(read, list(recordings.values()), progress, "sounds")
    by_recording = {audio: iter(sounds) for audio, sounds in zip(recordings, found, strict=True)}
    return (next(by_recording[entry.audio]) for entry in entries)


def _read_recording(folder: Path, convert: bool, entries: Sequence[CaptionEntry]) -> list[Sound | str]:
    """Return the sounds of the entries of one recording, or their faults."""
    path = Path(entries[0].audio)
    try:
        rate, frames = header(path)
        signal = load_any(path) if convert or needs_conversion(path) else None
    except AudioError as error:
        return [f"{error}{'' if sound_exists(path) else spelling_hint(path)}"] * len(entries)
    sounds: dict[tuple[float | None, float | None], Sound | str] = {}
    for entry in entries:
        span = entry.start, entry.end
        if span not in sounds:
            sounds[span] = _read_segment(folder, entry, signal, rate, frames)
    return [sounds[entry.start, entry.end] for entry in entries]


def _read_segment(
    folder: Path, entry: CaptionEntry, signal: Signal | None, rate: int, frames: int
) -> Sound | str:
    """Return the sound of an entry: cut from `signal` and written, or a part of the file if that is None."""
    start, end, audio = entry.start, entry.end, entry.audio
    place = audio if (start, end) == (None, None) else f"{audio} from {start or 0:g} s"
    seconds = frames / rate
    if late := [f"{at:g} s" for at in (start, end) if at is not None and at > seconds + TIME_TOLERANCE]:
        return f"{audio}: {late[0]} is after its end, {seconds:.3f} s. Correct the times."
    if signal is not None:
        first, last = (None if at is None else round(at * SAMPLE_RATE) for at in (start, end))
        part = signal[first:last]
    else:
        if (start, end) != (None, None):
            first = min(round((start or 0.0) * rate), frames)
            last = frames if end is None else min(round(end * rate), frames)
            audio = f"{audio}:{first}:{last - first}"
        try:
            part = load_any(audio)
        except AudioError as error:
            return str(error)
    if len(part) < MIN_SAMPLES:
        return _too_short(place, len(part))
    if is_silent(part):
        return f"{place}: is silent from start to end. Leave it out."
    digest = hashlib.sha256(part.tobytes()).hexdigest()
    if signal is None:
        return Sound(audio, len(part), digest)
    target = folder / f"{entry.id}.wav"
    target.parent.mkdir(parents=True, exist_ok=True)
    return Sound(f"{entry.id}.wav", len(part), digest, scaled=write_wav(target, part) != 1.0)


def _too_short(place: str | Path, length: int) -> str:
    return f"{place}: {TOO_SHORT} ({length / SAMPLE_RATE:.2f} s). Leave it out."


def spelling_hint(path: Path) -> str:
    """Return a sentence that suggests a file with a similar name for a missing one, or ""."""
    if re.match(r"[A-Za-z]:[\\/]", path.name):
        return f" {path.name} is a Windows path. Use the path of the file on this machine."
    try:
        names = [
            other.name
            for other in path.parent.iterdir()
            if other.name.lower() == path.name.lower() and other.name != path.name
        ]
    except (OSError, ValueError):
        return ""
    return f" There is {names[0]}: correct upper and lower case." if names else ""


def skip_reason(fault: str, path: Path) -> str:
    """Return a fault of the sound at `path` without the path, the numbers and the remedy, to count it by."""
    return fault.removeprefix(f"{path}: ").split(" (")[0].split(". ")[0].removesuffix(".")
