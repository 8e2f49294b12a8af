"""Read image files."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from vgsplus.errors import CorpusError
from vgsplus.files import as_on_disk, is_file
from vgsplus.regions.pixel_grid import over_white


def open_image(path: Path) -> Image.Image:
    """Decode an image file; see `decode_image`.

    Raises:
        CorpusError: there is no such file, it cannot be decoded, or it has no pixels or not finite ones.
    """
    path = as_on_disk(path)
    if not is_file(path):
        raise CorpusError(f"{path}: there is no such picture.")
    try:
        with Image.open(path) as image:
            return decode_image(image)
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise exceptions of many types
        what = f"{error}" or type(error).__name__
        raise CorpusError(f"{path}: cannot be read as a picture ({what}). Skip it or replace it.") from None


def read_picture(picture: str | Path | Image.Image) -> Image.Image:
    """Decode an image file, or an image of Pillow; see `decode_image`.

    Raises:
        CorpusError: as `open_image`, or the picture is neither.
    """
    if isinstance(picture, str | Path):
        return open_image(Path(picture))
    if not isinstance(picture, Image.Image):
        raise CorpusError(
            "A picture must be a file or an image of Pillow, as by Image.fromarray, not "
            f"{type(picture).__name__}."
        )
    try:
        return decode_image(picture)
    except Exception as error:  # noqa: BLE001 - as above
        raise CorpusError(f"A picture {picture!r} cannot be read ({error}). Skip it or replace it.") from None


def decode_image(image: Image.Image) -> Image.Image:
    """Decode an opened image and apply its EXIF orientation.

    Images of 32-bit integers or floats have no fixed range: they are scaled from their minimum and maximum to
    8-bit grey.

    Raises:
        ValueError: it has no pixels, or values that are not finite; or an exception of Pillow's decoders.
    """
    image.load()
    if 0 in image.size:
        raise ValueError("it has no pixels")
    upright: Image.Image = ImageOps.exif_transpose(image)
    return _scale_to_8_bits(upright) if upright.mode in ("I", "F") else upright


def square_pixels(
    image: Image.Image, side: int, resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> npt.NDArray[np.uint8]:
    """Resize an image to a square of RGB pixels (3, `side`, `side`), transparent ones over white."""
    resized = over_white(image).resize((side, side), resampling)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale an image of one channel to 8 bits: its minimum to 0, its maximum to 255."""
    values = np.asarray(image, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite numbers")
    low, high = values.min(), values.max()
    scale = 255 / (high - low) if high > low else 0.0
    return Image.fromarray(np.rint((values - low) * scale).astype(np.uint8))
