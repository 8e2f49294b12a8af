"""A run folder: its settings, checkpoints, log and corpus, and whether and how the run goes on."""

from collections.abc import Iterator
from pathlib import Path

from vgsplus import config as settings
from vgsplus.config import RunConfig, load_config
from vgsplus.corpora import Corpus
from vgsplus.doctor.checkpoints import checkpoint_findings
from vgsplus.doctor.commands import reproduction_of, resume_command
from vgsplus.doctor.findings import Diagnosis, Finding
from vgsplus.doctor.leftovers import leftover_findings, leftovers
from vgsplus.doctor.reproduction import go_on_command
from vgsplus.doctor.run_log import log_findings
from vgsplus.doctor.standing import Standing, standing
from vgsplus.errors import CheckpointError, CorpusError, VgsplusError
from vgsplus.experiments.scoring import test_sets
from vgsplus.interop.loading import load_weights
from vgsplus.training import checkpoint
from vgsplus.training.additional import open_additional
from vgsplus.training.checks import check_run, needs_images
from vgsplus.training.machine import device_name, native_precision, versions
from vgsplus.training.run_folder import CONFIG_FILE, corpus_changes, fingerprint, newest


def examine_run(run: Path) -> Diagnosis:
    """Look at everything in the folder of a run, and at its corpus; reads every checkpoint's tensors."""
    config, findings = _settings(run)
    whole, found = checkpoint_findings(run)
    findings += found
    opened = _open_corpus(config) if config else None
    command = ""
    place: Standing | None = None
    if config:
        evaluated = isinstance(opened, Corpus) and needs_images(config) and bool(_test_sets(opened))
        try:
            place = standing(run, whole, config, evaluated=evaluated or reproduction_of(run) is not None)
        except VgsplusError as error:
            # A broken line of the log is found with the rest of the log.
            findings.append(Finding("fault", "progress", str(error)))
        else:
            findings.append(Finding("ok" if place.finished else "hint", "progress", str(place)))
            command = "" if place.finished else _command(run)
    findings += log_findings(run, place)
    if config:
        findings += _precision(config)
        findings += _corpus(run, config, opened, place)
        findings += _additional_speech(config, place)
        if isinstance(opened, Corpus) and not (place and place.trained):
            findings += _checks(config, opened)
    if place and place.state:
        findings += _versions(place.state.versions)
    findings += leftover_findings(leftovers(run, run / checkpoint.FOLDER))
    return Diagnosis(f"run {run}", tuple(findings), command)


def _command(run: Path) -> str:
    out = reproduction_of(run)
    return (go_on_command(out) if out else None) or resume_command(run)


# ---- settings ---------------------------------------------------------------------------------------------


def _settings(run: Path) -> tuple[RunConfig | None, list[Finding]]:
    """The run's settings, None where they cannot be read, and what was found of them."""
    path = run / CONFIG_FILE
    if not path.is_file():
        remedy = (
            'Write what a checkpoint\'s state.json holds under "run" to it; JSON is YAML.'
            if checkpoint.latest(run)
            else "Nothing goes on from here: remove the folder, or train into another one."
        )
        return None, [Finding("fault", "settings", f"{path} is missing", remedy)]
    try:
        config = load_config(path)
    except VgsplusError as error:
        return None, [Finding("fault", "settings", str(error), "Mend the file.")]
    if not _newest_is_broken(run):  # which is a finding of the checkpoints
        try:
            newest(run, config)
        except VgsplusError as error:
            return config, [Finding("fault", "settings", f"{path} is not as the run was begun\n{error}")]
    phases = ", ".join(f"{phase.name} for {phase.epochs:g} epochs" for phase in config.schedule.phases)
    return config, [
        Finding("ok", "settings", f"{phases}; batches of {config.batch_size}, seed {config.seed}")
    ]


def _newest_is_broken(run: Path) -> bool:
    try:
        if latest := checkpoint.latest(run):
            checkpoint.load_state(latest)
    except CheckpointError:
        return True
    return False


def _precision(config: RunConfig) -> Iterator[Finding]:
    begun = config.precision
    # Without a GPU, "cuda" is a fault of its own.
    here = native_precision("cpu" if device_name("auto") == "cpu" else config.accelerator)
    if begun == "bf16-mixed" and here != begun:
        yield Finding(
            "hint",
            "precision",
            f"begun in {begun}, which this machine only imitates: many times slower than {here}",
            "It goes on in what it began in; go on with it on a machine that has bfloat16.",
        )
    else:
        yield Finding("ok", "precision", f"{begun}; this machine would choose {here} for a new run")


def _versions(old: dict[str, str]) -> Iterator[Finding]:
    if changed := settings.differences(old, versions()):
        yield Finding(
            "hint",
            "versions",
            f"the newest checkpoint was written by others: {', '.join(changed)}",
            "Weights repeat bit for bit only where all are the same.",
        )


# ---- corpus -----------------------------------------------------------------------------------------------


def _open_corpus(config: RunConfig) -> Corpus | CorpusError:
    try:
        return Corpus.open(config.corpus)
    except CorpusError as error:
        return error


def _test_sets(corpus: Corpus) -> tuple[str, ...]:
    try:
        return test_sets(corpus)
    except CorpusError:  # an empty split, a finding of the corpus
        return ()


def _corpus(
    run: Path, config: RunConfig, opened: Corpus | CorpusError | None, place: Standing | None
) -> Iterator[Finding]:
    """Whether the corpus is there, and still the one that was trained on."""
    moved = f"If it was moved: {resume_command(run)} --set corpus=FOLDER"
    finished = place is not None and place.finished
    if not isinstance(opened, Corpus):
        remedy = "Only evaluations need it now." if finished else moved
        yield Finding("hint" if finished else "fault", "corpus", str(opened), remedy)
        return
    known = place.state.corpus if place and place.state else None
    if known is not None and (changed := corpus_changes(known, fingerprint(opened))):
        yield Finding(
            "fault",
            "corpus",
            f"{config.corpus} is not what was trained on: {'; '.join(changed)}",
            f"Bring it back as it was, or train into another folder. {moved}",
        )
        return
    same = "the one that was trained on" if known is not None else "not trained on yet"
    yield Finding("ok", "corpus", f"{config.corpus}: {opened.name} {opened.info['version']}, {same}")


def _additional_speech(config: RunConfig, place: Standing | None) -> Iterator[Finding]:
    """Whether what the phases hear beside the captions is still what was trained on, where it is there."""
    try:
        opened = open_additional(config.schedule)
    except CorpusError as error:
        if place is not None and place.trained:
            yield Finding("hint", "additional speech", str(error), "The weights no longer need it.")
        return  # a fault of going on, where it is needed
    known = place.state.additional_speech if place and place.state else {}
    for phase, corpus in opened.items():
        changed = corpus_changes(known[phase], fingerprint(corpus)) if phase in known else []
        if changed:
            yield Finding(
                "fault",
                "additional speech",
                f"{corpus.root}, of phase {phase}, is not what was trained on: {'; '.join(changed)}",
                "Bring it back as it was, or train into another folder.",
            )
        else:
            yield Finding("ok", "additional speech", f"{corpus.root}: {corpus.name}, of phase {phase}")


def _checks(config: RunConfig, corpus: Corpus) -> Iterator[Finding]:
    """What would keep the run from going on here: the checks before every start."""
    try:
        check_run(config, corpus, load_weights)
    except VgsplusError as error:
        yield Finding("fault", "going on", str(error), "Mend these, or go on where the machine has them.")
    else:
        yield Finding("ok", "going on", "settings, corpus and machine fit each other")
