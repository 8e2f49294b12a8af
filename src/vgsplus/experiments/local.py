"""Train a study on this machine: one run after the other, or several in parallel."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch

from vgsplus.config import RunConfig
from vgsplus.errors import Interrupted, VgsplusError
from vgsplus.experiments.study import OpenStudy, Run, Study
from vgsplus.parallel import process_count
from vgsplus.progress import SILENT, Progress
from vgsplus.training.processes import Processes
from vgsplus.training.runtime import StopRequest

type Connection = connection.Connection[Any, Any]


def train_here(open_study: OpenStudy, config: RunConfig, progress: Progress, jobs: int = 1) -> Path:
    """Check, train and report a study on this machine, and return the page of its report.

    Args:
        open_study: opens the study.
        config: settings of a run of the study, for the number of processes and their device.
        progress: of the first process.
        jobs: how many runs are trained in parallel, each in a process of its own with a share of the
            threads; 1: one by one, in the processes of this command.

    Raises:
        VgsplusError: something does not fit, raised before any training; or as `Run.train`.
    """
    # Before `Processes`, which starts the others.
    if jobs > 1 and max(config.devices * config.num_nodes, process_count()) > 1:
        raise VgsplusError("--jobs trains each run in one process: set devices=1, and start one process.")
    processes = Processes(config.devices, config.num_nodes, accelerator=config.accelerator)
    opened: list[Study] = []

    def prepare() -> None:
        study = open_study(progress)
        study.check()
        study.record()
        opened.append(study)

    processes.on_first(prepare)
    if not processes.first:
        progress = SILENT
        opened.append(open_study(progress))
    (study,) = opened
    if jobs > 1:
        _train_in_parallel(open_study, study.runs, jobs, progress)
    else:
        for number, run in enumerate(study.runs, start=1):
            progress.note(f"{run.title}, {number} of {len(study.runs)}")
            study.train(run, progress)
    return study.write_report(processes, progress)


def _train_in_parallel(open_study: OpenStudy, runs: Sequence[Run], jobs: int, progress: Progress) -> None:
    """Train the unfinished runs, up to `jobs` in parallel, each after the run that it starts from."""
    waiting = {number: run for number, run in enumerate(runs) if not run.finished()}
    workers: list[_Worker] = []
    errors: list[str] = []
    with StopRequest() as stop:
        while workers or (waiting and not stop.requested and not errors):
            if stop.requested or errors:
                for worker in workers:
                    worker.process.terminate()  # saves a checkpoint
            else:
                busy = {run.folder for run in waiting.values()} | {worker.run.folder for worker in workers}
                ready = [number for number, run in waiting.items() if run.waits_for() not in busy]
                for number in ready[: jobs - len(workers)]:
                    workers.append(_start(open_study, waiting.pop(number), number, jobs))
                    progress.note(f"{workers[-1].run.title}, {len(waiting)} of {len(runs)} left to start")
            for worker in _with_messages(workers):
                try:
                    worker.receive(progress)
                except VgsplusError as error:
                    errors.append(str(error))
            workers = [worker for worker in workers if not worker.ended]
    if errors:
        raise VgsplusError("\n".join(errors))
    if stop.requested:
        raise Interrupted("stopped by a signal; the runs are saved. Run the same command again to resume.")


@dataclass
class _Worker:
    """A process that trains a run."""

    run: Run
    process: SpawnProcess
    receiver: Connection
    ended: bool = False

    def receive(self, progress: Progress) -> None:
        """Receive a message of the run and display it, or notice that its process has ended.

        Raises:
            VgsplusError: the run failed.
        """
        try:
            kind, arguments = self.receiver.recv()
        except EOFError:
            self.process.join()
            self.ended = True
            progress.close()
            if self.process.exitcode not in (0, -signal.SIGTERM):
                raise VgsplusError(
                    f"{self.run.title}: its process ended with exit status {self.process.exitcode}"
                ) from None
            return
        if kind == "error":
            raise VgsplusError(f"{self.run.title}: {arguments[0]}")
        getattr(progress, kind)(*arguments)


def _with_messages(workers: Sequence[_Worker]) -> list[_Worker]:
    """Return the workers that have sent something or ended; wait for one, but at most half a second."""
    ready = connection.wait([worker.receiver for worker in workers], timeout=0.5)
    return [worker for worker in workers if worker.receiver in ready]


def _start(open_study: OpenStudy, run: Run, number: int, jobs: int) -> _Worker:
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    threads = max(1, torch.get_num_threads() // jobs)
    process = context.Process(target=_train_run, args=(open_study, number, threads, sender))
    process.start()
    sender.close()
    return _Worker(run, process, receiver)


def _train_run(open_study: OpenStudy, number: int, threads: int, sender: Connection) -> None:
    """Train a run of a study in this process, and send what it displays and its error."""
    torch.set_num_threads(threads)
    study = open_study(SILENT)
    run = study.runs[number]
    try:
        study.train(run, _Sender(run.title, sender))
    except Interrupted:
        pass
    except VgsplusError as error:
        sender.send(("error", (str(error),)))


class _Sender(Progress):
    """Sends what is displayed to the process that displays it."""

    def __init__(self, title: str, sender: Connection) -> None:
        self._title, self._sender = title, sender

    def update(self, stage: str, done: int, total: int | None = None, detail: str = "") -> None:
        self._sender.send(("update", (f"{self._title}, {stage}", done, total, detail)))

    def note(self, text: str) -> None:
        self._sender.send(("note", (f"{self._title}: {text}",)))
