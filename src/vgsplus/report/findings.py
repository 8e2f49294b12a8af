"""What the numbers say, in words that claim no more than the intervals allow.

Two recalls count as different only where their 95 % intervals do not overlap. The intervals cover the choice
of test pictures; each variant is one run, and what another seed would give is not in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vgsplus.evaluation.retrieval import DIRECTIONS
from vgsplus.report.paper import VARIANTS
from vgsplus.report.tables import DASH, PAPER_KS, interval, label, ordered, percent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vgsplus.evaluation.resampling import Estimate
    from vgsplus.evaluation.retrieval import RetrievalScores
    from vgsplus.report.results import Results

PERCENT = "\N{NO-BREAK SPACE}%"
UNBROKEN_DASH = f"{DASH}\N{WORD JOINER}"

type Verdict = Literal["agrees", "disagrees", "open", "not run"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim of the paper about retrieval and what this run says of it."""

    claim: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True, slots=True)
class Headline:
    """The variant that retrieved best (None if none did above chance) and sentences about it."""

    best: str | None
    sentences: tuple[str, ...]


def headline(results: Results, test_set: str) -> Headline:
    """The best variant by R@1, both directions averaged, and what sets it apart."""
    scored = _scored(results, test_set)
    if not scored:
        return Headline(None, (f"Nothing has been evaluated on {label(test_set)} yet.",))
    best = max(scored, key=lambda name: _mean_first(scored[name]))
    scores = scored[best]
    if not _above_chance(scores):
        return Headline(None, (f"No variant retrieves above chance on {label(test_set)}.",))
    speech, image = scores.speech_to_image, scores.image_to_speech
    first = min(speech.recall)
    directions = " and ".join(
        f"{_share(side.recall[first])} from {way}, where chance is {percent(side.chance[first])}{PERCENT}"
        for way, side in (("speech to image", speech), ("image to speech", image))
    )
    sentences = [f"{best} has the highest mean R@{first} on {label(test_set)}: {directions}."]
    others = [name for name in scored if name != best]
    level = [name for name in others if _count(scores, scored[name])[0] == 0]
    if level:
        sentences.append(
            f"Its intervals overlap those of {_listed(level)}, so this run does not tell them apart."
        )
    elif others:
        compared = "the other variant" if len(others) == 1 else f"each of the other {len(others)} variants"
        sentences.append(f"In at least one recall its interval lies clear above that of {compared}.")
    return Headline(best, tuple(sentences))


def findings(results: Results, test_set: str) -> tuple[Finding, ...]:
    """The paper's four claims about retrieval, held against the run."""
    scored = _scored(results, test_set)
    first = "W2V2 first, then VGS or VGS+, retrieves better than VGS or VGS+ alone."
    return (
        _compare(first, [("(W2V2, VGS)", "VGS"), ("(W2V2, VGS+)", "VGS+")], scored),
        _alike("VGS and VGS+ retrieve alike.", ("VGS", "VGS+"), scored),
        _forgets("(VGS, W2V2) forgets to chance.", scored),
        _keeps("(VGS+, W2V2) keeps more than that: it stays above chance.", scored),
    )


def _scored(results: Results, test_set: str) -> dict[str, RetrievalScores]:
    return {v.name: v.retrieval[test_set] for v in ordered(results) if test_set in v.retrieval}


def _mean_first(scores: RetrievalScores) -> float:
    return sum(scores.side(d).recall[min(scores.side(d).recall)].value for d in DIRECTIONS)


def _share(estimate: Estimate) -> str:
    return f"{percent(estimate.value)}{PERCENT} ({interval(estimate).replace(DASH, UNBROKEN_DASH)})"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _pairs(a: RetrievalScores, b: RetrievalScores) -> Iterator[tuple[Estimate, Estimate]]:
    for direction in DIRECTIONS:
        left, right = a.side(direction).recall, b.side(direction).recall
        yield from ((left[k], right[k]) for k in PAPER_KS if k in left and k in right)


