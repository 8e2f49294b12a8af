"""The paper's six claims, tested on the seeds that were run, and a headline in words.

A claim is judged by one or more numbers (differences, shares) with a 95 % interval: Student's t over the
seeds. With one seed, numbers on retrieval have the interval of the bootstrap over test images; numbers on ABX
have none, and the claim is undecided. A claim is "supported" or "not supported" only if the interval is
entirely on one side of a threshold.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd
from scipy.stats import t as student

from vgsplus.evaluation.retrieval import DIRECTIONS
from vgsplus.report.paper import PAPER_KS, TITLES
from vgsplus.report.results import ordered
from vgsplus.report.tables import DASH, interval, label, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vgsplus.evaluation.retrieval import Estimate, RetrievalScores
    from vgsplus.report.results import Results, Variant

LEVEL = 0.95
ALIKE = 5.0
"""Points of recall by which variants that retrieve alike may differ; in the paper they differ by 0.4."""
FORGOTTEN, MUCH = 10.0, 25.0
"""Percent of the recall above chance that remains: at most FORGOTTEN, or at least MUCH if much is kept."""

type Verdict = Literal["supported", "not supported", "undecided", "not run"]
type Expected = Literal["above", "below", "within"]
"""Where a claim expects the interval: above or below the threshold, or within ± threshold."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One number that a claim depends on.

    Attributes:
        what: the comparison, for example "(W2V2, VGS) − VGS".
        unit: "points of recall", "% of the recall above chance", or "points of error".
        by_seed: value for each seed.
        interval: 95 % interval of the mean, or None.
        threshold: threshold of the claim.
        expected: where the claim expects the interval.
    """

    what: str
    unit: str
    by_seed: tuple[float, ...]
    interval: tuple[float, float] | None
    threshold: float
    expected: Expected

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.by_seed)

    @property
    def verdict(self) -> Verdict:
        """The verdict on this number alone."""
        if self.interval is None:
            return "undecided"
        low, high = self.interval
        if self.expected == "within":
            if -self.threshold <= low and high <= self.threshold:
                return "supported"
            return "not supported" if low > self.threshold or high < -self.threshold else "undecided"
        above, below = low > self.threshold, high < self.threshold
        if self.expected == "below":
            above, below = below, above
        return "supported" if above else "not supported" if below else "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim of the paper, its evidence and the verdict; `note` names what is missing."""

    text: str
    evidence: tuple[Evidence, ...]
    verdict: Verdict
    note: str = ""


def claims(results: Results, test_set: str) -> tuple[Claim, ...]:
    """Judge the six claims; those on retrieval by one test set."""
    comparisons = _Comparisons(results, test_set)
    return (
        _claim(
            "W2V2 first, then VGS or VGS+, retrieves better than VGS or VGS+ alone.",
            comparisons.difference("(W2V2, VGS)", "VGS", 0.0, "above"),
            comparisons.difference("(W2V2, VGS+)", "VGS+", 0.0, "above"),
        ),
        _claim("VGS and VGS+ retrieve alike.", comparisons.difference("VGS", "VGS+", ALIKE, "within")),
        _claim(
            "(VGS, W2V2) forgets what VGS has learned, to chance.",
            comparisons.kept("(VGS, W2V2)", "VGS", FORGOTTEN, "below"),
        ),
        _claim(
            "(VGS+, W2V2) keeps much of what VGS+ has learned.",
            comparisons.kept("(VGS+, W2V2)", "VGS+", MUCH, "above"),
        ),
        _claim(
            "VGS tells phones apart better than W2V2, and (VGS+, VGS) best of all.",
            comparisons.fewer_errors("VGS", ["W2V2"]),
            comparisons.fewer_errors("(VGS+, VGS)", [name for name in TITLES if name != "(VGS+, VGS)"]),
        ),
        _claim(
            "ABX worsens when VGS or VGS+ is followed by W2V2.",
            comparisons.fewer_errors("VGS", ["(VGS, W2V2)"]),
            comparisons.fewer_errors("VGS+", ["(VGS+, W2V2)"]),
        ),
    )


