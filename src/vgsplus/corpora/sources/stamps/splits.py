"""Assignment of splits to recordings of stamps (see `stamps`)."""

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
# Upper bounds for small collections, as fractions of the images.
TEST_IMAGES_FRACTION, VALIDATION_FRACTION = 1 / 7, 1 / 3
MIN_IN_TRAIN = 2
"""Minimum number of recordings of an image in train if one is held out."""
SAME_SOUND = 0.95
"""Correlation above which recordings of equal length are treated as one, encoded twice."""


def unite_copies(usable: Sequence[Usable], audio: Path) -> list[Usable]:
    """Assign the same digest to copies of one recording; the sounds are read from `audio`.

    Copies have the same language and length, and their correlation is at least 0.98. That of different
    recordings of equal length is below 0.7.
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
    """Assign a split to each recording, deterministically; return the splits by id.

    From each language, about the same fraction of the recordings is held out. `digests` are those of images.
    """
    by_image: dict[str, list[Usable]] = defaultdict(list)
    for entry, sound in usable:
        by_image[_stem(entry.image)].append((entry, sound))
    contents = {
        name: {digests[f"{name}.png"], *(sound.digest for _, sound in own)} for name, own in by_image.items()
    }
    counts = Counter(digest for own in contents.values() for digest in own)
    unique = sorted(name for name, own in contents.items() if all(counts[digest] == 1 for digest in own))
    order = np.random.default_rng([seed, 0]).permutation(len(unique))
    test_images = min(TEST_IMAGES, int(len(contents) * TEST_IMAGES_FRACTION))
    new = {unique[index] for index in order[:test_images]}
    splits = {entry.id: "test_images" if _stem(entry.image) in new else "train" for entry, _ in usable}
    known = {name: own for name, own in by_image.items() if name not in new}
    sizes = {
        "test_recordings": len(known),
        "validation": min(VALIDATION_RECORDINGS, int(len(known) * VALIDATION_FRACTION)),
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
    """Choose one recording of up to `size` images, not shared with other images; return the ids."""
    candidates = {
        name: [entry for entry, sound in own if counts[sound.digest] == 1]
        for name, own in sorted(left.items())
        if len(own) > MIN_IN_TRAIN
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
