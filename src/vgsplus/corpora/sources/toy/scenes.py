"""Random scenes of the toy corpus and their descriptions."""

from dataclasses import dataclass
from itertools import product

import numpy as np

SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "diamond",
    "cross",
    "moon",
    "ring",
    "house",
    "tree",
    "fish",
)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
SIZES = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
RADII = {"small": 0.11, "big": 0.2}
CROWDED_RADII = {"small": 0.095, "big": 0.16}
OBJECT_COUNTS = {1: 0.1, 2: 0.55, 3: 0.35}  # probabilities

# Combinations that do not occur in training, so that test scenes require composition.
HELD_OUT = frozenset((shape, COLOURS[(3 * index) % len(COLOURS)]) for index, shape in enumerate(SHAPES))

RELATIONS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
PLACES = {
    "left": ("on the left", "at the left side"),
    "right": ("on the right", "at the right side"),
    "above": ("at the top", "in the upper half"),
    "below": ("at the bottom", "in the lower half"),
    "middle": ("in the middle", "in the centre"),
}
NEAR = ("next to", "near", "beside")

# Probabilities.
P_SIZE_NAMED = 0.35
P_COLOUR_NAMED = 0.92
P_RELATION_NAMED = 0.6
P_ALL_THREE_NAMED = 0.5


@dataclass(frozen=True, slots=True)
class Thing:
    """An object: centre (x, y) and radius as fractions of the image side (y points down), tilt in degrees."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    tilt: float


@dataclass(frozen=True, slots=True)
class Scene:
    """Things on a light background; `tint` in [0, 1] is the background's hue."""

    things: tuple[Thing, ...]
    tint: float

    @property
    def content(self) -> frozenset[tuple[str, str, str]]:
        """Size, colour and shape of each thing, without positions."""
        return frozenset((thing.size, thing.colour, thing.shape) for thing in self.things)

    @property
    def held_out(self) -> bool:
        """Whether a thing has a held-out combination of shape and colour."""
        return any((thing.shape, thing.colour) in HELD_OUT for thing in self.things)


def draw_scene(rng: np.random.Generator, *, held_out: bool) -> Scene:
    """Sample a scene of one to three things; with `held_out`, one has a held-out combination."""
    count = int(rng.choice(list(OBJECT_COUNTS), p=list(OBJECT_COUNTS.values())))
    pairs = _pairs(rng, count, held_out=held_out)
    radii = CROWDED_RADII if count > 2 else RADII  # three in a row need more space
    things = []
    for (shape, colour), place in zip(pairs, _layout(rng, count), strict=True):
        size = _pick(rng, list(SIZES))
        x, y = (float(value) for value in place + rng.uniform(-0.03, 0.03, 2))
        radius = radii[size] * rng.uniform(0.93, 1.07)
        things.append(Thing(shape, colour, size, x, y, radius, rng.uniform(-12, 12)))
    return Scene(tuple(things), float(rng.uniform()))


def describe(scene: Scene, rng: np.random.Generator, count: int) -> tuple[str, ...]:
    """Return `count` different captions, which vary in words, order and the things they mention."""
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[_caption(scene.things, rng)] = None
    return tuple(texts)


def _pairs(rng: np.random.Generator, count: int, *, held_out: bool) -> list[tuple[str, str]]:
    """Sample pairs of shape and colour, of different shapes, in random order."""
    seen = [pair for pair in product(SHAPES, COLOURS) if pair not in HELD_OUT]
    chosen = [_pick(rng, sorted(HELD_OUT))] if held_out else []
    while len(chosen) < count:
        pair = _pick(rng, seen)
        if pair[0] not in {shape for shape, _ in chosen}:
            chosen.append(pair)
    return [chosen[index] for index in rng.permutation(count)]


