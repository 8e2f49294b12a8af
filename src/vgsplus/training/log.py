"""What a run reports: RUN/log.jsonl, a JSON object a line, and the same numbers as TensorBoard scalars.

Each line has kind, step (updates done in the whole run), phase, phase_index, phase_step and epoch.
    "train"       every update: alpha, lr, the losses (null where α did not ask for one), grad_norm,
                  captions_per_second, audio_seconds_per_second, moved_crops (share of clips whose crop was
                  silent and is moved to where there is sound); with additional speech its losses too, under
                  names such as "additional_speech/contrastive", and its part in total
    "validation"  alpha and the losses, averaged over the validation split (of additional speech over its
                  own), and moved_crops
    "evaluation"  scores: whatever the evaluation returned
    "stopped"     not_finite: the names of what became infinite or not a number in the next update, which
                  ended the run; no lines follow unless it went on
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from vgsplus.audio import SAMPLE_RATE
from vgsplus.errors import VgsplusError
from vgsplus.files import whole_file
from vgsplus.losses import PUBLISHED_TERMS, Losses
from vgsplus.schedule import PlannedPhase
from vgsplus.training.batches import Batch

LOG_FILE = "log.jsonl"
TENSORBOARD = "tensorboard"
_PLACE = ("kind", "step", "phase", "phase_index", "phase_step", "epoch", "scores")
_REQUIRED = frozenset(_PLACE) - {"scores"}

SCALARS = ("total", *PUBLISHED_TERMS)
"""The losses of the paper, which are logged as null in steps that do not compute them."""
ADDITIONAL = "additional_speech/"
ADDITIONAL_SCALARS = tuple(f"{ADDITIONAL}{name}" for name in SCALARS if name not in ("total", "grounding"))
"""The same of additional speech, which has self-supervision alone."""

MOVED_CROPS = "moved_crops"

type Record = dict[str, Any]


def read_log(run: Path, kind: str | None = None) -> Iterator[Record]:
    """The records of a run in the order of writing, or those of one kind; a line cut off at the end is left.

    Raises:
        VgsplusError: a line in the middle is broken, or no record (file:line).
    """
    path = run / LOG_FILE
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError as error:
                raise VgsplusError(
                    f"{path}:{number}: is no JSON ({error}); mend or remove the line"
                ) from None
            if not isinstance(record, dict) or not record.keys() >= _REQUIRED:
                raise VgsplusError(f"{path}:{number}: is no record of a run; mend or remove the line")
            if kind is None or record["kind"] == kind:
                yield record


def copy_log(source: Path, target: Path, last_step: int) -> None:
    """Write the records of run `source` up to `last_step` as the log of run `target`."""
    with whole_file(target / LOG_FILE) as file:
        file.writelines(_line(record).encode() for record in read_log(source) if record["step"] <= last_step)


class RunLog:
    """Appends to a run's log; whatever is there after `last_step`, where the run goes on, is cut off."""

    def __init__(self, run: Path, last_step: int) -> None:
        copy_log(run, run, last_step)
        self.reports = {
            (record["kind"], record["step"]): record for record in read_log(run) if _is_rare(record)
        }
        self._file = (run / LOG_FILE).open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(run / TENSORBOARD, purge_step=last_step + 1)

    def write(self, record: Record) -> None:
        """Append a record; it survives the death of this process at once.

        Raises:
            VgsplusError: it cannot be written.
        """
        try:
            self._file.write(_line(record))
            self._file.flush()
        except OSError as error:
            raise VgsplusError(
                f"{self._file.name}: could not be written ({error.strerror}). Make room, then resume the run."
            ) from error
        if _is_rare(record):
            self.reports[record["kind"], record["step"]] = record
        scalars = record.get("scores", record)
        for name, value in scalars.items():
            if isinstance(value, int | float) and name not in _PLACE:
                self._tensorboard.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def has(self, kind: str, step: int) -> bool:
        """Whether there is a validation or evaluation of `step`."""
        return (kind, step) in self.reports

    def sync(self) -> None:
        """Bring all that was written to the disk."""
        os.fsync(self._file.fileno())
        self._tensorboard.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a full disk was told of when it was written to
            self._file.close()
        self._tensorboard.close()


def _is_rare(record: Record) -> bool:
    return bool(record["kind"] != "train")


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


# ---- records ----------------------------------------------------------------------------------------------


def place(kind: str, planned: PlannedPhase, done: int) -> Record:
    """The start of a record of what happened after `done` steps of a phase."""
    return {
        "kind": kind,
        "step": planned.first_step + done,
        "phase": planned.phase.name,
        "phase_index": planned.index,
        "phase_step": done,
        "epoch": planned.epoch(done),
    }


def scalars(losses: Losses) -> dict[str, Tensor]:
    """Return the total and the terms by name."""
    return {"total": losses.total, **losses.terms}


def to_numbers(values: dict[str, Tensor]) -> dict[str, float]:
    """Scalar tensors as numbers, with one wait for the device instead of one each."""
    stacked = torch.stack([value.detach().float().reshape(()) for value in values.values()])
    return dict(zip(values, stacked.tolist(), strict=True))


def speed(batch: Batch, additional: Batch | None, seconds: float) -> Record:
    """How fast a step went that took `seconds`, reading included, and the share of its crops that were moved.

    Additional speech counts as audio only.
    """
    batches = [batch, additional] if additional else [batch]
    samples = sum(int(one["num_samples"].sum()) for one in batches)
    return {
        "captions_per_second": len(batch["num_samples"]) / seconds,
        "audio_seconds_per_second": samples / SAMPLE_RATE / seconds,
        MOVED_CROPS: float(torch.cat([one[MOVED_CROPS] for one in batches]).float().mean()),
    }
