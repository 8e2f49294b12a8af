"""A run's log as what the report shows of it: phases, curves of losses, recalls and ABX errors."""

from collections.abc import Iterator, Sequence
from typing import Literal

from vgsplus.config import RunConfig
from vgsplus.experiments.scoring import ABX, ABX_PUBLISHED
from vgsplus.report import results as report
from vgsplus.training.log import Record

NOT_TERMS = frozenset(
    {
        *("kind", "step", "phase", "phase_index", "phase_step", "epoch", "alpha", "lr", "total", "grad_norm"),
        *("captions_per_second", "audio_seconds_per_second", "moved_crops"),
    }
)
"""Entries of "train" and "validation" records that are not terms of the loss."""
TRAIN_POINTS = 200
"""Points of a phase's training curve; the steps between are averaged."""


def phase(records: Sequence[Record], config: RunConfig, index: int) -> report.PhaseResult:
    """What phase `index` of a run took."""
    planned = config.schedule.phases[index]
    steps = [record for record in records if record["kind"] == "train" and record["phase_index"] == index]
    return report.PhaseResult(
        name=planned.name,
        epochs=planned.epochs,
        steps=len(steps),
        seconds=sum(config.batch_size / record["captions_per_second"] for record in steps),
        shared=index == 0 and len(config.schedule.phases) > 1,
    )


def losses(records: Sequence[Record], phases: int) -> Iterator[report.LossPoint]:
    """All validation losses, and those of training averaged over neighbouring steps."""
    for record in records:
        if record["kind"] == "validation":
            yield _loss_point([record], "validation")
    for index in range(phases):
        steps = [r for r in records if r["kind"] == "train" and r["phase_index"] == index]
        size = max(1, len(steps) // TRAIN_POINTS)
        for start in range(0, len(steps), size):
            yield _loss_point(steps[start : start + size], "train")


def _loss_point(group: Sequence[Record], split: Literal["train", "validation"]) -> report.LossPoint:
    """The mean of each term over the records that have it, at the position of the last."""
    last = group[-1]
    terms: dict[str, float | None] = {}
    for name in dict.fromkeys(name for record in group for name in record if name not in NOT_TERMS):
        values = [record[name] for record in group if record.get(name) is not None]
        if values:
            terms[name] = sum(values) / len(values)
    return report.LossPoint(
        epoch=last["epoch"], phase=last["phase_index"], step=last["step"], split=split, terms=terms
    )


def recall_points(records: Sequence[Record], test_sets: Sequence[str]) -> Iterator[report.RecallPoint]:
    """The recalls of every evaluation during a run, whose scores are named "test/speech_to_image/R@10"."""
    for record in records:
        if record["kind"] != "evaluation":
            continue
        for name in test_sets:
            sides: dict[str, dict[int, float]] = {"speech_to_image": {}, "image_to_speech": {}}
            for direction, recalls in sides.items():
                prefix = f"{name}/{direction}/R@"
                recalls.update(
                    (int(path.removeprefix(prefix)), score)
                    for path, score in record["scores"].items()
                    if path.startswith(prefix)
                )
            yield report.RecallPoint(epoch=record["epoch"], test_set=name, **sides)


def abx_points(records: Sequence[Record]) -> Iterator[report.AbxPoint]:
    """The ABX errors of every evaluation during a run, whose scores are named "abx/across/3"."""
    for record in records:
        if record["kind"] != "evaluation":
            continue
        found: dict[str, report.AbxErrors] = {ABX: {}, ABX_PUBLISHED: {}}
        for path, error in record["scores"].items():
            kind, *place = path.split("/")
            if kind in found:
                condition, layer = place
                found[kind].setdefault(condition, {})[int(layer)] = error
        if found[ABX]:
            yield report.AbxPoint(epoch=record["epoch"], errors=found[ABX], published=found[ABX_PUBLISHED])
