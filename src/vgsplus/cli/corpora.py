"""Commands that make corpora, check them and hand them on: `vgsplus data --help`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from vgsplus.cli.options import Overwrite, Seed
from vgsplus.cli.progress import bars, stage_bars
from vgsplus.errors import VgsplusError

data = typer.Typer(help="Prepare and check corpora.", no_args_is_help=True)


@data.command("toy")
def data_toy(
    out: Annotated[Path, typer.Argument(help="The corpus folder to make.")],
    train_images: Annotated[
        int, typer.Option(min=1, help="Pictures to train on, five captions each.")
    ] = 1600,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make the toy corpus: drawn scenes, described by synthetic voices."""
    from vgsplus.corpora.toy import prepare_toy

    Console().print(prepare_toy(out, train_images=train_images, seed=seed, overwrite=overwrite))


@data.command("stamps")
def data_stamps(
    out: Annotated[Path, typer.Argument(help="The corpus folder to make.")],
    root: Annotated[Path, typer.Option(help="The folder of stamps.")],
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Prepare a folder of stamps: pictures and words recorded in many languages."""
    from vgsplus.corpora.stamps import prepare_stamps

    Console().print(prepare_stamps(root, out, seed=seed, overwrite=overwrite))


@data.command("spokencoco")
def data_spokencoco(
    out: Annotated[Path, typer.Argument(help="The corpus folder to make.")],
    features: Annotated[
        list[Path],
        typer.Option(help="Detected regions: an obj36 TSV or the HDF5 store; may be repeated."),
    ],
    root: Annotated[
        Path | None, typer.Option(help="SpokenCOCO's folder, for what the following do not name.")
    ] = None,
    train: Annotated[Path | None, typer.Option(help="JSON list of the training captions.")] = None,
    validation: Annotated[Path | None, typer.Option(help="JSON list of the validation captions.")] = None,
    test: Annotated[Path | None, typer.Option(help="JSON list of the test captions.")] = None,
    audio_root: Annotated[Path | None, typer.Option(help="The folder that the wavs' paths start in.")] = None,
    images: Annotated[Path | None, typer.Option(help="The folder with train2014/ and val2014/.")] = None,
    dtype: Annotated[
        Literal["float16", "float32"], typer.Option(help="Numbers of the features.")
    ] = "float16",
    skip_faulty: Annotated[
        bool, typer.Option("--skip-faulty", help="Leave out captions without a good sound or regions.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Prepare SpokenCOCO with detected regions; started again, it goes on with the regions."""
    from vgsplus.corpora.spokencoco import find_lists, prepare_spokencoco

    named = {"train": train, "validation": validation, "test": test}
    lists = {split: path for split, path in named.items() if path is not None}
    if root is not None:
        lists = find_lists(root, besides=lists) | lists
    sounds = audio_root or root
    if sounds is None:
        raise VgsplusError("--audio-root is missing: the folder that the wavs' paths start in")
    with stage_bars() as progress:
        summary = prepare_spokencoco(
            out,
            lists=lists,
            audio_root=sounds,
            features=features,
            image_root=images,
            dtype=dtype,
            skip_faulty=skip_faulty,
            overwrite=overwrite,
            progress=progress,
        )
    Console().print(summary)


@data.command("table")
def data_table(
    csv: Annotated[
        Path, typer.Argument(help="A CSV file that names a sound on every line, and its picture.")
    ],
    out: Annotated[Path, typer.Argument(help="The corpus folder to make.")],
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Prepare your own recordings and pictures, listed in a table."""
    from vgsplus.corpora.table import prepare_table

    Console().print(prepare_table(csv, out, seed=seed, overwrite=overwrite))


@data.command("librispeech")
def data_librispeech(
    out: Annotated[Path, typer.Argument(help="The corpus folder to make.")],
    root: Annotated[Path, typer.Option(help="The folder in which LibriSpeech was unpacked.")],
    *,
    train: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SUBSET", help="Train on it; may be repeated. By default all train-… that are there."
        ),
    ] = None,
    validation: Annotated[
        list[str] | None,
        typer.Option(metavar="SUBSET", help="Validate on it; may be repeated. By default dev-clean."),
    ] = None,
    items: Annotated[
        Path | None, typer.Option(help="A folder with ABX item files, as dev-clean.item, to take along.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare LibriSpeech: read speech, to train on sound alone."""
    from vgsplus.corpora.librispeech import VALIDATION_SUBSETS, prepare_librispeech

    with bars("reading chapters", "decoding") as (read, decoded):
        summary = prepare_librispeech(
            root,
            out,
            train=train or (),
            validation=validation or VALIDATION_SUBSETS,
            items=items,
            overwrite=overwrite,
            progress=read,
            checking=decoded,
        )
    Console().print(summary)


@data.command("manifest")
def data_manifest(
    out: Annotated[Path, typer.Argument(help="The corpus folder to make.")],
    train: Annotated[Path, typer.Option(help="The manifest to train on.")],
    *,
    valid: Annotated[Path | None, typer.Option(help="The manifest to validate on.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare the sounds of fairseq's manifests, to train on sound alone."""
    from vgsplus.corpora.manifest import prepare_manifests

    with bars("reading headers", "decoding") as (read, decoded):
        summary = prepare_manifests(train, valid, out, overwrite=overwrite, progress=read, checking=decoded)
    Console().print(summary)


@data.command("to-manifest")
def data_to_manifest(
    corpus: Annotated[Path, typer.Argument(help="A prepared corpus.")],
    out: Annotated[Path, typer.Argument(help="The folder for train.tsv and valid.tsv.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a corpus's sounds as manifests of fairseq."""
    from vgsplus.corpora.format import Corpus
    from vgsplus.corpora.manifest import write_manifests

    for path, sounds in write_manifests(Corpus.open(corpus), out, overwrite=overwrite).items():
        Console().print(f"{path}: {sounds} sounds", markup=False, highlight=False, soft_wrap=True)


@data.command("pack")
def data_pack(
    corpus: Annotated[Path, typer.Argument(help="A prepared corpus.")],
    out: Annotated[Path, typer.Argument(help="The corpus folder to make.")],
    *,
    shard_mb: Annotated[int, typer.Option(min=1, help="Size of a shard, in 10⁶ bytes.")] = 1000,
    overwrite: Overwrite = False,
) -> None:
    """Pack a corpus's sounds into few large tar files, for cluster file systems and object stores."""
    from vgsplus.corpora.packing import pack

    with bars("packing", "decoding") as (packed, decoded):
        summary = pack(
            corpus,
            out,
            shard_bytes=shard_mb * 1_000_000,
            overwrite=overwrite,
            progress=packed,
            checking=decoded,
        )
    Console().print(summary)


@data.command("check")
def data_check(corpus: Annotated[Path, typer.Argument(help="A prepared corpus.")]) -> None:
    """Look for every fault of a prepared corpus: files, lengths, features, splits."""
    from vgsplus.corpora.format import CorpusError, validate

    if faults := validate(corpus):
        raise CorpusError(faults)
    Console().print(f"{corpus}: no faults", markup=False, highlight=False)
