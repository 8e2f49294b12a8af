"""Arguments and options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vgsplus.errors import VgsplusError

if TYPE_CHECKING:
    from vgsplus.config import RunConfig

CorpusOut = Annotated[Path, typer.Argument(help="Corpus folder to create.")]
PreparedCorpus = Annotated[Path, typer.Argument(help="A prepared corpus.")]
Model = Annotated[
    Path,
    typer.Argument(help='A run folder, any checkpoint that `vgsplus convert` reads, or "toy".'),
]
Layers = Annotated[str, typer.Option(help='Transformer layers: "all", or numbers from 1, such as "1,2,8".')]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a setting, such as schedule.epochs=2; may be repeated."
    ),
]
Slurm = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Train by jobs of SLURM, with this option of sbatch, such as partition=gpu, time=12:00:00, "
        "gpus-per-node=1, cpus-per-task=8 or mem=32G; may be repeated. time is needed.",
    ),
]
Jobs = Annotated[
    int,
    typer.Option(
        min=1,
        help="How many runs to train in parallel on this machine, each in a process of its own with a share "
        "of the threads.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="With --slurm: make the corpus and all checks, print the jobs and what each waits for, and "
        "submit none.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random choices.")]
Regions = Annotated[
    Path | None,
    typer.Option(
        help="Region features of the pictures, extracted by `vgsplus data regions`. "
        "Default: pixel features of a 6 x 6 grid."
    ),
]
Features = Annotated[
    list[Path] | None,
    typer.Option(
        help="Region features: obj36 TSV of LXMERT, HDF5 of FaST-VGS, or a file extracted by "
        "`vgsplus data regions`; may be repeated. Default: pixel features of a 6 x 6 grid."
    ),
]
Images = Annotated[Path | None, typer.Option(help="Folder that the paths of the pictures are relative to.")]
AudioRoot = Annotated[
    Path | None, typer.Option(help="Folder that the paths of the sounds are relative to. Default: --root.")
]
ListsRoot = Annotated[
    Path | None, typer.Option(help="Folder of the unpacked archive, in which its lists and sounds are found.")
]
CaptionList = Annotated[Path | None, typer.Option(help="JSON list of the captions of this split.")]
Dtype = Annotated[Literal["float16", "float32"], typer.Option(help="Data type of the stored features.")]
SkipFaulty = Annotated[
    bool,
    typer.Option("--skip-faulty", help="Skip captions without a valid sound, picture or regions."),
]
Download = Annotated[
    bool,
    typer.Option(
        "--download",
        help="Download what is missing in --root (flickr8k: --audio) first; see `vgsplus data fetch`.",
    ),
]
Mirror = Annotated[
    list[str] | None,
    typer.Option(metavar="URL", help="Web folder with copies of the archives, tried first; may be repeated."),
]


def results_folder(out: Path | None, run: Path) -> Path:
    """Return `out`, or the folder of a model that was loaded from `run`.

    Raises:
        VgsplusError: the model is of the package or the hub, and `out` is None.
    """
    if out is None and not run.exists():
        raise VgsplusError(f"{run}: has no folder for the results on this machine. Name one by --out.")
    return out or (run if run.is_dir() else run.parent)


def run_config(run: Path, remedy: str) -> "RunConfig":
    """Return the settings of a run; `remedy` is what to do if a folder is none.

    Raises:
        VgsplusError: there is no such run, or its settings are not valid.
    """
    from vgsplus.config import load_config
    from vgsplus.training.run_folder import CONFIG_FILE

    if not (run / CONFIG_FILE).is_file():
        raise VgsplusError(f"{run}: is no run of vgsplus, which has a {CONFIG_FILE}. {remedy}")
    return load_config(run / CONFIG_FILE)


def given[T](**values: T | None) -> dict[str, T]:
    """Return the keyword arguments that are not None."""
    return {name: value for name, value in values.items() if value is not None}
