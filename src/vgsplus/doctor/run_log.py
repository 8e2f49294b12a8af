"""The log of a run: whether it tells all that the checkpoint promises, why it stopped, its last numbers."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from vgsplus.doctor.findings import Finding, count
from vgsplus.doctor.standing import Standing
from vgsplus.errors import VgsplusError
from vgsplus.training.checkpoint import FOLDER
from vgsplus.training.log import ADDITIONAL_SCALARS, LOG_FILE, SCALARS, Record, read_log

SHOWN_SCORES = 4
RECALL = "R@10"


def log_findings(run: Path, place: Standing | None) -> Iterator[Finding]:
    """What is found of the log of a run that stands at `place`; None where that is not known."""
    path = run / LOG_FILE
    saved = place.state.global_step if place and place.state else 0
    if not path.is_file():
        if saved:
            yield Finding("fault", "log", f"{path} is missing, of {count(saved, 'step')}", _lost(run))
        return
    try:
        records = list(read_log(run))
    except VgsplusError as error:
        yield Finding("fault", "log", str(error))
        return
    yield _steps(run, records, saved)
    yield from _not_finite(records)
    yield from _stopped(records)
    yield from _last_numbers(records)


def _lost(run: Path) -> str:
    return (
        "The weights are whole, but curves will have a gap. To fill it, remove the checkpoints in "
        f"{run / FOLDER} behind it, and go on from an earlier one."
    )


def _steps(run: Path, records: Sequence[Record], saved: int) -> Finding:
    """Whether each update up to the checkpoint has its line, once."""
    seen = Counter(record["step"] for record in records if record["kind"] == "train")
    absent = [step for step in range(1, saved + 1) if step not in seen]
    if absent:
        what = f"lacks {count(len(absent), 'step')} of the checkpoint's {saved:,}, the first is {absent[0]:,}"
        return Finding("fault", "log", what, _lost(run))
    if twice := [step for step, times in seen.items() if times > 1]:
        what = f"tells {count(len(twice), 'step')} more than once, the first is {twice[0]:,}"
        return Finding(
            "fault", "log", what, "Did two processes train into this folder? Train into another one."
        )
    behind = max(seen, default=0) - saved
    again = f", {behind:,} of them after the checkpoint, to be done again" if behind > 0 else ""
    minutes = (time.time() - (run / LOG_FILE).stat().st_mtime) / 60
    return Finding(
        "ok", "log", f"{count(len(seen), 'step')}{again}; last written {count(round(minutes), 'minute')} ago"
    )


def _not_finite(records: Sequence[Record]) -> Iterator[Finding]:
    """Numbers that are infinite or none; a gradient's norm alone is one that the 16-bit scaler skipped."""
    skipped = 0
    for record in records:
        numbers = record.get("scores", record)
        bad = [
            name for name, value in numbers.items() if isinstance(value, float) and not math.isfinite(value)
        ]
        if bad == ["grad_norm"]:
            skipped += 1
        elif bad:
            what = f"{record['kind']} at step {record['step']:,}: {', '.join(bad)} not finite"
            yield Finding(
                "fault", "numbers", what, "Train again with a lower learning rate or longer warm-up."
            )
            return
    if skipped:
        yield Finding("ok", "numbers", f"{count(skipped, 'update')} skipped, whose gradients overflowed")


def _stopped(records: Sequence[Record]) -> Iterator[Finding]:
    """Whether the run ended because a loss or gradient was not finite."""
    if records and records[-1]["kind"] == "stopped":
        last = records[-1]
        yield Finding(
            "fault",
            "stop",
            f"stopped after step {last['step']:,} in phase {last['phase']}: {', '.join(last['not_finite'])} "
            "not finite in the next one",
            "It would stop there again. Train anew with a lower learning rate, a longer warm-up or 32-true.",
        )


def _last_numbers(records: Sequence[Record]) -> Iterator[Finding]:
    last = {record["kind"]: record for record in records}
    for kind in ("train", "validation"):
        if kind in last:
            record = last[kind]
            names = [name for name in (*SCALARS, *ADDITIONAL_SCALARS) if record.get(name) is not None]
            losses = [f"{name} {record[name]:.4g}" for name in names]
            what = f"{', '.join(losses)}; after {record['epoch']:.3g} epochs"
            yield Finding("ok", f"last {kind}", what)
    if scores := last.get("evaluation", {}).get("scores"):
        shown = [name for name in scores if name.endswith(RECALL)] or list(scores)
        listed = ", ".join(f"{name} {scores[name]:.3f}" for name in shown[:SHOWN_SCORES])
        yield Finding("ok", "last scores", f"{listed}; after {last['evaluation']['epoch']:.3g} epochs")
