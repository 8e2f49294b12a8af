"""Training schedules: phases, the weight α within a phase, the learning rate, the paper's nine variants.

A schedule is a list of phases. Each phase has its own α, length and optimiser; the optimiser and its learning
rate start anew in every phase, the weights are kept.
"""

import difflib
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, SerializerFunctionWrapHandler, model_serializer

from vgsplus.errors import ConfigError
from vgsplus.validation import config_dataclass

type OptimizerName = Literal["bertadam", "adamw"]
type Decay = Literal["linear", "cosine", "constant"]
type _Share = Annotated[float, Field(ge=0, lt=1)]


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
        if self.form in ("constant", "steps"):
            return [alpha for threshold, alpha in self.points if threshold <= progress][-1]
        (_, start), (_, end) = self.points
        share = progress if self.form == "linear" else (1 - math.cos(math.pi * progress)) / 2
        return start + (end - start) * share

    @property
    def ever_positive(self) -> bool:
        """Whether α is above 0, so that images are needed, at any time."""
        return any(alpha > 0 for _, alpha in self.points)


def _is_pair(point: object) -> bool:
    match point:
        case [int() | float(), int() | float()]:
            return True
    return False


def learning_rate(step: int, total: int, warmup: float = 0.1, decay: Decay = "linear") -> float:
    """Return the factor on the learning rate at update `step` (from 0) of `total`.

    It rises linearly over the first `warmup` share, then falls to 0 along a line or half a cosine wave, or
    stays constant. "linear" is BertAdam's: p / warmup, then (p - 1) / (warmup - 1), with p = step / total.
    """
    progress = step / total
    if progress < warmup:
        return progress / warmup
    if decay == "constant":
        return 1.0
    remaining = max(0.0, (progress - 1) / (warmup - 1))
    return remaining if decay == "linear" else (1 - math.cos(math.pi * remaining)) / 2


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
        warmup: share of the updates of a phase. transformers `warmup_ratio`; fairseq
            `lr_scheduler.warmup_updates` counts updates.
        decay: of the learning rate after the warm-up. fairseq `lr_scheduler._name` ("linear" is
            "polynomial_decay"), transformers `lr_scheduler_type`.
    """

    name: OptimizerName = "bertadam"
    lr: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[_Share, _Share] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup: _Share = 0.1
    decay: Decay = "linear"


@config_dataclass
class AdditionalSpeech:
    """Speech that a phase is trained on in addition to the captions, with L_AUD alone (FaST-VGS+).

    Every update takes a batch of it: total = α · L_AV + (1 - α) · L_AUD(captions) + weight · L_AUD(this).

    Attributes:
        corpus: folder of a prepared corpus; its images, if any, are not used.
        weight: of its L_AUD; with 0 the phase is the same as without additional speech.
        batch_size: clips in a batch. None: as many as make one epoch of the captions one epoch of this
            corpus, but no more than there are captions in a batch, as published.
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
        optimizer: starts anew in each phase.
        init: path of weights to load before the phase, instead of continuing with those of the phase before.
            fairseq `checkpoint.finetune_from_model`, transformers `model_name_or_path`.
        additional_speech: or None.
    """

    name: Annotated[str, Field(pattern=r"^[\w+.-]+$")]
    alpha: Annotated[Alpha, BeforeValidator(Alpha.parse), PlainSerializer(Alpha.plain)]
    epochs: Annotated[float, Field(gt=0)]
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    init: str | None = None
    additional_speech: AdditionalSpeech | None = None

    @property
    def weighted_speech(self) -> AdditionalSpeech | None:
        """The additional speech, or None if there is none or its weight is 0."""
        speech = self.additional_speech
        return speech if speech and speech.weight > 0 else None

    @model_serializer(mode="wrap")
    def _to_plain(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Omitted if not given: such runs are written as before the setting existed.
        plain: dict[str, Any] = serialize(self)
        return {k: v for k, v in plain.items() if k != "additional_speech" or v is not None}


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

    def plan(self, steps_per_epoch: int) -> tuple[PhaseSteps, ...]:
        """Measure the phases in steps, of which each has at least one."""
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