def _layout(rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """Sample centres: one of nine places, a row, a column, or three corners."""
    if count == 1:
        places = (0.27, 0.5, 0.73)
        return [(_pick(rng, places), _pick(rng, places))]
    if count == 2:
        along, across = (0.26, 0.74), rng.uniform(0.4, 0.6)
        line = [(place, float(across + rng.uniform(-0.08, 0.08))) for place in along]
    elif rng.uniform() < 0.5:  # lines as often as corners
        line = [(place, float(rng.uniform(0.4, 0.6))) for place in (0.19, 0.5, 0.81)]
    else:
        corners = list(product((0.27, 0.73), repeat=2))
        return [corners[index] for index in rng.permutation(4)[:3]]
    order = rng.permutation(len(line))
    upright = rng.uniform() < 0.5  # rows as often as columns
    placed = [line[index] for index in order]
    return [(y, x) for x, y in placed] if upright else placed


def _caption(things: tuple[Thing, ...], rng: np.random.Generator) -> str:
    chosen = [things[index] for index in rng.permutation(len(things))]
    if len(chosen) == 1:
        return _single(chosen[0], rng)
    if len(chosen) == 3 and rng.uniform() < P_ALL_THREE_NAMED:
        return _triple(chosen, rng)
    one, other = chosen[:2]
    relation = _relation(one, other)
    if relation and rng.uniform() < P_RELATION_NAMED:
        return _related(one, other, relation, rng)
    return _paired(one, other, rng)


def _single(thing: Thing, rng: np.random.Generator) -> str:
    place = _pick(rng, PLACES[_place(thing)])
    named, size = _noun(thing, rng), _pick(rng, SIZES[thing.size])
    return _pick(
        rng,
        (
            f"there is {_a(named)} {place}",
            f"{_a(named)} {place}",
            f"only {_a(f'{size} {thing.colour} {thing.shape}')}",
            f"the {thing.shape} is {size} and {thing.colour}",
            f"{place} is {_a(named)}",
            f"I see just one {named}",
        ),
    )


def _related(one: Thing, other: Thing, relation: str, rng: np.random.Generator) -> str:
    first, second = _noun(one, rng), _noun(other, rng)
    words = _pick(rng, RELATIONS[relation])
    here, there = _pick(rng, PLACES[relation]), _pick(rng, PLACES[INVERSE[relation]])
    return _pick(
        rng,
        (
            f"{_a(first)} {words} {_a(second)}",
            f"there is {_a(first)} {words} the {second}",
            f"the {first} is {words} the {second}",
            f"{words} the {second} is {_a(first)}",
            f"{_a(first)} {here} and {_a(second)} {there}"
            if rng.uniform() < 0.3  # the longest wording, rarer
            else f"the {first} {words} {_a(second)}",
        ),
    )


def _paired(one: Thing, other: Thing, rng: np.random.Generator) -> str:
    first, second = _noun(one, rng), _noun(other, rng)
    return _pick(
        rng,
        (
            f"{_a(first)} and {_a(second)}",
            f"{_a(first)} with {_a(second)}",
            f"I see {_a(first)} and {_a(second)}",
            f"{_a(first)} {_pick(rng, NEAR)} {_a(second)}",
            f"the {one.shape} is {one.colour} and the {other.shape} is {other.colour}",
        ),
    )


def _triple(things: list[Thing], rng: np.random.Generator) -> str:
    first, second, third = (f"{thing.colour} {thing.shape}" for thing in things)
    return _pick(
        rng,
        (
            f"{_a(first)} {_a(second)} and {_a(third)}",
            f"{_a(first)} and {_a(second)} with {_a(third)}",
            f"{_a(first)} {_pick(rng, NEAR)} {_a(second)} and {_a(third)}",
        ),
    )


def _noun(thing: Thing, rng: np.random.Generator) -> str:
    size = _pick(rng, SIZES[thing.size]) if rng.uniform() < P_SIZE_NAMED else ""
    colour = thing.colour if rng.uniform() < P_COLOUR_NAMED else ""
    return " ".join(filter(None, (size, colour, thing.shape)))


def _a(noun: str) -> str:
    return f"{'an' if noun.startswith('o') else 'a'} {noun}"


def _relation(one: Thing, other: Thing) -> str | None:
    """Return the position of `one` relative to `other`; None if they are diagonal."""
    across, down = one.x - other.x, one.y - other.y
    if abs(across) > 2 * abs(down):
        return "left" if across < 0 else "right"
    if abs(down) > 2 * abs(across):
        return "above" if down < 0 else "below"
    return None


def _place(thing: Thing) -> str:
    across, down = thing.x - 0.5, thing.y - 0.5
    if max(abs(across), abs(down)) < 0.1:
        return "middle"
    if abs(across) > abs(down):
        return "left" if across < 0 else "right"
    return "above" if down < 0 else "below"


def _pick[Option](rng: np.random.Generator, options: list[Option] | tuple[Option, ...]) -> Option:
    return options[int(rng.integers(len(options)))]
