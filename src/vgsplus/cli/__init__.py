"""The command line: `vgsplus --help`.

What needs PyTorch is imported by the commands that use it, so that help comes at once.
"""

import errno
import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from vgsplus.cli import models, runs
from vgsplus.cli.corpora import data
from vgsplus.cli.evaluation import scoring
from vgsplus.errors import Interrupted, VgsplusError

INTERRUPTED = 130
"""The exit status of a program that Ctrl-C ended."""
THE_MACHINES = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
}
"""Errors that are no faults of the program: what may not be written, full disks, broken ones."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        Console().print(f"vgsplus {importlib.metadata.version('vgsplus')}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """VGS+: one speech encoder that learns from speech alone and from speech with pictures."""


for command in (runs.train, runs.reproduce, models.convert, models.embed, runs.report, runs.doctor):
    app.command()(command)
app.add_typer(data, name="data")
app.add_typer(scoring, name="evaluate")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; errors that the user can mend are printed without a traceback.

    Exits with 0, 1 after an error, 2 for a command that cannot be understood, 130 when interrupted.
    """
    console = Console(stderr=True)
    try:
        app(args=None if arguments is None else list(arguments))
    except Interrupted as stopped:
        console.print(str(stopped), markup=False, highlight=False, soft_wrap=True)
        sys.exit(INTERRUPTED)
    except VgsplusError as error:
        _say(console, str(error))
    except OSError as error:
        if error.errno not in THE_MACHINES:
            raise
        _say(console, f"{error.filename or 'a file'}: {error.strerror}.")


def _say(console: Console, error: str) -> NoReturn:
    console.print(f"vgsplus: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(1)
