"""Checkpoints that a thread writes while training goes on."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from torch import Tensor

from vgsplus.errors import CheckpointError
from vgsplus.training.checkpoint import Checkpoint, TrainingState, prune, save_checkpoint


class CheckpointWriter:
    """Writes the checkpoints of a run one after the other; leaving its context waits for the last one.

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
