"""Map the tensors of a file to those of a model by name, and build the model.

"Our" names are those of vgsplus (`VGSPlus.state_dict`), "their" names those in the file.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vgsplus.errors import CheckpointError, some
from vgsplus.models.published import build_model
from vgsplus.models.vgsplus import ModelConfig, VGSPlus
from vgsplus.tensor_files import HINT_AGAIN, Shape, StoredTensor

SHOWN = 10
"""Maximum number of tensors of a wrong shape that an error names."""
_GROUPS = {"#": r"(\d+)", "*": r"(\w+)", "**": r"(.+)"}
"""What the wildcards in names match: a number, one part of a name, or any number of parts."""


@dataclass(frozen=True, slots=True)
class TensorMapping:
    """Parts of one of our tensors in a file, each of `shape`, to be concatenated along the first axis."""

    names: tuple[str, ...]
    shape: Shape

    def gather(self, parts: Sequence[Tensor], shape: Shape) -> Tensor:
        """Return our tensor from its parts in the file; a single part is not copied."""
        return (parts[0] if len(parts) == 1 else torch.cat(tuple(parts))).reshape(shape)

    def scatter(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return the parts in the file of our tensor; the exact inverse of `gather`."""
        parts = tensor.chunk(len(self.names)) if len(self.names) > 1 else (tensor,)
        return {name: part.reshape(self.shape).clone() for name, part in zip(self.names, parts, strict=True)}


@dataclass(frozen=True, slots=True)
class NameRule:
    """A rule: names that match `ours` become `theirs`, format strings for the groups of the match."""

    ours: re.Pattern[str]
    theirs: tuple[str, ...]
    shape: Callable[[Shape], Shape] | None


def name_rules(
    names: Mapping[str, str | tuple[str, ...]],
    prefix: str = "",
    shapes: Mapping[str, Callable[[Shape], Shape]] | None = None,
) -> tuple[NameRule, ...]:
    """Build rules from a table.

    Args:
        names: {our name: name in the file, or names of the parts}. "#" stands for a number, "*" for one part
            of a name and "**" for any number of parts; the n-th wildcard of ours is the n-th of theirs.
        prefix: prefix of all names in the file.
        shapes: {our name, as in `names`: function from our shape to the shape in the file}, where they
            differ.
    """
    wildcard = re.compile(r"(\*\*|[#*])")
    return tuple(
        NameRule(
            re.compile("".join(_GROUPS.get(part) or re.escape(part) for part in wildcard.split(ours))),
            tuple(
                prefix + wildcard.sub("{}", name)
                for name in ((theirs,) if isinstance(theirs, str) else theirs)
            ),
            (shapes or {}).get(ours),
        )
        for ours, theirs in names.items()
    )


def match_tensors(shapes: Mapping[str, Shape], rules: Iterable[NameRule]) -> dict[str, TensorMapping]:
    """Map each of our tensors by the first rule that matches its name; skip tensors without a rule."""
    mappings: dict[str, TensorMapping] = {}
    for rule in rules:
        for name, shape in shapes.items():
            if name not in mappings and (match := rule.ours.fullmatch(name)):
                count = len(rule.theirs)
                part = shape if count == 1 else (shape[0] // count, *shape[1:])
                names = tuple(theirs.format(*match.groups()) for theirs in rule.theirs)
                mappings[name] = TensorMapping(names, rule.shape(part) if rule.shape else part)
    return mappings


# ---- reports ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Which tensors of a file and of a model were matched.

    Attributes:
        source: path and kind of the model that was read.
        taken: tensors of the model that were read, with their shapes.
        initial: tensors of the model that the file lacks; they keep their initial values.
        unused: tensors of the file that the model does not have.
        assumed: settings that the file does not state, as "name = value".
    """

    source: str
    taken: Mapping[str, Shape]
    initial: Mapping[str, Shape]
    unused: Mapping[str, Shape]
    assumed: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether file and model have the same tensors."""
        return not self.initial and not self.unused

    def __str__(self) -> str:
        """Format a table with a line per block of the network."""
        rows = [("", "block", "tensors", "parameters")]
        for what, shapes in (
            ("taken", self.taken),
            ("not used", self.unused),
            ("at its initial value", self.initial),
        ):
            blocks: dict[str, list[int]] = defaultdict(list)
            for name, shape in shapes.items():
                blocks[_block(name)].append(math.prod(shape))
            rows += [(what, name, str(len(sizes)), f"{sum(sizes):,}") for name, sizes in blocks.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}".rstrip()
            for a, b, c, d in rows
        ]
        assumed = (
            [f"Assumed, as the file does not state it: {', '.join(self.assumed)}"] if self.assumed else []
        )
        return "\n".join([self.source, *lines, *assumed])


def _block(name: str) -> str:
    """Return the start of a name up to its first number or its last part, at most three parts."""
    parts = name.split(".")
    end = next((index for index, part in enumerate(parts) if part.isdecimal()), max(1, len(parts) - 1))
    return ".".join(parts[:end][:3])


# ---- models -----------------------------------------------------------------------------------------------

_FILLERS = frozenset({"normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_"})


