"""Examine a run folder: settings, checkpoints, progress, log, corpus, and whether the run can resume here."""

import json
import math
import re
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.filesize import decimal

from vgsplus import config as settings
from vgsplus.config import RunConfig, load_config
from vgsplus.corpora import Corpus
from vgsplus.doctor.findings import Diagnosis, Finding, count, leftovers
from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.experiments.reproduce import RUNS, SECONDS, variant_folder
from vgsplus.experiments.scoring import test_sets
from vgsplus.experiments.study import COMMAND, CORPUS
from vgsplus.interop.loading import load_weights
from vgsplus.schedule import VARIANTS
from vgsplus.training import checkpoint
from vgsplus.training.checkpoint import OPTIMIZER_FILE, TrainingState, load_model, load_state, load_tensors
from vgsplus.training.checks import check_run, needs_images
from vgsplus.training.data import open_additional_speech
from vgsplus.training.log import GRADIENTS, LOG_FILE, Record, losses_in, read_log
from vgsplus.training.run_folder import CONFIG_FILE, fingerprint, fingerprint_changes, load_latest
from vgsplus.training.runtime import device_name, native_precision, versions
from vgsplus.training.watch import warnings_in

SHOWN_SCORES = 4


@dataclass(frozen=True, slots=True)
class RunProgress:
    """Progress of a run at a checkpoint.

    Attributes:
        state: state of the checkpoint; None without a checkpoint.
        steps: number of updates in the complete schedule; None without a checkpoint.
        missing: what is due after the last update ("validation", "evaluation") but not in the log.
    """

    state: TrainingState | None
    steps: int | None
    missing: tuple[str, ...] = ()

    @property
    def trained(self) -> bool:
        """Whether all updates are done."""
        return self.state is not None and self.state.global_step == self.steps

    @property
    def finished(self) -> bool:
        """Whether all updates and evaluations are done."""
        return self.trained and not self.missing

    def __str__(self) -> str:
        if self.state is None:
            return "started, no checkpoint yet"
        if not self.trained:
            return f"at step {self.state.global_step:,} of {self.steps:,}, in phase {self.state.phase_name}"
        if self.missing:
            return f"all {self.steps:,} steps done, the last {' and '.join(self.missing)} missing"
        return f"finished after {self.steps:,} steps"


def run_progress(run: Path, path: Path | None, config: RunConfig, *, evaluated: bool) -> RunProgress:
    """Return the progress of a run at a checkpoint; `evaluated`: whether a final evaluation is expected.

    Raises:
        VgsplusError: the state of the checkpoint, its settings or a line of the log are broken.
    """
    if path is None:
        return RunProgress(None, None)
    state = load_state(path)
    # The number of steps is computed from the state alone, because the corpus may have been removed.
    steps = state.run_steps
    if steps is None:
        schedule = settings.from_dict(state.run).schedule
        before = sum(phase.epochs for phase in schedule.phases[: state.phase])
        steps_per_epoch = round(state.step / (state.epoch - before))
        last = schedule.plan(lambda _: steps_per_epoch)[-1]
        steps = last.first_step + last.steps
    due = {"validation": config.validate_every is not None, "evaluation": evaluated}
    logged = {record["kind"] for record in read_log(run) if record["step"] == steps}
    return RunProgress(state, steps, tuple(kind for kind in due if due[kind] and kind not in logged))


def examine_run(run: Path) -> Diagnosis:
    """Check everything in a run folder, and its corpus; reads all tensors of all checkpoints."""
    config, findings = _settings(run)
    newest_valid, found = _checkpoints(run)
    findings += found
    progress: RunProgress | None = None
    corpus: Corpus | CorpusError | None = None
    out = _reproduction_of(run)
    command = ""
    if config:
        corpus = _open_corpus(config)
        try:
            evaluated = out is not None or _has_test_sets(config, corpus)
            progress = run_progress(run, newest_valid, config, evaluated=evaluated)
        except VgsplusError as error:
            findings.append(Finding("fault", "progress", str(error)))
        else:
            findings.append(Finding("ok" if progress.finished else "hint", "progress", str(progress)))
            if not progress.finished:
                command = (recorded_command(out) if out else "") or _resume_command(run)
    findings += _log(run, progress, config)
    if config:
        findings.append(_precision(config))
        findings.append(_corpus(run, config, corpus, progress))
        findings += _additional_speech(config, progress)
        if isinstance(corpus, Corpus) and not (progress and progress.trained):
            findings.append(_resumable(config, corpus))
    if progress and progress.state:
        findings += _versions(progress.state.versions)
    findings += leftovers(run, run / checkpoint.FOLDER)
    return Diagnosis(f"run {run}", tuple(findings), command)


