"""The folder of a run: who may start, go on, or take over the first phases of another run.

RUN/config.yaml      the settings
RUN/log.jsonl        see `log`
RUN/tensorboard/     the same as TensorBoard scalars
RUN/checkpoints/     see `checkpoint`
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vgsplus import config as settings
from vgsplus.config import RunConfig
from vgsplus.corpora.format import Corpus
from vgsplus.corpora.reader import CAPTIONS_FILE
from vgsplus.errors import VgsplusError
from vgsplus.training import checkpoint
from vgsplus.training.checkpoint import TrainingState
from vgsplus.training.log import LOG_FILE, copy_log
from vgsplus.training.machine import native_precision

CONFIG_FILE = "config.yaml"
FREE = frozenset(
    {"corpus", "accelerator", "workers", "validate_every", "evaluate_every", "checkpoint_minutes"}
)
"""Settings that may change when a run goes on: they do not change what it learns.

The corpus may have moved; that it is still the same one is checked by its contents.
"""


class RunFolderError(VgsplusError):
    """A folder that holds a run already, or another one than is asked to go on."""


def settle_precision(config: RunConfig, *runs: Path) -> RunConfig:
    """Replace precision "auto" by that of the first of `runs` that was started, or this machine's own.

    Raises:
        ConfigError: the settings of a run that was started cannot be read.
    """
    if config.precision != "auto":
        return config
    started = [run / CONFIG_FILE for run in runs if (run / CONFIG_FILE).is_file()]
    known = settings.load_config(started[0]).precision if started else native_precision(config.accelerator)
    return dataclasses.replace(config, precision=known)


@dataclass(frozen=True)
class Found:
    """A complete checkpoint and where its run stood."""

    checkpoint: Path
    state: TrainingState


def newest(run: Path, config: RunConfig) -> Found | None:
    """The newest checkpoint in `run`, made with the same settings; None where there is none yet.

    Raises:
        RunFolderError: the settings have changed; names them.
        CheckpointError: the checkpoint is broken.
    """
    latest = checkpoint.latest(run)
    if latest is None:
        if (run / CONFIG_FILE).is_file():
            _require_same(run, settings.to_dict(settings.load_config(run / CONFIG_FILE)), config)
        return None
    state = checkpoint.load_state(latest)
    _require_same(run, state.run, config)
    return Found(latest, state)


def open_run(
    run: Path, config: RunConfig, corpus: dict[str, Any], *, start: Path | None, resume: bool
) -> Found | None:
    """Make the folder ready and give the checkpoint from which the run goes on, if from any.

    `corpus` is the corpus's `fingerprint`.

    Raises:
        RunFolderError: it holds a run and `resume` is false; or settings or corpus are not those of that
            run, or of the first phases of `start`.
        CheckpointError: a checkpoint is broken or cannot be written.
    """
    if not resume and ((run / CONFIG_FILE).exists() or (run / LOG_FILE).exists() or checkpoint.latest(run)):
        raise RunFolderError(
            f"{run}: holds a run already. Go on with it by --resume, or choose another folder."
        )
    found = newest(run, config)
    origin = _origin(start, config) if found is None and start is not None else None
    for known in filter(None, (found, origin)):
        _require_same_corpus(known, corpus)
    try:
        run.mkdir(parents=True, exist_ok=True)
        settings.save(config, run / CONFIG_FILE)
        if origin:
            copy_log(origin.checkpoint.parent.parent, run, origin.state.global_step)
            found = Found(checkpoint.adopt(origin.checkpoint, run), origin.state)
    except OSError as error:
        raise RunFolderError(f"{run}: cannot be written ({error})") from error
    return found


def fingerprint(corpus: Corpus) -> dict[str, Any]:
    """What tells a corpus from another, wherever it lies: its captions, in their order, and its regions."""
    with (corpus.root / CAPTIONS_FILE).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    regions = [len(corpus.image_ids), corpus.num_regions, corpus.feature_dim]
    return {"name": corpus.name, "version": corpus.info["version"], "captions": digest, "regions": regions}


def _require_same_corpus(found: Found, corpus: dict[str, Any]) -> None:
    if changed := settings.differences(found.state.corpus, corpus):
        listed = "\n".join(f"- {line}" for line in changed)
        raise RunFolderError(f"{found.checkpoint}: was trained on another corpus:\n{listed}")


def _require_same(run: Path, old: dict[str, Any], config: RunConfig) -> None:
    if changed := _changed(old, settings.to_dict(config), FREE):
        raise RunFolderError(
            f"{run}: its settings have changed:\n{changed}\nChange them back, or choose another folder."
        )


def _origin(start: Path, config: RunConfig) -> Found:
    """The end-of-phase checkpoint of another run with the same settings and first phases."""
    path = checkpoint.resolve(start)
    state = checkpoint.load_state(path)
    if not state.end_of_phase:
        raise RunFolderError(f"{path}: is not at the end of a phase ({state.step} of {state.steps} steps)")
    new = settings.to_dict(config)
    if changed := _changed(state.run, new, FREE | {"schedule"}):
        raise RunFolderError(f"{path}: was trained with other settings:\n{changed}")
    phases = state.phase + 1
    old_phases, new_phases = state.run["schedule"][:phases], new["schedule"][:phases]
    if old_phases != new_phases:
        listed = "\n".join(f"- {line}" for line in settings.differences(old_phases, new_phases, "schedule"))
        raise RunFolderError(f"{path}: is not the end of this schedule's first {phases} phase(s):\n{listed}")
    return Found(path, state)


def _changed(old: dict[str, Any], new: dict[str, Any], free: frozenset[str]) -> str:
    old = {key: value for key, value in old.items() if key not in free}
    new = {key: value for key, value in new.items() if key not in free}
    return "\n".join(f"- {line}" for line in settings.differences(old, new))
