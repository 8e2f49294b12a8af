"""The folder of a run, and whether a run may start in it, resume, or start from the phases of another run.

RUN/config.yaml      the settings
RUN/log.jsonl        see `log`
RUN/tensorboard/     the same as TensorBoard scalars
RUN/checkpoints/     see `checkpoint`
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from vgsplus.config import RunConfig, differences, load_config, save_config, to_dict
from vgsplus.corpora import Corpus
from vgsplus.corpora.format import CAPTIONS_FILE
from vgsplus.errors import CheckpointError
from vgsplus.files import lock_file
from vgsplus.models.vgsplus import ModelConfig
from vgsplus.regions.pixel_grid import PIXEL_GRID
from vgsplus.training.checkpoint import Checkpoint, latest_path, link_checkpoint, load_state, resolve
from vgsplus.training.log import LOG_FILE, copy_log, read_log
from vgsplus.training.runtime import native_precision

CONFIG_FILE, LOCK_FILE = "config.yaml", ".lock"
RESUMABLE_CHANGES = frozenset(
    {
        *("corpus", "accelerator", "devices", "num_nodes", "compile", "workers"),
        *("micro_batch_size", "activation_checkpointing"),
        *("validate_every", "evaluate_every", "logger", "checkpoint_minutes"),
    }
)
"""Settings that may differ when a run is resumed, because they do not change the weights, but for rounding.

Corpora, those of additional speech too, may have moved: their contents are compared instead.
"""


def resolve_precision(config: RunConfig, *runs: Path) -> RunConfig:
    """Replace precision "auto" by that of the first existing run of `runs`, or by that of this machine.

    Raises:
        ConfigError: the settings of an existing run cannot be read.
    """
    if config.precision != "auto":
        return config
    existing = [run / CONFIG_FILE for run in runs if (run / CONFIG_FILE).is_file()]
    precision = load_config(existing[0]).precision if existing else native_precision(config.accelerator)
    return dataclasses.replace(config, precision=precision)


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Make the folder and lock it for this process; on exit it is removed if it is empty.

    Raises:
        CheckpointError: another process trains in it, or it cannot be written.
    """
    with ExitStack() as stack:
        try:
            run.mkdir(parents=True, exist_ok=True)
            stack.callback(_remove_empty, run)
            stack.enter_context(lock_file(run / LOCK_FILE))
        except BlockingIOError as error:
            raise CheckpointError(
                f"{run}: {error.strerror} is training in it. Wait for it to end, or choose another folder."
            ) from None
        except OSError as error:
            raise CheckpointError(f"{run}: cannot be written ({error})") from error
        yield


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def open_run(
    run: Path, config: RunConfig, data: Mapping[str, Any], *, start: Path | None, resume: bool
) -> Checkpoint | None:
    """Initialise the (existing, locked) run folder and return the checkpoint to resume from, or None.

    `data` is the `data_fingerprint` of the corpora. A new run takes over the log and the checkpoint of
    `start`, a run or checkpoint at the end of a phase. With `resume`, the folder may contain a run.

    Raises:
        CheckpointError: the folder holds a run and `resume` is false; settings or corpora differ from those
            of the run or of the first phases of `start`; a checkpoint is broken or cannot be written.
    """
    if not resume and ((run / CONFIG_FILE).exists() or (run / LOG_FILE).exists() or latest_path(run)):
        raise CheckpointError(f"{run}: holds a run already. Resume it by --resume, or choose another folder.")
    found = load_latest(run, config, data)
    origin = _load_origin(start, config, data) if found is None and start is not None else None
    try:
        save_config(config, run / CONFIG_FILE)
        if origin:
            copy_log(origin.path.parent.parent, run, origin.state.global_step)
            return Checkpoint(link_checkpoint(origin.path, run), origin.state)
    except OSError as error:
        raise CheckpointError(f"{run}: cannot be written ({error})") from error
    return found


# ---- settings ---------------------------------------------------------------------------------------------


def load_latest(run: Path, config: RunConfig, data: Mapping[str, Any] | None = None) -> Checkpoint | None:
    """Return the newest checkpoint of a run, or None, after checking that the run can resume from it.

    Settings may differ from those of the run in `RESUMABLE_CHANGES` only. `data`, the `data_fingerprint` of
    the corpora, must be that of the checkpoint (None: not compared).

    Raises:
        CheckpointError: settings or corpora differ (all differences are named), or the checkpoint is broken.
        ConfigError: config.yaml cannot be read, and there is no checkpoint.
    """
    path = latest_path(run)
    state = load_state(path) if path else None
    if state:
        saved = state.run
    elif (run / CONFIG_FILE).is_file():
        saved = to_dict(load_config(run / CONFIG_FILE))
    else:
        return None
    if changed := differences(weight_settings(saved), weight_settings(to_dict(config))):
        raise CheckpointError(
            f"{run}: its settings have changed:\n{_listed(changed)}\nChange them back, or choose another "
            "folder."
        )
    if not path or not state:
        return None
    found = Checkpoint(path, state)
    if data is not None:
        _require_same_data(found, data, [phase.name for phase in config.schedule.phases])
    return found


