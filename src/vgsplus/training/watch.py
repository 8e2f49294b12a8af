"""Warnings about a run that is not learning: rules on the numbers in its log.

The rules see the "train" records of `WINDOW` consecutive steps at a time, so that warnings are a function of
the log: a resumed run gives the same ones, and `vgsplus doctor` finds them afterwards.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any, NamedTuple

from vgsplus.models.config import ModelConfig

WINDOW = 25
"""Steps whose medians the rules compare."""
FEW_CODES = 10
"""Codes in use of a codebook, by their perplexity, below which it collapses; or a quarter of a small one.
W2V2 keeps 13 to 17 on the toy corpus, and 7 to 10 without the diversity loss (docs/watching.md)."""
SAME_DIRECTION = 0.01
"""Standard deviation of embeddings (`embedding_std`) below which they are equal; 0.05 in a new toy model."""
AT_CHANCE = 0.99
"""Share of the chance level above which a loss is at it: losses of random models vary by 0.4 %."""
ABOVE_CHANCE = 1.1
"""Share of the chance level above which grounding is worse than that of equal similarities."""
MUCH_WAITING = 0.5
"""Share of a step that is spent on waiting for data."""
LOWER_RATE = "a lower learning rate or a longer warm-up (schedule.N.optimizer)"


type Record = Mapping[str, Any]
"""See `training.log`."""


class TrainingWarning(NamedTuple):
    """What a rule found.

    Attributes:
        rule: name of the rule.
        step: update of the run after which it held.
        what: what was found.
        remedy: what to try.
    """

    rule: str
    step: int
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}. Try {self.remedy}."


class Watch:
    """Applies the rules to the "train" records of a run in order; each warns once in every phase."""

    def __init__(self, model: ModelConfig) -> None:
        self._model = model
        self._start_phase(-1)

    def _start_phase(self, index: int) -> None:
        self._phase = index
        self._records: list[Record] = []
        self._first: _Window | None = None
        self._held: Counter[str] = Counter()

    def add(self, record: Record) -> list[TrainingWarning]:
        """Take the next record and return the warnings that follow from it and those before."""
        if record["phase_index"] != self._phase:
            self._start_phase(record["phase_index"])
        self._records.append(record)
        if record["phase_step"] % WINDOW:
            return []
        window, self._records = _Window(self._model, self._records, self._first), []
        if len(window.records) < WINDOW:  # the log has a gap
            return []
        self._first = self._first or window
        warnings = []
        for rule in _RULES:
            found = rule.test(window)
            # Counts windows in a row; a rule that has warned is not reset.
            if found is None and self._held[rule.name] < rule.windows:
                self._held[rule.name] = 0
            elif found is not None:
                self._held[rule.name] += 1
                if self._held[rule.name] == rule.windows:
                    warnings.append(TrainingWarning(rule.name, record["step"], found, rule.remedy))
        return warnings


def warnings_in(records: Iterable[Record], model: ModelConfig) -> Iterator[TrainingWarning]:
    """Yield all warnings about the run with these records."""
    watch = Watch(model)
    for record in records:
        if record["kind"] == "train":
            yield from watch.add(record)


def chance_levels(model: ModelConfig, captions: float) -> dict[str, float]:
    """Return the losses of a model that cannot tell its choices apart, by name, for batches of `captions`.

    The margin of 1 raises grounding above 2 ln B.
    """
    return {
        "contrastive": math.log(1 + model.num_negatives),
        "grounding": 2 * math.log(1 + (captions - 1) * math.e),
    }


# ---- rules ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Window:
    """Records of consecutive steps of a phase, and the first window of the phase (None: this one)."""

    model: ModelConfig
    records: Sequence[Record]
    first: "_Window | None"

    def median(self, name: str) -> float | None:
        """Return the median over the records that have a value, or None."""
        values = [value for record in self.records if (value := record.get(name)) is not None]
        return median(values) if values else None

    @property
    def warm(self) -> bool:
        """Whether the warm-up is over: the learning rate no longer rises."""
        return bool(self.records[-1]["lr"] <= self.records[0]["lr"])

    @cached_property
    def chance(self) -> dict[str, float]:
        """See `chance_levels`."""
        return chance_levels(self.model, self.median("captions") or math.inf)  # older logs have none


class _Rule(NamedTuple):
    """A rule: what it finds in a window (None: nothing), in how many windows in a row, and what to try."""

    name: str
    windows: int
    test: Callable[[_Window], str | None]
    remedy: str


def _few_codes(window: _Window) -> str | None:
    c, used = window.model, window.median("code_perplexity")
    # Codebooks that start with few codes may still gain others during the warm-up.
    start = window.first.median("code_perplexity") if window.first else None
    fallen = used is not None and (window.warm or (start is not None and used < start / 2))
    if used is None or not fallen or used >= c.quantizer_groups * min(FEW_CODES, c.quantizer_codes / 4):
        return None
    each = used / c.quantizer_groups
    return f"the codebooks collapse: of {c.quantizer_codes} codes in each, only about {each:.1f} are in use"


def _same_embeddings(window: _Window) -> str | None:
    for side in ("speech", "image"):
        std = window.median(f"{side}_embedding_std")
        if std is not None and std < SAME_DIRECTION:
            return f"the {side} embeddings collapse: all have one direction (standard deviation {std:.1g})"
    return None


def _saturated(window: _Window) -> str | None:
    loss, chance = window.median("grounding"), window.chance["grounding"]
    if loss is None or loss < ABOVE_CHANCE * chance:
        return None
    spread = window.median("similarity_std")
    shown = "" if spread is None else f" (standard deviation {spread:.3g})"
    return (
        f"the similarities saturate{shown}: grounding is {loss:.3g}, above the {chance:.3g} of equal "
        "similarities for all pairs"
    )


def _contrastive_at_chance(window: _Window) -> str | None:
    loss, chance = window.median("contrastive"), window.chance["contrastive"]
    if loss is None or not window.warm or loss < AT_CHANCE * chance:
        return None
    return f"the contrastive loss stays at chance after the warm-up: {loss:.3f}, where chance is {chance:.3f}"


def _grounding_at_chance(window: _Window) -> str | None:
    loss, chance = window.median("grounding"), window.chance["grounding"]
    if loss is None or not window.warm or not AT_CHANCE <= loss / chance < ABOVE_CHANCE:
        return None
    return f"grounding stays at chance after the warm-up: {loss:.2f}, where chance is {chance:.2f}"


def _slow_loader(window: _Window) -> str | None:
    wait = window.median("loader_wait")
    if wait is None or wait < MUCH_WAITING:
        return None
    return f"reading is slower than the device, which waits for data {wait:.0%} of the time"


_RULES = (
    _Rule(
        "codebook", 2, _few_codes, f"a higher model.diversity_weight (0.1 in wav2vec 2.0), or {LOWER_RATE}"
    ),
    _Rule(
        "embeddings",
        1,
        _same_embeddings,
        f"{LOWER_RATE}; and check that the pictures, or their region features, differ",
    ),
    _Rule("similarity", 1, _saturated, LOWER_RATE),
    _Rule(
        "contrastive",
        4,
        _contrastive_at_chance,
        f"{LOWER_RATE}, model.quantizer_logit_std=5, model.feature_penalty_weight=0, or shorter masks "
        "(model.mask_span)",
    ),
    _Rule(
        "grounding",
        4,
        _grounding_at_chance,
        f"{LOWER_RATE}, no dropout, shorter masks (model.mask_span), model.feature_penalty_weight=0, or "
        "larger batches; and check that captions and pictures belong together",
    ),
    _Rule(
        "loader",
        4,
        _slow_loader,
        "more workers, or the corpus on a faster disk (`vgsplus data pack`)",
    ),
)
