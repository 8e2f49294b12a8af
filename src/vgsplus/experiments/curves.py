"""Convert scores to the flat names of the log, and records of the log to the phases and curves of a report.

Flat names are, for example, "test/speech_to_image/R@10", "abx/across/3" and "abx as published/across/3".
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from vgsplus.config import RunConfig
from vgsplus.evaluation.abx_layers import AbxRow
from vgsplus.evaluation.retrieval import DIRECTIONS, RetrievalScores
from vgsplus.report import results as report
from vgsplus.training.log import Record, losses_in

ABX, ABX_PUBLISHED = "abx", "abx as published"
TRAIN_POINTS = 200
"""Approximate number of points of a phase's training curve, each the mean of consecutive steps."""


def phase_result(records: Sequence[Record], config: RunConfig, index: int) -> report.PhaseResult:
    """Return the number of steps and the time of phase `index`."""
    phase = config.schedule.phases[index]
    steps = [record for record in records if record["kind"] == "train" and record["phase_index"] == index]
    return report.PhaseResult(
        name=phase.name,
        epochs=phase.epochs,
        steps=len(steps),
        # Older logs have no number of captions: it was the same in every step.
        seconds=sum(
            record.get("captions", config.batch_size) / record["captions_per_second"] for record in steps
        ),
        shared=index == 0 and len(config.schedule.phases) > 1,
    )


def losses(records: Sequence[Record], phases: int) -> Iterator[report.LossPoint]:
    """Yield all validation losses, then the training losses averaged over consecutive steps."""
    for record in records:
        if record["kind"] == "validation":
            yield _loss_point([record], "validation")
    for index in range(phases):
        steps = [r for r in records if r["kind"] == "train" and r["phase_index"] == index]
        size = max(1, len(steps) // TRAIN_POINTS)
        for start in range(0, len(steps), size):
            yield _loss_point(steps[start : start + size], "train")


def _loss_point(group: Sequence[Record], split: Literal["train", "validation"]) -> report.LossPoint:
    """Return the mean of each term over the records that have it, at the position of the last record."""
    found = [losses_in(record) for record in group]
    terms: dict[str, float | None] = {}
    for name in dict.fromkeys(name for values in found for name in values if name != "total"):
        known = [values[name] for values in found if name in values]
        terms[name] = sum(known) / len(known)
    last = group[-1]
    return report.LossPoint(
        epoch=last["epoch"], phase=last["phase_index"], step=last["step"], split=split, terms=terms
    )


# ---- scores -----------------------------------------------------------------------------------------------


def recall_scores(split: str, scores: RetrievalScores) -> dict[str, float]:
    """Return the recalls on a split, {flat name: recall}."""
    return {
        f"{split}/{direction}/R@{k}": estimate.value
        for direction in DIRECTIONS
        for k, estimate in scores.direction(direction).recall.items()
    }


def recall_points(records: Iterable[Record], test_sets: Sequence[str]) -> Iterator[report.RecallPoint]:
    """Yield the recalls of every evaluation on every test set."""
    for record in _evaluations(records):
        for name in test_sets:
            sides: dict[str, dict[int, float]] = {direction: {} for direction in DIRECTIONS}
            for path, score in record["scores"].items():
                split, *rest = path.split("/")
                if split == name:
                    direction, at = rest
                    sides[direction][int(at.removeprefix("R@"))] = score
            yield report.RecallPoint(epoch=record["epoch"], test_set=name, **sides)


def abx_scores(rows: Iterable[AbxRow]) -> dict[str, float]:
    """Return ABX errors, {flat name: error}."""
    return {
        f"{ABX_PUBLISHED if row.as_published else ABX}/{condition}/{row.layer}": error
        for row in rows
        for condition, error in row.errors.items()
    }


def abx_points(records: Iterable[Record]) -> Iterator[report.AbxPoint]:
    """Yield the ABX errors of every evaluation that has them."""
    for record in _evaluations(records):
        found: dict[str, report.AbxErrors] = {ABX: {}, ABX_PUBLISHED: {}}
        for path, error in record["scores"].items():
            kind, *rest = path.split("/")
            if kind in found:
                condition, layer = rest
                found[kind].setdefault(condition, {})[int(layer)] = error
        if found[ABX]:
            yield report.AbxPoint(epoch=record["epoch"], errors=found[ABX], published=found[ABX_PUBLISHED])


def abx_baselines(rows: Sequence[AbxRow]) -> Iterator[report.AbxBaseline]:
    """Yield the errors of untrained features, with both protocols in one object."""
    published = {(row.features, row.layer): row.errors for row in rows if row.as_published}
    for row in rows:
        if not row.as_published:
            yield report.AbxBaseline(
                features=row.features,
                layer=row.layer,
                errors=row.errors,
                published=published.get((row.features, row.layer), {}),
            )


def score_points(records: Iterable[Record], test_sets: Sequence[str]) -> Iterator[report.ScorePoint]:
    """Yield the scores that are neither recalls nor ABX errors of every evaluation that has any."""
    known = {ABX, ABX_PUBLISHED, *test_sets}
    for record in _evaluations(records):
        scores = {path: score for path, score in record["scores"].items() if path.split("/")[0] not in known}
        if scores:
            yield report.ScorePoint(epoch=record["epoch"], scores=scores)


def _evaluations(records: Iterable[Record]) -> Iterator[Record]:
    return (record for record in records if record["kind"] == "evaluation")
