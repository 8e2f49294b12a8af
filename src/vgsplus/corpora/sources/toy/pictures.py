"""Draw the scenes of the toy corpus."""

import colorsys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from vgsplus.corpora.sources.toy.scenes import Scene, Thing

SIDE = 120
SUPERSAMPLING = 3
OUTLINE = 0.012
ARC_STEPS = 48

PALETTE = {
    "red": (222, 50, 55),
    "orange": (245, 140, 35),
    "yellow": (250, 215, 55),
    "green": (60, 165, 80),
    "blue": (50, 105, 215),
    "purple": (135, 75, 180),
    "pink": (245, 145, 190),
    "black": (45, 45, 52),
}
DARK, PLAIN, LIGHT = 0.72, 1.0, 0.0  # LIGHT is drawn in nearly white

type Points = npt.NDArray[np.float64]
type Part = tuple[Points, float]
type Colour = tuple[int, int, int]


def draw(scene: Scene) -> Image.Image:
    """Draw a scene: RGB, 120 x 120 pixels."""
    side = SIDE * SUPERSAMPLING
    canvas = _background(scene.tint, side)
    brush = ImageDraw.Draw(canvas)
    for thing in scene.things:
        _draw_thing(brush, thing, side)
    return canvas.resize((SIDE, SIDE), Image.Resampling.BOX)


def box_of(thing: Thing) -> tuple[float, float, float, float]:
    """Return the box of a thing as (x1, y1, x2, y2) in [0, 1], without the half of its edge outside it."""
    points = np.concatenate([points for points, _ in _placed_parts(thing)])
    x1, y1, x2, y2 = (float(value) for value in np.r_[points.min(axis=0), points.max(axis=0)].clip(0, 1))
    return x1, y1, x2, y2


def _placed_parts(thing: Thing) -> Iterator[Part]:
    """Yield the parts of a thing where they are in the image, in [0, 1], and their shades."""
    angle = np.deg2rad(thing.tilt)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for points, shade in SHAPE_PARTS[thing.shape]:
        yield points @ turn * thing.radius + (thing.x, thing.y), shade


def _draw_thing(brush: ImageDraw.ImageDraw, thing: Thing, side: int) -> None:
    for points, shade in _placed_parts(thing):
        path = [(float(x), float(y)) for x, y in points * side]
        brush.polygon(path, fill=_shaded(thing.colour, shade))
        edge = _shaded(thing.colour, shade * DARK)
        # The rim and the hole of a ring are two loops; a line along the joint between them would be visible.
        loops = (path[:ARC_STEPS], path[ARC_STEPS:]) if thing.shape == "ring" else (path,)
        for loop in loops:
            brush.line([*loop, *loop[:2]], fill=edge, width=round(OUTLINE * side), joint="curve")


def _shaded(colour: str, shade: float) -> Colour:
    if shade == LIGHT:
        return (250, 250, 246)
    red, green, blue = (round(value * shade) for value in PALETTE[colour])
    return red, green, blue


def _background(tint: float, side: int) -> Image.Image:
    """A light vertical gradient of one hue."""
    top = np.array(colorsys.hsv_to_rgb(tint, 0.05, 0.99))
    bottom = np.array(colorsys.hsv_to_rgb(tint, 0.14, 0.93))
    slope = np.linspace(0, 1, side)[:, None]
    column = np.rint((top * (1 - slope) + bottom * slope) * 255).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(column[:, None, :], (side, side, 3)).copy())


def _arc(start: float, end: float, radius: float = 1.0, steps: int = ARC_STEPS) -> Points:
    angles = np.deg2rad(np.linspace(start, end, steps))
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _polygon(*points: tuple[float, float]) -> Points:
    return np.array(points, dtype=np.float64)


def _star() -> Points:
    tips, dents = _arc(-90, 270, 1.08, 6)[:5], _arc(-54, 306, 0.45, 6)[:5]
    return np.stack([tips, dents], axis=1).reshape(-1, 2)


def _heart() -> Points:
    turn = np.linspace(0, 2 * np.pi, 60)
    across = 16 * np.sin(turn) ** 3
    up = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
    return np.stack([across, -up - 2], axis=1) / 16.5


def _cross() -> Points:
    arm, end = 0.32, 0.98
    corners = [_polygon((arm, -end), (arm, -arm), (end, -arm))]
    for _ in range(3):
        corners.append(corners[-1] @ np.array([[0.0, 1.0], [-1.0, 0.0]]))
    return np.concatenate(corners)


# The hollow is an arc of radius 0.716 around (0.45, 0), which meets the outer arc at its ends.
_MOON = np.concatenate([_arc(40, 320), _arc(296.2, 63.8, 0.716) + np.array((0.45, 0.0))])
# Out along the rim and back along the hole: one path, so that the background shows through.
_RING = np.concatenate([_arc(0, 360), _arc(360, 0, 0.5)])

SHAPE_PARTS: dict[str, list[Part]] = {
    "circle": [(_arc(0, 360), PLAIN)],
    "square": [(_polygon((-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)), PLAIN)],
    "triangle": [(_polygon((0, -0.95), (1, 0.8), (-1, 0.8)), PLAIN)],
    "star": [(_star(), PLAIN)],
    "heart": [(_heart(), PLAIN)],
    "diamond": [(_polygon((0, -1.1), (0.75, 0), (0, 1.1), (-0.75, 0)), PLAIN)],
    "cross": [(_cross(), PLAIN)],
    "moon": [(_MOON, PLAIN)],
    "ring": [(_RING, PLAIN)],
    "house": [
        (_polygon((-0.75, -0.15), (0.75, -0.15), (0.75, 0.9), (-0.75, 0.9)), PLAIN),
        (_polygon((0, -1), (1.02, -0.12), (-1.02, -0.12)), DARK),
        (_polygon((-0.2, 0.3), (0.2, 0.3), (0.2, 0.9), (-0.2, 0.9)), LIGHT),
    ],
    "tree": [
        (_polygon((-0.15, 0.5), (0.15, 0.5), (0.15, 1.05), (-0.15, 1.05)), DARK),
        (_polygon((0, -0.5), (0.88, 0.6), (-0.88, 0.6)), PLAIN),
        (_polygon((0, -1.1), (0.66, -0.05), (-0.66, -0.05)), PLAIN),
    ],
    "fish": [
        (_polygon((0.3, 0), (1.1, -0.6), (0.95, 0), (1.1, 0.6)), DARK),
        (_arc(0, 360) * (0.85, 0.58) - (0.25, 0), PLAIN),
        (_arc(0, 360, 0.12) - (0.65, 0.12), LIGHT),
    ],
}
