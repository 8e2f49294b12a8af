"""Progress of long computations: bars in a terminal, lines elsewhere, or no output."""

import time
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars

PLAIN_INTERVAL = 30.0
"""Minimum seconds between two lines of a stage if the output is not a terminal."""


class Progress:
    """Interface of all progress displays. This base class displays nothing."""

    def update(self, stage: str, done: int, total: int | None = None, detail: str = "") -> None:
        """Report that `done` of `total` items of a stage are complete.

        Args:
            stage: name of the stage; each has its own bar.
            done: number of completed items. The first call states the items that an earlier run completed,
                which are excluded from the estimate of the remaining time.
            total: number of items of the stage, None if unknown.
            detail: further text, such as losses.
        """

    def note(self, text: str) -> None:
        """Print a line of text above the bars."""

    def close(self) -> None:
        """Remove the bars. A later update of a stage starts it again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


SILENT = Progress()


def console_progress(console: Console | None = None, *, in_bytes: bool = False) -> Progress:
    """Return bars if the console (default: standard error) is a terminal, else plain lines.

    With `in_bytes`, items are bytes and displayed as kB, MB, … with their rate.
    """
    console = console or Console(stderr=True)
    return _Bars(console, in_bytes=in_bytes) if console.is_terminal else _Lines(console, in_bytes=in_bytes)


class _Bars(Progress):
    def __init__(self, console: Console, *, in_bytes: bool) -> None:
        amounts: list[ProgressColumn] = [MofNCompleteColumn()]
        if in_bytes:
            amounts = [DownloadColumn(), TransferSpeedColumn()]
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            *amounts,
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def update(self, stage: str, done: int, total: int | None = None, detail: str = "") -> None:
        self._bars.start()
        if stage not in self._tasks:  # the rate excludes items of an earlier run
            self._tasks[stage] = self._bars.add_task(stage, completed=done, total=total, detail=detail)
        self._bars.update(self._tasks[stage], completed=done, total=total, detail=detail)

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._bars.stop()
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks.clear()


class _Lines(Progress):
    """Print a line per stage every 30 s and at its end, for logs and pipes."""

    def __init__(self, console: Console, *, in_bytes: bool) -> None:
        self._console = console
        self._format = decimal if in_bytes else str
        self._stages: dict[str, tuple[float, int, float, int]] = {}
        """By stage: time and items of the first update, time and items of the last printed line."""

    def update(self, stage: str, done: int, total: int | None = None, detail: str = "") -> None:
        now = time.monotonic()
        started, first, printed, shown = self._stages.setdefault(stage, (now, done, now, -1))
        if done == shown or (now - printed < PLAIN_INTERVAL and done != total):
            return
        self._stages[stage] = (started, first, now, done)
        amount = self._format(done) + ("" if total is None else f"/{self._format(total)}")
        parts = [f"{stage}: {amount}", detail]
        if total is not None and first < done < total:
            parts.append(f"{clock((now - started) / (done - first) * (total - done))} left")
        self.note("  ".join(part for part in parts if part))

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._stages.clear()


def clock(seconds: float) -> str:
    """Format seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
