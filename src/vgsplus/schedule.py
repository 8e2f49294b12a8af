"""What is trained when: phases, the weight α within a phase, the learning rate, the paper's nine variants.

A schedule is a list of phases. Each phase has its own α, length and optimiser; the optimiser and its learning
rate start afresh at every phase, the weights go on. Everything here is a pure function of its arguments.
"""

import difflib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

from vgsplus.errors import ConfigError

type OptimizerName = Literal["bertadam", "adamw"]
type Decay = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True, slots=True)
class Alpha:
    """α in [0, 1], the weight of grounding against self-supervision, as a function of phase progress.

    `points` are (progress, α): one point for a constant, the two ends for linear and cosine, one point for
    each step. In a configuration: a number, {linear: [from, to]}, {cosine: [from, to]} or
    {steps: [[0.0, a], [0.5, b], …]}.

    Raises:
        ConfigError: an α outside [0, 1], or steps that do not rise from progress 0 within [0, 1).
    """

    form: Literal["constant", "linear", "cosine", "steps"]
    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        thresholds = [progress for progress, _ in self.points]
        if outside := [alpha for _, alpha in self.points if not 0.0 <= alpha <= 1.0]:
            raise ConfigError(f"α must lie in [0, 1], not {outside[0]}")
        rising = all(a < b for a, b in itertools.pairwise(thresholds))
        if self.form == "steps" and not (thresholds[:1] == [0.0] and rising and thresholds[-1] < 1.0):
            raise ConfigError(f"the steps of α must start at progress 0 and rise below 1, not {thresholds}")

    @classmethod
    def constant(cls, alpha: float) -> Self:
        """The same α throughout."""
        return cls("constant", ((0.0, alpha),))

    @classmethod
    def linear(cls, start: float, end: float) -> Self:
        """A straight line from `start` to `end`."""
        return cls("linear", ((0.0, start), (1.0, end)))

    @classmethod
    def cosine(cls, start: float, end: float) -> Self:
        """Half a cosine wave from `start` to `end`: flat at both ends."""
        return cls("cosine", ((0.0, start), (1.0, end)))

    @classmethod
    def steps(cls, points: Sequence[tuple[float, float]]) -> Self:
        """The α of the last (progress, α) that has been reached."""
        return cls("steps", tuple((float(progress), float(alpha)) for progress, alpha in points))

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read α as a configuration writes it (see the class).

        Raises:
            ConfigError: it is none of the four forms, or an impossible one.
        """
        match value:
            case Alpha():
                return cls(value.form, value.points)
            case bool():
                pass
            case int() | float():
                return cls.constant(float(value))
            case {"linear": [int() | float() as start, int() | float() as end], **rest} if not rest:
                return cls.linear(float(start), float(end))
            case {"cosine": [int() | float() as start, int() | float() as end], **rest} if not rest:
                return cls.cosine(float(start), float(end))
            case {"steps": [_, *_] as points, **rest} if not rest and all(map(_is_pair, points)):
                return cls.steps(points)
        raise ConfigError(
            "α is a number, {linear: [from, to]}, {cosine: [from, to]} or "
            f"{{steps: [[0.0, a], [0.5, b], …]}}, not {value!r}"
        )

    def plain(self) -> float | dict[str, list[Any]]:
        """Write α as a configuration writes it; `parse` reads it back."""
        if self.form == "constant":
            return self.points[0][1]
        if self.form == "steps":
            return {"steps": [list(point) for point in self.points]}
        return {self.form: [alpha for _, alpha in self.points]}

    def at(self, progress: float) -> float:
        """α at `progress` in [0, 1) of the phase."""
        if self.form in ("constant", "steps"):
            return [alpha for threshold, alpha in self.points if threshold <= progress][-1]
        (_, start), (_, end) = self.points
        share = progress if self.form == "linear" else (1 - math.cos(math.pi * progress)) / 2
        return start + (end - start) * share

    @property
    def ever_positive(self) -> bool:
        """Whether grounding, and so images, are needed at any time."""
        return any(alpha > 0 for _, alpha in self.points)


def _is_pair(point: object) -> bool:
    match point:
        case [int() | float(), int() | float()]:
            return True
    return False


def learning_rate(step: int, total: int, warmup: float = 0.1, decay: Decay = "linear") -> float:
    """The factor on the learning rate at update `step` (from 0) of `total`.

    A linear rise over the first `warmup` share, then down to 0 along a line or half a cosine wave, or
    level. The linear form is BertAdam's: p / warmup, then (p - 1) / (warmup - 1), with p = step / total.
    """
    progress = step / total
    if progress < warmup:
        return progress / warmup
    if decay == "constant":
        return 1.0
    remaining = max(0.0, (progress - 1) / (warmup - 1))
    return remaining if decay == "linear" else (1 - math.cos(math.pi * remaining)) / 2


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """An optimiser and its learning rate; the defaults are the paper's (BertAdam, 1e-4, 10 % warm-up)."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    name: OptimizerName = "bertadam"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.01
    warmup: float = 0.1
    decay: Decay = "linear"

    def __post_init__(self) -> None:
        _require(0 < self.lr < math.inf, f"lr must be above 0, not {self.lr}")
        _require(all(0 <= beta < 1 for beta in self.betas), f"betas must lie in [0, 1), not {self.betas}")
        _require(0 < self.eps < math.inf, f"eps must be above 0, not {self.eps}")
        _require(
            0 <= self.weight_decay < math.inf, f"weight_decay must be at least 0, not {self.weight_decay}"
        )
        _require(0 <= self.warmup < 1, f"warmup is a share of the updates in [0, 1), not {self.warmup}")


