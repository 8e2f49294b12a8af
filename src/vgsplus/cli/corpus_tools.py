"""Commands on corpora and images: `vgsplus data regions`, `to-manifest`, `pack` and `check`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vgsplus.cli.options import CorpusOut, Dtype, Overwrite, PreparedCorpus, SkipFaulty
from vgsplus.errors import CorpusError
from vgsplus.progress import console_progress


def regions(
    images: Annotated[Path, typer.Argument(help="Folder that is searched for pictures, at any depth.")],
    out: Annotated[Path, typer.Argument(help="HDF5 file to create.")],
    model: Annotated[
        str,
        typer.Option(
            help="fasterrcnn_resnet50_fpn_v2, dinov2-small, efficientnet-lite0, efficientnet-lite1, "
            "efficientnet-lite2, timm:NAME, transformers:NAME or transformers:FOLDER."
        ),
    ] = "fasterrcnn_resnet50_fpn_v2",
    *,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights, safetensors or PyTorch, of dinov2-small also ONNX. Default: those of the library."
        ),
    ] = None,
    dtype: Dtype = "float16",
    batch_size: Annotated[int, typer.Option(min=1, help="Number of pictures per forward pass.")] = 16,
    skip_faulty: SkipFaulty = False,
    overwrite: Overwrite = False,
) -> None:
    """Extract region features of pictures for --regions or --features. Run it again to resume."""
    import torch

    from vgsplus.regions.backbones import open_extractor
    from vgsplus.regions.extract import extract_folder
    from vgsplus.training.runtime import device_name

    extractor = open_extractor(model, weights=weights, device=torch.device(device_name("auto")))
    with console_progress() as progress:
        (count, num, dim), skipped = extract_folder(
            images,
            out,
            extractor,
            dtype=dtype,
            batch_size=batch_size,
            skip_faulty=skip_faulty,
            overwrite=overwrite,
            progress=progress,
        )
    typer.echo(f"{out}: {count} pictures, {num} regions of {dim} features each; {len(skipped)} skipped")
    for fault in skipped:
        typer.echo(f"skipped: {fault}")


def to_manifest(
    corpus: PreparedCorpus,
    out: Annotated[Path, typer.Argument(help="Folder for train.tsv and valid.tsv.")],
    overwrite: Overwrite = False,
) -> None:
    """Write the sounds of a corpus as fairseq manifests."""
    from vgsplus.corpora import Corpus
    from vgsplus.corpora.sources.manifest import write_manifests

    for path, sounds in write_manifests(Corpus.open(corpus), out, overwrite=overwrite).items():
        typer.echo(f"{path}: {sounds} sounds")


def pack(
    corpus: PreparedCorpus,
    out: CorpusOut,
    *,
    shard_mb: Annotated[int, typer.Option(min=1, help="Size of a shard, in 10⁶ bytes.")] = 1000,
    decode: Annotated[
        bool,
        typer.Option(
            "--decode", help="Store FLAC as WAV: up to twice the size, read 2.5 to 3 times as fast."
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Pack the sounds of a corpus into a few large tar files, for file systems of clusters."""
    from vgsplus.corpora.packing import pack

    with console_progress() as progress:
        summary = pack(
            corpus,
            out,
            shard_bytes=shard_mb * 1_000_000,
            decode=decode,
            overwrite=overwrite,
            progress=progress,
        )
    Console().print(summary)


def check(corpus: PreparedCorpus) -> None:
    """Check a prepared corpus and list all faults: of files, lengths, features, splits and ABX items."""
    from vgsplus.corpora import validate
    from vgsplus.remote import locate

    with console_progress() as progress:
        faults = validate(corpus, progress)
    if faults:
        raise CorpusError(faults)
    typer.echo(f"{locate(corpus)}: no faults")
