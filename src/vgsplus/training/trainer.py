"""The training loop: phases of steps, each a pure function of (seed, phase, step) and the weights before it.

A run that is killed anywhere and resumed ends with the weights, bit for bit, of one that was not.
"""

import math
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from torch import Tensor
from torch.optim import Optimizer

from vgsplus import config as settings
from vgsplus.config import RunConfig
from vgsplus.corpora import Corpus
from vgsplus.errors import Interrupted, NotFiniteError
from vgsplus.losses import Losses
from vgsplus.models.published import build_model
from vgsplus.schedule import PlannedPhase
from vgsplus.training import checkpoint
from vgsplus.training.additional import (
    Step,
    additional_batches,
    open_additional,
    read_steps,
    with_additional,
)
from vgsplus.training.batches import (
    TRAIN,
    VALIDATION,
    Batch,
    TrainingOrder,
    batches_per_epoch,
    split_reader,
)
from vgsplus.training.checkpoint import TrainingState
from vgsplus.training.checks import LoadWeights, check_run
from vgsplus.training.interruption import StopRequest
from vgsplus.training.log import (
    ADDITIONAL_SCALARS,
    MOVED_CROPS,
    SCALARS,
    Record,
    RunLog,
    place,
    read_log,
    scalars,
    speed,
    to_numbers,
)
from vgsplus.training.machine import deterministic, device_name, keep_freed_memory, keep_kernels, versions
from vgsplus.training.optimizer import build_optimizer, load_named_state, named_state
from vgsplus.training.progress import Progress, Silent
from vgsplus.training.randomness import Use, indexed_seed
from vgsplus.training.reports import Evaluate, Reporter
from vgsplus.training.run_folder import Found, Identity, alone_in, newest, open_run, settle_precision

SILENT_CROPS = (
    "some clips are silent throughout the {seconds:g} s that are cut from them; such crops move to where "
    "there is sound, and log.jsonl has their share as moved_crops"
)


@dataclass(frozen=True)
class TrainResult:
    """What a finished run left: its last checkpoint, its updates, and its last validation and scores."""

    checkpoint: Path
    steps: int
    validation: dict[str, float] | None
    evaluation: dict[str, float] | None


