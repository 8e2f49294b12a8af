"""Commands that train (`train`, `reproduce`), write reports (`report`) and check (`doctor`)."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from vgsplus.cli.options import Settings
from vgsplus.errors import VgsplusError
from vgsplus.progress import console_progress


def train(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a preset.")],
    out: Annotated[Path, typer.Option(help="Run folder.")],
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in OUT.")] = False,
) -> None:
    """Train one model and measure its recall on the test splits. Ctrl-C saves a checkpoint and stops."""
    from vgsplus.config import load_config
    from vgsplus.corpora import Corpus
    from vgsplus.experiments.scoring import recalls, test_sets
    from vgsplus.interop.loading import load_weights
    from vgsplus.training.checks import needs_images
    from vgsplus.training.run_folder import resolve_precision
    from vgsplus.training.trainer import train as train_run

    loaded = resolve_precision(load_config(config, settings or []), out)
    corpus = Corpus.open(loaded.corpus)
    splits = test_sets(corpus) if needs_images(loaded) else ()
    with console_progress() as progress:
        result = train_run(
            loaded,
            out,
            resume=resume,
            evaluate=(lambda model, _: recalls(model, loaded, corpus, splits)) if splits else None,
            load_weights=load_weights,
            progress=progress,
        )
    typer.echo(f"{result.state.global_step} updates; {result.path}")


def reproduce(
    preset: Annotated[str, typer.Argument(help="smoke, toy, stamps, paper, or a YAML file.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder for the corpus, the runs and the report.")],
    variants: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help='A variant, such as "VGS+" or "W2V2, VGS+"; may be repeated. Default: all nine.',
        ),
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help="A prepared corpus to train on.")] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder of Tux Paint's stamps, for the preset stamps.")
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(min=1, help="Number of seeds to train every variant with, for means and deviations."),
    ] = 1,
    item: Annotated[
        Path | None,
        typer.Option(help="An ABX item file. Default: that of the test split of the corpus."),
    ] = None,
    audio: Annotated[Path | None, typer.Option(help="Folder with the sounds of --item.")] = None,
    settings: Settings = None,
) -> None:
    """Train the paper's nine variants, evaluate them and write the report.

    Run the same command again to resume; with more --seeds, only the missing runs are trained.
    """
    from vgsplus.experiments.reproduce import reproduce as run
    from vgsplus.report import Results, print_tables
    from vgsplus.report.page import DATA

    if (item is None) != (audio is None):
        raise VgsplusError(
            "--item and --audio must be given together: an item file and the folder of its sounds."
        )
    with console_progress() as progress:
        page = run(
            preset,
            out,
            variants=variants,
            corpus=corpus,
            overrides=settings or [],
            stamps_root=root,
            seeds=seeds,
            abx=(item, audio) if item and audio else None,
            progress=progress,
        )
    print_tables(Results.load(page.with_name(DATA)), Console())
    typer.echo(f"Report: {page}")


def report(out: Annotated[Path, typer.Argument(help="The folder of a reproduction, or of a run.")]) -> None:
    """Rewrite the report of a reproduction from its results, or write that of a run, also while it trains.

    The report of a run, report.html in its folder, has the curves so far, the time left, and warnings.
    """
    from vgsplus.experiments.reproduce import corpus_of
    from vgsplus.report import Results, print_tables, write_report
    from vgsplus.report.page import DATA, FOLDER
    from vgsplus.report.run import RunReport, print_run, write_run_report
    from vgsplus.training.run_folder import CONFIG_FILE

    if (out / CONFIG_FILE).is_file():
        found = RunReport.read(out)
        page = write_run_report(found)
        print_run(found, Console())
        typer.echo(f"Report: {page}")
        return
    results = Results.load(out / FOLDER / DATA)
    page = write_report(results, out, corpus=corpus_of(out, [variant.key for variant in results.variants]))
    print_tables(results, Console())
    typer.echo(f"Report: {page}")


def doctor(
    what: Annotated[
        str,
        typer.Argument(help='"machine", or the folder of a corpus, run or reproduction.', show_default=False),
    ],
) -> None:
    """Check a machine, corpus, run or reproduction, and list faults with their remedies.

    Exits with 1 if there are faults. Nothing is changed. All sounds of a corpus and all tensors of the
    checkpoints of a run are read.
    """
    from vgsplus.doctor import examine, print_diagnosis

    with Console(stderr=True).status(f"examining {escape(what)}"):
        diagnosis = examine(what)
    print_diagnosis(diagnosis, Console())
    if not diagnosis.ok:
        raise typer.Exit(1)
