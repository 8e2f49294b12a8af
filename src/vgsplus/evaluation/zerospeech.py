"""Write the phonetic part of a submission to the ZeroSpeech challenge 2021.

Shape letters: T frames, D dimensions.
"""

import functools
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.evaluation.export import (
    METADATA_FILE,
    FeatureFolder,
    Features,
    Metadata,
    check_absent,
    sounds_below,
    writing,
)
from vgsplus.evaluation.hidden_states import receptive_field_shift
from vgsplus.files import write_file
from vgsplus.models.vgsplus import VGSPlus

PHONETIC = "phonetic"
SUBSETS = ("dev-clean", "dev-other", "test-clean", "test-other")
META = "meta.yaml"
FILL_IN = "fill in"
META_TEXT = """\
# Replace what is marked "{fill_in}". The challenge requires these entries, all of them and no others.
author: "{fill_in}"
affiliation: "{fill_in}"
description: {description}
open_source: false  # true requires a folder code/ next to this file
train_set: "{fill_in}"
visually_grounded: {grounded}  # whether the training used images
gpu_budget: 0  # hours of training on GPUs: {fill_in}
parameters:
  phonetic:
    metric: "cosine"  # the challenge's name for the angle
    frame_shift: {frame_shift}  # seconds
  semantic:  # required even without a semantic part
    metric: "cosine"
    pooling: "mean"
"""


def find_phonetic(dataset: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Find the sounds of the phonetic task of the ZeroSpeech challenge 2021.

    Returns:
        {"phonetic/SUBSET/NAME": file} of every sound below DATASET/phonetic/SUBSET, and the names of the
        subsets that are missing or hold no sounds.

    Raises:
        CorpusError: all subsets are missing, or two sounds differ in their suffix only.
    """
    sounds: dict[str, Path] = {}
    absent = []
    for subset in SUBSETS:
        found = sounds_below(dataset / PHONETIC / subset)
        if not found:
            absent.append(subset)
        sounds |= {f"{PHONETIC}/{subset}/{name}": path for name, path in found.items()}
    if not sounds:
        raise CorpusError(
            f"{dataset / PHONETIC}: holds no sounds in any of {', '.join(SUBSETS)}. Name the folder that the "
            "challenge's dataset was unpacked to."
        )
    return sounds, tuple(absent)


class Submission(FeatureFolder):
    """A folder with the phonetic part of a ZeroSpeech 2021 submission: meta.yaml, phonetic/SUBSET/NAME.txt.

    The format is the one that the challenge's program (zerospeech2021, of 2022) accepts: a frame per line,
    read by `numpy.loadtxt` as two dimensions, and exactly these entries of meta.yaml. The program assumes
    that frame t is centred at (t + 1/2) frame shifts, so frames are delayed by `receptive_field_shift`.

    The folder appears when it is complete. Until then its files are in the hidden sibling `.NAME.writing`,
    from which an interrupted export resumes.

    Raises:
        VgsplusError: features of several layers.
    """

    min_frames = 2  # numpy.loadtxt reads a single line as one dimension
    bytes_per_value = 12  # as text, including a space

    def __init__(self, path: Path, metadata: Metadata, model: VGSPlus) -> None:
        if len(metadata["layers"]) != 1:
            raise VgsplusError(
                f"A submission holds one layer, not {len(metadata['layers'])}: name it, as with --layers 8."
            )
        # Nine digits preserve every float32.
        super().__init__(path, ".txt", functools.partial(np.savetxt, fmt="%.9g"), metadata)
        self.folder = path.with_name(f".{path.name}.writing")
        self._grounded, self._shift = model.config.grounded, receptive_field_shift(model)

    def missing(self, names: Iterable[str]) -> list[str]:
        """As `FeatureFolder.missing`; raises VgsplusError also if the folder exists."""
        check_absent(self.path)
        return super().missing(names)

    def add(self, name: str, features: Features) -> None:
        """As `FeatureFolder.add`."""
        super().add(name, np.concatenate([features[:1].repeat(self._shift, axis=0), features]))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        model = self.metadata["model"].rstrip("/").rpartition("/")[2]
        text = META_TEXT.format(
            fill_in=FILL_IN,
            description=json.dumps(f"Layer {self.metadata['layers'][0]} of {model}: {FILL_IN}"),
            grounded=str(self._grounded).lower(),
            frame_shift=1 / self.metadata["frame_rate"],
        )
        with writing(self.path):
            write_file(self.folder / META, text)
            (self.folder / METADATA_FILE).unlink()  # the challenge accepts no other files
            self.folder.replace(self.path)
