"""Checkpoints: folders of safetensors and JSON, without pickled objects, which appear only when complete.

RUN/checkpoints/step-00001200/                 every few minutes; the newest two are kept
RUN/checkpoints/step-00005000-end-of-w2v2/     at the end of a phase; always kept
    model.safetensors      parameters and buffers by name
    optimizer.safetensors  state tensors of the optimiser by "key/parameter name"
    state.json             `TrainingState`
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vgsplus.errors import CheckpointError, some
from vgsplus.files import atomic_folder
from vgsplus.models.published import build_model
from vgsplus.models.vgsplus import ModelConfig, VGSPlus
from vgsplus.validation import validate

FORMAT = 1
FOLDER = "checkpoints"
MODEL_FILE, OPTIMIZER_FILE, STATE_FILE = "model.safetensors", "optimizer.safetensors", "state.json"
FILES = (MODEL_FILE, OPTIMIZER_FILE, STATE_FILE)
_NAME = re.compile(r"step-(\d+)(-end-of-.+)?")


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Progress of a run at a checkpoint, and the settings and data that it was trained with.

    Attributes:
        phase: index of the phase.
        phase_name: name of the phase.
        step: updates done in the phase (`step` of the log is `global_step` here).
        steps: updates of the complete phase.
        epoch: epochs of the whole run done so far.
        global_step: updates of the whole run done so far.
        seed: seed of the run.
        model: the model configuration as plain values.
        run: the settings of the run as plain values.
        corpus: fingerprint of the corpus (see `run_folder.fingerprint`).
        additional_speech: fingerprints of the additional speech by phase name.
        precision: state of the gradient scaler; empty except in 16-mixed.
        versions: of the packages that wrote the checkpoint.
        format: of the checkpoint.
        run_steps: updates of the whole run when it is complete; None in older checkpoints.
        licence: of the corpus; None in older checkpoints.
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
    run_steps: int | None = None
    licence: str | None = None

    @property
    def end_of_phase(self) -> bool:
        """Whether the phase is complete."""
        return self.step == self.steps


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder and its training state."""

    path: Path
    state: TrainingState


# ---- writing ----------------------------------------------------------------------------------------------


def save_checkpoint(
    run: Path, state: TrainingState, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]
) -> Path:
    """Write a checkpoint of a run and return its folder.

    Raises:
        CheckpointError: it could not be written (no space, no permission); earlier ones are intact.
    """
    end = f"-end-of-{state.phase_name}" if state.end_of_phase else ""
    target = run / FOLDER / f"step-{state.global_step:08d}{end}"
    with _new_checkpoint(run, target) as folder:
        for file, tensors in ((MODEL_FILE, model), (OPTIMIZER_FILE, optimizer)):
            save_tensors(folder / file, tensors)
        text = json.dumps(dataclasses.asdict(state), indent=1, ensure_ascii=False)
        (folder / STATE_FILE).write_text(text, encoding="utf-8")
    return target


def link_checkpoint(checkpoint: Path, run: Path) -> Path:
    """Add a checkpoint of another run to `run`, by hard links where possible, and return its new folder.

    Raises:
        CheckpointError: it could not be written.
    """
    target = run / FOLDER / checkpoint.name
    with _new_checkpoint(run, target) as folder:
        shutil.copytree(checkpoint, folder, copy_function=_link_or_copy, dirs_exist_ok=True)
    return target


def prune(run: Path, keep: int = 2) -> None:
    """Remove all checkpoints except the newest `keep` and those at the end of a phase.

    If a folder cannot be deleted yet, it keeps a hidden name and is deleted later.
    """
    for old in checkpoints(run)[:-keep]:
        if "-end-of-" not in old.name:
            # Renamed first, since a half-removed folder must not be taken for a checkpoint.
            hidden = old.with_name(f".{old.name}.removing")
            old.rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)


@contextlib.contextmanager
def _new_checkpoint(run: Path, target: Path) -> Iterator[Path]:
    try:
        for leftover in target.parent.glob(".step-*"):  # of a killed run
            shutil.rmtree(leftover, ignore_errors=True)
        with atomic_folder(target) as folder:
            yield folder
    except (OSError, shutil.Error, SafetensorError) as error:
        last = latest_path(run)
        kept = f"The last complete checkpoint is {last}." if last else "There is no complete checkpoint yet."
        raise CheckpointError(
            f"{target}: could not be written ({error}). {kept} Free disk space or fix the permissions, then "
            "resume."
        ) from error


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


# ---- finding ----------------------------------------------------------------------------------------------