@dataclass(frozen=True, kw_only=True)
class AdditionalSpeech:
    """Speech that a phase learns from beside the captions, by self-supervision alone (FaST-VGS+).

    Every update draws a batch of it too: total = α · L_AV + (1 - α) · L_AUD(captions) + weight · L_AUD(this).

    Attributes:
        corpus: folder of a prepared corpus; it needs no pictures, and those that it has are not used.
        weight: of its L_AUD; with 0 the phase is the one without it.
        batch_size: clips in a batch; null for as many as take one epoch of the captions to go through the
            corpus, but no more than there are captions in a batch, as published.

    Raises:
        ConfigError: no corpus, a negative or infinite weight, or a batch size below 1.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    corpus: str
    weight: float
    batch_size: int | None = None

    def __post_init__(self) -> None:
        _require(bool(self.corpus), "corpus must name the folder of a prepared corpus")
        _require(0 <= self.weight < math.inf, f"weight must be at least 0, not {self.weight}")
        _require(
            self.batch_size is None or self.batch_size >= 1,
            f"batch_size must be at least 1, not {self.batch_size}",
        )


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training with one α, one optimiser and a length in epochs (fractions are allowed).

    `init` names weights to start from in place of those that the phase before left. `additional_speech` is
    learnt from beside the captions, whose epochs and batches measure the phase.

    Raises:
        ConfigError: an empty or unprintable name, or a length that is not above 0.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    name: str
    alpha: Alpha
    epochs: float
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    init: str | None = None
    additional_speech: AdditionalSpeech | None = None

    def __post_init__(self) -> None:
        # The name becomes part of checkpoint folder names.
        _require(
            re.fullmatch(r"[\w+.-]+", self.name) is not None,
            f"name must consist of letters, digits and any of + . - _, not {self.name!r}",
        )
        _require(0 < self.epochs < math.inf, f"epochs must be above 0, not {self.epochs}")

    @property
    def weighted_speech(self) -> AdditionalSpeech | None:
        """The additional speech, None where there is none or its weight is 0."""
        speech = self.additional_speech
        return speech if speech and speech.weight > 0 else None


@dataclass(frozen=True, kw_only=True)
class PhaseSteps:
    """A phase measured in optimiser steps.

    Attributes:
        index: index of the phase.
        settings: the phase.
        steps: updates of the phase.
        steps_per_epoch: batches of captions in an epoch.
        first_step: updates of the whole run before the phase.
        first_epoch: epochs of the whole run before the phase.
    """

    index: int
    settings: Phase
    steps: int
    steps_per_epoch: int
    first_step: int
    first_epoch: float

    @property
    def name(self) -> str:
        """Name of the phase."""
        return self.settings.name

    @property
    def extra_weight(self) -> float:
        """Weight of additional speech, 0 without it."""
        speech = self.settings.additional_speech
        return speech.weight if speech else 0.0

    def alpha(self, step: int) -> float:
        """Return α at `step` (from 0) of the phase."""
        return self.settings.alpha.at(step / self.steps)

    def lr(self, step: int) -> float:
        """Return the learning rate at `step` (from 0) of the phase."""
        optimizer = self.settings.optimizer
        return optimizer.lr * learning_rate(step, self.steps, optimizer.warmup, optimizer.decay)

    def epoch(self, done: int) -> float:
        """Return the epochs of the whole run after `done` steps of the phase."""
        return self.first_epoch + done / self.steps_per_epoch


@dataclass(frozen=True)
class Schedule:
    """The phases of a run, in order.

    Raises:
        ConfigError: no phase, or two of the same name.
    """

    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        names = [phase.name for phase in self.phases]
        _require(bool(names), "a schedule needs at least one phase")
        _require(
            len(set(names)) == len(names), f"every phase needs a name of its own, not {', '.join(names)}"
        )

    @classmethod
    def variant(
        cls,
        name: str,
        *,
        pretraining_epochs: float = 20,
        epochs: float = 70,
        optimizer: OptimizerSettings | None = None,
        plus_alpha: float = 0.5,
        additional_speech: AdditionalSpeech | None = None,
    ) -> Self:
        """One of the paper's nine (section 3): a base model, or a base model that initialises another.

        Args:
            name: see `parse_variant`.
            pretraining_epochs: length of the first of two phases.
            epochs: length of the whole run.
            optimizer: of each phase; the paper's by default.
            plus_alpha: α of VGS+.
            additional_speech: of each phase with self-supervision (α < 1); VGS stays grounding alone.

        Raises:
            ConfigError: no such variant, or pre-training leaves nothing for the second phase.
        """
        bases = VARIANTS[parse_variant(name)]
        lengths = [epochs] if len(bases) == 1 else [pretraining_epochs, epochs - pretraining_epochs]
        _require(
            min(lengths) > 0,
            f"pretraining_epochs ({pretraining_epochs}) must lie between 0 and epochs ({epochs})",
        )
        alphas = {"w2v2": 0.0, "vgs": 1.0, "vgs+": plus_alpha}
        return cls(
            tuple(
                Phase(
                    name=base,
                    alpha=Alpha.constant(alphas[base]),
                    epochs=length,
                    optimizer=optimizer or OptimizerSettings(),
                    additional_speech=additional_speech if alphas[base] < 1 else None,
                )
                for base, length in zip(bases, lengths, strict=True)
            )
        )

    @property
    def epochs(self) -> float:
        """Length of the whole run."""
        return sum(phase.epochs for phase in self.phases)

    def plan(self, steps_per_epoch: int) -> tuple[PhaseSteps, ...]:
        """Measure the phases in steps; each takes at least one."""
        plan: list[PhaseSteps] = []
        first_step, first_epoch = 0, 0.0
        for index, phase in enumerate(self.phases):
            steps = max(1, round(phase.epochs * steps_per_epoch))
            plan.append(
                PhaseSteps(
                    index=index,
                    settings=phase,
                    steps=steps,
                    steps_per_epoch=steps_per_epoch,
                    first_step=first_step,
                    first_epoch=first_epoch,
                )
            )
            first_step, first_epoch = first_step + steps, first_epoch + phase.epochs
        return tuple(plan)


# ---- the paper's nine -------------------------------------------------------------------------------------

VARIANTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "w2v2": ("w2v2",),
        "vgs": ("vgs",),
        "vgs+": ("vgs+",),
        "w2v2,vgs+": ("w2v2", "vgs+"),
        "vgs,vgs+": ("vgs", "vgs+"),
        "w2v2,vgs": ("w2v2", "vgs"),
        "vgs,w2v2": ("vgs", "w2v2"),
        "vgs+,w2v2": ("vgs+", "w2v2"),
        "vgs+,vgs": ("vgs+", "vgs"),
    }
)
"""The nine variants in the paper's order: key -> the phases' names."""


def variant_title(name: str) -> str:
    """A variant as the paper writes it: VGS+, (W2V2, VGS+)."""
    bases = VARIANTS[parse_variant(name)]
    title = ", ".join(base.upper() for base in bases)
    return title if len(bases) == 1 else f"({title})"


def parse_variant(name: str) -> str:
    """The key in `VARIANTS` of a name written with any case, spaces and brackets: "(W2V2, VGS+)".

    Raises:
        ConfigError: no such variant; names the nine and the nearest.
    """
    key = re.sub(r"[\s()\[\]]", "", name).lower()
    if key in VARIANTS:
        return key
    nearest = difflib.get_close_matches(key, VARIANTS, n=1, cutoff=0.0)[0]
    raise ConfigError(
        f"there is no variant {name!r}; the nine are {'; '.join(VARIANTS)}. The nearest is {nearest!r}"
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
