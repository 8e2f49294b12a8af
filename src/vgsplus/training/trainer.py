"""The training loop.

- `Trainer.run`: for each phase of the schedule,
- `Trainer._train_phase`: build the optimiser; for each batch,
- `TrainingStep.update`: loss α · grounding + (1 - α) · ssl, backward, clip, optimiser step;
- `Trainer._after_step`: save, validate and evaluate when due.

Every step is a function of (seed, phase, step) and of the weights before it, so a run that was killed and
resumed ends with the same weights, bit for bit, as one that was not.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch.optim import Optimizer

from vgsplus.config import RunConfig, from_dict, to_dict
from vgsplus.corpora import Corpus
from vgsplus.errors import Interrupted, NotFiniteError
from vgsplus.functional import stopping_together
from vgsplus.losses import METRICS, PUBLISHED_TERMS
from vgsplus.models.published import build_model
from vgsplus.models.transformer import compile_layers
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.backbones import load_backbone
from vgsplus.schedule import PhaseSteps
from vgsplus.training import checkpoint
from vgsplus.training.checkpoint import OPTIMIZER_FILE, Checkpoint, CheckpointWriter, TrainingState
from vgsplus.training.checks import LoadWeights, check_run
from vgsplus.training.data import move_ahead, open_additional_speech, plan_steps, training_batches
from vgsplus.training.log import (
    GRADIENTS,
    MOVED_CROPS,
    BatchCounts,
    PendingScalars,
    Record,
    RunLog,
    log_record,
    summary,
    throughput,
    with_waits,
)
from vgsplus.training.optimizer import build_optimizer, load_named_state, named_state
from vgsplus.training.processes import Processes
from vgsplus.training.run_folder import (
    data_fingerprint,
    load_finished,
    load_latest,
    open_run,
    resolve_precision,
    run_lock,
)
from vgsplus.training.runtime import (
    RandomStream,
    StopRequest,
    compiles,
    deterministic,
    indexed_seed,
    tune_process,
    versions,
)
from vgsplus.training.sampler import Part
from vgsplus.training.step import TrainingStep
from vgsplus.training.validate import validate

type Evaluate = Callable[[VGSPlus, bool], dict[str, float]]
"""Called with the model and whether a phase has ended; returns scores by name."""

STEPS_AHEAD = {"cpu": 0, "cuda": 3}
"""Steps after which losses are read, so that a GPU always has work in its queue."""


class Trainer:
    """Trains a model through the phases of a schedule; `train` checks and opens its arguments."""

    log: RunLog | None  # None in all processes but the first
    writer: CheckpointWriter

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        corpus: Corpus,
        additional_speech: Mapping[str, Corpus],
        processes: Processes,
        *,
        evaluate: Evaluate | None = None,
        load_weights: LoadWeights | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.config, self.out, self.corpus, self.additional_speech = config, out, corpus, additional_speech
        self.data = data_fingerprint(corpus, additional_speech)
        self.evaluate, self.load_weights, self.progress = evaluate, load_weights, progress
        self.stop = StopRequest()
        self.processes, self.device = processes, processes.fabric.device
        tune_process()
        torch.manual_seed(indexed_seed(config.seed, RandomStream.MODEL))
        self.model = build_model(config.model).to(self.device)
        if compiles(config.compile, self.device.type):
            compile_layers(self.model)
        self.model.recompute(config.micro_batch_size, checkpoint_layers=config.activation_checkpointing)
        self.plan = plan_steps(config, corpus)
        self._part = Part(processes.rank, processes.count)
        self.step = TrainingStep(self.model, config, processes)
        self._pending: deque[tuple[int, BatchCounts, Record, PendingScalars]] = deque()
        self._read_at = 0.0
        self._silent_crops_reported = False
        self._saved_at = time.monotonic()

    def run(self, resumed: Checkpoint | None) -> Checkpoint:
        """Train the rest of the schedule after a checkpoint, or all of it, and return the last checkpoint."""
        first = resumed.state.phase if resumed else 0
        with (
            self._open_log(resumed) as self.log,
            CheckpointWriter(self.out, resumed) as self.writer,
            deterministic(self.device),
        ):
            if resumed:
                checkpoint.load_weights(self.model, resumed.path)
                self.processes.precision.load_state_dict(resumed.state.precision)
            else:
                load_backbone(self.model)
            for phase in self.plan[first:]:
                self._train_phase(phase, resumed if phase.index == first else None)
            return self.processes.on_first(self.writer.finish)

    def _open_log(self, resumed: Checkpoint | None) -> AbstractContextManager[RunLog | None]:
        done = resumed.state.global_step if resumed else 0
        return RunLog(self.out, done, self.config) if self.processes.first else nullcontext()

    def _train_phase(self, phase: PhaseSteps, resumed: Checkpoint | None) -> None:
        done = resumed.state.step if resumed else 0
        self.progress.update(phase.name, done, phase.steps)
        if phase.config.init is not None and resumed is None:
            assert self.load_weights is not None
            self.progress.note(self.load_weights(self.model, phase.config.init))
        optimizer = build_optimizer(self.model, phase.config.optimizer, scaled=self.step.scaler is not None)
        if resumed:
            tensors = checkpoint.load_tensors(resumed.path / OPTIMIZER_FILE)
            load_named_state(optimizer, self.model, tensors)
            # The run may have been killed before its evaluations.
            if self._evaluate(phase, done, self._due(phase, done)):
                self._interrupt()
        self.model.train()
        prepared = self.processes.fabric.setup_optimizers(optimizer)
        assert isinstance(prepared, Optimizer)
        additional_speech = self.additional_speech.get(phase.name)
        read = training_batches(self.config, phase, self.corpus, additional_speech, self._part, done)
        with closing(read) as steps:
            self._read_at = time.perf_counter()
            for step, (batches, waited) in enumerate(with_waits(move_ahead(steps, self.device)), start=done):
                record, losses = self.step.update(phase, step, prepared, *batches)
                counts = self.step.counts(phase, batches, waited)
                self._pending.append((step, counts, record, losses))
                self._report(phase, keep=STEPS_AHEAD[self.device.type])
                self._after_step(phase, step + 1, optimizer)
                self._read_at = time.perf_counter()

    def _require_finite(self, values: dict[str, float], phase: PhaseSteps, step: int) -> None:
        bad = [n for n, value in values.items() if not (math.isfinite(value) or n.startswith(GRADIENTS))]
        scaler = self.step.scaler
        # In 16 bits a gradient may overflow: the scaler then skips the update and halves its scale.
        if not bad or (bad == ["grad_norm"] and scaler is not None and scaler.get_scale() > 1.0):
            return
        self._write(log_record("stopped", phase, step) | {"not_finite": bad})
        what = ", ".join(name for name in bad if name != "grad_norm") or "the gradient"
        saved = self.writer.saved
        last = f"The last checkpoint is {saved.path}." if saved else "There is no checkpoint yet."
        raise NotFiniteError(
            f"{what} is not finite at step {step + 1} of phase {phase.name} "
            f"(α {phase.alpha(step):g}, learning rate {phase.lr(step):g}, precision "
            f"{self.config.precision}); that update was skipped. {last} "
            "Try a lower learning rate, a longer warm-up or precision 32-true."
        )

    # ---- after a step -------------------------------------------------------------------------------------

    def _report(self, phase: PhaseSteps, keep: int = 0) -> None:
        """Log all steps but the last `keep`; a step lasts until its losses can be read."""
        while len(self._pending) > keep:
            step, counts, record, losses = self._pending.popleft()
            values = losses.read()
            self._require_finite(values, phase, step)
            now = time.perf_counter()
            record |= dict.fromkeys(("total", *PUBLISHED_TERMS)) | values
            self._log_step(phase, record | throughput(counts, now - self._read_at))
            self._read_at = now

    def _log_step(self, phase: PhaseSteps, record: Record) -> None:
        self._write(record)
        self.progress.update(phase.name, record["phase_step"], phase.steps, summary(record))
        if record[MOVED_CROPS] and not self._silent_crops_reported:
            self._silent_crops_reported = True
            self.progress.note(
                f"some clips are silent throughout the {self.config.max_seconds:g} s that are cropped from "
                "them; such crops are moved to where there is sound (see moved_crops in log.jsonl)"
            )

    def _after_step(self, phase: PhaseSteps, done: int, optimizer: Optimizer) -> None:
        if error := self.writer.error():
            self.progress.note(f"{error} Training goes on.")
        due = self._due(phase, done)
        if due.checkpoint:
            self._save(phase, done, optimizer)
        if self._evaluate(phase, done, due):
            if not due.checkpoint:
                self._save(phase, done, optimizer)
            self._interrupt()
        self.model.train()

    def _due(self, phase: PhaseSteps, done: int) -> "_Due":
        """Decide what follows a step, for all processes: the first has the log and the clock."""
        minutes = (time.monotonic() - self._saved_at) / 60
        every = self.config.evaluate_every or math.inf
        decisions = (
            done == phase.steps or minutes >= self.config.checkpoint_minutes,
            self._is_due("validation", self.config.validate_every, phase, done),
            self.evaluate is not None and self._is_due("evaluation", every, phase, done),
        )
        own = (decision and self.processes.first for decision in decisions)
        return _Due(*(total > 0 for total in self.processes.sum([self.stop.requested, *own])))

    def _write(self, record: Record) -> None:
        for warning in self.log.write(record) if self.log else ():
            self.progress.note(f"warning at step {warning.step:,}: {warning}")

    def _stops(self) -> bool:
        """Whether any process was asked to stop."""
        return self.processes.sum([self.stop.requested])[0] > 0

    def _evaluate(self, phase: PhaseSteps, done: int, due: "_Due") -> bool:
        """Validate and evaluate if due; leaves the model in eval mode. Return whether to stop."""
        self.model.eval()
        if due.stop or not (due.validation or due.evaluation):
            return due.stop
        self._report(phase)
        if due.validation:
            alpha, additional_speech = phase.alpha(done - 1), self.additional_speech.get(phase.name)
            means = validate(
                self.step.losses,
                self.config,
                phase,
                alpha,
                self.corpus,
                additional_speech,
                self._part,
                self._stops,
            )
            if means is None:
                return True
            shown = {
                n: x for n, x in means.items() if n not in METRICS and (x or not n.endswith(MOVED_CROPS))
            }
            self._write_scores("validation", phase, done, {"alpha": alpha} | means, shown)
        if due.evaluation and not self._stops():
            assert self.evaluate is not None
            found = None
            with stopping_together(lambda: self.stop.requested), torch.no_grad():
                found = self.evaluate(self.model, done == phase.steps)
            if found is not None:
                scores = {name: float(score) for name, score in found.items()}
                self._write_scores("evaluation", phase, done, {"scores": scores}, scores)
        return self._stops()

    def _is_due(self, kind: str, every: float | None, phase: PhaseSteps, done: int) -> bool:
        if every is None or self.log is None or self.log.has(kind, phase.first_step + done):
            return False
        at_interval = math.isfinite(every) and done % max(1, round(every * phase.steps_per_epoch)) == 0
        return at_interval or done == phase.steps

    def _write_scores(
        self, kind: str, phase: PhaseSteps, done: int, values: Record, shown: dict[str, float]
    ) -> None:
        record = log_record(kind, phase, done) | values
        self._write(record)
        listed = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self.progress.note(f"{kind} after {record['epoch']:g} epochs: {listed}")

    def _save(self, phase: PhaseSteps, done: int, optimizer: Optimizer) -> None:
        """Write a checkpoint, while training goes on unless a phase has ended."""
        self._report(phase)
        state = TrainingState(
            phase=phase.index,
            phase_name=phase.name,
            step=done,
            steps=phase.steps,
            epoch=phase.epoch(done),
            global_step=phase.first_step + done,
            run_steps=self.plan[-1].first_step + self.plan[-1].steps,
            seed=self.config.seed,
            model=to_dict(self.config.model),
            run=to_dict(self.config),
            precision=self.processes.precision.state_dict(),
            versions=versions(),
            **self.data,
        )
        if self.log is not None:
            # The log on disk must contain every record up to the step of the checkpoint.
            self.log.sync()
            self.writer.start(state, self.model.state_dict(), named_state(optimizer, self.model))
        if done == phase.steps:
            self.processes.on_first(self.writer.finish)
        self._saved_at = time.monotonic()

    def _interrupt(self) -> None:
        saved = self.processes.on_first(self.writer.finish).path
        raise Interrupted(
            f"stopped by a signal; saved {saved}. Run the same command with --resume to continue."
        )


class _Due(NamedTuple):
    """What follows a step."""

    stop: bool
    checkpoint: bool
    validation: bool
    evaluation: bool


def train(
    config: RunConfig,
    out: Path,
    *,
    start: Path | None = None,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    load_weights: LoadWeights | None = None,
    progress: Progress = SILENT,
) -> Checkpoint:
    """Train by a schedule into the run folder `out`.

    Args:
        config: the settings.
        out: the run folder, which is created.
        start: an end-of-phase checkpoint of another run, or a finished run, with the same settings; its
            completed phases, the first of the schedule, are taken over instead of being trained.
        resume: continue from the newest checkpoint in `out`, or start without one. A finished run returns
            immediately.
        evaluate: called with the model in evaluation mode every `evaluate_every` epochs and after each phase,
            and with whether it is the latter; returns scores by name.
        load_weights: loads the weights that the `init` of a phase names into the model, and returns a report.
        progress: receives a stage per phase; see `progress.console_progress`.

    Returns:
        The last checkpoint.

    Raises:
        ConfigError, CorpusError: the run cannot work; nothing was written.
        CheckpointError: `out` holds a run and `resume` is false, settings or corpora differ from those of the
            run to resume, another process trains in it, or a checkpoint is broken or cannot be written.
        NotFiniteError: a loss or gradient is infinite or not a number.
        Interrupted: SIGINT, SIGTERM or SIGUSR1; the run saved.
    """
    # A ModelConfig built in Python has not been validated yet.
    config = resolve_precision(from_dict(to_dict(config)), out)
    assert config.precision != "auto"
    processes = Processes(
        config.devices, config.num_nodes, accelerator=config.accelerator, precision=config.precision
    )

    def check() -> Checkpoint | None:
        if resume and (finished := load_finished(out, config, evaluated=evaluate is not None)):
            return finished
        started = load_latest(out, config) if resume else None
        first_phase = started.state.phase + 1 if started else 0
        corpus = Corpus.open(config.corpus)
        check_run(config, corpus, load_weights, first_phase=first_phase, processes=processes.count)
        return None

    if finished := processes.on_first(check):
        return finished
    trainer = Trainer(
        config,
        out,
        Corpus.open(config.corpus),
        open_additional_speech(config.schedule),
        processes,
        evaluate=evaluate,
        load_weights=load_weights,
        progress=progress if processes.first else SILENT,
    )
    with ExitStack() as stack:

        def open_and_lock() -> Checkpoint | None:
            stack.enter_context(run_lock(out))
            return open_run(out, config, trainer.data, start=start, resume=resume)

        resumed = processes.on_first(open_and_lock)
        stack.enter_context(trainer.stop)
        stack.enter_context(trainer.progress)
        stack.enter_context(processes.ending_together())
        return trainer.run(resumed)