def checkpoints(run: Path) -> list[Path]:
    """Return the folders of the complete checkpoints of a run, oldest first."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        found = [(match, path) for path in (run / FOLDER).iterdir() if (match := _NAME.fullmatch(path.name))]
        # The end of a phase comes after a checkpoint of the same step.
        return [path for _, path in sorted(found, key=lambda pair: (int(pair[0][1]), pair[0][2] or ""))]
    return []


def latest_path(run: Path) -> Path | None:
    """Return the folder of the newest complete checkpoint of a run, or None."""
    return next(reversed(checkpoints(run)), None)


def resolve(path: str | Path) -> Path:
    """Return the checkpoint folder `path`, or the newest checkpoint of the run folder `path`.

    Raises:
        CheckpointError: it is neither.
    """
    path = Path(path)
    if (path / STATE_FILE).is_file() or _NAME.fullmatch(path.name):
        return path
    found = latest_path(path)
    if found is None:
        raise CheckpointError(f"{path}: is neither a checkpoint nor a run folder with a checkpoint")
    return found


# ---- reading ----------------------------------------------------------------------------------------------


def load_state(checkpoint: Path) -> TrainingState:
    """Read the training state of a checkpoint.

    Raises:
        CheckpointError: a file is missing or broken, or of a format that this version does not know.
    """
    if missing := [name for name in FILES if not (checkpoint / name).is_file()]:
        raise CheckpointError(f"{checkpoint}: is not a complete checkpoint, {', '.join(missing)} missing")
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


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, which others can read as far as the umask allows.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.touch()
    mode = path.stat().st_mode
    save_file(plain, path, {"format": "pt"})
    path.chmod(mode)  # safetensors lets only the owner read it


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
    """Load all parameters and buffers of a checkpoint into a model; after an error it is unchanged.

    Raises:
        CheckpointError: the file is missing or broken, or its names or shapes are not those of the model.
    """
    path = checkpoint / MODEL_FILE
    tensors = load_tensors(path)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = {
        "missing": expected.keys() - found.keys(),
        "unexpected": found.keys() - expected.keys(),
        "of another shape": {n for n in expected.keys() & found.keys() if expected[n] != found[n]},
    }
    if any(problems.values()):
        listed = "; ".join(f"{what}: {some(sorted(names))}" for what, names in problems.items() if names)
        raise CheckpointError(f"{path}: does not fit the model ({listed})")
    model.load_state_dict(tensors)


def load_model(path: str | Path) -> VGSPlus:
    """Build the model of a checkpoint, or of the newest one of a run, in evaluation mode on the CPU.

    Raises:
        CheckpointError: there is no checkpoint, or it is broken.
        ConfigError: its model configuration is not valid.
    """
    checkpoint = resolve(path)
    model = build_model(validate(ModelConfig, load_state(checkpoint).model, "model"))
    load_weights(model, checkpoint)
    return model.eval()


def _broken(path: Path, error: Exception) -> str:
    return (
        f"{path}: is broken or truncated ({error}). Use an earlier checkpoint of the run; to resume from it, "
        f"remove the folder {path.parent}."
    )


# ---- writing while training goes on -----------------------------------------------------------------------


class CheckpointWriter:
    """Writes the checkpoints of a run in a thread; leaving its context waits for the last one.

    Attributes:
        saved: the newest complete checkpoint, None without one.
    """

    def __init__(self, run: Path, saved: Checkpoint | None = None) -> None:
        self.saved = saved
        self._run = run
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[Checkpoint] | None = None
        self._error: CheckpointError | None = None

    def start(
        self, state: TrainingState, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]
    ) -> None:
        """Copy the tensors and begin to write them; waits until the checkpoint before is written."""
        self._wait()
        copies = [
            {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
            for tensors in (model, optimizer)
        ]
        self._writing = self._thread.submit(self._write, state, *copies)

    def error(self) -> CheckpointError | None:
        """Return why the last checkpoint could not be written, once; None if it was or is being written."""
        if self._writing is not None and self._writing.done():
            self._wait()
        error, self._error = self._error, None
        return error

    def finish(self) -> Checkpoint:
        """Wait for the checkpoint that is being written, and return it.

        Raises:
            CheckpointError: it could not be written; earlier ones are intact.
        """
        self._wait()
        if error := self.error():
            raise error
        assert self.saved is not None
        return self.saved

    def _wait(self) -> None:
        if self._writing is not None:
            try:
                self.saved = self._writing.result()
            except CheckpointError as error:
                self._error = error
            self._writing = None

    def _write(
        self, state: TrainingState, model: dict[str, Tensor], optimizer: dict[str, Tensor]
    ) -> Checkpoint:
        path = save_checkpoint(self._run, state, model, optimizer)
        prune(self._run)
        return Checkpoint(path, state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._wait()
        self._thread.shutdown()
