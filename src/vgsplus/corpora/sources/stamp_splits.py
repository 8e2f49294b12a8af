"""Which recordings of the stamps train and which test (see `stamps` for the splits)."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vgsplus.audio import normalise, read
from vgsplus.corpora.sources.stamp_recordings import Take

TEST_IMAGES = 100
VALIDATION_RECORDINGS = 200
# Of a small collection the tests take no more than these shares of the pictures.
TEST_IMAGES_SHARE, VALIDATION_SHARE = 1 / 7, 1 / 3
LEAST_LEFT = 2
"""Recordings of a picture that stay in train when one of them is held out."""
SAME_SOUND = 0.95
"""Correlation of two recordings of one length from which they are one recording, encoded twice."""


def unite_copies(takes: Sequence[Take], audio: Path) -> list[Take]:
    """Give takes that are one recording encoded twice the same `sound`; reads the prepared files in `audio`.

    Such copies have the same language and length and correlate at 0.98 and more; different recordings of one
    length stay below 0.7.
    """
    alike: dict[tuple[str, int], dict[str, Take]] = defaultdict(dict)
    for take in takes:
        alike[take.recording.language, take.num_samples].setdefault(take.sound, take)
    sounds: dict[str, str] = {}
    for distinct in alike.values():
        if len(distinct) > 1:
            signals = {sound: normalise(read(audio / take.audio)) for sound, take in distinct.items()}
            sounds |= _unite(signals)
    return [replace(take, sound=sounds.get(take.sound, take.sound)) for take in takes]


def _unite(signals: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, str]:
    """The name of each signal's first copy, for those that are copies; all (samples,), normalised."""
    first: dict[str, str] = {}
    for one, other in combinations(signals, 2):
        if np.mean(signals[one] * signals[other]) > SAME_SOUND:
            first.setdefault(other, first.get(one, one))
    return first


def assign_splits(takes: Sequence[Take], looks: Mapping[str, str], seed: int) -> dict[str, str]:
    """The split of each take by its recording's id; the same for the same takes and seed.

    Held-out recordings go to the languages in equal shares of what each language offers.
    """
    by_picture: dict[str, list[Take]] = defaultdict(list)
    for take in takes:
        by_picture[take.recording.name].append(take)
    marks = {name: {looks[name], *(take.sound for take in own)} for name, own in by_picture.items()}
    counts = Counter(mark for own in marks.values() for mark in own)
    alone = sorted(name for name, own in marks.items() if all(counts[mark] == 1 for mark in own))
    order = np.random.default_rng([seed, 0]).permutation(len(alone))
    new_pictures = {alone[index] for index in order[: min(TEST_IMAGES, int(len(marks) * TEST_IMAGES_SHARE))]}

    splits = {
        take.recording.id: "test_images" if take.recording.name in new_pictures else "train" for take in takes
    }
    known = {name: own for name, own in by_picture.items() if name not in new_pictures}
    sizes = {
        "test_recordings": len(known),
        "validation": min(VALIDATION_RECORDINGS, int(len(known) * VALIDATION_SHARE)),
    }
    for phase, (split, size) in enumerate(sizes.items(), start=1):
        generator = np.random.default_rng([seed, phase])
        left = {
            name: [take for take in own if splits[take.recording.id] == "train"]
            for name, own in known.items()
        }
        for take in _hold_out(left, counts, size, generator):
            splits[take.recording.id] = split
    return splits


def _hold_out(
    left: Mapping[str, Sequence[Take]], counts: Counter[str], size: int, generator: np.random.Generator
) -> list[Take]:
    """Choose a recording each of up to `size` pictures whose sound belongs to no other picture."""
    candidates = {
        name: [take for take in own if counts[take.sound] == 1]
        for name, own in sorted(left.items())
        if len(own) > LEAST_LEFT
    }
    names = [name for name, own in candidates.items() if own]
    offered = Counter(take.recording.language for name in names for take in candidates[name])
    held: Counter[str] = Counter()
    chosen = []
    for index in generator.permutation(len(names))[:size]:
        take = min(
            candidates[names[index]],
            key=lambda take: (
                held[take.recording.language] / offered[take.recording.language],
                take.recording.id,
            ),
        )
        held[take.recording.language] += 1
        chosen.append(take)
    return chosen
