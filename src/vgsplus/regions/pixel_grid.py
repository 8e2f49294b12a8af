"""Region features without a model: the pixels of the cells of a 6 x 6 grid.

The window of a cell includes a margin of a quarter of its side on all sides. Its features are
    192 values   the colours of the window, averaged to 8 x 8 RGB
     32 values   histograms of gradient orientations: 8 directions in each quarter of the window
No model is involved, so no labels of images can leak into training.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

PIXEL_GRID = "cells of a 6x6 grid, described by their pixels"
"""Provenance of these features, as `provenance.regions` in corpus.json."""
GRID = 6
GRID_REGIONS = GRID * GRID
PATCH = 8
DIRECTIONS = 8

CELL = 16
MARGIN = CELL // 4
WINDOW = CELL + 2 * MARGIN

# Standardise light drawings and photographs to about zero mean and unit scale.
COLOUR_MEAN, COLOUR_SCALE = 0.7, 0.3
GRADIENT_MEAN, GRADIENT_SCALE = 0.1, 0.2
# Weaker gradients (of pixels in [0, 1]) are noise and shading: their histogram is near 0.
GRADIENT_FLOOR = 0.02

type Array = npt.NDArray[np.float32]
type RegionFunction = Callable[[Image.Image], tuple[Array, Array]]
"""Maps an image to features (R, F) and boxes (R, 4) as (x1, y1, x2, y2) in [0, 1], float32; R is constant."""


def grid_regions(image: Image.Image) -> tuple[Array, Array]:
    """Compute the features of the cells of an image.

    Args:
        image: image of any mode and size. Transparent pixels are drawn over white, and the image is resized
            to a square.

    Returns:
        float32 features (36, 224) and boxes (36, 4) as (x1, y1, x2, y2) in [0, 1], without the margin; cells
        row by row from the top left.
    """
    side = GRID * CELL
    # When shrinking, Pillow's bilinear filter averages over the complete area.
    resized = over_white(image).resize((side, side), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, dtype=np.float32) / 255.0
    padded = np.pad(pixels, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), mode="edge")
    colours = (_windows(padded) - COLOUR_MEAN) / COLOUR_SCALE
    block = WINDOW // PATCH
    patches = colours.reshape(GRID_REGIONS, PATCH, block, PATCH, block, 3).mean(axis=(2, 4))
    gradients = (_orientations(padded) - GRADIENT_MEAN) / GRADIENT_SCALE
    features = np.concatenate([patches.reshape(GRID_REGIONS, -1), gradients], axis=1)
    return features.astype(np.float32), grid_boxes()


def over_white(image: Image.Image) -> Image.Image:
    """Convert an image to RGB, with transparent pixels drawn over white."""
    if image.mode.startswith("I;16"):  # Pillow would clip these at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        layered = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    return image.convert("RGB")


def _windows(padded: Array) -> Array:
    """Cut (104, 104, C) into the cells with their margins: (36, 24, 24, C)."""
    views = np.lib.stride_tricks.sliding_window_view(padded, (WINDOW, WINDOW), axis=(0, 1))[::CELL, ::CELL]
    return np.ascontiguousarray(views.transpose(0, 1, 3, 4, 2)).reshape(GRID_REGIONS, WINDOW, WINDOW, -1)


def _orientations(padded: Array) -> Array:
    """Square roots of the fraction of each direction in each quarter of each window, (36, 32)."""
    down, across = np.gradient(padded.mean(axis=2))
    strength = np.hypot(down, across)
    turn = np.arctan2(down, across) / (2 * np.pi) * DIRECTIONS
    lower = np.floor(turn)
    fraction = turn - lower
    index = lower.astype(np.int64) % DIRECTIONS
    # Each gradient is split between its two nearest directions, so features change smoothly with the angle.
    directions = np.eye(DIRECTIONS, dtype=np.float32)
    votes = directions[index] * ((1 - fraction) * strength)[..., None]
    votes += directions[(index + 1) % DIRECTIONS] * (fraction * strength)[..., None]
    half = WINDOW // 2
    quarters = _windows(votes).reshape(GRID_REGIONS, 2, half, 2, half, DIRECTIONS).mean(axis=(2, 4))
    total = quarters.sum(axis=-1, keepdims=True)
    fractions: Array = quarters / (total + GRADIENT_FLOOR)
    return np.sqrt(fractions).reshape(GRID_REGIONS, -1)


def grid_boxes(grid: int = GRID) -> Array:
    """Return the boxes of the cells (`grid`², 4) in [0, 1], row by row."""
    top, left = np.divmod(np.arange(grid**2), grid)
    return (np.stack([left, top, left + 1, top + 1], axis=1) / grid).astype(np.float32)
