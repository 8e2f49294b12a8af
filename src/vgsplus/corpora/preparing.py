"""What the sources of real recordings share: work in parallel, pictures opened safely, the shortest clip."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, ImageOps

from vgsplus.audio import SAMPLE_RATE
from vgsplus.errors import VgsplusError

MIN_SECONDS = 0.25
"""12 frames of speech: one masked span (10 frames) and something beside it to predict it from."""
MIN_SAMPLES = int(MIN_SECONDS * SAMPLE_RATE)

type Progress = Callable[[int, int], None]
"""Called with (done, total) as the work goes on."""


class PictureError(VgsplusError):
    """A picture that cannot be used: absent or broken."""


def in_parallel[T, R](
    function: Callable[[T], R], items: Sequence[T], progress: Progress | None = None
) -> list[R]:
    """`[function(item) for item in items]` on all cores; what `function` spends its time in frees the GIL."""
    results: list[R] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(function, items):
            results.append(result)
            if progress is not None:
                progress(len(results), len(items))
    return results


def open_picture(path: Path) -> Image.Image:
    """Decode a picture, turned upright as its camera noted.

    Raises:
        PictureError: there is no such file, or it cannot be decoded.
    """
    if not path.is_file():
        raise PictureError(f"{path}: there is no such picture.")
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(
            f"{path}: cannot be read as a picture ({error}). Leave it out or replace it."
        ) from None