def recorded_command(out: Path) -> str:
    """Return the command that made the reproduction `out`, which resumes it, or "" if none is recorded."""
    try:
        words = json.loads((out / COMMAND).read_text(encoding="utf-8"))["argv"]
        return shlex.join(["vgsplus", *words])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _resume_command(run: Path) -> str:
    return shlex.join(["vgsplus", "train", str(run / CONFIG_FILE), "--out", str(run), "--resume"])


def _reproduction_of(run: Path) -> Path | None:
    """Return the folder of the reproduction that a run belongs to, or None."""
    path = run.resolve()
    runs = path.parent.parent if re.fullmatch(r"seed-\d+", path.parent.name) else path.parent
    names = {variant_folder(Path(), key, 0).name for key in VARIANTS}
    # A run of `vgsplus train` may also have the name of a variant and be in a folder "runs".
    made = any((runs.parent / name).exists() for name in (COMMAND, SECONDS, CORPUS))
    return runs.parent if runs.name == RUNS and path.name in names and made else None


# ---- settings ---------------------------------------------------------------------------------------------


def _settings(run: Path) -> tuple[RunConfig | None, list[Finding]]:
    path = run / CONFIG_FILE
    if not path.is_file():
        remedy = "The run cannot resume: remove the folder, or train into another one."
        if checkpoint.latest_path(run):
            remedy = 'Write the value of "run" in a checkpoint\'s state.json to it; JSON is valid YAML.'
        return None, [Finding("fault", "settings", f"{path} is missing", remedy)]
    try:
        config = load_config(path)
    except VgsplusError as error:
        return None, [Finding("fault", "settings", str(error), "Fix the file.")]
    if _newest_is_readable(run):
        try:
            load_latest(run, config)
        except VgsplusError as error:
            what = f"{path} differs from the settings at the start of the run\n{error}"
            return config, [Finding("fault", "settings", what)]
    phases = ", ".join(f"{phase.name} for {phase.epochs:g} epochs" for phase in config.schedule.phases)
    batches = f"{config.batch_size}"
    if config.batch_seconds is not None:
        batches += f" captions, {config.batch_seconds:g} s where α is 0"
    what = f"{phases}; batches of {batches}, seed {config.seed}"
    return config, [Finding("ok", "settings", what)]


def _newest_is_readable(run: Path) -> bool:
    """Return whether the newest checkpoint has a valid state; `_checkpoints` reports it otherwise."""
    try:
        if path := checkpoint.latest_path(run):
            load_state(path)
    except VgsplusError:
        return False
    return True


def _precision(config: RunConfig) -> Finding:
    precision = config.precision
    # "cuda" without a GPU is reported as another fault.
    here = native_precision("cpu" if device_name("auto") == "cpu" else config.accelerator)
    if precision != "bf16-mixed" or here == precision:
        what = f"{precision}; this machine would choose {here} for a new run"
        return Finding("ok", "precision", what)
    what = f"started in {precision}, which this machine emulates, many times slower than {here}"
    remedy = "The precision of a run is fixed; resume on a machine with native bfloat16."
    return Finding("hint", "precision", what, remedy)


def _versions(old: dict[str, str]) -> Iterator[Finding]:
    if changed := settings.differences(old, versions()):
        what = f"the newest checkpoint was written by other versions: {', '.join(changed)}"
        remedy = "Weights are reproduced bit for bit only if all versions are the same."
        yield Finding("hint", "versions", what, remedy)


# ---- checkpoints ------------------------------------------------------------------------------------------


