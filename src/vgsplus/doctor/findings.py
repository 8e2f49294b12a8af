"""What an examination found, as data."""

from dataclasses import dataclass
from typing import Literal

type Level = Literal["ok", "hint", "fault"]
"""As it should be; worth knowing; wrong."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: "ok", "hint" or "fault".
        about: what was looked at, in a word or two.
        what: what was found.
        remedy: what to do about it; empty where nothing need be done.
    """

    level: Level
    about: str
    what: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that was found about one subject.

    Attributes:
        subject: what was examined, as a title.
        findings: in the order in which to read them.
        command: what goes on with unfinished work; empty where there is none.
    """

    subject: str
    findings: tuple[Finding, ...]
    command: str = ""

    @property
    def well(self) -> bool:
        """Whether nothing is wrong; hints are no faults."""
        return all(finding.level != "fault" for finding in self.findings)


def count(number: int, one: str, many: str | None = None) -> str:
    """A number and its noun: "1 picture", "2 pictures"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
