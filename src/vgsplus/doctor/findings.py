"""The findings of `vgsplus doctor` as data."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

TEMPORARY_NAME = re.compile(r"\..+\.(writing|removing|preparing|replaced)|\.(layers|report)-.+")
"""Names of files and folders that are being written, replaced or removed, also by earlier versions."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check.

    Attributes:
        level: "ok", "hint" (possibly a problem) or "fault".
        about: what was checked, in a few words.
        what: the result.
        remedy: what to do about it, or "".
    """

    level: Literal["ok", "hint", "fault"]
    about: str
    what: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings about one subject.

    Attributes:
        subject: title that names what was examined.
        findings: findings in the order of display.
        command: command that resumes unfinished work, or "".
    """

    subject: str
    findings: tuple[Finding, ...]
    command: str = ""

    @property
    def ok(self) -> bool:
        """Whether there are no faults; hints are not faults."""
        return all(finding.level != "fault" for finding in self.findings)


def leftovers(*folders: Path, name: str = "") -> Iterator[Finding]:
    """Yield a hint if a killed process left temporary files in `folders` (with `name`: of that file)."""
    paths = [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if TEMPORARY_NAME.fullmatch(path.name) and path.name.startswith(f".{name}")
    ]
    if paths:
        what = f"{count(len(paths), 'path')} not completely written: {', '.join(map(str, paths))}"
        remedy = "Remove them, unless a process is writing them now."
        yield Finding("hint", "leftovers", what, remedy)


def count(number: int, noun: str) -> str:
    """Format a number with its noun: "1 picture", "2 pictures"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
