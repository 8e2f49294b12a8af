"""What a person sees of a run: a live line in a terminal, plain lines elsewhere, or nothing."""

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar

from vgsplus.training.log import ADDITIONAL, Record

PLAIN_INTERVAL = 30.0
"""Seconds between plain lines."""


class Progress(Protocol):
    """What the trainer tells."""

    def begin(self, phase: str, steps: int, done: int) -> None:
        """A phase of `steps` updates starts, or goes on after `done` of them."""

    def step(self, record: Record) -> None:
        """An update is done (see `log` for the record)."""

    def note(self, text: str) -> None:
        """Something to be read happened."""

    def close(self) -> None:
        """The run ended, for whatever reason."""


class Silent:
    """Shows nothing."""

    def begin(self, phase: str, steps: int, done: int) -> None:
        """Show nothing."""

    def step(self, record: Record) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Show nothing."""


class Live:
    """A live line in a terminal: phase, step, losses, captions a second, time left."""

    def __init__(self, console: Console) -> None:
        self._bar = RichBar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
        )

    def begin(self, phase: str, steps: int, done: int) -> None:
        """Put up the phase's bar."""
        self._bar.start()
        self._task = self._bar.add_task(phase, total=steps, completed=done, numbers="")

    def step(self, record: Record) -> None:
        """Move the bar on."""
        self._bar.update(self._task, completed=record["phase_step"], numbers=describe(record))

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Take the bar down."""
        self._bar.stop()


class Plain:
    """A line every half minute, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, phase: str, steps: int, done: int) -> None:
        """Print where the phase starts."""
        self._phase, self._steps, self._first = phase, steps, done
        self._started = self._printed = time.monotonic()
        self.note(f"{phase}: {'starts' if done == 0 else f'goes on after {done}'} of {steps} steps")

    def step(self, record: Record) -> None:
        """Print the step if the last line is old enough, or the phase over."""
        now, done = time.monotonic(), record["phase_step"]
        if now - self._printed < PLAIN_INTERVAL and done < self._steps:
            return
        self._printed = now
        left = (now - self._started) / (done - self._first) * (self._steps - done)
        self.note(f"{self._phase}: step {done}/{self._steps}  {describe(record)}  {clock(left)} left")

    def note(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing is left to close."""


def console_progress(console: Console | None = None) -> Progress:
    """The live line if the console (standard error by default) is a terminal, else plain lines."""
    console = console or Console(stderr=True)
    return Live(console) if console.is_terminal else Plain(console)


def describe(record: Record) -> str:
    """The numbers of a step in words."""
    losses = [
        f"{name} {record[name]:.3f}"
        for name in ("total", "grounding", "contrastive", "diversity", f"{ADDITIONAL}contrastive")
        if record.get(name) is not None
    ]
    return "  ".join([*losses, f"{record['captions_per_second']:.1f} captions/s"])


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
