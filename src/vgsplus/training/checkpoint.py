"""Checkpoints: folders of safetensors and JSON that are complete or not there, and never hold code.

RUN/checkpoints/step-00001200/                 every few minutes; the newest few are kept
RUN/checkpoints/step-00005000-end-of-w2v2/     at the end of a phase; always kept
    model.safetensors      parameters and buffers under their names
    optimizer.safetensors  the optimiser's state tensors under "key/parameter name"
    state.json             `TrainingState`
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vgsplus.config import parse_model
from vgsplus.errors import CheckpointError
from vgsplus.models.published import build_model
from vgsplus.models.vgsplus import VGSPlus

FORMAT = 1
FOLDER = "checkpoints"
MODEL_FILE, OPTIMIZER_FILE, STATE_FILE = "model.safetensors", "optimizer.safetensors", "state.json"
FILES = (MODEL_FILE, OPTIMIZER_FILE, STATE_FILE)
KEEP = 2
_NAME = re.compile(r"step-(\d+)(-end-of-.+)?")
SHOWN_NAMES = 5


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Where a run stands, and what it must be gone on with.

    Attributes:
        phase: number of the phase, from 0.
        phase_name: its name.
        step: updates done in it.
        steps: updates it takes in all.
        epoch: epochs of the whole run that are behind.
        global_step: updates done in the whole run.
        seed: the run's.
        model: the model's configuration as plain values.
        run: the run's settings as plain values.
        corpus: what tells the corpus from another.
        additional_speech: the same of the phases' additional speech, by their names.
        precision: state of the gradient scaler, empty but for 16-mixed.
        versions: of the packages that wrote the checkpoint.
        format: of the checkpoint.
    """

    phase: int
    phase_name: str
    step: int
    steps: int
    epoch: float
    global_step: int
    seed: int
    model: dict[str, Any]
    run: dict[str, Any]
    corpus: dict[str, Any]
    additional_speech: dict[str, dict[str, Any]] = field(default_factory=dict)
    precision: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def end_of_phase(self) -> bool:
        """Whether the phase is complete."""
        return self.step == self.steps

    @property
    def folder_name(self) -> str:
        """The name of the checkpoint's folder."""
        end = f"-end-of-{self.phase_name}" if self.end_of_phase else ""
        return f"step-{self.global_step:08d}{end}"


# ---- writing ----------------------------------------------------------------------------------------------


def save_checkpoint(
    run: Path, state: TrainingState, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]
) -> Path:
    """Write a checkpoint of a run; it appears under its name complete and on disk, or not at all.

    Raises:
        CheckpointError: it could not be written (no space, no permission); earlier ones are intact.
    """
    target = run / FOLDER / state.folder_name
    temporary = target.with_name(f".{target.name}.writing")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target.parent)
        temporary.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in model.items()}, temporary / MODEL_FILE)
        save_file(
            {name: tensor.contiguous() for name, tensor in optimizer.items()}, temporary / OPTIMIZER_FILE
        )
        text = json.dumps(dataclasses.asdict(state), indent=1, ensure_ascii=False)
        (temporary / STATE_FILE).write_text(text, encoding="utf-8")
        _publish(temporary, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(_not_written(target, error, latest(run))) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def adopt(checkpoint: Path, run: Path) -> Path:
    """Take another run's checkpoint into `run`: its files are shared by hard links where possible.

    Raises:
        CheckpointError: it could not be written.
    """
    target = run / FOLDER / checkpoint.name
    temporary = target.with_name(f".{target.name}.writing")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target.parent)
        shutil.copytree(checkpoint, temporary, copy_function=_link_or_copy)
        _publish(temporary, target)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(_not_written(target, error, None)) from error
    return target


def prune(run: Path, keep: int = KEEP) -> None:
    """Remove all checkpoints but the newest `keep` and those at the end of a phase.

    What a file system does not let go of yet stays hidden, and is tried again with the next checkpoint.
    """
    for old in checkpoints(run)[:-keep]:
        if "-end-of-" not in old.name:
            # Renamed first: a folder half removed must not pass for a checkpoint.
            hidden = old.with_name(f".{old.name}.removing")
            old.rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)


def _publish(temporary: Path, target: Path) -> None:
    for file in temporary.iterdir():
        _sync(file)
    _sync(temporary)
    temporary.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed run was writing or removing."""
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _not_written(target: Path, error: Exception, last: Path | None) -> str:
    kept = f"The last complete checkpoint is {last}." if last else "There is no complete checkpoint yet."
    return f"{target}: could not be written ({error}). {kept} Make room or mend the permissions, then resume."


# ---- finding ----------------------------------------------------------------------------------------------


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        found = [(match, path) for path in (run / FOLDER).iterdir() if (match := _NAME.fullmatch(path.name))]
        # A phase's end comes after a checkpoint of the same step.
        return [path for _, path in sorted(found, key=lambda pair: (int(pair[0][1]), pair[0][2] or ""))]
    return []


def latest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, if there is one."""
    return next(reversed(checkpoints(run)), None)


def resolve(path: str | Path) -> Path:
    """The checkpoint folder meant by `path`: itself, or the newest of a run folder.

    Raises:
        CheckpointError: it is neither.
    """
    path = Path(path)
    if (path / STATE_FILE).is_file() or _NAME.fullmatch(path.name):
        return path
    found = latest(path)
    if found is None:
        raise CheckpointError(f"{path}: is neither a checkpoint nor a run folder that holds one")
    return found


# ---- reading ----------------------------------------------------------------------------------------------


def load_state(checkpoint: Path) -> TrainingState:
    """Read where a checkpoint's run stood.

    Raises:
        CheckpointError: a file is missing or broken, or of a format this version does not know.
    """
    if missing := [name for name in FILES if not (checkpoint / name).is_file()]:
        raise CheckpointError(f"{checkpoint}: is no complete checkpoint, {', '.join(missing)} missing")
    path = checkpoint / STATE_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        found = raw["format"]
        if found != FORMAT:
            raise CheckpointError(
                f"{path}: has format {found}, this version of vgsplus reads format {FORMAT}. "
                f"It was written by {raw.get('versions')}."
            )
        return TrainingState(**raw)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(_broken(path, error)) from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: it is missing, truncated or otherwise broken.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(_broken(path, error)) from None


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Put a checkpoint's parameters and buffers into a model, all of them or none.

    Raises:
        CheckpointError: the file is missing or broken, or belongs to a model of other names or shapes.
    """
    path = checkpoint / MODEL_FILE
    tensors = load_tensors(path)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    faults = {
        "missing": expected.keys() - found.keys(),
        "unexpected": found.keys() - expected.keys(),
        "of another shape": {n for n in expected.keys() & found.keys() if expected[n] != found[n]},
    }
    if any(faults.values()):
        listed = "; ".join(f"{what}: {_names(names)}" for what, names in faults.items() if names)
        raise CheckpointError(f"{path}: does not fit the model ({listed})")
    model.load_state_dict(tensors)


def load_model(path: str | Path) -> VGSPlus:
    """Build the model of a checkpoint, or of a run's newest, in evaluation mode on the CPU.

    Raises:
        CheckpointError: there is no checkpoint, or it is broken.
        ConfigError: its model configuration is not one.
    """
    checkpoint = resolve(path)
    model = build_model(parse_model(load_state(checkpoint).model))
    load_weights(model, checkpoint)
    return model.eval()


def _names(names: set[str]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join(sorted(names)[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _broken(path: Path, error: Exception) -> str:
    return (
        f"{path}: is broken or cut off ({error}). Remove the folder {path.parent} to go on from the "
        "checkpoint before it."
    )