class _SkipFilling(TorchFunctionMode):
    """Skip the random initialisation of weights, so that they take no memory until they are assigned."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if getattr(func, "__name__", "") in _FILLERS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


_OPTIONAL = frozenset({"speech.mask_vector", "speech.cls"})
"""Tensors of the speech encoder that a file may lack, because they are not needed for evaluation."""
_OURS_ONLY = frozenset({"quantizer.updates"})
"""Counters that only vgsplus has; they start at 0."""


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A model in a file: its sizes, its tensors and how they map to ours.

    Attributes:
        name: path and kind, for messages.
        stored: tensors of the file.
        rules: rules that map our tensors to them.
        config: sizes of the model.
        assumed: settings that the file does not state (see `LoadReport`).
        own: whether vgsplus wrote the file, so that any missing or additional tensor is an error.
        parts: prefixes of the tensors that belong to parts of the network that ours also has. If a tensor
            with such a prefix is not used, the file holds a different network.
        about: what is recorded of the training (see `PretrainedModel`).
    """

    name: str
    stored: Mapping[str, StoredTensor]
    rules: Sequence[NameRule]
    config: ModelConfig
    assumed: tuple[str, ...] = ()
    own: bool = False
    parts: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    def build[M: VGSPlus](self, build_model: Callable[[ModelConfig], M]) -> tuple[M, LoadReport]:
        """Return the model that `build_model` builds, in evaluation mode; memory holds every tensor once.

        Raises:
            CheckpointError: shapes differ, the file is of another network, lacks a tensor of the speech
                encoder, or changes while it is read.
        """
        model = self._empty_model(build_model)
        mappings, report = self._match(model)
        self._require_same_network(report)
        if report.initial:
            model = build_model(self.config)
        tensors = {
            name: self._read(mappings[name], like)
            for name, like in model.state_dict().items()
            if name in mappings
        }
        tensors |= {name: torch.zeros((), dtype=torch.int64) for name in _OURS_ONLY - mappings.keys()}
        model.load_state_dict(tensors, strict=False, assign=True)
        return model.eval(), report

    @torch.no_grad()
    def fill(self, model: VGSPlus) -> LoadReport:
        """Copy the file's tensors into a model; on the meta device, only check that they fit.

        Raises:
            CheckpointError: as `build`.
        """
        self._require_same_network(self._match(self._empty_model(build_model))[1])
        mappings, report = self._match(model)
        for name, tensor in model.state_dict().items():
            if name in mappings and not tensor.is_meta:
                tensor.copy_(self._read(mappings[name], tensor))
        return report

    def _empty_model[M: VGSPlus](self, build_model: Callable[[ModelConfig], M]) -> M:
        """Return a model of the sizes in the file, which may be invalid, with uninitialised weights.

        It is not on the meta device, for which PyTorch would import its compiler, which takes seconds.
        """
        c = self.config
        if c.shared_layers + c.ssl_layers + c.image_layers + len(c.conv_layers) > len(self.stored) + 10:
            raise CheckpointError(f"{self.name}: states more layers than it holds tensors")
        try:
            with torch.device("cpu"), torch.random.fork_rng(devices=[]), _SkipFilling():
                return build_model(c)
        except (RuntimeError, MemoryError, OverflowError, TypeError, ValueError) as error:
            what = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{self.name}: states sizes of no possible model ({what})") from None

    def _require_same_network(self, report: LoadReport) -> None:
        if foreign := [name for name in report.unused if name.startswith(self.parts)]:
            raise CheckpointError(
                f"{self.name}: is of another network than those supported: it has {some(foreign, 3)}, which "
                "this one lacks"
            )
        missing = [name for name in report.initial if name.startswith("speech.") and name not in _OPTIONAL]
        if missing and self.parts:
            raise CheckpointError(
                f"{self.name}: lacks tensors of the speech encoder, here called {some(missing, 3)}"
            )

    def _match(self, model: VGSPlus) -> tuple[dict[str, TensorMapping], LoadReport]:
        """Map the tensors of a model that the file has; no tensor is read."""
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        mappings = match_tensors(shapes, self.rules)
        found = {
            name: mapping for name, mapping in mappings.items() if set(mapping.names) <= self.stored.keys()
        }
        if wrong := [
            f"{part} is {self.stored[part].shape}, the model's {name} needs {mapping.shape}"
            for name, mapping in found.items()
            for part in mapping.names
            if self.stored[part].shape != mapping.shape
        ]:
            more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
            listed = "\n".join(f"- {line}" for line in wrong[:SHOWN] + more)
            raise CheckpointError(
                f"{self.name}: has tensors of other shapes than its settings state. Use those that were "
                f"saved with it.\n{listed}"
            )
        used = {part for mapping in found.values() for part in mapping.names}
        report = LoadReport(
            source=self.name,
            taken={name: shapes[name] for name in found},
            initial={n: s for n, s in shapes.items() if n not in found and n not in _OURS_ONLY},
            unused={name: tensor.shape for name, tensor in self.stored.items() if name not in used},
            assumed=self.assumed,
        )
        if not found or (self.own and not report.complete):
            kinds = {"it lacks": report.initial, "the model has no": report.unused}
            odd = "; ".join(f"{what} {some(list(names), 3)}" for what, names in kinds.items() if names)
            raise CheckpointError(
                f"{self.name}: its tensors are not those of the model ({odd}). {HINT_AGAIN}"
            )
        return found, report

    def _read(self, mapping: TensorMapping, like: Tensor) -> Tensor:
        parts = [self.stored[name].read() for name in mapping.names]
        return mapping.gather(parts, tuple(like.shape)).to(like.dtype)