def claim_table(results: Results) -> pd.DataFrame:
    """Return a table with a row per test set, claim and number: verdict, number and interval."""
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


def _claim(text: str, *parts: Evidence | str) -> Claim:
    """Combine evidence and reasons why evidence is missing.

    A claim is supported if all evidence supports it, and not supported if any does not.
    """
    evidence = tuple(part for part in parts if isinstance(part, Evidence))
    missing = list(dict.fromkeys(part for part in parts if isinstance(part, str)))
    verdicts = [part.verdict for part in evidence]
    verdict: Verdict = "undecided"
    if not evidence:
        verdict = "not run"
    elif "not supported" in verdicts:
        verdict = "not supported"
    elif not missing and set(verdicts) == {"supported"}:
        verdict = "supported"
    return Claim(text=text, evidence=evidence, verdict=verdict, note=" ".join(missing))


class _Comparisons:
    """Comparisons of variants over the seeds; each returns a reason instead if a variant is missing."""

    def __init__(self, results: Results, test_set: str) -> None:
        seeds = (results.variants, *(repeat.variants for repeat in results.repeats))
        self._seeds = [{variant.name: variant for variant in variants} for variants in seeds]
        self._test_set = test_set

    def difference(self, a: str, b: str, threshold: float, expected: Expected) -> Evidence | str:
        """Return the points of recall by which `a` exceeds `b`."""
        found = self._scores(a, b)
        if isinstance(found, str):
            return found
        if expected == "within" and not any(_above_chance(scores) for scores in zip(*found, strict=True)):
            return f"Neither {a} nor {b} rose above chance, so there is nothing to compare."
        width = math.hypot(_half_width(found[0][0]), _half_width(found[0][1]))
        values = tuple(_recall(scores) - _recall(other) for scores, other in found)
        what, unit = f"{a} − {b}", "points of recall"
        return Evidence(what, unit, values, interval_of_mean(values, width), threshold, expected)

    def kept(self, after: str, before: str, threshold: float, expected: Expected) -> Evidence | str:
        """Return the recall above chance of `after` in percent of that of `before`."""
        found = self._scores(after, before)
        if isinstance(found, str):
            return found
        if not _above_chance([other for _, other in found]):
            return f"{before} itself did not rise above chance, so there is nothing to keep."
        above = [(_recall(s) - _chance(s), _recall(o) - _chance(o)) for s, o in found]
        values = tuple(100 * left / learned for left, learned in above)
        width = 100 * _half_width(found[0][0]) / above[0][1]
        what, unit = f"{after} of {before}", "% of the recall above chance"
        return Evidence(what, unit, values, interval_of_mean(values, width), threshold, expected)

    def fewer_errors(self, better: str, others: Sequence[str]) -> Evidence | str:
        """Return the points by which the ABX error (`_abx`) of `better` is below the lowest of the others."""
        if missing := self._missing([better, *others], lambda variant: bool(variant.abx)):
            return missing.replace("Needs", "Needs the ABX of")
        values = tuple(
            min(_abx(seed[other]) for other in others) - _abx(seed[better]) for seed in self._seeds
        )
        versus = others[0] if len(others) == 1 else "best of the others"
        what = f"{versus} − {better}"
        return Evidence(what, "points of error", values, interval_of_mean(values, None), 0.0, "above")

    def _scores(self, *names: str) -> list[tuple[RetrievalScores, ...]] | str:
        """Return the scores of the named variants, a tuple per seed."""
        if missing := self._missing(names, lambda variant: self._test_set in variant.retrieval):
            return missing
        return [tuple(seed[name].retrieval[self._test_set] for name in names) for seed in self._seeds]

    def _missing(self, names: Sequence[str], measured: Callable[[Variant], bool]) -> str:
        absent = [n for n in names if not all(n in seed and measured(seed[n]) for seed in self._seeds)]
        return f"Needs {', '.join(absent)}." if absent else ""


