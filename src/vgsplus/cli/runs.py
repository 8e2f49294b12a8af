"""Commands that train (`train`, `reproduce`), write reports (`report`) and check (`doctor`)."""

import functools
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from vgsplus.cli.options import DryRun, Jobs, Settings, Slurm
from vgsplus.errors import VgsplusError
from vgsplus.progress import console_progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vgsplus.config import RunConfig
    from vgsplus.corpora import Corpus
    from vgsplus.experiments.study import OpenStudy


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
    typer.echo(
        "\n".join(["How to go on:", *(f"  vgsplus {line}" for line in _next_commands(out, corpus, splits))])
    )


def _next_commands(run: Path, corpus: "Corpus", splits: "Sequence[str]") -> list[str]:
    """Return commands that apply to a trained run; `splits` are those it can retrieve in."""
    commands = []
    split = [] if not splits or "test" in splits else ["--split", splits[0]]
    if splits:
        commands.append(["evaluate", "retrieval", run, *split])
    # Of several item files, those of a test split come first.
    if items := sorted(corpus.root.glob("*.item"), key=lambda item: (not item.name.startswith("test"), item)):
        commands.append(["evaluate", "abx", run, items[0], corpus.audio_root])
    commands.append(["report", run])
    if splits and corpus.info["image_root"]:
        commands.append(["search", corpus.root, "--model", run, *split])
    return [shlex.join(map(str, words)) for words in commands]


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
    jobs: Jobs = 1,
    slurm: Slurm = None,
    dry_run: DryRun = False,
) -> None:
    """Train the paper's nine variants, evaluate them and write the report.

    Run the same command again to resume; with more --seeds, only the missing runs are trained. With --jobs,
    several runs are trained in parallel.

    With --slurm, every run is a job, and the report is the last. Runs that start from a phase of another
    wait for it. Before its time limit, a job saves a checkpoint, requeues itself and goes on from there.
    """
    from vgsplus.experiments.reproduce import load_variants, open_reproduction
    from vgsplus.report.page import DATA
    from vgsplus.report.results import Results
    from vgsplus.report.tables import print_tables

    if (item is None) != (audio is None):
        raise VgsplusError(
            "--item and --audio must be given together: an item file and the folder of its sounds."
        )
    configs = load_variants(preset, variants, settings or ())
    open_study = functools.partial(
        open_reproduction,
        preset=preset,
        out=out,
        configs=configs,
        corpus=corpus,
        stamps_root=root,
        seeds=seeds,
        abx=(item, audio) if item and audio else None,
        argv=_words(
            *("reproduce", preset, "--out", out),
            *(("--variants", name) for name in variants or ()),
            *(("--corpus", corpus), ("--root", root), ("--seeds", seeds if seeds > 1 else None)),
            *(("--item", item), ("--audio", audio)),
            *(("--set", setting) for setting in settings or ()),
            ("--jobs", jobs if jobs > 1 else None),
            *(("--slurm", option) for option in slurm or ()),
        ),
    )
    if page := _run_study(open_study, next(iter(configs.values())), slurm, jobs=jobs, dry_run=dry_run):
        print_tables(Results.load(page.with_name(DATA)), Console())
        typer.echo(f"Report: {page}")


