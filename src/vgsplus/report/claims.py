"""The paper's six claims, held against the seeds that were run.

A claim is judged on numbers, one a seed: differences and shares whose 95 % interval is Student's t over the
seeds. With one seed there is no such interval; for retrieval that of its test pictures stands in, for ABX
there is none, and the claim stays undecided. "Supported" and "not supported" are said only where the whole
interval lies on one side of the line that the claim draws.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd
from scipy.stats import t as student

from vgsplus.evaluation.retrieval import DIRECTIONS
from vgsplus.report.paper import VARIANTS
from vgsplus.report.tables import PAPER_KS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vgsplus.evaluation.retrieval import RetrievalScores
    from vgsplus.report.results import Results, Variant

LEVEL = 0.95
ALIKE = 5.0
"""Points of recall within which two variants retrieve alike; the paper's VGS and VGS+ differ by 0.4."""
FORGOTTEN, MUCH = 10.0, 25.0
"""Percent of the recall above chance: less is left of what is forgotten, more of what is kept."""

type Verdict = Literal["supported", "not supported", "undecided", "not run"]
type Seed = Mapping[str, Variant]
"""The variants of one seed by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One number behind a claim.

    Attributes:
        what: what is compared, as "(W2V2, VGS) − VGS".
        unit: "points" of recall, "% of recall" above chance, or "points of error".
        by_seed: the number, one a seed.
        interval: of their mean, at 95 %; None where nothing gives one.
        line: where the claim divides: `wanted` says on which side of it the interval must lie.
        wanted: "above" the line, "below" it, or "within" it on both sides of 0.
    """

    what: str
    unit: str
    by_seed: tuple[float, ...]
    interval: tuple[float, float] | None
    line: float
    wanted: Literal["above", "below", "within"]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.by_seed)

    @property
    def verdict(self) -> Verdict:
        """What this number alone says."""
        if self.interval is None:
            return "undecided"
        low, high = self.interval
        if self.wanted == "within":
            if -self.line <= low and high <= self.line:
                return "supported"
            return "not supported" if low > self.line or high < -self.line else "undecided"
        above, below = low > self.line, high < self.line
        if self.wanted == "below":
            above, below = below, above
        return "supported" if above else "not supported" if below else "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim of the paper, its evidence, and what the run says of it; `note` says what is missing."""

    text: str
    evidence: tuple[Evidence, ...]
    verdict: Verdict
    note: str = ""


def claims(results: Results, test_set: str) -> tuple[Claim, ...]:
    """The six claims, those of retrieval on one test set."""
    seeds = [{v.name: v for v in variants} for variants in (results.variants, *_repeats(results))]
    study = _Study(seeds, test_set)
    return (
        study.claim(
            "W2V2 first, then VGS or VGS+, retrieves better than VGS or VGS+ alone.",
            study.gain("(W2V2, VGS)", "VGS"),
            study.gain("(W2V2, VGS+)", "VGS+"),
        ),
        study.claim("VGS and VGS+ retrieve alike.", study.alike("VGS", "VGS+")),
        study.claim(
            "(VGS, W2V2) forgets what VGS has learned, to chance.",
            study.kept("(VGS, W2V2)", "VGS", FORGOTTEN, "below"),
        ),
        study.claim(
            "(VGS+, W2V2) keeps much of what VGS+ has learned.",
            study.kept("(VGS+, W2V2)", "VGS+", MUCH, "above"),
        ),
        study.claim(
            "VGS tells phones apart better than W2V2, and (VGS+, VGS) best of all.",
            study.fewer_errors("VGS", ["W2V2"]),
            study.fewer_errors("(VGS+, VGS)", [name for name in VARIANTS if name != "(VGS+, VGS)"]),
        ),
        study.claim(
            "ABX worsens when VGS or VGS+ is followed by W2V2.",
            study.fewer_errors("VGS", ["(VGS, W2V2)"]),
            study.fewer_errors("VGS+", ["(VGS+, W2V2)"]),
        ),
    )


def claim_table(results: Results) -> pd.DataFrame:
    """A row a number behind a claim, on every test set: claim, verdict, number and interval."""
    columns = ["test set", "claim", "verdict", "what", "unit", "mean", "low", "high", "by seed", "note"]
    rows = []
    for test_set in results.test_sets:
        for claim in claims(results, test_set):
            head = [test_set, claim.text, claim.verdict]
            for part in claim.evidence:
                low, high = part.interval or (None, None)
                by_seed = " ".join(f"{value:.4f}" for value in part.by_seed)
                rows.append([*head, part.what, part.unit, part.mean, low, high, by_seed, claim.note])
            if not claim.evidence:
                rows.append([*head, None, None, None, None, None, None, claim.note])
    return pd.DataFrame(rows, columns=columns)


def _repeats(results: Results) -> list[tuple[Variant, ...]]:
    return [repeat.variants for repeat in results.repeats]


@dataclass(frozen=True, slots=True)
class _Missing:
    """Why a number is not there."""

    reason: str


