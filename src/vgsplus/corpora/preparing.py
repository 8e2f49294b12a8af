"""What the sources of real recordings share: the shortest clip, unique ids, reasons for skipping."""

from collections.abc import Sequence
from pathlib import Path

from vgsplus.audio import SAMPLE_RATE
from vgsplus.errors import AudioError

MIN_SECONDS = 0.25
"""12 frames of speech: one masked span (10 frames) and something beside it to predict it from."""
MIN_SAMPLES = int(MIN_SECONDS * SAMPLE_RATE)


def unique_ids(names: Sequence[str], lines: Sequence[int]) -> list[str]:
    """The names, each that has come before with its line behind it, so that all differ."""
    taken, seen = set(names), set[str]()
    ids = []
    for name, line in zip(names, lines, strict=True):
        own, tries = name, 0
        if name in seen:
            own = f"{name}-{line}"
            while own in taken:
                tries += 1
                own = f"{name}-{line}-{tries}"
            taken.add(own)
        seen.add(name)
        ids.append(own)
    return ids


def reason(error: AudioError, path: Path) -> str:
    """What is wrong with the sound at `path`, without the path and the mend: a phrase that repeats."""
    return str(error).removeprefix(f"{path}: ").split(" (")[0].split(".")[0]
