"""Splits of the recordings of stamps (see `stamps`)."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from vgsplus.audio import Signal, normalise, read
from vgsplus.corpora.prepare import Usable

TEST_IMAGES = 100
VALIDATION_RECORDINGS = 200
# Upper bounds for small collections, as shares of the images.
TEST_IMAGES_SHARE, VALIDATION_SHARE = 1 / 7, 1 / 3
LEAST_LEFT = 2
"""Recordings of an image that stay in train when one of them is held out."""
SAME_SOUND = 0.95
"""Correlation of two recordings of one length above which they are one recording, encoded twice."""


def unite_copies(usable: Sequence[Usable], audio: Path) -> list[Usable]:
    """Give recordings that are one recording encoded twice the same digest; reads the sounds in `audio`.

    Such copies have the same language and length and correlate at 0.98 and more; different recordings of one
    length stay below 0.7.
    """
    alike: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for entry, sound in usable:
        alike[entry.language, sound.num_samples].setdefault(sound.digest, sound.audio)
    first: dict[str, str] = {}
    for paths in alike.values():
        signals: dict[str, Signal] = {}
        if len(paths) > 1:
            signals = {digest: normalise(read(audio / path)) for digest, path in paths.items()}
        for one, other in combinations(signals, 2):
            if np.mean(signals[one] * signals[other]) > SAME_SOUND:
                first.setdefault(other, first.get(one, one))
    return [(entry, replace(sound, digest=first.get(sound.digest, sound.digest))) for entry, sound in usable]


def assign_splits(usable: Sequence[Usable], digests: Mapping[str, str], seed: int) -> dict[str, str]:
    """Assign a split to each recording, by its id; a function of its arguments.

    Held-out recordings are spread over the languages in equal shares of what each language offers.

    Args:
        usable: the recordings and their sounds.
        digests: of the images.
        seed: of the choice.
    """
    by_image: dict[str, list[Usable]] = defaultdict(list)
    for entry, sound in usable:
        by_image[_stem(entry.image)].append((entry, sound))
    marks = {
        name: {digests[f"{name}.png"], *(sound.digest for _, sound in own)} for name, own in by_image.items()
    }
    counts = Counter(mark for own in marks.values() for mark in own)
    unique = sorted(name for name, own in marks.items() if all(counts[mark] == 1 for mark in own))
    order = np.random.default_rng([seed, 0]).permutation(len(unique))
    test_images = min(TEST_IMAGES, int(len(marks) * TEST_IMAGES_SHARE))
    new = {unique[index] for index in order[:test_images]}
    splits = {entry.id: "test_images" if _stem(entry.image) in new else "train" for entry, _ in usable}
    known = {name: own for name, own in by_image.items() if name not in new}
    sizes = {
        "test_recordings": len(known),
        "validation": min(VALIDATION_RECORDINGS, int(len(known) * VALIDATION_SHARE)),
    }
    for phase, (split, size) in enumerate(sizes.items(), start=1):
        generator = np.random.default_rng([seed, phase])
        left = {name: [one for one in own if splits[one[0].id] == "train"] for name, own in known.items()}
        for chosen in _hold_out(left, counts, size, generator):
            splits[chosen] = split
    return splits


def _stem(image: str | None) -> str:
    assert image is not None, "every stamp has an image"
    return image.removesuffix(".png")


def _hold_out(
    left: Mapping[str, Sequence[Usable]], counts: Counter[str], size: int, generator: np.random.Generator
) -> list[str]:
    """Choose a recording each of up to `size` images, whose sound belongs to no other image; their ids."""
    candidates = {
        name: [entry for entry, sound in own if counts[sound.digest] == 1]
        for name, own in sorted(left.items())
        if len(own) > LEAST_LEFT
    }
    names = [name for name, own in candidates.items() if own]
    offered = Counter(entry.language for name in names for entry in candidates[name])
    held: Counter[str] = Counter()
    chosen = []
    for index in generator.permutation(len(names))[:size]:
        entry = min(
            candidates[names[index]],
            key=lambda entry: (held[entry.language] / offered[entry.language], entry.id),
        )
        held[entry.language] += 1
        chosen.append(entry.id)
    return chosen