class _Study:
    """Makes evidence out of the seeds of a run."""

    def __init__(self, seeds: Sequence[Seed], test_set: str) -> None:
        self._seeds, self._test_set = seeds, test_set

    def claim(self, text: str, *parts: Evidence | _Missing) -> Claim:
        """Supported where all parts are, not supported where one is not."""
        evidence = tuple(part for part in parts if isinstance(part, Evidence))
        missing = list(dict.fromkeys(part.reason for part in parts if isinstance(part, _Missing)))
        verdicts = [part.verdict for part in evidence]
        verdict: Verdict = "undecided"
        if not evidence:
            verdict = "not run"
        elif "not supported" in verdicts:
            verdict = "not supported"
        elif not missing and set(verdicts) == {"supported"}:
            verdict = "supported"
        return Claim(text=text, evidence=evidence, verdict=verdict, note=" ".join(missing))

    def gain(self, better: str, worse: str) -> Evidence | _Missing:
        """How many points of recall `better` lies above `worse`."""
        return self._difference(better, worse, 0.0, "above")

    def alike(self, a: str, b: str) -> Evidence | _Missing:
        """Whether two variants differ by few points of recall."""
        return self._difference(a, b, ALIKE, "within")

    def _difference(
        self, a: str, b: str, line: float, wanted: Literal["above", "within"]
    ) -> Evidence | _Missing:
        found = self._scores(a, b)
        if isinstance(found, _Missing):
            return found
        width = math.hypot(_half_width(found[0][0]), _half_width(found[0][1]))
        values = tuple(_recall(scores) - _recall(other) for scores, other in found)
        return Evidence(
            what=f"{a} − {b}",
            unit="points of recall",
            by_seed=values,
            interval=_interval(values, width),
            line=line,
            wanted=wanted,
        )

    def kept(
        self, after: str, before: str, line: float, wanted: Literal["above", "below"]
    ) -> Evidence | _Missing:
        """How much of the recall above chance of `before` is there in `after`, in percent."""
        found = self._scores(after, before)
        if isinstance(found, _Missing):
            return found
        above = [(_recall(s) - _chance(s), _recall(o) - _chance(o)) for s, o in found]
        if any(learned <= _half_width(other) for (_, learned), (_, other) in zip(above, found, strict=True)):
            return _Missing(f"{before} itself did not rise above chance: there was nothing to keep.")
        values = tuple(100 * left / learned for left, learned in above)
        width = 100 * _half_width(found[0][0]) / above[0][1]
        return Evidence(
            what=f"{after} of {before}",
            unit="% of the recall above chance",
            by_seed=values,
            interval=_interval(values, width),
            line=line,
            wanted=wanted,
        )

    def fewer_errors(self, better: str, others: Sequence[str]) -> Evidence | _Missing:
        """How many points fewer ABX errors `better` makes than the best of the others.

        The error is that of the best layer, averaged over the conditions.
        """
        if missing := self._missing([better, *others], lambda variant: bool(variant.abx)):
            return _Missing(missing.replace("Needs", "Needs the ABX of"))
        values = tuple(
            min(_abx(seed[other]) for other in others) - _abx(seed[better]) for seed in self._seeds
        )
        versus = others[0] if len(others) == 1 else "best of the others"
        return Evidence(
            what=f"{versus} − {better}",
            unit="points of error",
            by_seed=values,
            interval=_interval(values, None),
            line=0.0,
            wanted="above",
        )

    def _scores(self, *names: str) -> list[tuple[RetrievalScores, ...]] | _Missing:
        """The scores of the named variants, a tuple a seed."""
        if missing := self._missing(names, lambda variant: self._test_set in variant.retrieval):
            return _Missing(missing)
        return [tuple(seed[name].retrieval[self._test_set] for name in names) for seed in self._seeds]

    def _missing(self, names: Sequence[str], there: Callable[[Variant], bool]) -> str:
        absent = [n for n in names if not all(n in seed and there(seed[n]) for seed in self._seeds)]
        return f"Needs {', '.join(absent)}." if absent else ""


def _recall(scores: RetrievalScores) -> float:
    """R@1 and R@10 of both directions, averaged, in percent: the numbers of Table I as one."""
    return 100 * statistics.fmean(scores.side(d).recall[k].value for d in DIRECTIONS for k in PAPER_KS)


def _chance(scores: RetrievalScores) -> float:
    return 100 * statistics.fmean(scores.side(d).chance[k] for d in DIRECTIONS for k in PAPER_KS)


def _half_width(scores: RetrievalScores) -> float:
    """Half the interval of `_recall` from its test pictures, as if its four recalls moved together."""
    found = [scores.side(d).recall[k] for d in DIRECTIONS for k in PAPER_KS]
    return 50 * statistics.fmean(estimate.high - estimate.low for estimate in found)


def _abx(variant: Variant) -> float:
    """The error of the best layer in percent, averaged over the conditions."""
    conditions = variant.abx[-1].errors
    return 100 * statistics.fmean(min(errors.values()) for errors in conditions.values())


def _interval(values: Sequence[float], width: float | None) -> tuple[float, float] | None:
    """The interval of the mean: Student's t over seeds, or `width` to both sides of a single value."""
    mean = statistics.fmean(values)
    if len(values) > 1:
        spread = statistics.stdev(values) / math.sqrt(len(values))
        width = float(student.ppf((1 + LEVEL) / 2, len(values) - 1)) * spread
    return None if width is None else (mean - width, mean + width)
