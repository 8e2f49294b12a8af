"""Check the machine, a corpus, a run or a reproduction: what exists, what is wrong, how to fix it.

Every subject has a module that collects findings as data; `print_diagnosis` alone displays them. The modules
are imported when they are needed, so that the machine can be examined where the package cannot be imported.
"""
# ruff: noqa: PLC0415 - see above

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vgsplus.errors import VgsplusError

MACHINE = "machine"
CORPUS_FILES = ("corpus.json", "captions.jsonl", "regions.h5")
RUN_FILES = ("config.yaml", "log.jsonl", "checkpoints")
REPRODUCTION_FILES = ("runs", "seconds")
TEMPORARY_NAME = re.compile(r"\..+\.(writing|removing|preparing|replaced)|\.(layers|report)-.+")
"""Names of files and folders that are being written, replaced or removed, also by earlier versions."""
STYLES = {"ok": "green", "hint": "yellow", "fault": "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check.

    Attributes:
        level: "ok", "hint" (worth knowing) or "fault" (wrong).
        about: what was checked, in a word or two.
        what: what was found.
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
        subject: what was examined, as a title.
        findings: in reading order.
        command: command that resumes unfinished work, or "".
    """

    subject: str
    findings: tuple[Finding, ...]
    command: str = ""

    @property
    def ok(self) -> bool:
        """Whether there are no faults; hints are not faults."""
        return all(finding.level != "fault" for finding in self.findings)


def examine(what: str | Path) -> Diagnosis:
    """Examine the machine ("machine"), or the corpus, run or reproduction in a folder.

    Changes nothing on disk and executes no code from the files read.

    Raises:
        VgsplusError: `what` is none of these.
    """
    if what == MACHINE:
        from vgsplus.doctor.machine import examine_machine

        return examine_machine()
    folder = Path(what)
    if _contains(folder, CORPUS_FILES):
        from vgsplus.doctor.corpus import examine_corpus

        return examine_corpus(folder)
    if _contains(folder, RUN_FILES):
        from vgsplus.doctor.run import examine_run

        return examine_run(folder)
    if _contains(folder, REPRODUCTION_FILES):
        from vgsplus.doctor.reproduction import examine_reproduction

        return examine_reproduction(folder)
    fault = "is not a corpus, run or reproduction" if folder.is_dir() else "there is no such folder"
    raise VgsplusError(
        f"{folder}: {fault}. Name the word {MACHINE}, or a folder that holds any of "
        f"{', '.join(CORPUS_FILES)} (a corpus), {', '.join(RUN_FILES)} (a run) or "
        f"{', '.join(REPRODUCTION_FILES)} (a reproduction)."
    )


def _contains(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / name).exists() for name in names)


def leftovers(*folders: Path, name: str = "") -> Iterator[Finding]:
    """Yield a hint if killed processes left files directly in `folders`; with `name`, of that file only."""
    paths = [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if TEMPORARY_NAME.fullmatch(path.name) and path.name.startswith(f".{name}")
    ]
    if paths:
        what = f"{count(len(paths), 'name')} of unfinished writes: {', '.join(map(str, paths))}"
        remedy = "Remove them, unless a process is writing them now."
        yield Finding("hint", "leftovers", what, remedy)


def count(number: int, noun: str) -> str:
    """Format a number and its noun: "1 picture", "2 pictures"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Print the findings as a table and, on one line of its own, the command that resumes the work."""
    levels = [finding.level for finding in diagnosis.findings]
    totals = f"{count(levels.count('fault'), 'fault')}, {count(levels.count('hint'), 'hint')}"
    table = Table("", title=Text(diagnosis.subject), title_justify="left", caption=Text(totals))
    table.add_column("about", overflow="fold")
    table.add_column("found", overflow="fold")
    for finding in diagnosis.findings:
        found = Text(finding.what)
        if finding.remedy:
            found.append(f"\n→ {finding.remedy}", style="italic")
        table.add_row(Text(finding.level, style=STYLES[finding.level]), Text(finding.about), found)
    console.print(table)
    if diagnosis.command:
        console.print("To resume:", highlight=False)
        console.print(diagnosis.command, markup=False, highlight=False, soft_wrap=True)
