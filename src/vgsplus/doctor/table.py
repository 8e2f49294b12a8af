"""A diagnosis as a table to read."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vgsplus.doctor.findings import Diagnosis, Level, count

STYLES: dict[Level, str] = {"ok": "green", "hint": "yellow", "fault": "bold red"}


def diagnosis_table(diagnosis: Diagnosis) -> Table:
    """A row a finding: level, what it is about, what was found and, in a line of its own, what to do."""
    table = Table(title=Text(diagnosis.subject), title_justify="left", caption=Text(_verdict(diagnosis)))
    table.add_column("")
    table.add_column("about", overflow="fold")
    table.add_column("found", overflow="fold")
    for finding in diagnosis.findings:
        found = Text(finding.what)
        if finding.remedy:
            found.append(f"\n→ {finding.remedy}", style="italic")
        table.add_row(Text(finding.level, style=STYLES[finding.level]), Text(finding.about), found)
    return table


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Print the table and below it, on one line that can be copied, the command that goes on."""
    console.print(diagnosis_table(diagnosis))
    if diagnosis.command:
        console.print("To go on:", highlight=False)
        console.print(diagnosis.command, markup=False, highlight=False, soft_wrap=True)


def _verdict(diagnosis: Diagnosis) -> str:
    levels = [finding.level for finding in diagnosis.findings]
    return f"{count(levels.count('fault'), 'fault')}, {count(levels.count('hint'), 'hint')}"
