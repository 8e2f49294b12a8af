"""Commands on corpora and images: `vgsplus data regions`, `items`, `to-manifest`, `pack` and `check`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from vgsplus.cli.options import CorpusOut, Dtype, Overwrite, PreparedCorpus, Seed, SkipFaulty
from vgsplus.errors import CorpusError
from vgsplus.progress import console_progress


def regions(
    images: Annotated[Path, typer.Argument(help="Folder that is searched for pictures, at any depth.")],
    out: Annotated[Path, typer.Argument(help="HDF5 file to create.")],
    model: Annotated[
        str,
        typer.Option(
            help="fasterrcnn_resnet50_fpn_v2, dinov2-small, dino-vits8, efficientnet-lite0, "
            "efficientnet-lite1, efficientnet-lite2, timm:NAME, transformers:NAME or transformers:FOLDER."
        ),
    ] = "fasterrcnn_resnet50_fpn_v2",
    *,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights, safetensors or PyTorch, of dinov2-small also ONNX. Default: those of the library."
        ),
    ] = None,
    grid: Annotated[
        int, typer.Option(min=1, help="Cells along a side of the grid on a picture; of backbones only.")
    ] = 6,
    layer: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Layer whose output is used; of dinov2-small and dino-vits8 only. Default: the last, after "
            "the final LayerNorm.",
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

    extractor = open_extractor(
        model, weights=weights, device=torch.device(device_name("auto")), grid=grid, layer=layer
    )
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


def items(
    alignments: Annotated[
        Path,
        typer.Argument(
            help="Folder of alignments, at any depth, or one of them: .TextGrid, .ctm, .lab of festvox, .PHN "
            "and .WRD of TIMIT, .alignment.txt of LibriSpeech."
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Item file to create, such as dev.item.")],
    unit: Annotated[
        Literal["triphone", "phone", "word"],
        typer.Option(
            help="A phone with its neighbours, from the start of the previous to the end of the next one, as "
            "in the item files of Libri-Light; the phone alone, in their context; or a word."
        ),
    ] = "triphone",
    audio: Annotated[
        Path | None, typer.Option(help="Folder of the sounds, at any depth. Default: ALIGNMENTS.")
    ] = None,
    tier: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help='Tier of TextGrids; "SPEAKER - NAME" is another one of it. Default: phones or words.',
        ),
    ] = None,
    speakers: Annotated[
        Path | None,
        typer.Option(
            help="Table with lines SOUND SPEAKER, such as utt2spk of Kaldi. Default: the speaker of a tier, "
            "or the name of the folder."
        ),
    ] = None,
    silence: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL",
            help="Label of silence or noise, in upper or lower case; may be repeated, and replaces the "
            "default: sil, sp, spn, ssil, pau, epi, h#, #, <sil>, <eps>, <unk>, nsn, noise. Empty labels are "
            "silence.",
        ),
    ] = None,
    strip: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Part of labels to remove: '[0-2]$' for the stress of ARPAbet (AH0), '_[BIES]$' for Kaldi's "
            "positions in words (AH_B).",
        ),
    ] = None,
    min_seconds: Annotated[float, typer.Option(min=0.0, help="Leave out tokens that are shorter.")] = 0.02,
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Maximum number of tokens. Contexts (for words, words) are drawn at random, each with all "
            "its tokens. Default: all tokens.",
        ),
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make an ABX item file from phone or word alignments, for `vgsplus evaluate abx`.

    Tokens that are silence or next to silence, a gap or the end are left out, as in the item files of the
    ZeroSpeech challenges. Words have no context: evaluate them with --context any.

    Example: phones aligned by the Montreal Forced Aligner

        vgsplus data items ALIGNED --audio SOUNDS --strip '[0-2]$' --out dev.item

        vgsplus evaluate abx RUN dev.item SOUNDS
    """
    from vgsplus.corpora.alignments.abx import SILENCES, write_items

    with console_progress() as progress:
        counts = write_items(
            alignments,
            out,
            unit=unit,
            audio_root=audio,
            tier=tier,
            speakers=speakers,
            silences=silence or SILENCES,
            strip=strip,
            min_seconds=min_seconds,
            size=size,
            seed=seed,
            overwrite=overwrite,
            progress=progress,
        )
    labels = "words" if unit == "word" else f"phones in {counts.contexts} contexts"
    typer.echo(
        f"{out}: {counts.tokens} tokens of {counts.labels} {labels}, by {counts.speakers} speaker(s) in "
        f"{counts.sounds} sound(s)"
    )
    for reason, number in counts.left_out.items():
        typer.echo(f"left out: {number} {reason}")


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