def _checkpoints(run: Path) -> tuple[Path | None, list[Finding]]:
    """Return the newest valid checkpoint, or None, and the findings about all checkpoints."""
    paths = checkpoint.checkpoints(run)
    faults = {path: fault for path in paths if (fault := _checkpoint_fault(path))}
    valid = [path for path in paths if path not in faults]
    findings = []
    for path, fault in faults.items():
        if valid and paths.index(path) < paths.index(valid[-1]):
            remedy = f"Remove {path}; a later one is complete."
        else:
            start = f"resumes from {valid[-1].name}" if valid else "starts from the beginning"
            remedy = f"Remove {path}; the run then {start}."
        findings.append(Finding("fault", "checkpoint", fault, remedy))
    if not valid:
        return None, findings
    stats = [file.stat() for path in paths for file in path.iterdir()]
    size = sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in stats}.values())  # hard links count once
    what = f"{len(valid)} of {len(paths)} complete, {decimal(size)}; newest: {valid[-1].name}"
    return valid[-1], [*findings, Finding("ok", "checkpoints", what)]


def _checkpoint_fault(path: Path) -> str | None:
    try:
        model = load_model(path)
        load_tensors(path / OPTIMIZER_FILE)
    except VgsplusError as error:
        return str(error)
    bad = [name for name, parameter in model.named_parameters() if not torch.isfinite(parameter).all()]
    return f"{path}: weights are not finite, the first {bad[0]}" if bad else None


# ---- log --------------------------------------------------------------------------------------------------


def _log(run: Path, progress: RunProgress | None, config: RunConfig | None) -> Iterator[Finding]:
    path = run / LOG_FILE
    saved = progress.state.global_step if progress and progress.state else 0
    gap = (
        "The weights are complete, but curves will have a gap. To fill it, remove the later checkpoints in "
        f"{run / checkpoint.FOLDER}, and resume from an earlier one."
    )
    if not path.is_file():
        if saved:
            yield Finding("fault", "log", f"{path} is missing, of {count(saved, 'step')}", gap)
        return
    try:
        records = list(read_log(run))
    except VgsplusError as error:
        yield Finding("fault", "log", str(error))
        return
    steps = Counter(record["step"] for record in records if record["kind"] == "train")
    if missing := [step for step in range(1, saved + 1) if step not in steps]:
        what = (
            f"lacks {count(len(missing), 'step')} of the checkpoint's {saved:,}, the first is {missing[0]:,}"
        )
        yield Finding("fault", "log", what, gap)
    elif twice := [step for step, times in steps.items() if times > 1]:
        what = f"has {count(len(twice), 'step')} more than once, the first is {twice[0]:,}"
        remedy = "Did two processes train into this folder? Train into another one."
        yield Finding("fault", "log", what, remedy)
    else:
        later = max(steps, default=0) - saved
        again = f", {later:,} of them after the checkpoint, to be repeated" if later > 0 else ""
        minutes = count(round((time.time() - path.stat().st_mtime) / 60), "minute")
        yield Finding("ok", "log", f"{count(len(steps), 'step')}{again}; last written {minutes} ago")
    yield from _values(records)
    for warning in warnings_in(records, config.model) if config else ():
        what = f"at step {warning.step:,}: {warning.what}"
        yield Finding("hint", "training", what, f"Try {warning.remedy}.")


