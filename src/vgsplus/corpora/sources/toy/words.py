"""Spoken names and pictures of the shapes and colours of the toy corpus, for the semantic test.

The names are spoken alone, by every voice. A picture shows a single thing and is of two categories: its shape
and its colour. All combinations are shown, also those that the scenes of training leave out.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from vgsplus.audio import write_wav
from vgsplus.corpora.sources.toy.corpus import VOICES
from vgsplus.corpora.sources.toy.espeak import speak
from vgsplus.corpora.sources.toy.pictures import draw
from vgsplus.corpora.sources.toy.scenes import COLOURS, RADII, SHAPES, Scene, Thing
from vgsplus.errors import VgsplusError
from vgsplus.files import atomic_folder
from vgsplus.progress import SILENT, Progress

PICTURES = 2
"""Pictures of each combination of shape and colour."""
TABLE = "words.csv"
PLACES = (0.27, 0.5, 0.73)
"""Centres of a single thing, across and down, as in scenes of one."""


def make_toy_words(root: Path, *, seed: int = 0, progress: Progress = SILENT) -> tuple[int, int]:
    """Make a folder with audio/, images/ and the table words.csv; return the numbers of sounds and pictures.

    The stage of `progress` is "words".

    Raises:
        VgsplusError: `root` exists, or eSpeak NG fails.
    """
    if root.exists():
        raise VgsplusError(f"{root}: exists already. Choose another folder.")
    rows: list[dict[str, str]] = []
    names = [*SHAPES, *COLOURS]
    with atomic_folder(root) as folder:
        for kind in ("audio", "images"):
            (folder / kind).mkdir()
        for done, word in enumerate(names, start=1):
            spoken = speak((voice, word) for voice in VOICES.values())
            for speaker, speech in zip(VOICES, spoken, strict=True):
                sound = f"audio/{word}_{speaker}.wav"
                write_wav(folder / sound, np.clip(speech.samples, -1, 1))
                rows.append({"word": word, "sound": sound})
            progress.update("words", done, len(names))
        pictures = list(product(SHAPES, COLOURS, range(PICTURES)))
        for index, (shape, colour, number) in enumerate(pictures):
            picture = f"images/{colour}_{shape}_{number}.png"
            draw(_scene(np.random.default_rng([seed, index]), shape, colour)).save(folder / picture)
            rows += [{"word": category, "picture": picture} for category in (shape, colour)]
        pd.DataFrame(rows, columns=["word", "sound", "picture"]).to_csv(folder / TABLE, index=False)
    return len(names) * len(VOICES), len(pictures)


def _scene(rng: np.random.Generator, shape: str, colour: str) -> Scene:
    """Return a scene of one thing, of a random size, place and tilt."""
    size = list(RADII)[rng.integers(len(RADII))]
    radius = RADII[size] * rng.uniform(0.93, 1.07)
    across, down = (float(place) for place in rng.choice(PLACES, 2) + rng.uniform(-0.03, 0.03, 2))
    return Scene(
        (Thing(shape, colour, size, across, down, radius, rng.uniform(-12, 12)),), float(rng.uniform())
    )
