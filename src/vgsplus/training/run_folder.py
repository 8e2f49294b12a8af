"""The folder of a run: who may start, go on, or take over the first phases of another run.

RUN/config.yaml      the settings
RUN/log.jsonl        see `log`
RUN/tensorboard/     the same as TensorBoard scalars
RUN/checkpoints/     see `checkpoint`
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vgsplus import config as settings
from vgsplus.config import RunConfig
from vgsplus.corpora import Corpus
from vgsplus.corpora.format import CAPTIONS_FILE
from vgsplus.errors import CheckpointError
from vgsplus.files import HeldError, holding
from vgsplus.models.vgsplus import ModelConfig
from vgsplus.schedule import Phase
from vgsplus.training import checkpoint
from vgsplus.training.checkpoint import TrainingState
from vgsplus.training.log import LOG_FILE, copy_log
from vgsplus.training.machine import native_precision

CONFIG_FILE, LOCK_FILE = "config.yaml", ".lock"
FREE = frozenset(
    {"corpus", "accelerator", "workers", "validate_every", "evaluate_every", "checkpoint_minutes"}
)
"""Settings that may change when a run goes on: they do not change what it learns.

Corpora, that of additional speech too, may have moved; that they are the same is checked by their contents.
"""


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
        CheckpointError: the settings have changed; names them.
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


@contextmanager
def alone_in(run: Path) -> Iterator[None]:
    """Make the folder and keep other processes from training in it; one that stays empty is removed.

    Raises:
        CheckpointError: another process trains in it, or it cannot be written.
    """
    with ExitStack() as stack:
        try:
            run.mkdir(parents=True, exist_ok=True)
            stack.callback(_remove_empty, run)
            stack.enter_context(holding(run / LOCK_FILE))
        except HeldError as holder:
            raise CheckpointError(
                f"{run}: {holder} is training in it. Wait for that to end, or choose another folder."
            ) from None
        except OSError as error:
            raise CheckpointError(f"{run}: cannot be written ({error})") from error
        yield


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def check_begun(run: Path, config: RunConfig, identity: "Identity") -> None:
    """Refuse a run that is there with other settings or on other corpora.

    Raises:
        CheckpointError: names what differs.
        CheckpointError: its newest checkpoint is broken.
    """
    if found := newest(run, config):
        _require_same_corpora(found, identity, config.schedule.phases)


@dataclass(frozen=True)
class Identity:
    """What a run is trained on: the fingerprints of its corpus and, by phase, of additional speech."""

    corpus: dict[str, Any]
    additional_speech: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, corpus: Corpus, additional: Mapping[str, Corpus]) -> Self:
        """The identity of a run on a corpus and, by phase, additional speech."""
        return cls(fingerprint(corpus), {phase: fingerprint(speech) for phase, speech in additional.items()})


def open_run(
    run: Path, config: RunConfig, identity: Identity, *, start: Path | None, resume: bool
) -> Found | None:
    """Make the folder, which is there, ready and give the checkpoint from which the run goes on, if from any.

    Raises:
        CheckpointError: it holds a run and `resume` is false; or settings or corpora are not those of that
            run, or of the first phases of `start`.
        CheckpointError: a checkpoint is broken or cannot be written.
    """
    if not resume and ((run / CONFIG_FILE).exists() or (run / LOG_FILE).exists() or checkpoint.latest(run)):
        raise CheckpointError(
            f"{run}: holds a run already. Go on with it by --resume, or choose another folder."
        )
    found = newest(run, config)
    origin = _origin(start, config) if found is None and start is not None else None
    if found:
        _require_same_corpora(found, identity, config.schedule.phases)
    if origin:
        _require_same_corpora(origin, identity, config.schedule.phases[: origin.state.phase + 1])
    try:
        settings.save(config, run / CONFIG_FILE)
        if origin:
            copy_log(origin.checkpoint.parent.parent, run, origin.state.global_step)
            found = Found(checkpoint.adopt(origin.checkpoint, run), origin.state)
    except OSError as error:
        raise CheckpointError(f"{run}: cannot be written ({error})") from error
    return found


def fingerprint(corpus: Corpus) -> dict[str, Any]:
    """What tells a corpus from another, wherever it lies: its captions, in their order, and its regions.

    Of regions, how many there are and by which model; their numbers would take minutes to read.
    """
    with (corpus.root / CAPTIONS_FILE).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    regions = [len(corpus.image_ids), corpus.num_regions, corpus.feature_dim]
    provenance = corpus.info["provenance"]
    return {
        "name": corpus.name,
        "version": corpus.info["version"],
        "captions": digest,
        "regions": regions,
        "described_by": provenance.get("regions") if isinstance(provenance, dict) else None,
    }


def corpus_changes(known: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """How a corpus differs from a checkpoint's, by what the checkpoint, which may be old, knows of it."""
    return settings.differences(dict(known), {name: given.get(name) for name in known})


def _require_same_corpora(found: Found, identity: Identity, phases: Sequence[Phase]) -> None:
    """The corpus, and what is heard beside it in `phases`, must be what the checkpoint was trained on."""
    names = {phase.name for phase in phases}
    changed = corpus_changes(found.state.corpus, identity.corpus)
    for name in sorted(names):
        given = identity.additional_speech.get(name, {})
        known = found.state.additional_speech.get(name) or dict.fromkeys(given)
        changed += [f"additional_speech.{name}.{line}" for line in corpus_changes(known, given)]
    if changed:
        listed = "\n".join(f"- {line}" for line in changed)
        raise CheckpointError(f"{found.checkpoint}: was trained on another corpus:\n{listed}")


def _require_same(run: Path, old: dict[str, Any], config: RunConfig) -> None:
    if changed := _changed(old, settings.to_dict(config), FREE):
        raise CheckpointError(
            f"{run}: its settings have changed:\n{changed}\nChange them back, or choose another folder."
        )


def _origin(start: Path, config: RunConfig) -> Found:
    """The end-of-phase checkpoint of another run with the same settings and first phases."""
    path = checkpoint.resolve(start)
    state = checkpoint.load_state(path)
    if not state.end_of_phase:
        raise CheckpointError(f"{path}: is not at the end of a phase ({state.step} of {state.steps} steps)")
    new = settings.to_dict(config)
    if changed := _changed(state.run, new, FREE | {"schedule"}):
        raise CheckpointError(f"{path}: was trained with other settings:\n{changed}")
    phases = state.phase + 1
    old_phases, new_phases = (_without_folders(plain["schedule"][:phases]) for plain in (state.run, new))
    if old_phases != new_phases:
        listed = "\n".join(f"- {line}" for line in settings.differences(old_phases, new_phases, "schedule"))
        raise CheckpointError(f"{path}: is not the end of this schedule's first {phases} phase(s):\n{listed}")
    return Found(path, state)


def _changed(old: dict[str, Any], new: dict[str, Any], free: frozenset[str]) -> str:
    # A run from before a setting of the model existed is of its default.
    old = old | {"model": settings.to_dict(ModelConfig()) | old.get("model", {})}
    old, new = (
        {
            key: _without_folders(value) if key == "schedule" else value
            for key, value in plain.items()
            if key not in free
        }
        for plain in (old, new)
    )
    return "\n".join(f"- {line}" for line in settings.differences(old, new))


def _without_folders(phases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Plain phases without the folders of their additional speech."""
    return [
        phase | {"additional_speech": {k: v for k, v in speech.items() if k != "corpus"}}
        if (speech := phase.get("additional_speech"))
        else phase
        for phase in phases
    ]