def _values(records: Sequence[Record]) -> Iterator[Finding]:
    """Report values that are not finite, the reason of a stop, and the last losses and scores."""
    skipped = 0
    for record in records:
        values = record.get("scores", record)
        bad = [
            name
            for name, value in values.items()
            if isinstance(value, float) and not math.isfinite(value) and not name.startswith(GRADIENTS)
        ]
        if bad == ["grad_norm"]:  # an update that the gradient scaler of float16 skipped
            skipped += 1
        elif bad:
            what = f"{record['kind']} at step {record['step']:,}: {', '.join(bad)} not finite"
            remedy = "Train again with a lower learning rate or longer warm-up."
            yield Finding("fault", "numbers", what, remedy)
            break
    else:
        if skipped:
            what = f"{count(skipped, 'update')} skipped, whose gradients overflowed"
            yield Finding("ok", "numbers", what)
    last = {record["kind"]: record for record in records}
    if records and records[-1]["kind"] == "stopped":
        stop = records[-1]
        what = (
            f"stopped after step {stop['step']:,} in phase {stop['phase']}: {', '.join(stop['not_finite'])} "
        )
        remedy = "It would stop there again. Retrain with a lower learning rate, longer warm-up or 32-true."
        yield Finding("fault", "stop", f"{what}not finite in the next one", remedy)
    for kind in ("train", "validation"):
        if kind not in last:
            continue
        losses = ", ".join(f"{name} {value:.4g}" for name, value in losses_in(last[kind]).items())
        yield Finding("ok", f"last {kind}", f"{losses}; after {last[kind]['epoch']:.3g} epochs")
    if scores := last.get("evaluation", {}).get("scores"):
        shown = [name for name in scores if name.endswith("R@10")] or list(scores)
        listed = ", ".join(f"{name} {scores[name]:.3f}" for name in shown[:SHOWN_SCORES])
        yield Finding("ok", "last scores", f"{listed}; after {last['evaluation']['epoch']:.3g} epochs")


# ---- corpus -----------------------------------------------------------------------------------------------


def _open_corpus(config: RunConfig) -> Corpus | CorpusError:
    try:
        return Corpus.open(config.corpus)
    except CorpusError as error:
        return error


def _has_test_sets(config: RunConfig, corpus: Corpus | CorpusError) -> bool:
    try:
        return isinstance(corpus, Corpus) and needs_images(config) and bool(test_sets(corpus))
    except CorpusError:  # an empty split, which is a fault of the corpus
        return False


def _corpus(
    run: Path, config: RunConfig, corpus: Corpus | CorpusError | None, progress: RunProgress | None
) -> Finding:
    """Check that the corpus exists and is the one that was trained on."""
    moved = f"If it was moved: {_resume_command(run)} --set corpus=FOLDER"
    if not isinstance(corpus, Corpus):
        if progress and progress.finished:
            return Finding("hint", "corpus", str(corpus), "Only evaluations need it now.")
        return Finding("fault", "corpus", str(corpus), moved)
    known = progress.state.corpus if progress and progress.state else None
    if known is not None and (changed := fingerprint_changes(known, fingerprint(corpus))):
        what = f"{config.corpus} is not what was trained on: {'; '.join(changed)}"
        return Finding("fault", "corpus", what, f"Restore it, or train into another folder. {moved}")
    same = "the one that was trained on" if known is not None else "not trained on yet"
    return Finding("ok", "corpus", f"{config.corpus}: {corpus.name} {corpus.info['version']}, {same}")


def _additional_speech(config: RunConfig, progress: RunProgress | None) -> Iterator[Finding]:
    """Check that the corpora of additional speech are the ones that were trained on."""
    try:
        opened = open_additional_speech(config.schedule)
    except CorpusError as error:  # a fault of resuming, unless training is finished
        if progress is not None and progress.trained:
            yield Finding("hint", "additional speech", str(error), "Training no longer needs it.")
        return
    known = progress.state.additional_speech if progress and progress.state else {}
    for phase, corpus in opened.items():
        changed = fingerprint_changes(known[phase], fingerprint(corpus)) if phase in known else []
        if changed:
            what = f"{corpus.root}, of phase {phase}, is not what was trained on: {'; '.join(changed)}"
            remedy = "Restore it, or train into another folder."
            yield Finding("fault", "additional speech", what, remedy)
        else:
            yield Finding("ok", "additional speech", f"{corpus.root}: {corpus.name}, of phase {phase}")


def _resumable(config: RunConfig, corpus: Corpus) -> Finding:
    """Run the checks that precede training."""
    try:
        check_run(config, corpus, load_weights)
    except VgsplusError as error:
        remedy = "Fix this, or resume on a machine that fits."
        return Finding("fault", "resuming", str(error), remedy)
    return Finding("ok", "resuming", "settings, corpus and machine fit each other")
