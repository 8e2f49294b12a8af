"""The command line: `vgsplus --help`.

Commands import PyTorch and the modules that need it when they run, so that `--help` is fast.
"""

import errno
import importlib.metadata
import io
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from vgsplus.cli import models, runs, searching
from vgsplus.cli.corpora import data
from vgsplus.cli.evaluation import scoring
from vgsplus.errors import Interrupted, NotFiniteError, VgsplusError
from vgsplus.parallel import process_rank

INTERRUPTED = 130
"""Exit status after Ctrl-C."""
SYSTEM_ERRNOS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG),
    *(errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
}
"""Errors of the operating system that are printed without a traceback: permissions, full disks, …"""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"vgsplus {importlib.metadata.version('vgsplus')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Train speech encoders on speech alone and on speech paired with pictures (VGS+)."""


for command in (
    runs.train,
    runs.reproduce,
    runs.sweep,
    models.convert,
    models.embed,
    models.explain,
    searching.search,
    runs.report,
    runs.doctor,
):
    app.command()(command)
app.add_typer(data, name="data")
app.add_typer(scoring, name="evaluate")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Errors that the user can fix are printed without a traceback.

    Exits with 0 on success, 1 after an error, 2 for an invalid command line and 130 when interrupted.
    """
    output: AbstractContextManager[object] = nullcontext()
    rank = process_rank()
    if rank > 0:  # of several processes that train together, the first prints
        output = redirect_stdout(io.StringIO())
    try:
        with output:
            app(args=None if arguments is None else list(arguments))
    except Interrupted as stopped:
        if rank == 0:
            typer.echo(str(stopped), err=True)
        sys.exit(INTERRUPTED)
    except VgsplusError as error:
        if error.reported or (rank > 0 and isinstance(error, NotFiniteError)):
            sys.exit(1)
        _exit_with(f"process {rank}: {error}" if rank else str(error))
    except OSError as error:
        if error.errno not in SYSTEM_ERRNOS:
            raise
        _exit_with(f"{error.filename2 or error.filename or 'a file'}: {error.strerror}.")


def _exit_with(error: str) -> NoReturn:
    Console(stderr=True).print(
        f"vgsplus: {error}", style="red", markup=False, highlight=False, emoji=False, soft_wrap=True
    )
    sys.exit(1)
