"""What the sources of real recordings share: work in parallel, pictures opened safely, the shortest clip."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import batched
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vgsplus.audio import SAMPLE_RATE
from vgsplus.errors import AudioError, CorpusError
from vgsplus.files import as_on_disk, is_file

MIN_SECONDS = 0.25
"""12 frames of speech: one masked span (10 frames) and something beside it to predict it from."""
MIN_SAMPLES = int(MIN_SECONDS * SAMPLE_RATE)
AT_ONCE = 1024
"""Items handed to the threads at a time: what waits for them takes memory too."""

type Progress = Callable[[int, int], None]
"""Called with (done, total) as the work goes on."""


def in_parallel[T, R](
    function: Callable[[T], R], items: Sequence[T], progress: Progress | None = None
) -> list[R]:
    """`[function(item) for item in items]` on all cores; what `function` spends its time in frees the GIL."""
    return list(stream_in_parallel(function, items, progress))


def stream_in_parallel[T, R](
    function: Callable[[T], R],
    items: Sequence[T],
    progress: Progress | None = None,
    *,
    at_once: int = AT_ONCE,
) -> Iterator[R]:
    """As `in_parallel`, result by result, of which at most `at_once` wait in memory."""
    done = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for part in batched(items, at_once):
            for result in pool.map(function, part):
                done += 1
                if progress is not None:
                    progress(done, len(items))
                yield result


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


def open_picture(path: Path) -> Image.Image:
    """Decode a picture, turned upright as its camera noted.

    Pictures of 32-bit integers and of floats, which have no common scale, are scaled by their own range to 8
    bits of grey.

    Raises:
        CorpusError: there is no such file, it cannot be decoded, or it holds values that are not finite.
    """
    path = as_on_disk(path)
    if not is_file(path):
        raise CorpusError(f"{path}: there is no such picture.")
    try:
        with Image.open(path) as image:
            image.load()
            upright: Image.Image = ImageOps.exif_transpose(image)
            return _scaled(upright) if upright.mode in ("I", "F") else upright
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise errors of nearly every kind
        what = f"{error}" or type(error).__name__
        raise CorpusError(
            f"{path}: cannot be read as a picture ({what}). Leave it out or replace it."
        ) from None


def _scaled(image: Image.Image) -> Image.Image:
    """A picture of one channel of large numbers as 8 bits: its least value 0, its greatest 255."""
    values = np.asarray(image, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite numbers")
    low, high = values.min(), values.max()
    scale = 255 / (high - low) if high > low else 0.0
    return Image.fromarray(np.rint((values - low) * scale).astype(np.uint8))
