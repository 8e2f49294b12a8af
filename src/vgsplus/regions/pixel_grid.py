"""Regions of a picture without a detector: a 6x6 grid of cells, each described by its pixels alone.

A cell is seen together with a margin of a quarter of its side all round. Its description has
    192 values   the colours of the window, averaged to 8x8 RGB
     32 values   gradient orientations: 8 directions in each quarter of the window
and nothing else, so that no label of the picture can reach a model through it.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

GRID = 6
GRID_REGIONS = GRID * GRID
PATCH = 8
DIRECTIONS = 8
GRID_FEATURES = PATCH * PATCH * 3 + 4 * DIRECTIONS

CELL = 16
MARGIN = CELL // 4
WINDOW = CELL + 2 * MARGIN

# They bring the values of light drawings and of photographs near zero mean and unit scale.
COLOUR_MEAN, COLOUR_SCALE = 0.7, 0.3
GRADIENT_MEAN, GRADIENT_SCALE = 0.1, 0.2
# Gradients weaker than this (of a range of 1) are noise and shading, and leave a quarter's histogram empty.
GRADIENT_FLOOR = 0.02

type Array = npt.NDArray[np.float32]


def grid_regions(image: Image.Image) -> tuple[Array, Array]:
    """Describe a picture by the cells of a grid: features (36, 224), boxes (36, 4) in [0, 1], both float32.

    Any mode and size; what is transparent is laid over white. The picture is stretched to a square, so that
    the cells tile all of it whatever its proportions. Cells go by rows from the upper left; a box is
    (x1, y1, x2, y2) over (width, height), without the margin.
    """
    pixels = _stretched(image)
    padded = np.pad(pixels, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), mode="edge")
    colours = (_windows(padded) - COLOUR_MEAN) / COLOUR_SCALE
    block = WINDOW // PATCH
    patches = colours.reshape(GRID_REGIONS, PATCH, block, PATCH, block, 3).mean(axis=(2, 4))
    gradients = (_orientations(padded) - GRADIENT_MEAN) / GRADIENT_SCALE
    features = np.concatenate([patches.reshape(GRID_REGIONS, -1), gradients], axis=1)
    return features.astype(np.float32), grid_boxes()


def over_white(image: Image.Image) -> Image.Image:
    """The picture in RGB, what is transparent laid over white."""
    if image.mode.startswith("I;16"):  # Pillow would cut these off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        layered = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    return image.convert("RGB")


def _stretched(image: Image.Image) -> Array:
    """The picture over white, as (96, 96, 3) in [0, 1]."""
    side = GRID * CELL
    # Pillow's bilinear filter averages over the whole area when it shrinks.
    resized = over_white(image).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32) / 255.0


def _windows(padded: Array) -> Array:
    """Cut (104, 104, C) into the cells with their margins: (36, 24, 24, C)."""
    views = np.lib.stride_tricks.sliding_window_view(padded, (WINDOW, WINDOW), axis=(0, 1))[::CELL, ::CELL]
    return np.ascontiguousarray(views.transpose(0, 1, 3, 4, 2)).reshape(GRID_REGIONS, WINDOW, WINDOW, -1)


def _orientations(padded: Array) -> Array:
    """Square roots of the share of each direction in each quarter of each window: (36, 32)."""
    down, across = np.gradient(padded.mean(axis=2))
    strength = np.hypot(down, across)
    turn = np.arctan2(down, across) / (2 * np.pi) * DIRECTIONS
    lower = np.floor(turn)
    share = turn - lower
    index = lower.astype(np.int64) % DIRECTIONS
    # Each gradient goes to its two nearest directions, so that a slightly turned edge changes them slightly.
    directions = np.eye(DIRECTIONS, dtype=np.float32)
    votes = directions[index] * ((1 - share) * strength)[..., None]
    votes += directions[(index + 1) % DIRECTIONS] * (share * strength)[..., None]
    half = WINDOW // 2
    quarters = _windows(votes).reshape(GRID_REGIONS, 2, half, 2, half, DIRECTIONS).mean(axis=(2, 4))
    total = quarters.sum(axis=-1, keepdims=True)
    shares: Array = np.sqrt(quarters / (total + GRADIENT_FLOOR))
    return shares.reshape(GRID_REGIONS, -1)


def grid_boxes() -> Array:
    """The cells' boxes (36, 4) in [0, 1], by rows."""
    top, left = np.divmod(np.arange(GRID_REGIONS), GRID)
    return (np.stack([left, top, left + 1, top + 1], axis=1) / GRID).astype(np.float32)