def load_finished(run: Path, config: RunConfig, *, evaluated: bool) -> Checkpoint | None:
    """Return the last checkpoint of a run that has nothing left to train, validate or evaluate, else None.

    Raises:
        CheckpointError, ConfigError: as for `load_latest`.
    """
    found = load_latest(run, config)
    if not found or not found.state.end_of_phase or found.state.phase + 1 < len(config.schedule.phases):
        return None
    done = {record["kind"] for record in read_log(run) if record["step"] == found.state.global_step}
    due = {"validation": config.validate_every is not None, "evaluation": evaluated}
    return found if done >= {kind for kind in due if due[kind]} else None


def _load_origin(start: Path, config: RunConfig, data: Mapping[str, Any]) -> Checkpoint:
    """Load an end-of-phase checkpoint of another run with the same settings and first phases."""
    path = resolve(start)
    state = load_state(path)
    if not state.end_of_phase:
        raise CheckpointError(f"{path}: is not at the end of a phase ({state.step} of {state.steps} steps)")
    phases = state.phase + 1
    saved, current = (weight_settings(plain, phases) for plain in (state.run, to_dict(config)))
    if changed := differences(saved, current):
        raise CheckpointError(
            f"{path}: was trained with other settings or another first part of the schedule:\n"
            f"{_listed(changed)}"
        )
    origin = Checkpoint(path, state)
    _require_same_data(origin, data, [phase.name for phase in config.schedule.phases[:phases]])
    return origin


def weight_settings(plain: Mapping[str, Any], phases: int | None = None) -> dict[str, Any]:
    """Return the plain settings that affect the weights, of the first `phases` phases (None: all)."""
    kept = {key: value for key, value in plain.items() if key not in RESUMABLE_CHANGES}
    # Runs from before a setting of the model existed have its default.
    kept["model"] = to_dict(ModelConfig()) | plain.get("model", {})
    kept["schedule"] = [
        phase | {"additional_speech": {key: value for key, value in speech.items() if key != "corpus"}}
        if (speech := phase.get("additional_speech"))
        else phase
        for phase in plain["schedule"][:phases]
    ]
    return kept


def _listed(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


# ---- corpora ----------------------------------------------------------------------------------------------


def fingerprint(corpus: Corpus) -> dict[str, Any]:
    """Return a fingerprint of a corpus that does not depend on its location.

    It consists of the hash of captions.jsonl, and the number, size and model of the region features, whose
    values would take minutes to read.
    """
    with (corpus.root / CAPTIONS_FILE).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    provenance = corpus.info["provenance"]
    return {
        "name": corpus.name,
        "version": corpus.info["version"],
        "captions": digest,
        "regions": [len(corpus.image_ids), corpus.num_regions, corpus.feature_dim],
        "described_by": provenance.get("regions") if isinstance(provenance, dict) else None,
    }


def data_fingerprint(corpus: Corpus, additional_speech: Mapping[str, Corpus]) -> dict[str, Any]:
    """Return what a checkpoint records of its corpora, under the names of `TrainingState`."""
    return {
        "corpus": fingerprint(corpus),
        "licence": corpus.info.get("licence"),
        "additional_speech": {phase: fingerprint(speech) for phase, speech in additional_speech.items()},
    }


def fingerprint_changes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return how a fingerprint differs from a saved one, which may be older and have fewer keys."""
    if saved.get("described_by") in (None, []) and current.get("described_by") == PIXEL_GRID:
        saved = dict(saved) | {"described_by": PIXEL_GRID}  # which older corpora did not record
    return differences(dict(saved), {name: current.get(name) for name in saved})


def _require_same_data(checkpoint: Checkpoint, data: Mapping[str, Any], phases: list[str]) -> None:
    """Require the corpus, and the additional speech of `phases`, that the checkpoint was trained on."""
    changed = fingerprint_changes(checkpoint.state.corpus, data["corpus"])
    for name in sorted(phases):
        current = data["additional_speech"].get(name, {})
        saved = checkpoint.state.additional_speech.get(name) or dict.fromkeys(current)
        changed += [f"additional_speech.{name}.{line}" for line in fingerprint_changes(saved, current)]
    if changed:
        raise CheckpointError(f"{checkpoint.path}: was trained on another corpus:\n{_listed(changed)}")
