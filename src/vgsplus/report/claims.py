"""The paper's six claims, tested on the seeds that were run, and a headline in words.

A claim is judged on numbers, one per seed: differences and shares whose 95 % interval is Student's t over the
seeds. With one seed, the interval from resampling the test pictures is used for retrieval; ABX has no
interval, and the claim stays undecided. A claim is "supported" or "not supported" only if the interval lies
entirely on one side of the line that the claim draws.
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
"""Points of recall within which two variants retrieve alike; the paper's VGS and VGS+ differ by 0.4."""
FORGOTTEN, MUCH = 10.0, 25.0
"""Percent of the recall above chance: less remains of what is forgotten, more of what is kept."""

type Verdict = Literal["supported", "not supported", "undecided", "not run"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One number that a claim depends on.

    Attributes:
        what: what is compared, as "(W2V2, VGS) − VGS".
        unit: "points of recall", "% of the recall above chance", or "points of error".
        by_seed: the number for each seed.
        interval: of their mean, at 95 %, or None.
        line: threshold of the claim.
        expected: the claim expects the interval "above" the line, "below" it, or "within" it around 0.
    """

    what: str
    unit: str
    by_seed: tuple[float, ...]
    interval: tuple[float, float] | None
    line: float
    expected: Literal["above", "below", "within"]

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
            if -self.line <= low and high <= self.line:
                return "supported"
            return "not supported" if low > self.line or high < -self.line else "undecided"
        above, below = low > self.line, high < self.line
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
    """Judge the six claims, those of retrieval on one test set."""
    study = _Study(results, test_set)
    return (
        _claim(
            "W2V2 first, then VGS or VGS+, retrieves better than VGS or VGS+ alone.",
            study.difference("(W2V2, VGS)", "VGS", 0.0, "above"),
            study.difference("(W2V2, VGS+)", "VGS+", 0.0, "above"),
        ),
        _claim("VGS and VGS+ retrieve alike.", study.difference("VGS", "VGS+", ALIKE, "within")),
        _claim(
            "(VGS, W2V2) forgets what VGS has learned, to chance.",
            study.kept("(VGS, W2V2)", "VGS", FORGOTTEN, "below"),
        ),
        _claim(
            "(VGS+, W2V2) keeps much of what VGS+ has learned.",
            study.kept("(VGS+, W2V2)", "VGS+", MUCH, "above"),
        ),
        _claim(
            "VGS tells phones apart better than W2V2, and (VGS+, VGS) best of all.",
            study.fewer_errors("VGS", ["W2V2"]),
            study.fewer_errors("(VGS+, VGS)", [name for name in TITLES if name != "(VGS+, VGS)"]),
        ),
        _claim(
            "ABX worsens when VGS or VGS+ is followed by W2V2.",
            study.fewer_errors("VGS", ["(VGS, W2V2)"]),
            study.fewer_errors("VGS+", ["(VGS+, W2V2)"]),
        ),
    )


def claim_table(results: Results) -> pd.DataFrame:
    """Return a row per number of a claim, for every test set: claim, verdict, number and interval."""
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
    """Combine evidence, or the reasons why it is missing: supported if all of it is, not if any is not."""
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


class _Study:
    """Evidence from the seeds of a run; each method returns a reason instead if something is missing."""

    def __init__(self, results: Results, test_set: str) -> None:
        seeds = (results.variants, *(repeat.variants for repeat in results.repeats))
        self._seeds = [{variant.name: variant for variant in variants} for variants in seeds]
        self._test_set = test_set

    def difference(self, a: str, b: str, line: float, expected: Literal["above", "within"]) -> Evidence | str:
        """Points of recall by which `a` exceeds `b`."""
        found = self._scores(a, b)
        if isinstance(found, str):
            return found
        width = math.hypot(_half_width(found[0][0]), _half_width(found[0][1]))
        values = tuple(_recall(scores) - _recall(other) for scores, other in found)
        return Evidence(f"{a} − {b}", "points of recall", values, _interval(values, width), line, expected)

    def kept(
        self, after: str, before: str, line: float, expected: Literal["above", "below"]
    ) -> Evidence | str:
        """Recall above chance of `after` in percent of that of `before`."""
        found = self._scores(after, before)
        if isinstance(found, str):
            return found
        above = [(_recall(s) - _chance(s), _recall(o) - _chance(o)) for s, o in found]
        if any(learned <= _half_width(other) for (_, learned), (_, other) in zip(above, found, strict=True)):
            return f"{before} itself did not rise above chance: there was nothing to keep."
        values = tuple(100 * left / learned for left, learned in above)
        width = 100 * _half_width(found[0][0]) / above[0][1]
        what, unit = f"{after} of {before}", "% of the recall above chance"
        return Evidence(what, unit, values, _interval(values, width), line, expected)

    def fewer_errors(self, better: str, others: Sequence[str]) -> Evidence | str:
        """Points by which the ABX error of `better` is below the lowest of the others.

        The error is that of the best layer, averaged over the conditions.
        """
        if missing := self._missing([better, *others], lambda variant: bool(variant.abx)):
            return missing.replace("Needs", "Needs the ABX of")
        values = tuple(
            min(_abx(seed[other]) for other in others) - _abx(seed[better]) for seed in self._seeds
        )
        versus = others[0] if len(others) == 1 else "best of the others"
        what = f"{versus} − {better}"
        return Evidence(what, "points of error", values, _interval(values, None), 0.0, "above")

    def _scores(self, *names: str) -> list[tuple[RetrievalScores, ...]] | str:
        """The scores of the named variants, a tuple per seed."""
        if missing := self._missing(names, lambda variant: self._test_set in variant.retrieval):
            return missing
        return [tuple(seed[name].retrieval[self._test_set] for name in names) for seed in self._seeds]

    def _missing(self, names: Sequence[str], measured: Callable[[Variant], bool]) -> str:
        absent = [n for n in names if not all(n in seed and measured(seed[n]) for seed in self._seeds)]
        return f"Needs {', '.join(absent)}." if absent else ""


def _recalls(scores: RetrievalScores) -> list[tuple[Estimate, float]]:
    """The recalls of Table I, each with its chance level."""
    sides = [scores.direction(direction) for direction in DIRECTIONS]
    return [(side.recall[k], side.chance[k]) for side in sides for k in PAPER_KS if k in side.recall]


def _recall(scores: RetrievalScores) -> float:
    """R@1 and R@10 of both directions, averaged, in percent."""
    return 100 * statistics.fmean(share.value for share, _ in _recalls(scores))


def _chance(scores: RetrievalScores) -> float:
    return 100 * statistics.fmean(chance for _, chance in _recalls(scores))


def _half_width(scores: RetrievalScores) -> float:
    """Half the interval of `_recall` from its test pictures, as if its four recalls moved together."""
    return 50 * statistics.fmean(share.high - share.low for share, _ in _recalls(scores))


def _abx(variant: Variant) -> float:
    """The error of the best layer in percent, averaged over the conditions."""
    return 100 * statistics.fmean(min(errors.values()) for errors in variant.abx[-1].errors.values())


def _interval(values: Sequence[float], width: float | None) -> tuple[float, float] | None:
    """The interval of the mean: Student's t over seeds, or `width` to both sides of a single value."""
    mean = statistics.fmean(values)
    if len(values) > 1:
        spread = statistics.stdev(values) / math.sqrt(len(values))
        width = float(student.ppf((1 + LEVEL) / 2, len(values) - 1)) * spread
    return None if width is None else (mean - width, mean + width)


# ---- the headline -----------------------------------------------------------------------------------------


def headline(results: Results, test_set: str) -> tuple[str, ...]:
    """Return sentences on the variant with the highest R@1 (both directions averaged) and its lead.

    Two recalls differ only if their 95 % intervals do not overlap. The intervals cover the choice of test
    pictures, not the choice of a seed.
    """
    scored = {v.name: v.retrieval[test_set] for v in ordered(results) if test_set in v.retrieval}
    if not scored:
        return (f"Nothing has been evaluated on {label(test_set)} yet.",)

    def first_recall(name: str) -> float:
        sides = [scored[name].direction(direction).recall for direction in DIRECTIONS]
        return sum(side[min(side)].value for side in sides)

    best = max(scored, key=first_recall)
    tests = [share.low > chance for share, chance in _recalls(scored[best]) if chance < 1]
    if not tests or 2 * sum(tests) < len(tests):
        return (f"No variant retrieves above chance on {label(test_set)}.",)
    first = min(scored[best].speech_to_image.recall)
    shares = []
    for direction in DIRECTIONS:
        side = scored[best].direction(direction)
        share = side.recall[first]
        ends = interval(100 * share.low, 100 * share.high).replace(DASH, f"{DASH}\N{WORD JOINER}")
        shares.append(
            f"{percent(100 * share.value)}\N{NO-BREAK SPACE}% ({ends}) from {direction.replace('_', ' ')}, "
            f"where chance is {percent(100 * side.chance[first])}\N{NO-BREAK SPACE}%"
        )
    sentence = f"{best} has the highest mean R@{first} on {label(test_set)}: {' and '.join(shares)}."
    others = [name for name in scored if name != best]
    if level := [name for name in others if not _exceeds(scored[best], scored[name])]:
        listed = " and ".join(filter(None, (", ".join(level[:-1]), level[-1])))
        return sentence, f"Its intervals overlap those of {listed}, so this run does not tell them apart."
    if not others:
        return (sentence,)
    compared = "the other variant" if len(others) == 1 else f"each of the other {len(others)} variants"
    return sentence, f"In at least one recall its interval lies clear above that of {compared}."


def _exceeds(a: RetrievalScores, b: RetrievalScores) -> bool:
    """Whether the interval of any recall of `a` lies above that of `b`."""
    return any(x.low > y.high for (x, _), (y, _) in zip(_recalls(a), _recalls(b), strict=True))
