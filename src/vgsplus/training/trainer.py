"""The training loop.

- `Trainer.run`: for each phase of the schedule,
- `Trainer._train_phase`: build the optimiser; for each batch,
- `Trainer._update`: loss α · grounding + (1 - α) · ssl, backward, clip, optimiser step;
- `Trainer._after_step`: save, validate and evaluate when due.

Every step is a function of (seed, phase, step) and of the weights before it, so a run that was killed and
resumed ends with the same weights, bit for bit, as one that was not.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from torch import Tensor
from torch.optim import Optimizer

from vgsplus.config import RunConfig, from_dict, to_dict
from vgsplus.corpora import Corpus
from vgsplus.errors import Interrupted, NotFiniteError
from vgsplus.losses import PUBLISHED_TERMS, Losses
from vgsplus.models.published import build_model
from vgsplus.models.transformer import compile_layers
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.progress import SILENT, Progress
from vgsplus.schedule import PhaseSteps
from vgsplus.training import checkpoint
from vgsplus.training.checkpoint import OPTIMIZER_FILE, Checkpoint, TrainingState
from vgsplus.training.checks import LoadWeights, check_run
from vgsplus.training.data import (
    Batch,
    move,
    move_ahead,
    open_additional_speech,
    plan_steps,
    training_batches,
)
from vgsplus.training.log import (
    ADDITIONAL,
    MOVED_CROPS,
    PendingScalars,
    Record,
    RunLog,
    log_record,
    loss_terms,
    losses_in,
    merge_terms,
    read_log,
    throughput,
)
from vgsplus.training.optimizer import build_optimizer, load_named_state, named_state
from vgsplus.training.run_folder import data_fingerprint, load_latest, open_run, resolve_precision, run_lock
from vgsplus.training.runtime import (
    RandomStream,
    StopRequest,
    compiles,
    deterministic,
    device_name,
    indexed_seed,
    tune_process,
    versions,
)
from vgsplus.training.validate import validate

type Evaluate = Callable[[VGSPlus, bool], dict[str, float]]
"""Called with the model and whether a phase has ended; returns scores by name."""

STEPS_AHEAD = {"cpu": 0, "cuda": 3}
"""Steps after which losses are read, so that a GPU always has work in its queue."""

HIDDEN_TERMS = ("ssl", "feature_penalty", "prob_perplexity", "code_perplexity")
"""Terms that the progress display omits."""


class Trainer:
    """Trains a model through the phases of a schedule; `train` checks and opens its arguments."""

    log: RunLog

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        corpus: Corpus,
        additional_speech: Mapping[str, Corpus],
        *,
        evaluate: Evaluate | None = None,
        load_weights: LoadWeights | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.config, self.out, self.corpus, self.additional_speech = config, out, corpus, additional_speech
        self.data = data_fingerprint(corpus, additional_speech)
        self.evaluate, self.load_weights, self.progress = evaluate, load_weights, progress
        self.stop = StopRequest()
        assert config.precision != "auto", "resolve_precision comes first"
        device = device_name(config.accelerator)
        tune_process()
        self.precision = (
            Precision() if config.precision == "32-true" else MixedPrecision(config.precision, device)
        )
        self.fabric = Fabric(accelerator=device, devices=1, plugins=self.precision)
        torch.manual_seed(indexed_seed(config.seed, RandomStream.MODEL))
        self.model = build_model(config.model)
        self.fabric.setup_module(self.model)
        if compiles(config.compile, device):
            compile_layers(self.model)
        self.plan = plan_steps(config, corpus)
        self.scaler = getattr(self.precision, "scaler", None)
        self._pending: deque[tuple[int, tuple[Batch, ...], Record, PendingScalars]] = deque()
        self._read_at = 0.0
        self._silent_crops_reported = False
        self._saved: Checkpoint | None = None
        self._saved_at = time.monotonic()

    def run(self, resumed: Checkpoint | None) -> Checkpoint:
        """Train the rest of the schedule after a checkpoint, or all of it, and return the last checkpoint."""
        first = 0
        with (
            RunLog(self.out, resumed.state.global_step if resumed else 0) as self.log,
            deterministic(self.fabric.device),
        ):
            if resumed:
                checkpoint.load_weights(self.model, resumed.path)
                self.precision.load_state_dict(resumed.state.precision)
                self._saved, first = resumed, resumed.state.phase
            for phase in self.plan[first:]:
                self._train_phase(phase, resumed if phase.index == first else None)
        assert self._saved is not None
        return self._saved

    def _train_phase(self, phase: PhaseSteps, resumed: Checkpoint | None) -> None:
        done = resumed.state.step if resumed else 0
        self.progress.update(phase.name, done, phase.steps)
        if phase.config.init is not None and resumed is None:
            assert self.load_weights is not None
            self.progress.note(self.load_weights(self.model, phase.config.init))
        optimizer = build_optimizer(self.model, phase.config.optimizer, scaled=self.scaler is not None)
        if resumed:
            tensors = checkpoint.load_tensors(resumed.path / OPTIMIZER_FILE)
            load_named_state(optimizer, self.model, tensors)
            self._run_due_evaluations(phase, done)  # the run may have been killed before them
            if self.stop.requested:
                self._interrupt()
        self.model.train()
        prepared = self.fabric.setup_optimizers(optimizer)
        assert isinstance(prepared, Optimizer)
        additional_speech = self.additional_speech.get(phase.name)
        with closing(training_batches(self.config, phase, self.corpus, additional_speech, done)) as steps:
            self._read_at = time.perf_counter()
            for step, batches in enumerate(move_ahead(steps, self.fabric.device), start=done):
                record, losses = self._update(phase, step, prepared, *batches)
                self._pending.append((step, batches, record, losses))
                self._report(phase, keep=STEPS_AHEAD[self.fabric.device.type])
                self._after_step(phase, step + 1, optimizer)
                self._read_at = time.perf_counter()

    def _update(
        self,
        phase: PhaseSteps,
        step: int,
        optimizer: Optimizer,
        batch: Batch,
        extra_batch: Batch | None = None,
    ) -> tuple[Record, PendingScalars]:
        """Run one optimiser update, unless a loss or the gradient is not finite.

        total = α · grounding + (1 - α) · ssl, plus weight · ssl of additional speech.

        Returns:
            The record of the step, and the losses by name, which the device may not have computed yet.
        """
        alpha, lr, weight = phase.alpha(step), phase.lr(step), phase.additional_weight
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        additional = {}
        if extra_batch is not None:
            seed = indexed_seed(self.config.seed, RandomStream.EXTRA_STEP, phase.index, step)
            # The Gumbel temperature advances once per update: with the captions if α < 1, else here.
            additional = self._accumulate_gradient(
                extra_batch, 0.0, seed, weight=weight, update_temperature=alpha == 1
            )
        seed = indexed_seed(self.config.seed, RandomStream.STEP, phase.index, step)
        losses = self._accumulate_gradient(batch, alpha, seed)
        norm = self.fabric.clip_gradients(
            self.model, optimizer, max_norm=self.config.gradient_clip, error_if_nonfinite=False
        )
        assert norm is not None
        terms = merge_terms(losses, additional, weight) if additional else losses
        scalars = PendingScalars(terms | {"grad_norm": norm})
        if self.scaler is None:  # a scaler skips the update itself; Fabric wraps the optimiser
            found_inf = (~scalars.stacked.isfinite()).any().float()
            getattr(optimizer, "optimizer", optimizer).found_inf = found_inf  # type: ignore[union-attr]
        optimizer.step()
        return log_record("train", phase, step + 1) | {"alpha": alpha, "lr": lr}, scalars

    def _accumulate_gradient(
        self, batch: Batch, alpha: float, seed: int, *, weight: float = 1.0, update_temperature: bool = True
    ) -> dict[str, Tensor]:
        """Backpropagate weight · total; batches run one after the other, to hold one set of activations."""
        torch.manual_seed(seed)  # masks, negatives, Gumbel noise and dropout
        losses = self._losses(batch, alpha, update_temperature=update_temperature)
        self.fabric.backward(weight * losses.total)
        return loss_terms(losses)

    def _losses(self, batch: Batch, alpha: float, *, update_temperature: bool = True) -> Losses:
        moved = move(batch, self.fabric.device)
        with self.fabric.autocast():
            losses: Losses = self.model(moved, alpha, update_temperature=update_temperature)
        return losses

    def _require_finite(self, values: dict[str, float], phase: PhaseSteps, step: int) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        # In 16 bits a gradient may overflow: the scaler then skips the update and halves its scale.
        if not bad or (bad == ["grad_norm"] and self.scaler is not None and self.scaler.get_scale() > 1.0):
            return
        self.log.write(log_record("stopped", phase, step) | {"not_finite": bad})
        what = ", ".join(name for name in bad if name != "grad_norm") or "the gradient"
        last = f"The last checkpoint is {self._saved.path}." if self._saved else "There is no checkpoint yet."
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
            step, batches, record, losses = self._pending.popleft()
            values = losses.read()
            self._require_finite(values, phase, step)
            now = time.perf_counter()
            record |= dict.fromkeys(("total", *PUBLISHED_TERMS)) | values
            self._log_step(phase, record | throughput(batches, now - self._read_at))
            self._read_at = now

    def _log_step(self, phase: PhaseSteps, record: Record) -> None:
        self.log.write(record)
        shown = {n: x for n, x in losses_in(record).items() if n.removeprefix(ADDITIONAL) not in HIDDEN_TERMS}
        detail = "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
        speed = f"{record['captions_per_second']:.1f} captions/s"
        self.progress.update(phase.name, record["phase_step"], phase.steps, f"{detail}  {speed}")
        if record[MOVED_CROPS] and not self._silent_crops_reported:
            self._silent_crops_reported = True
            self.progress.note(
                f"some clips are silent throughout the {self.config.max_seconds:g} s that are cropped from "
                "them; such crops are moved to where there is sound (see moved_crops in log.jsonl)"
            )

    def _after_step(self, phase: PhaseSteps, done: int, optimizer: Optimizer) -> None:
        minutes = (time.monotonic() - self._saved_at) / 60
        due = done == phase.steps or minutes >= self.config.checkpoint_minutes
        if due:
            self._save(phase, done, optimizer)
        self._run_due_evaluations(phase, done)
        if self.stop.requested:
            if not due:
                self._save(phase, done, optimizer)
            self._interrupt()
        self.model.train()

    def _run_due_evaluations(self, phase: PhaseSteps, done: int) -> None:
        """Validate and evaluate if due and not in the log yet; leaves the model in eval mode."""
        self.model.eval()
        every = self.config.evaluate_every or math.inf
        if self._is_due("validation", self.config.validate_every, phase, done):
            self._report(phase)
            alpha, additional_speech = phase.alpha(done - 1), self.additional_speech.get(phase.name)
            means = validate(
                self._losses, self.config, phase, alpha, self.corpus, additional_speech, self.stop
            )
            if means:
                shown = {name: x for name, x in means.items() if x or not name.endswith(MOVED_CROPS)}
                self._write_scores("validation", phase, done, {"alpha": alpha} | means, shown)
        if self.evaluate and self._is_due("evaluation", every, phase, done):
            self._report(phase)
            with torch.no_grad():
                found = self.evaluate(self.model, done == phase.steps)
                scores = {name: float(score) for name, score in found.items()}
            self._write_scores("evaluation", phase, done, {"scores": scores}, scores)

    def _is_due(self, kind: str, every: float | None, phase: PhaseSteps, done: int) -> bool:
        if every is None or self.stop.requested or self.log.has(kind, phase.first_step + done):
            return False
        at_interval = math.isfinite(every) and done % max(1, round(every * phase.steps_per_epoch)) == 0
        return at_interval or done == phase.steps

    def _write_scores(
        self, kind: str, phase: PhaseSteps, done: int, values: Record, shown: dict[str, float]
    ) -> None:
        record = log_record(kind, phase, done) | values
        self.log.write(record)
        listed = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self.progress.note(f"{kind} after {record['epoch']:g} epochs: {listed}")

    def _save(self, phase: PhaseSteps, done: int, optimizer: Optimizer) -> None:
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
            precision=self.precision.state_dict(),
            versions=versions(),
            **self.data,
        )
        # The log on disk must contain every record up to the step of the checkpoint.
        self.log.sync()
        weights = self.model.state_dict()
        path = checkpoint.save_checkpoint(self.out, state, weights, named_state(optimizer, self.model))
        self._saved = Checkpoint(path, state)
        checkpoint.prune(self.out)
        self._saved_at = time.monotonic()

    def _interrupt(self) -> None:
        assert self._saved is not None
        raise Interrupted(
            f"stopped by a signal; saved {self._saved.path}. Run the same command with --resume to continue."
        )


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
        Interrupted: SIGINT or SIGTERM; the run saved.
    """
    # A ModelConfig built in Python has not been validated yet.
    config = resolve_precision(from_dict(to_dict(config)), out)
    if resume and (finished := _load_finished(config, out, evaluate)):
        return finished
    corpus = Corpus.open(config.corpus)
    started = load_latest(out, config) if resume else None
    check_run(config, corpus, load_weights, first_phase=started.state.phase + 1 if started else 0)
    additional_speech = open_additional_speech(config.schedule)
    trainer = Trainer(
        config,
        out,
        corpus,
        additional_speech,
        evaluate=evaluate,
        load_weights=load_weights,
        progress=progress,
    )
    with run_lock(out), trainer.stop, progress:
        return trainer.run(open_run(out, config, trainer.data, start=start, resume=resume))


def _load_finished(config: RunConfig, out: Path, evaluate: Evaluate | None) -> Checkpoint | None:
    """Return the last checkpoint of a run that has nothing left to train, validate or evaluate, else None."""
    found = load_latest(out, config)
    if not found or not found.state.end_of_phase or found.state.phase + 1 < len(config.schedule.phases):
        return None
    done = {record["kind"] for record in read_log(out) if record["step"] == found.state.global_step}
    due = {"validation": config.validate_every is not None, "evaluation": evaluate is not None}
    return found if done >= {kind for kind in due if due[kind]} else None