def sweep(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a preset.")],
    *,
    grid: Annotated[
        list[str],
        typer.Option(
            metavar="KEY=VALUE,VALUE,…",
            help="A setting and its values, such as schedule.0.alpha=0,0.25,0.5 (α of the first phase), "
            "schedule.plus_alpha=0.25,0.5 (of the variants with VGS+) or batch_size=32,64; may be repeated "
            "for all combinations.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the corpus, the runs and the report.")],
    corpus: Annotated[Path | None, typer.Option(help="A prepared corpus to train on.")] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of seeds to train every grid point with, for intervals.")
    ] = 1,
    settings: Settings = None,
    jobs: Jobs = 1,
    slurm: Slurm = None,
    dry_run: DryRun = False,
) -> None:
    """Train a configuration with all combinations of some settings, and report which are the best.

    Recall on the test splits, ABX errors and validation losses are compared over seeds: the report says by
    how much each grid point is behind the best, and whether that is more than the seeds explain. First phases
    with the same settings are trained once.

    Run the same command again to resume; with more values or --seeds, only the missing runs are trained. With
    --slurm, every run is a job, as in vgsplus reproduce.
    """
    from vgsplus.experiments.sweep import load_points, open_sweep

    points = load_points(config, grid, settings or ())
    open_study = functools.partial(
        open_sweep,
        config=config,
        out=out,
        points=points,
        corpus=corpus,
        seeds=seeds,
        argv=_words(
            *("sweep", config, "--out", out),
            *(("--grid", axis) for axis in grid),
            *(("--corpus", corpus), ("--seeds", seeds if seeds > 1 else None)),
            *(("--set", setting) for setting in settings or ()),
            ("--jobs", jobs if jobs > 1 else None),
            *(("--slurm", option) for option in slurm or ()),
        ),
    )
    if page := _run_study(open_study, next(iter(points.values())), slurm, jobs=jobs, dry_run=dry_run):
        typer.echo(page.with_name("sweep.md").read_text(encoding="utf-8").split("\n## ")[0].strip())
        typer.echo(f"Report: {page}")


def _words(*parts: object) -> list[str]:
    """Return the words of a command; pairs of an option and None are left out."""
    pairs = [part if isinstance(part, tuple) else (part,) for part in parts]
    return [str(word) for pair in pairs if None not in pair for word in pair]


def _run_study(
    open_study: "OpenStudy", config: "RunConfig", slurm: list[str] | None, *, jobs: int, dry_run: bool
) -> Path | None:
    """Train a study here and return the page of its report, or submit it to SLURM and print the jobs."""
    from vgsplus.experiments.local import train_here
    from vgsplus.experiments.slurm import JOBS, parse_options, submit
    from vgsplus.report.tables import terminal_table

    if not slurm:
        if dry_run:
            raise VgsplusError(
                "--dry-run shows the jobs of SLURM: it needs --slurm, such as --slurm time=12:00:00."
            )
        with console_progress() as progress:
            return train_here(open_study, config, progress, jobs)
    if jobs > 1:
        raise VgsplusError("--jobs trains on this machine; with --slurm every run is a job of its own.")
    options = parse_options(slurm)
    with console_progress() as progress:
        study, submitted, ids = submit(open_study, options, progress, dry_run=dry_run)
    names = ids or tuple(str(number) for number in range(1, len(submitted) + 1))
    rows = [
        (name, job.title, ", ".join(names[place] for place in job.after))
        for name, job in zip(names, submitted, strict=True)
    ]
    Console().print(terminal_table(["job", "run", "waits for"], rows, "Jobs"))
    typer.echo(f"Each job: {' '.join(slurm)}")
    if ids:
        typer.echo(
            f"Submitted {len(ids)} jobs, see squeue. Their output is in {study.out / JOBS}; run the same "
            "command again if one fails."
        )
    else:
        typer.echo("Dry run: nothing was submitted.")
    return None


def report(out: Annotated[Path, typer.Argument(help="The folder of a reproduction, or of a run.")]) -> None:
    """Rewrite the report of a reproduction from its results, or write that of a run, also while it trains.

    The gallery of a reproduction shows where in a picture its model finds a caption, if the runs still exist.
    The report of a run, report.html in its folder, has the curves so far, the time left, and warnings.
    """
    from vgsplus.experiments.reproduce import corpus_of, variant_folder
    from vgsplus.report.page import DATA, FOLDER, write_report
    from vgsplus.report.results import Results
    from vgsplus.report.run import RunReport, print_run, write_run_report
    from vgsplus.report.tables import print_tables
    from vgsplus.training.checkpoint import load_model
    from vgsplus.training.run_folder import CONFIG_FILE
    from vgsplus.training.runtime import device_name

    if (out / CONFIG_FILE).is_file():
        found = RunReport.read(out)
        page = write_run_report(found)
        print_run(found, Console())
        typer.echo(f"Report: {page}")
        return
    results = Results.load(out / FOLDER / DATA)
    corpus = corpus_of(out, [variant.key for variant in results.variants])
    with console_progress() as progress:
        page = write_report(
            results,
            out,
            corpus=corpus,
            load=lambda key: load_model(variant_folder(out, key, 0)).to(device_name("auto")),
            progress=progress,
        )
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
