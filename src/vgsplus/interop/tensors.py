"""Tensors of other systems' files: where each of ours is kept, and what becomes of those without a place."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vgsplus.errors import CheckpointError
from vgsplus.models.published import build_model
from vgsplus.models.vgsplus import ModelConfig, VGSPlus
from vgsplus.tensor_files import Shape, StoredTensor

SHOWN = 10
"""Tensors of another shape that an error names."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor of ours is kept: in parts of `shape` each, joined along the first axis and reshaped."""

    names: tuple[str, ...]
    shape: Shape

    def gather(self, parts: Sequence[Tensor], shape: Shape) -> Tensor:
        """The parts as one tensor of ours; without copying where there is one part."""
        return (parts[0] if len(parts) == 1 else torch.cat(tuple(parts))).reshape(shape)

    def scatter(self, tensor: Tensor) -> dict[str, Tensor]:
        """A tensor of ours as its parts there; the inverse of `gather`, bit for bit."""
        parts = tensor.chunk(len(self.names)) if len(self.names) > 1 else (tensor,)
        return {name: part.reshape(self.shape).clone() for name, part in zip(self.names, parts, strict=True)}


def _parts_alike(shape: Shape, parts: int) -> Shape:
    return shape if parts == 1 else (shape[0] // parts, *shape[1:])


@dataclass(frozen=True, slots=True)
class Rule:
    r"""Names of ours that match `ours` whole are kept under `theirs`, templates with \1, \2 for its groups.

    `shape` tells the shape that a part has there from the shape of ours.
    """

    ours: str
    theirs: tuple[str, ...]
    shape: Callable[[Shape, int], Shape] = _parts_alike

    def place(self, name: str, shape: Shape) -> Place | None:
        """The place of one of our tensors, None if the rule does not speak of it."""
        match = re.fullmatch(self.ours, name)
        if match is None:
            return None
        return Place(tuple(map(match.expand, self.theirs)), self.shape(shape, len(self.theirs)))


def find_places(shapes: Mapping[str, Shape], rules: Sequence[Rule]) -> dict[str, Place]:
    """The place of each of our tensors, by the first rule that speaks of it; others have none."""
    places = {}
    for name, shape in shapes.items():
        found = (rule.place(name, shape) for rule in rules)
        place = next((place for place in found if place is not None), None)
        if place is not None:
            places[name] = place
    return places


# ---- what was taken, and what was not ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of a file's tensors.

    Attributes:
        source: what was read.
        taken: tensors of the model that the file gave, with their shapes.
        initial: tensors of the model that the file does not hold: they keep their initial values.
        unused: tensors of the file that the model has no place for.
        assumed: settings that the file does not tell, as "name = value".
    """

    source: str
    taken: Mapping[str, Shape]
    initial: Mapping[str, Shape]
    unused: Mapping[str, Shape]
    assumed: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether file and model are the same tensors."""
        return not self.initial and not self.unused

    def __str__(self) -> str:
        """A table: a line a block of the network."""
        rows = [
            (what, block, str(tensors), f"{parameters:,}")
            for what, shapes in (
                ("taken", self.taken),
                ("not used", self.unused),
                ("at its initial value", self.initial),
            )
            for block, tensors, parameters in _by_block(shapes)
        ]
        header = ("", "block", "tensors", "parameters")
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(4)]
        lines = [
            f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}".rstrip()
            for a, b, c, d in [header, *rows]
        ]
        assumed = [f"The file does not tell, so assumed: {', '.join(self.assumed)}"] if self.assumed else []
        return "\n".join([self.source, *lines, *assumed])