def _recalls(scores: RetrievalScores) -> list[tuple[Estimate, float]]:
    """Return the recalls of Table I, each with its chance level."""
    both = [scores.direction(direction) for direction in DIRECTIONS]
    return [(one.recall[k], one.chance[k]) for one in both for k in PAPER_KS if k in one.recall]


def _recall(scores: RetrievalScores) -> float:
    """Return the mean of R@1 and R@10 of both directions, in percent."""
    return 100 * statistics.fmean(share.value for share, _ in _recalls(scores))


def _chance(scores: RetrievalScores) -> float:
    return 100 * statistics.fmean(chance for _, chance in _recalls(scores))


def _above_chance(seeds: Sequence[RetrievalScores]) -> bool:
    """Return whether the interval of the recall is above chance with every seed."""
    return all(_recall(scores) - _chance(scores) > _half_width(scores) for scores in seeds)


def _half_width(scores: RetrievalScores) -> float:
    """Return half the width of the interval of `_recall`, as if its four recalls were fully correlated."""
    return 50 * statistics.fmean(share.high - share.low for share, _ in _recalls(scores))


def _abx(variant: Variant) -> float:
    """Return the error of the best layer in percent, averaged over the conditions."""
    return 100 * statistics.fmean(min(errors.values()) for errors in variant.abx[-1].errors.values())


def interval_of_mean(values: Sequence[float], width: float | None = None) -> tuple[float, float] | None:
    """Return the interval of the mean: Student's t over seeds, or a single value ± `width`."""
    mean = statistics.fmean(values)
    if len(values) > 1:
        spread = statistics.stdev(values) / math.sqrt(len(values))
        width = float(student.ppf((1 + LEVEL) / 2, len(values) - 1)) * spread
    return None if width is None else (mean - width, mean + width)


# ---- the headline -----------------------------------------------------------------------------------------


def headline(results: Results, test_set: str) -> tuple[str, ...]:
    """Return sentences on the variant with the highest R@1 (mean of both directions) and its lead.

    Two recalls differ if their 95 % intervals do not overlap. The intervals cover the choice of test images,
    not of the seed.
    """
    scored = {v.name: v.retrieval[test_set] for v in ordered(results) if test_set in v.retrieval}
    if not scored:
        return (f"Nothing has been evaluated on {label(test_set)} yet.",)

    def first_recall(name: str) -> float:
        both = [scored[name].direction(direction).recall for direction in DIRECTIONS]
        return sum(recall[min(recall)].value for recall in both)

    best = max(scored, key=first_recall)
    tests = [share.low > chance for share, chance in _recalls(scored[best]) if chance < 1]
    if not tests or 2 * sum(tests) < len(tests):
        return (f"No variant retrieves above chance on {label(test_set)}.",)
    first = min(scored[best].speech_to_image.recall)
    shares = []
    for direction in DIRECTIONS:
        scores = scored[best].direction(direction)
        share = scores.recall[first]
        ends = interval(100 * share.low, 100 * share.high).replace(DASH, f"{DASH}\N{WORD JOINER}")
        shares.append(
            f"{percent(100 * share.value)}\N{NO-BREAK SPACE}% from {direction.replace('_', ' ')} ({ends}, "
            f"chance {percent(100 * scores.chance[first])}\N{NO-BREAK SPACE}%)"
        )
    sentence = f"{best} has the highest mean R@{first} on {label(test_set)}: {' and '.join(shares)}."
    others = [name for name in scored if name != best]
    if level := [name for name in others if not _exceeds(scored[best], scored[name])]:
        listed = " and ".join(filter(None, (", ".join(level[:-1]), level[-1])))
        return sentence, f"Its intervals overlap those of {listed}, so this run does not distinguish them."
    if not others:
        return (sentence,)
    compared = "the other variant" if len(others) == 1 else f"each of the other {len(others)} variants"
    return sentence, f"For at least one recall, its interval is entirely above that of {compared}."


def _exceeds(a: RetrievalScores, b: RetrievalScores) -> bool:
    """Return whether the interval of any recall of `a` is above that of `b`."""
    return any(x.low > y.high for (x, _), (y, _) in zip(_recalls(a), _recalls(b), strict=True))
