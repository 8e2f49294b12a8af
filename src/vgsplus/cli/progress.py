"""Progress bars on standard error: of what is done, of how much, and the time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar, and the call (done, total) that moves it."""
    with bars(title) as (move,):
        yield move


@contextmanager
def bars(*titles: str) -> Iterator[tuple[Callable[[int, int], None], ...]]:
    """A bar for each of the stages of one piece of work, known beforehand."""
    with _progress() as progress:
        tasks = [progress.add_task(title, total=None) for title in titles]
        yield tuple(partial(_move, progress, task) for task in tasks)


@contextmanager
def stage_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage as it begins, and the call (stage, done, total) that moves them."""
    with _progress() as progress:
        known: dict[str, TaskID] = {}

        def move(stage: str, done: int, total: int, /) -> None:
            if stage not in known:
                known[stage] = progress.add_task(stage)
            _move(progress, known[stage], done, total)

        yield move


@contextmanager
def byte_bars() -> Iterator[Callable[[str, int, int | None], None]]:
    """As `stage_bars`, of bytes, with their rate; the total of a stage may be unknown."""
    with _progress(DownloadColumn(), TransferSpeedColumn()) as progress:
        known: dict[str, TaskID] = {}

        def move(stage: str, done: int, total: int | None, /) -> None:
            if stage not in known:  # bytes that were there before do not count into the rate
                known[stage] = progress.add_task(stage, completed=done, total=total)
            progress.update(known[stage], completed=done, total=total)

        yield move


def _progress(*amounts: ProgressColumn) -> Progress:
    columns = amounts or (MofNCompleteColumn(),)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _move(progress: Progress, task: TaskID, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)