def _some(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _by_block(shapes: Mapping[str, Shape]) -> Iterable[tuple[str, int, int]]:
    """Blocks (names up to their first number or last part), tensors and parameters of each."""
    blocks: dict[str, list[int]] = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        numbers = [index for index, part in enumerate(parts) if part.isdecimal()]
        block = ".".join(parts[: numbers[0] if numbers else max(1, len(parts) - 1)][:3])
        blocks.setdefault(block, []).append(math.prod(shape))
    return ((block, len(sizes), sum(sizes)) for block, sizes in blocks.items())


# ---- filling a model --------------------------------------------------------------------------------------

_FILLERS = frozenset({"normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_"})


class _Unfilled(TorchFunctionMode):
    """Skips the random filling of weights, which then take up no memory before they are assigned."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if getattr(func, "__name__", "") in _FILLERS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def empty_model(config: ModelConfig) -> VGSPlus:
    """A model whose weights are still to be assigned; leaves the random generator as it is.

    Not one on the meta device: to build that, PyTorch loads its compiler, which takes seconds.
    """
    with torch.random.fork_rng(devices=[]), _Unfilled():
        return build_model(config)


_OPTIONAL = frozenset({"speech.mask_vector", "speech.cls"})
"""Of the speech encoder, what a file may lack: nothing is masked in evaluation."""
_OURS_ALONE = frozenset({"quantizer.updates"})
"""Counters that no other system keeps; they begin at 0."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The tensors of a file and how they are ours.

    Attributes:
        name: what messages call it: its path and kind.
        stored: its tensors.
        rules: where our tensors are among them.
        config: the sizes of the model that it is.
        assumed: see `LoadReport`.
        whole: whether it is a model of our own, so that anything missing or left over is a fault.
        parts: prefixes of the tensors of those parts of the network that ours has, too. A tensor there for
            which ours has no place makes it another network.
    """

    name: str
    stored: Mapping[str, StoredTensor]
    rules: Sequence[Rule]
    config: ModelConfig
    assumed: tuple[str, ...] = ()
    whole: bool = False
    parts: tuple[str, ...] = ()

    def require_same_network(self) -> None:
        """Make sure that the file holds the speech encoder that its sizes describe, and nothing more of it.

        Raises:
            CheckpointError: as `match`, or a part that ours has holds a tensor without a place in ours, or
                a tensor of the speech encoder is missing.
        """
        _, report = self.match(self._empty_model())
        self._require_same_network(report)

    def _empty_model(self) -> VGSPlus:
        """A model of the sizes that the file states, which may be those of no model."""
        c = self.config
        if c.shared_layers + c.ssl_layers + c.image_layers + len(c.conv_layers) > len(self.stored) + 10:
            raise CheckpointError(f"{self.name}: states more layers than it holds tensors")
        try:
            with torch.device("cpu"):
                return empty_model(c)
        except (RuntimeError, MemoryError, OverflowError, TypeError, ValueError) as error:
            what = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{self.name}: states sizes that make up no model ({what})") from None

    def _require_same_network(self, report: LoadReport) -> None:
        if foreign := [name for name in report.unused if name.startswith(self.parts)]:
            raise CheckpointError(
                f"{self.name}: is of another network than those that are read: it has {_some(foreign)}, for "
                "which this one has no place"
            )
        missing = [name for name in report.initial if name.startswith("speech.") and name not in _OPTIONAL]
        if missing and self.parts:
            raise CheckpointError(
                f"{self.name}: lacks tensors of the speech encoder, here called {_some(missing)}"
            )

    def match(self, model: VGSPlus) -> tuple[dict[str, Place], LoadReport]:
        """Find the places of a model's tensors, without reading any.

        Raises:
            CheckpointError: tensors of another shape (the first named with both shapes), or nothing fits.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        places = find_places(shapes, self.rules)
        found = {name: place for name, place in places.items() if set(place.names) <= self.stored.keys()}
        if wrong := [
            f"{part} is {self.stored[part].shape}, the model's {name} needs {place.shape}"
            for name, place in found.items()
            for part in place.names
            if self.stored[part].shape != place.shape
        ]:
            more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
            listed = "\n".join(f"- {line}" for line in wrong[:SHOWN] + more)
            raise CheckpointError(f"{self.name}: does not fit:\n{listed}")
        used = {part for place in found.values() for part in place.names}
        report = LoadReport(
            source=self.name,
            taken={name: shapes[name] for name in found},
            initial={n: s for n, s in shapes.items() if n not in found and n not in _OURS_ALONE},
            unused={name: tensor.shape for name, tensor in self.stored.items() if name not in used},
            assumed=self.assumed,
        )
        if not found or (self.whole and not report.whole):
            raise CheckpointError(f"{self.name}: its tensors do not make up the model\n{report}")
        return found, report

    def build(self) -> tuple[VGSPlus, LoadReport]:
        """The model that this file is, in evaluation mode; holds every tensor in memory once.

        Raises:
            CheckpointError: as `match`, or a file that changes while it is read.
        """
        model = self._empty_model()
        places, report = self.match(model)
        self._require_same_network(report)
        if report.initial:
            model = build_model(self.config)
        tensors = {
            name: self._read(places[name], like)
            for name, like in model.state_dict().items()
            if name in places
        }
        tensors |= {name: torch.zeros((), dtype=torch.int64) for name in _OURS_ALONE - places.keys()}
        model.load_state_dict(tensors, strict=False, assign=True)
        return model.eval(), report

    @torch.no_grad()
    def fill(self, model: VGSPlus) -> LoadReport:
        """Put the file's tensors into a model; on the meta device, only check that they fit.

        Raises:
            CheckpointError: as `build`.
        """
        self.require_same_network()
        places, report = self.match(model)
        for name, tensor in model.state_dict().items():
            if name in places and not tensor.is_meta:
                tensor.copy_(self._read(places[name], tensor))
        return report

    def _read(self, place: Place, like: Tensor) -> Tensor:
        parts = [self.stored[name].read() for name in place.names]
        return place.gather(parts, tuple(like.shape)).to(like.dtype)
