"""The phonetic part of a submission to the ZeroSpeech challenge 2021: features as text, and meta.yaml.

The format is what the challenge's own program (zerospeech2021, of 2022) accepts: a text file a sound, a frame
a line, read by `numpy.loadtxt` as two dimensions, and a meta.yaml of given entries. Its evaluation takes
frame t as centred at (t + 1/2) frame shifts.

Shape letters: T frames, D dimensions.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Self

import numpy as np

from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.evaluation.export import ABOUT, FeatureFolder, require_writable, unwritable
from vgsplus.evaluation.layers import frame_lead
from vgsplus.evaluation.sounds import sounds_below
from vgsplus.files import whole_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from io import BufferedWriter
    from pathlib import Path

    from numpy.typing import NDArray

    from vgsplus.evaluation.export import Origin
    from vgsplus.models.vgsplus import VGSPlus

PHONETIC = "phonetic"
SUBSETS = ("dev-clean", "dev-other", "test-clean", "test-other")
META = "meta.yaml"
FILL_IN = "fill in"
CHARACTERS = 12  # a number takes, with the space behind it
EXACT = "%.9g"  # gives every float32 back
META_TEXT = """\
# What is marked "{fill_in}" only you can tell. The challenge wants these entries, all of them and no others.
author: "{fill_in}"
affiliation: "{fill_in}"
description: {description}
open_source: false  # true asks for a folder code/ beside this file
train_set: "{fill_in}"
visually_grounded: {grounded}  # whether pictures helped in training
gpu_budget: 0  # hours of training on GPUs: {fill_in}
parameters:
  phonetic:
    metric: "cosine"  # the challenge's name for the angle
    frame_shift: {frame_shift}  # seconds
  semantic:  # asked for even where there is no semantic part
    metric: "cosine"
    pooling: "mean"
"""


def find_phonetic(dataset: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The sounds of the challenge's phonetic task, and the subsets that are absent.

    Returns:
        {"phonetic/SUBSET/NAME": file} of every sound below DATASET/phonetic/SUBSET, and the names of the
        subsets that are no folders there, or hold no sounds.

    Raises:
        CorpusError: all subsets are absent, or two sounds differ in their suffix alone.
    """
    sounds: dict[str, Path] = {}
    absent = []
    for subset in SUBSETS:
        folder = dataset / PHONETIC / subset
        found = sounds_below(folder)
        if not found:
            absent.append(subset)
        sounds |= {f"{PHONETIC}/{subset}/{name}": path for name, path in found.items()}
    if not sounds:
        raise CorpusError(
            f"{dataset / PHONETIC}: holds no sounds in any of {', '.join(SUBSETS)}. Name the folder that the "
            "challenge's dataset was unpacked to."
        )
    return sounds, tuple(absent)


class Submission:
    """The folder of a submission: meta.yaml and phonetic/SUBSET/NAME.txt.

    It gets its name when it is whole. Until then its files lie in a hidden folder beside it, where an
    interrupted export goes on. Frames of a model whose convolutions hear far ahead come later by whole
    frames, `layers.frame_lead` of them, so that the challenge reads them where they hear.

    Args:
        place: the folder, which must not be there.
        origin: of the features, which are of one layer.
        model: whose features they are.

    Raises:
        VgsplusError: features of several layers.
    """

    def __init__(self, place: Path, origin: Origin, model: VGSPlus) -> None:
        if len(origin.layers) != 1:
            raise VgsplusError(
                f"A submission holds one layer, not {len(origin.layers)}: name it, as with --layers 8."
            )
        self.place, self._origin, self._grounded = place, origin, model.config.grounded
        self._temporary = place.parent / f".{place.name}.writing"
        self._lead = frame_lead(model)
        # A single line of text would be read as one dimension.
        self._features = FeatureFolder(
            self._temporary, ".txt", _write_text, origin, bytes_per_value=CHARACTERS, least_frames=2
        )
        self.bytes_per_value = self._features.bytes_per_value
        self.least_frames = self._features.least_frames

    def missing(self, names: Iterable[str]) -> list[str]:
        """As `export.Store.missing`."""
        if self.place.exists():
            raise VgsplusError(f"{self.place}: is there already. Choose another folder, or remove this one.")
        require_writable(self.place.parent)
        return self._features.missing(names)

    def add(self, name: str, features: NDArray[np.float32]) -> None:
        """As `export.Store.add`."""
        self._features.add(name, np.concatenate([features[:1].repeat(self._lead, axis=0), features]))

    def __enter__(self) -> Self:
        self._features.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        try:
            with whole_file(self._temporary / META) as file:
                file.write(self._meta().encode())
            (self._temporary / ABOUT).unlink()  # the challenge takes no other files
            self._temporary.replace(self.place)
        except OSError as error:
            raise unwritable(self.place, error) from error

    def _meta(self) -> str:
        model = self._origin.model.rstrip("/").rpartition("/")[2]
        description = f"Layer {self._origin.layers[0]} of {model}: {FILL_IN}"
        return META_TEXT.format(
            fill_in=FILL_IN,
            description=json.dumps(description),
            grounded=str(self._grounded).lower(),
            frame_shift=1 / self._origin.frame_rate,
        )


def _write_text(file: BufferedWriter, features: NDArray[np.float32]) -> None:
    np.savetxt(file, features, fmt=EXACT)
