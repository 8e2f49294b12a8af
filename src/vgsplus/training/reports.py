"""Validation and evaluation of a model between steps, where they are due and not done yet."""

import math
from collections.abc import Callable, Sequence
from contextlib import closing

import torch

from vgsplus.config import RunConfig
from vgsplus.losses import Losses
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.schedule import PlannedPhase
from vgsplus.training.additional import AdditionalBatches, with_additional
from vgsplus.training.batches import (
    VALIDATION_SEED,
    Batch,
    BatchReader,
    BatchRequest,
    read_batches,
    validation_order,
)
from vgsplus.training.interruption import StopRequest
from vgsplus.training.log import MOVED_CROPS, Record, RunLog, place, scalars, to_numbers
from vgsplus.training.progress import Progress
from vgsplus.training.randomness import Use, indexed_seed

type Evaluate = Callable[[VGSPlus, bool], dict[str, float]]
"""Called with the model and whether a phase has ended; gives scores by name."""


class Reporter:
    """Validates and evaluates one model, and writes both to the log.

    The log says what has been done: a run killed between its checkpoint and its evaluation makes up for it.
    """

    def __init__(
        self,
        config: RunConfig,
        model: VGSPlus,
        losses: Callable[[Batch, float], Losses],
        *,
        reader: BatchReader | None,
        additional: Sequence[AdditionalBatches | None],
        evaluate: Evaluate | None,
        log: RunLog,
        progress: Progress,
        stop: StopRequest,
        pin_memory: bool,
    ) -> None:
        self._config, self._model, self._losses = config, model, losses
        self._reader, self._additional, self._evaluate = reader, additional, evaluate
        self._log, self._progress, self._stop = log, progress, stop
        self._pin_memory = pin_memory

    def report(self, planned: PlannedPhase, done: int) -> None:
        """Validate and evaluate after `done` steps of a phase; returns early when the run is to stop.

        The model is left in evaluation mode.
        """
        self._model.eval()
        if self._is_due("validation", planned, done, self._config.validate_every):
            self._write_validation(planned, done)
        every = self._config.evaluate_every or math.inf
        if self._evaluate and not self._stop.requested and self._is_due("evaluation", planned, done, every):
            with torch.no_grad():
                found = self._evaluate(self._model, done == planned.steps)
                scores = {name: float(score) for name, score in found.items()}
            self._write(place("evaluation", planned, done) | {"scores": scores}, scores)

    def _is_due(self, kind: str, planned: PlannedPhase, done: int, every: float | None) -> bool:
        if every is None or self._log.has(kind, planned.first_step + done):
            return False
        if done == planned.steps:
            return True
        return math.isfinite(every) and done % max(1, round(every * planned.steps_per_epoch)) == 0

    def _write_validation(self, planned: PlannedPhase, done: int) -> None:
        """Average the losses over the validation split, and those of additional speech over its own."""
        assert self._reader is not None
        alpha = planned.alpha(done - 1)
        requests = validation_order(len(self._reader.captions), self._config.batch_size, images=alpha > 0)
        means = self._means(self._reader, requests, alpha, Use.VALIDATION)
        if means and (additional := self._additional[planned.index]):
            assert additional.validation is not None
            own = self._means(
                additional.validation, additional.validation_order(), 0.0, Use.ADDITIONAL_VALIDATION
            )
            means = with_additional(means, own, planned.additional_weight) if own else None
        if means:
            shown = {name: mean for name, mean in means.items() if mean or not name.endswith(MOVED_CROPS)}
            self._write(place("validation", planned, done) | {"alpha": alpha} | means, shown)

    def _means(
        self, reader: BatchReader, requests: Sequence[BatchRequest], alpha: float, use: Use
    ) -> dict[str, float] | None:
        """The losses averaged over captions, with the same masks every time; None when the run is to stop."""
        batches = read_batches(reader, requests, workers=self._config.workers, pin_memory=self._pin_memory)
        totals: dict[str, float] = {}
        captions = 0
        with closing(batches):
            for index, batch in enumerate(batches):
                torch.manual_seed(indexed_seed(VALIDATION_SEED, use, index))
                with torch.no_grad():
                    values = to_numbers(scalars(self._losses(batch, alpha)))
                values[MOVED_CROPS] = float(batch[MOVED_CROPS].float().mean())
                if self._stop.requested:
                    return None
                size = len(batch["num_samples"])
                captions += size
                totals = {name: totals.get(name, 0.0) + value * size for name, value in values.items()}
        return {name: total / captions for name, total in totals.items()}

    def _write(self, record: Record, numbers: dict[str, float]) -> None:
        self._log.write(record)
        listed = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self._progress.note(f"{record['kind']} after {record['epoch']:g} epochs: {listed}")