def _count(a: RetrievalScores, b: RetrievalScores) -> tuple[int, int, int]:
    """How many recalls of `a` lie clear above those of `b`, how many clear below, and of how many."""
    pairs = list(_pairs(a, b))
    return sum(x.low > y.high for x, y in pairs), sum(x.high < y.low for x, y in pairs), len(pairs)


def _over_chance(scores: RetrievalScores) -> tuple[int, int]:
    """How many recalls lie clear above chance, of how many; where chance is 1 nothing can."""
    sides = [scores.side(direction) for direction in DIRECTIONS]
    tests = [
        (s.recall[k].low, s.chance[k]) for s in sides for k in PAPER_KS if k in s.recall and s.chance[k] < 1
    ]
    return sum(low > chance for low, chance in tests), len(tests)


def _above_chance(scores: RetrievalScores) -> bool:
    above, total = _over_chance(scores)
    return 0 < total <= 2 * above


def _missing(names: list[str], scored: dict[str, RetrievalScores]) -> str:
    absent = [name for name in VARIANTS if name in names and name not in scored]
    return f"Needs {_listed(absent)}." if absent else ""


def _compare(claim: str, pairs: list[tuple[str, str]], scored: dict[str, RetrievalScores]) -> Finding:
    there = [(a, b) for a, b in pairs if a in scored and b in scored]
    if not there:
        return Finding(claim, "not run", _missing([name for pair in pairs for name in pair], scored))
    better, worse, total = (
        sum(c) for c in zip(*(_count(scored[a], scored[b]) for a, b in there), strict=True)
    )
    verdict: Verdict = "open"
    if not worse and 2 * better >= total:
        verdict = "agrees"
    elif not better and 2 * worse >= total:
        verdict = "disagrees"
    compared = _listed([f"{a} against {b}" for a, b in there])
    overlap = total - better - worse
    counts = f"{better} of {total} recalls clear above, {worse} clear below"
    detail = f"{compared}: {counts}, {overlap} with intervals that overlap."
    rest = _missing([name for pair in pairs for name in pair], scored)
    return Finding(claim, verdict, f"{detail} {rest}".strip())


def _alike(claim: str, pair: tuple[str, str], scored: dict[str, RetrievalScores]) -> Finding:
    a, b = pair
    if absent := _missing([a, b], scored):
        return Finding(claim, "not run", absent)
    above, below, total = _count(scored[a], scored[b])
    if not above + below:
        return Finding(
            claim, "agrees", f"The intervals overlap in all {total} recalls: no difference was found."
        )
    verdict: Verdict = "disagrees" if 2 * max(above, below) >= total else "open"
    return Finding(
        claim, verdict, f"{a} is clear above {b} in {above} and clear below in {below} of {total} recalls."
    )


def _forgets(claim: str, scored: dict[str, RetrievalScores]) -> Finding:
    after, before = "(VGS, W2V2)", "VGS"
    if absent := _missing([after, before], scored):
        return Finding(claim, "not run", absent)
    if not _above_chance(scored[before]):
        return Finding(
            claim, "open", f"{before} itself did not rise above chance: there was nothing to forget."
        )
    above, total = _over_chance(scored[after])
    verdict: Verdict = "agrees" if not above else "disagrees" if 2 * above >= total else "open"
    return Finding(claim, verdict, f"{above} of {total} recalls lie clear above chance.")


def _keeps(claim: str, scored: dict[str, RetrievalScores]) -> Finding:
    after, before = "(VGS+, W2V2)", "VGS+"
    if absent := _missing([after, before], scored):
        return Finding(claim, "not run", absent)
    if not _above_chance(scored[before]):
        return Finding(
            claim, "open", f"{before} itself did not rise above chance: there was nothing to keep."
        )
    above, total = _over_chance(scored[after])
    kept = [
        f"{100 * x.value / y.value:.0f}{PERCENT}" for x, y in _pairs(scored[after], scored[before]) if y.value
    ]
    verdict: Verdict = "disagrees" if not above else "agrees" if 2 * above >= total else "open"
    detail = (
        f"{above} of {total} recalls lie clear above chance; they are {_listed(kept)} of those of {before}."
    )
    return Finding(claim, verdict, detail)
