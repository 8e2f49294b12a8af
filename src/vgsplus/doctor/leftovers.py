"""What a killed process left behind: hidden names under which this package writes, renames and removes."""

import re
from collections.abc import Iterator
from pathlib import Path

from vgsplus.doctor.findings import Finding, count

_NAME = re.compile(r"\..+\.(writing|removing|preparing|replaced)|\.(layers|report)-.+")


def leftovers(*folders: Path, of: str = "") -> Iterator[Path]:
    """Names that only unfinished writes have, directly in `folders`; with `of`, those of that file alone."""
    for folder in folders:
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                if _NAME.fullmatch(path.name) and path.name.startswith(f".{of}"):
                    yield path


def leftover_findings(paths: Iterator[Path]) -> Iterator[Finding]:
    """A hint that names what was left, if anything was."""
    if found := list(paths):
        yield Finding(
            "hint",
            "leftovers",
            f"{count(len(found), 'name')} of unfinished writes: {', '.join(map(str, found))}",
            "A process that was killed left them, or one is writing now. If none is, remove them.",
        )