def train(
    config: RunConfig,
    out: Path,
    *,
    start: Path | None = None,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    load_weights: LoadWeights | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train by a schedule into the run folder `out`.

    Args:
        config: the settings.
        out: the run folder; made here.
        start: an end-of-phase checkpoint (or run that ended) with the same settings and first phases; the
            run goes on after them as if they had been trained here.
        resume: go on from the newest checkpoint in `out`; with none there, start. A finished run returns
            at once.
        evaluate: called with the model in evaluation mode every `evaluate_every` epochs and after each phase,
            and with whether it is the latter.
        load_weights: puts the weights that a phase's `init` names into the model, and says what was taken.
        progress: see `progress.console_progress`; silent by default.

    Raises:
        ConfigError, ConfigError, CorpusError: the run cannot work; nothing was written.
        CheckpointError: `out` holds a run and `resume` is false, settings or corpora differ from those of the
            run to go on with, or another process trains in it.
        CheckpointError: a checkpoint is broken or cannot be written.
        NotFiniteError: a loss or gradient is infinite or not a number.
        Interrupted: SIGINT or SIGTERM; the run saved.
    """
    # Settings made in Python have not been through validation yet.
    config = settle_precision(settings.from_dict(settings.to_dict(config)), out)
    if resume and (result := _finished(config, out, evaluate)):
        return result
    corpus = Corpus.open(config.corpus)
    begun = newest(out, config) if resume else None
    check_run(config, corpus, load_weights, begun=begun.state.phase + 1 if begun else 0)
    additional = open_additional(config.schedule)
    identity = Identity.of(corpus, additional)
    with ExitStack() as stack:
        stack.enter_context(alone_in(out))
        found = open_run(out, config, identity, start=start, resume=resume)
        stop = stack.enter_context(StopRequest())
        log = stack.enter_context(RunLog(out, found.state.global_step if found else 0))
        shown = progress or Silent()
        stack.callback(shown.close)
        trainer = Trainer(
            config,
            out,
            corpus,
            additional,
            identity=identity,
            log=log,
            stop=stop,
            progress=shown,
            evaluate=evaluate,
            load_weights=load_weights,
        )
        stack.enter_context(deterministic(trainer.fabric.device))
        trainer.run(found)
    result = _finished(config, out, evaluate)
    assert result is not None
    return result


class Trainer:
    """Owns the model and walks through the phases; `train` prepares what it needs."""

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        corpus: Corpus,
        additional: Mapping[str, Corpus],
        *,
        identity: Identity,
        log: RunLog,
        stop: StopRequest,
        progress: Progress,
        evaluate: Evaluate | None = None,
        load_weights: LoadWeights | None = None,
    ) -> None:
        self.config, self.out = config, out
        self.log, self.stop, self.progress = log, stop, progress
        self.load_weights = load_weights
        self._identity = identity
        assert config.precision != "auto", "settle_precision comes first"
        device = device_name(config.accelerator)
        if device == "cpu":
            keep_freed_memory()
            keep_kernels()
        self.precision = (
            Precision() if config.precision == "32-true" else MixedPrecision(config.precision, device)
        )
        self.fabric = Fabric(accelerator=device, devices=1, plugins=self.precision)
        torch.manual_seed(indexed_seed(config.seed, Use.MODEL))
        self.model = build_model(config.model)
        self.fabric.setup_module(self.model)
        self._pin_memory = self.fabric.device.type == "cuda"
        self.train_reader = split_reader(config, corpus, TRAIN)
        self.plan = config.schedule.plan(
            batches_per_epoch(len(self.train_reader.captions), config.batch_size)
        )
        self.additional = tuple(
            additional_batches(config, planned, additional.get(planned.phase.name)) for planned in self.plan
        )
        self.reporter = Reporter(
            config,
            self.model,
            self._losses,
            reader=None if config.validate_every is None else split_reader(config, corpus, VALIDATION),
            additional=self.additional,
            evaluate=evaluate,
            log=log,
            progress=progress,
            stop=stop,
            pin_memory=self._pin_memory,
        )
        self._silent_crops_reported = False
        self._saved: Path | None = None
        self._saved_at = time.monotonic()

    # ---- phases ----

    def run(self, found: Found | None) -> None:
        """Train all that is left of the schedule after the checkpoint found."""
        if found:
            checkpoint.load_weights(self.model, found.checkpoint)
            self.precision.load_state_dict(found.state.precision)
            self._saved = found.checkpoint
            self._run_phase(self.plan[found.state.phase], found)
        for planned in self.plan[found.state.phase + 1 if found else 0 :]:
            self._run_phase(planned, None)

    def _run_phase(self, planned: PlannedPhase, resumed: Found | None) -> None:
        done = resumed.state.step if resumed else 0
        self.progress.begin(planned.phase.name, planned.steps, done)
        if planned.phase.init is not None and resumed is None:
            assert self.load_weights is not None
            self.progress.note(self.load_weights(self.model, planned.phase.init))
        optimizer = build_optimizer(self.model, planned.phase.optimizer)
        if resumed:
            tensors = checkpoint.load_tensors(resumed.checkpoint / checkpoint.OPTIMIZER_FILE)
            load_named_state(optimizer, self.model, tensors)
            self._catch_up(planned, done)
        self.model.train()
        prepared = self.fabric.setup_optimizers(optimizer)
        assert isinstance(prepared, Optimizer)
        with closing(self._training_batches(planned, done)) as batches:
            started = time.perf_counter()
            for step, (batch, additional) in enumerate(batches, start=done):
                record = self._update(planned, step, batch, additional, prepared)
                record |= speed(batch, additional, time.perf_counter() - started)
                self.log.write(record)
                self.progress.step(record)
                if record[MOVED_CROPS] and not self._silent_crops_reported:
                    self.progress.note(SILENT_CROPS.format(seconds=self.config.max_seconds))
                    self._silent_crops_reported = True
                self._after(planned, step + 1, optimizer)
                started = time.perf_counter()

    def _training_batches(self, planned: PlannedPhase, done: int) -> Generator[Step]:
        order = TrainingOrder(
            num=len(self.train_reader.captions),
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            planned=planned,
            first_step=done,
        )
        return read_steps(
            self.train_reader,
            order,
            self.additional[planned.index],
            workers=self.config.workers,
            pin_memory=self._pin_memory,
        )

    # ---- one step ----

    def _update(
        self,
        planned: PlannedPhase,
        step: int,
        batch: Batch,
        additional: Batch | None,
        optimizer: Optimizer,
    ) -> Record:
        alpha, lr = planned.alpha(step), planned.lr(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        beside = self._learn_additional(planned, step, additional) if additional else {}
        # Masks, negatives, Gumbel noise and dropout all come from torch's generators.
        torch.manual_seed(indexed_seed(self.config.seed, Use.STEP, planned.index, step))
        losses = self._losses(batch, alpha)
        self.fabric.backward(losses.total)
        norm = self.fabric.clip_gradients(
            self.model, optimizer, max_norm=self.config.gradient_clip, error_if_nonfinite=False
        )
        assert norm is not None
        found = scalars(losses)
        if beside:
            found = with_additional(found, beside, planned.additional_weight)
        values = to_numbers(found | {"grad_norm": norm})
        self._require_finite(values, planned, step, lr)
        optimizer.step()
        none = dict.fromkeys(SCALARS)
        return place("train", planned, step + 1) | {"alpha": alpha, "lr": lr} | none | values

    def _learn_additional(self, planned: PlannedPhase, step: int, batch: Batch) -> dict[str, Tensor]:
        """Leave the weighted gradient of additional speech, to which that of the captions is added.

        Returns:
            Its losses, not weighted.
        """
        torch.manual_seed(indexed_seed(self.config.seed, Use.ADDITIONAL_STEP, planned.index, step))
        # The Gumbel temperature moves on once an update: with the captions, if they reach the quantiser.
        update_temperature = planned.alpha(step) == 1
        with self.fabric.autocast():
            losses: Losses = self.model(
                self.fabric.to_device(batch), alpha=0.0, update_temperature=update_temperature
            )
        self.fabric.backward(planned.additional_weight * losses.total)
        return scalars(losses)

    def _losses(self, batch: Batch, alpha: float) -> Losses:
        """The losses of captions in training, and of whatever is validated."""
        with self.fabric.autocast():
            losses: Losses = self.model(self.fabric.to_device(batch), alpha)
        return losses

    def _require_finite(self, values: dict[str, float], planned: PlannedPhase, step: int, lr: float) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if not bad or (bad == ["grad_norm"] and self._scaler_can_back_off()):
            return
        self.log.write(place("stopped", planned, step) | {"not_finite": bad})
        what = ", ".join(name for name in bad if name != "grad_norm") or "the gradient"
        last = f"The last checkpoint is {self._saved}." if self._saved else "There is no checkpoint yet."
        raise NotFiniteError(
            f"{what}: not finite at step {step + 1} of phase {planned.phase.name} "
            f"(α {planned.alpha(step):g}, learning rate {lr:g}, precision {self.config.precision}); "
            f"the weights were not updated. {last} "
            "A lower learning rate, a longer warm-up or precision 32-true may mend it."
        )

    def _scaler_can_back_off(self) -> bool:
        """In 16 bits a gradient may overflow: the scaler skips the update and halves its scale."""
        scaler = getattr(self.precision, "scaler", None)
        return scaler is not None and scaler.get_scale() > 1.0

    # ---- between steps ----

    def _after(self, planned: PlannedPhase, done: int, optimizer: Optimizer) -> None:
        minutes = (time.monotonic() - self._saved_at) / 60
        due = done == planned.steps or minutes >= self.config.checkpoint_minutes
        if due:
            self._save(planned, done, optimizer)
        if not self.stop.requested:
            self.reporter.report(planned, done)
        if self.stop.requested:
            if not due:
                self._save(planned, done, optimizer)
            self._interrupt()
        self.model.train()

    def _catch_up(self, planned: PlannedPhase, done: int) -> None:
        """Report what was due at the checkpoint when the run was killed."""
        self.reporter.report(planned, done)
        if self.stop.requested:
            self._interrupt()

    def _interrupt(self) -> None:
        raise Interrupted(
            f"stopped as asked, and saved {self._saved}. The same command with --resume goes on from there."
        )

    def _save(self, planned: PlannedPhase, done: int, optimizer: Optimizer) -> None:
        state = TrainingState(
            phase=planned.index,
            phase_name=planned.phase.name,
            step=done,
            steps=planned.steps,
            epoch=planned.epoch(done),
            global_step=planned.first_step + done,
            seed=self.config.seed,
            model=settings.to_dict(self.config.model),
            run=settings.to_dict(self.config),
            corpus=self._identity.corpus,
            additional_speech=self._identity.additional_speech,
            precision=self.precision.state_dict(),
            versions=versions(),
        )
        # The log must reach the disk first: a checkpoint promises every line up to its step.
        self.log.sync()
        self._saved = checkpoint.save_checkpoint(
            self.out, state, self.model.state_dict(), named_state(optimizer, self.model)
        )
        checkpoint.prune(self.out)
        self._saved_at = time.monotonic()


def _finished(config: RunConfig, out: Path, evaluate: Evaluate | None) -> TrainResult | None:
    """The result of a run that has nothing left to train, validate or evaluate."""
    found = newest(out, config)
    if not found or not found.state.end_of_phase or found.state.phase + 1 < len(config.schedule.phases):
        return None
    step = found.state.global_step
    reports = {record["kind"]: record for record in read_log(out) if record["step"] == step}
    validation, evaluation = reports.get("validation"), reports.get("evaluation")
    if (config.validate_every is not None and not validation) or (evaluate is not None and not evaluation):
        return None
    return TrainResult(
        checkpoint=found.checkpoint,
        steps=step,
        validation={name: validation[name] for name in (*SCALARS, *ADDITIONAL_SCALARS) if name in validation}
        if validation
        else None,
        evaluation=evaluation["scores"] if evaluation else None,
    )
