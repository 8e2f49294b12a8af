"""Training schedules: phases, the weight α within a phase, the learning rate, the paper's nine variants.

A schedule is a list of phases, each with its own α, length and optimiser. The optimiser state and learning
rate restart in each phase; the weights carry over.
"""

import difflib
import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self, assert_never

from pydantic import BeforeValidator, Field, PlainSerializer

from vgsplus.errors import ConfigError
from vgsplus.validation import config_dataclass

type Decay = Literal["linear", "cosine", "constant"]
type _Fraction = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, slots=True)
class Alpha:
    """The weight α of grounding against self-supervision, in [0, 1], as a function of phase progress.

    See `parse` for the ways to write it.

    Attributes:
        form: shape of the curve.
        points: (progress, α): one for a constant, both ends for linear and cosine, one for each step.

    Raises:
        ConfigError: an α is outside [0, 1], or the steps do not start at progress 0 and rise below 1.
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
    def parse(cls, value: object) -> Self:
        """Build it from plain values.

        Args:
            value: a number, {linear: [from, to]}, {cosine: [from, to]} (half a wave, flat at both ends) or
                {steps: [[0.0, a], [0.5, b], …]}, pairs of a progress and the α from there on.

        Raises:
            ConfigError: it has none of the four forms, or impossible values.
        """
        match value:
            case Alpha():
                return cls(value.form, value.points)
            case int() | float() if not isinstance(value, bool):
                return cls("constant", ((0.0, float(value)),))
            case {"linear": [int() | float() as start, int() | float() as end], **rest} if not rest:
                return cls("linear", ((0.0, float(start)), (1.0, float(end))))
            case {"cosine": [int() | float() as start, int() | float() as end], **rest} if not rest:
                return cls("cosine", ((0.0, float(start)), (1.0, float(end))))
            case {"steps": [_, *_] as points, **rest} if not rest and all(map(_is_pair, points)):
                return cls("steps", tuple((float(progress), float(alpha)) for progress, alpha in points))
        raise ConfigError(
            "α is a number, {linear: [from, to]}, {cosine: [from, to]} or "
            f"{{steps: [[0.0, a], [0.5, b], …]}}, not {value!r}"
        )

    def plain(self) -> float | dict[str, list[Any]]:
        """Return plain values that `parse` reads back."""
        if self.form == "constant":
            return self.points[0][1]
        if self.form == "steps":
            return {"steps": [list(point) for point in self.points]}
        return {self.form: [alpha for _, alpha in self.points]}

    def at(self, progress: float) -> float:
        """Return α at `progress` in [0, 1) of the phase."""
        match self.form:
            case "constant" | "steps":
                return [alpha for threshold, alpha in self.points if threshold <= progress][-1]
            case "linear":
                fraction = progress
            case "cosine":
                fraction = (1 - math.cos(math.pi * progress)) / 2
            case _:
                assert_never(self.form)
        (_, start), (_, end) = self.points
        return start + (end - start) * fraction

    @property
    def ever_positive(self) -> bool:
        """Whether α is above 0, so that images are needed, at any time."""
        return any(alpha > 0 for _, alpha in self.points)


def _is_pair(point: object) -> bool:
    match point:
        case [int() | float(), int() | float()]:
            return True
    return False


def lr_factor(step: int, total: int, warmup: float = 0.1, decay: Decay = "linear") -> float:
    """Return the factor on the learning rate at update `step` (from 0) of `total`.

    Linear warm-up over the first `warmup` fraction, then linear or cosine decay to 0, or constant. "linear"
    is BertAdam's: p / warmup, then (p - 1) / (warmup - 1), with p = step / total.
    """
    progress = step / total
    if progress < warmup:
        return progress / warmup
    remaining = max(0.0, (progress - 1) / (warmup - 1))
    match decay:
        case "constant":
            return 1.0
        case "linear":
            return remaining
        case "cosine":
            return (1 - math.cos(math.pi * remaining)) / 2
        case _:
            assert_never(decay)


@config_dataclass
class OptimizerSettings:
    """An optimiser and its learning rate; the defaults are those of the paper.

    Attributes:
        name: "bertadam" (see `training.optimizer.BertAdam`) or "adamw". fairseq `optimizer._name`,
            transformers `optim`.
        lr: peak learning rate. fairseq `optimization.lr`, transformers `learning_rate`.
        betas: decay rates of the moments. fairseq `optimizer.adam_betas`, transformers `adam_beta1`,
            `adam_beta2`.
        eps: added to the root of the second moment. fairseq `optimizer.adam_eps`, transformers
            `adam_epsilon`.
        weight_decay: fairseq `optimizer.weight_decay`, transformers `weight_decay`.
        warmup: fraction of the updates of a phase. transformers `warmup_ratio`; fairseq
            `lr_scheduler.warmup_updates` counts updates.
        decay: of the learning rate after the warm-up. fairseq `lr_scheduler._name` ("linear" is
            "polynomial_decay"), transformers `lr_scheduler_type`.
    """

    name: Literal["bertadam", "adamw"] = "bertadam"
    lr: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[_Fraction, _Fraction] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup: _Fraction = 0.1
    decay: Decay = "linear"


@config_dataclass
class AdditionalSpeech:
    """Additional speech of a phase, trained with the self-supervised loss only (FaST-VGS+, Peng & Harwath).

    Every update adds a batch of it: total = α · grounding + (1 - α) · ssl + weight · ssl(additional speech).

    Attributes:
        corpus: folder of a prepared corpus; its images, if any, are not used.
        weight: of its ssl loss; 0 disables it.
        batch_size: clips in a batch. None: enough clips for about one pass per epoch of the captions, at most
            the batch size of the captions (as in FaST-VGS-Family).
    """

    corpus: Annotated[str, Field(min_length=1)]
    weight: Annotated[float, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=1)] | None = None


@config_dataclass
class Phase:
    """A part of training with one α, one optimiser and a length.

    Attributes:
        name: letters, digits and + . - _, because checkpoint folders are named after it.
        alpha: α during the phase, in a form that `Alpha.parse` reads.
        epochs: length in epochs of the captions; fractions are allowed. fairseq `optimization.max_epoch`,
            transformers `num_train_epochs`.
        optimizer: restarts in each phase.
        init: path of weights to load before the phase, instead of continuing with those of the phase before.
            fairseq `checkpoint.finetune_from_model`, transformers `model_name_or_path`.
        additional_speech: adds self-supervised batches; the length of the phase is still counted in epochs of
            the captions.
    """

    name: Annotated[str, Field(pattern=r"^[\w+.-]+$")]
    alpha: Annotated[Alpha, BeforeValidator(Alpha.parse), PlainSerializer(Alpha.plain)]
    epochs: Annotated[float, Field(gt=0)]
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    init: str | None = None
    # Omitted if unset, so that files equal those of versions without this setting.
    additional_speech: Annotated[AdditionalSpeech | None, Field(exclude_if=lambda x: x is None)] = None

    @property
    def active_additional_speech(self) -> AdditionalSpeech | None:
        """The additional speech, or None without it or with weight 0."""
        speech = self.additional_speech
        return speech if speech and speech.weight > 0 else None


@dataclass(frozen=True, kw_only=True)
class PhaseSteps:
    """A phase measured in optimiser steps (updates).

    An epoch has a step for each batch of captions; `first_step` and `first_epoch` count those of the whole
    run before the phase.
    """

    index: int
    config: Phase
    steps: int
    steps_per_epoch: int
    first_step: int
    first_epoch: float

    @property
    def name(self) -> str:
        """Name of the phase."""
        return self.config.name

    @property
    def additional_weight(self) -> float:
        """Weight of additional speech, 0 without it."""
        speech = self.config.additional_speech
        return speech.weight if speech else 0.0

    def alpha(self, step: int) -> float:
        """Return α at `step` (from 0) of the phase."""
        return self.config.alpha.at(step / self.steps)

    def lr(self, step: int) -> float:
        """Return the learning rate at `step` (from 0) of the phase."""
        optimizer = self.config.optimizer
        return optimizer.lr * lr_factor(step, self.steps, optimizer.warmup, optimizer.decay)

    def epoch(self, steps_done: int) -> float:
        """Return the epochs of the whole run after `steps_done` steps of the phase."""
        return self.first_epoch + steps_done / self.steps_per_epoch


@dataclass(frozen=True)
class Schedule:
    """The phases of a run, in order.

    Raises:
        ConfigError: there is no phase, or two have the same name.
    """

    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        names = [phase.name for phase in self.phases]
        if not names:
            raise ConfigError("a schedule needs at least one phase")
        if len(set(names)) < len(names):
            raise ConfigError(f"every phase needs a name of its own, not {', '.join(names)}")

    @classmethod
    def variant(
        cls,
        variant: str,
        *,
        pretraining_epochs: float = 20,
        epochs: float = 70,
        optimizer: OptimizerSettings | None = None,
        plus_alpha: float = 0.5,
        additional_speech: AdditionalSpeech | None = None,
    ) -> Self:
        """Build one of the paper's nine (section 3): a base model, or one that initialises another.

        Args:
            variant: see `parse_variant`.
            pretraining_epochs: length of the first of two phases.
            epochs: length of the whole run.
            optimizer: of each phase; the paper's by default.
            plus_alpha: α of VGS+.
            additional_speech: of each phase with self-supervision (α < 1).

        Raises:
            ConfigError: no such variant, or pre-training leaves nothing for the second phase.
        """
        bases = VARIANTS[parse_variant(variant)]
        lengths = [epochs] if len(bases) == 1 else [pretraining_epochs, epochs - pretraining_epochs]
        if min(lengths) <= 0:
            raise ConfigError(
                f"pretraining_epochs ({pretraining_epochs}) must lie between 0 and epochs ({epochs})"
            )
        alphas = {"w2v2": 0.0, "vgs": 1.0, "vgs+": plus_alpha}
        phases = [
            Phase(
                name=base,
                alpha=Alpha.parse(alphas[base]),
                epochs=length,
                optimizer=optimizer or OptimizerSettings(),
                additional_speech=additional_speech if alphas[base] < 1 else None,
            )
            for base, length in zip(bases, lengths, strict=True)
        ]
        return cls(tuple(phases))

    @property
    def epochs(self) -> float:
        """Length of the whole run."""
        return sum(phase.epochs for phase in self.phases)

    def plan(self, steps_per_epoch: Callable[[Phase], int]) -> tuple[PhaseSteps, ...]:
        """Measure the phases in steps, of which each has at least one."""
        plan: list[PhaseSteps] = []
        first_step, first_epoch = 0, 0.0
        for index, phase in enumerate(self.phases):
            per_epoch = steps_per_epoch(phase)
            steps = max(1, round(phase.epochs * per_epoch))
            plan.append(
                PhaseSteps(
                    index=index,
                    config=phase,
                    steps=steps,
                    steps_per_epoch=per_epoch,
                    first_step=first_step,
                    first_epoch=first_epoch,
                )
            )
            first_step, first_epoch = first_step + steps, first_epoch + phase.epochs
        return tuple(plan)


# ---- the paper's nine -------------------------------------------------------------------------------------

VARIANTS: Mapping[str, tuple[str, ...]] = {
    key: tuple(key.split(","))
    for key in (
        *("w2v2", "vgs", "vgs+"),
        *("w2v2,vgs+", "vgs,vgs+", "w2v2,vgs", "vgs,w2v2", "vgs+,w2v2", "vgs+,vgs"),
    )
}
"""The nine variants in the order of the paper: key → names of the phases."""


def variant_title(name: str) -> str:
    """Return the name of a variant in the paper: VGS+, (W2V2, VGS+)."""
    bases = VARIANTS[parse_variant(name)]
    title = ", ".join(base.upper() for base in bases)
    return title if len(bases) == 1 else f"({title})"


def parse_variant(name: str) -> str:
    """Return the key in `VARIANTS` of a name in any case, with or without spaces and brackets.

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
