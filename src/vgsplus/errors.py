"""Errors that a user is meant to read. Their messages say what is wrong, where, and what to do."""

from collections.abc import Sequence
from typing import Self

SHOWN_FAULTS = 20


def some(names: Sequence[str], shown: int = 5) -> str:
    """Join names for a message: the first ones, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


class VgsplusError(Exception):
    """Base class of all errors of this package.

    Attributes:
        reported: whether another process of the run prints it.
    """

    reported = False


class ConfigError(VgsplusError, ValueError):
    """An impossible setting, schedule or combination of settings."""


class CorpusError(VgsplusError):
    """Faults of a corpus or of the lists, tables, items, pictures or region files that make one.

    Attributes:
        faults: every fault found; the message holds the first 20.
    """

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        more = len(self.faults) - SHOWN_FAULTS
        super().__init__(
            "\n".join([*self.faults[:SHOWN_FAULTS], *([f"… and {more} more faults"] if more > 0 else [])])
        )

    def __reduce__(self) -> tuple[type[Self], tuple[list[str]]]:
        return type(self), (self.faults,)


class AudioError(VgsplusError):
    """A sound file that is missing, broken, silent or of an unexpected format."""


class CheckpointError(VgsplusError):
    """A checkpoint or run folder that is missing, broken, in use or of another model or run."""


class DownloadError(VgsplusError):
    """A file that could not be downloaded, read by its URL, verified or unpacked."""


class NotFiniteError(VgsplusError):
    """A loss or gradient is infinite or not a number; that update was skipped."""


class Interrupted(VgsplusError):  # noqa: N818 - the user asked to stop
    """The run was stopped by SIGINT, SIGTERM or SIGUSR1, after it saved a checkpoint."""
