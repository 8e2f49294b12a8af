"""What a run shows in a sentence or two, which claim no more than the intervals allow.

Two recalls count as different only where their 95 % intervals do not overlap. The intervals cover the choice
of test pictures; each variant is one run, and what another seed would give is not in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vgsplus.evaluation.retrieval import DIRECTIONS
from vgsplus.report.tables import DASH, PAPER_KS, interval, label, ordered, percent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vgsplus.evaluation.resampling import Estimate
    from vgsplus.evaluation.retrieval import RetrievalScores
    from vgsplus.report.results import Results

PERCENT = "\N{NO-BREAK SPACE}%"
UNBROKEN_DASH = f"{DASH}\N{WORD JOINER}"


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
    level = [name for name in others if not _clear_above(scores, scored[name])]
    if level:
        sentences.append(
            f"Its intervals overlap those of {_listed(level)}, so this run does not tell them apart."
        )
    elif others:
        compared = "the other variant" if len(others) == 1 else f"each of the other {len(others)} variants"
        sentences.append(f"In at least one recall its interval lies clear above that of {compared}.")
    return Headline(best, tuple(sentences))


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


def _clear_above(a: RetrievalScores, b: RetrievalScores) -> int:
    """How many recalls of `a` lie clear above those of `b`."""
    return sum(x.low > y.high for x, y in _pairs(a, b))


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
