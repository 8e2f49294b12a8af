"""Check the machine, a corpus, a run or a reproduction: what exists, what is wrong, and how to fix it.

Every subject has a module that returns findings as data, which `print_diagnosis` displays. A module is
imported when it is needed, so that the machine can be examined even if others cannot be imported.
"""
# ruff: noqa: PLC0415 - see above

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vgsplus.doctor.findings import Diagnosis, count
from vgsplus.errors import VgsplusError
from vgsplus.remote import locate

MACHINE = "machine"
CORPUS_FILES = ("corpus.json", "captions.jsonl", "regions.h5")
RUN_FILES = ("config.yaml", "log.jsonl", "checkpoints")
REPRODUCTION_FILES = ("runs", "seconds")
STYLES = {"ok": "green", "hint": "yellow", "fault": "bold red"}


def examine(what: str | Path) -> Diagnosis:
    """Examine the machine ("machine"), or the corpus, run or reproduction in a folder.

    Changes nothing on disk, and executes no code from the files that it reads.

    Raises:
        VgsplusError: `what` is none of these.
    """
    if what == MACHINE:
        from vgsplus.doctor.machine import examine_machine

        return examine_machine()
    folder = locate(what)
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


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Print the findings as a table and, on a separate line, the command that resumes the work."""
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
