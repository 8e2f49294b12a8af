"""Commands that make corpora, check them and hand them on: `vgsplus data --help`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from vgsplus.cli import fetching
from vgsplus.cli.fetching import Download, Mirror
from vgsplus.cli.options import Overwrite, Seed
from vgsplus.cli.progress import bars, stage_bars
from vgsplus.errors import CorpusError, VgsplusError

data = typer.Typer(help="Prepare and check corpora.", no_args_is_help=True)
data.command("fetch")(fetching.fetch)

Regions = Annotated[
    Path | None,
    typer.Option(help="The pictures' regions, from `vgsplus data regions`; without it, a grid of pixels."),
]


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
    from vgsplus.corpora.sources.toy.corpus import prepare_toy

    Console().print(prepare_toy(out, train_images=train_images, seed=seed, overwrite=overwrite))


@data.command("stamps")
def data_stamps(
    out: Annotated[Path, typer.Argument(help="The corpus folder to make.")],
    root: Annotated[Path, typer.Option(help="The folder of stamps.")],
    regions: Regions = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Prepare a folder of stamps: pictures and words recorded in many languages."""
    from vgsplus.corpora.sources.stamps import prepare_stamps

    Console().print(prepare_stamps(root, out, regions=regions, seed=seed, overwrite=overwrite))


Features = Annotated[
    list[Path] | None,
    typer.Option(
        help="Regions: an obj36 TSV, the HDF5 store, or a file of `data regions`; may be repeated. "
        "Without it, a grid of pixels."
    ),
]
Images = Annotated[Path | None, typer.Option(help="The folder that the pictures' paths start in.")]
AudioRoot = Annotated[Path | None, typer.Option(help="The folder that the wavs' paths start in.")]
Numbers = Annotated[Literal["float16", "float32"], typer.Option(help="Numbers of the features.")]
SkipFaulty = Annotated[
    bool, typer.Option("--skip-faulty", help="Leave out captions without a good sound or regions.")
]


@data.command("spokencoco")
def data_spokencoco(
    out: Annotated[Path, typer.Argument(help="The corpus folder to make.")],
    features: Features = None,
    root: Annotated[
        Path | None, typer.Option(help="SpokenCOCO's folder, for what the following do not name.")
    ] = None,
    train: Annotated[Path | None, typer.Option(help="JSON list of the training captions.")] = None,
    validation: Annotated[Path | None, typer.Option(help="JSON list of the validation captions.")] = None,
    test: Annotated[Path | None, typer.Option(help="JSON list of the test captions.")] = None,
    karpathy: Annotated[
        Path | None, typer.Option(help="His dataset_coco.json: deal the pictures by his splits.")
    ] = None,
    audio_root: AudioRoot = None,
    images: Annotated[Path | None, typer.Option(help="The folder with train2014/ and val2014/.")] = None,
    dtype: Numbers = "float16",
    skip_faulty: SkipFaulty = False,
    download: Download = False,
    mirror: Mirror = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare SpokenCOCO, with detected regions or its pictures; started again, it goes on."""
    from vgsplus.corpora.sources.spokencoco import find_lists, prepare_spokencoco

    if download:
        root, features = fetching.fetch_spokencoco(root, features, images, mirror or ())
    named = {"train": train, "validation": validation, "test": test}
    lists = {split: path for split, path in named.items() if path is not None}
    if root is not None:
        lists = find_lists(root, besides=lists) | lists
    with stage_bars() as progress:
        summary = prepare_spokencoco(
            out,
            lists=lists,
            karpathy=karpathy,
            audio_root=_audio_root(audio_root, root),
            features=features or (),
            image_root=images,
            dtype=dtype,
            skip_faulty=skip_faulty,
            overwrite=overwrite,
            progress=progress,
        )
    Console().print(summary)


@data.command("places")
def data_places(
    out: Annotated[Path, typer.Argument(help="The corpus folder to make.")],
    features: Features = None,
    root: Annotated[
        Path | None, typer.Option(help="PlacesAudio's folder, for what the following do not name.")
    ] = None,
    train: Annotated[Path | None, typer.Option(help="JSON list of the training captions.")] = None,
    validation: Annotated[Path | None, typer.Option(help="That to validate on: val or dev_seen.")] = None,
    validation_unseen: Annotated[Path | None, typer.Option(help="dev_unseen, of 2020.")] = None,
    test: Annotated[Path | None, typer.Option(help="test_seen, of 2020.")] = None,
    test_unseen: Annotated[Path | None, typer.Option(help="test_unseen, of 2020.")] = None,
    audio_root: AudioRoot = None,
    images: Images = None,
    dtype: Numbers = "float16",
    skip_faulty: SkipFaulty = False,
    download: Download = False,
    mirror: Mirror = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare Spoken Places, with detected regions or its pictures."""
    from vgsplus.corpora.sources.places import find_lists, prepare_places

    if download:
        root = fetching.fetch_corpus("places-audio", root, mirror or ())
    named = {
        "train": train,
        "validation": validation,
        "validation_unseen": validation_unseen,
        "test": test,
        "test_unseen": test_unseen,
    }
    lists = {split: path for split, path in named.items() if path is not None}
    if root is not None:
        lists = find_lists(root, besides=lists) | lists
    with stage_bars() as progress:
        summary = prepare_places(
            out,
            lists=lists,
            audio_root=_audio_root(audio_root, root),
            features=features or (),
            image_root=images,
            dtype=dtype,
            skip_faulty=skip_faulty,
            overwrite=overwrite,
            progress=progress,
        )
    Console().print(summary)


@data.command("flickr8k")
def data_flickr8k(
    out: Annotated[Path, typer.Argument(help="The corpus folder to make.")],
    audio: Annotated[Path, typer.Option(help="The folder with wav2capt.txt, wav2spk.txt and wavs/.")],
    text: Annotated[
        Path, typer.Option(help="The folder of Flickr8k's lists, or Karpathy's dataset_flickr8k.json.")
    ],
    features: Features = None,
    images: Images = None,
    dtype: Numbers = "float16",
    skip_faulty: SkipFaulty = False,
    download: Download = False,
    mirror: Mirror = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare the Flickr8k Audio Caption Corpus, with detected regions or its pictures."""
    from vgsplus.corpora.sources.flickr8k import prepare_flickr8k

    if download:
        audio = fetching.fetch_corpus("flickr8k-audio", audio, mirror or ())
    with stage_bars() as progress:
        summary = prepare_flickr8k(
            out,
            audio=audio,
            text=text,
            features=features or (),
            image_root=images,
            dtype=dtype,
            skip_faulty=skip_faulty,
            overwrite=overwrite,
            progress=progress,
        )
    Console().print(summary)


def _audio_root(audio_root: Path | None, root: Path | None) -> Path:
    if (folder := audio_root or root) is None:
        raise VgsplusError("--audio-root is missing: the folder that the wavs' paths start in")
    return folder


@data.command("table")
def data_table(
    csv: Annotated[
        Path, typer.Argument(help="A CSV file that names a sound on every line, and its picture.")
    ],
    out: Annotated[Path, typer.Argument(help="The corpus folder to make.")],
    regions: Regions = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Prepare your own recordings and pictures, listed in a table.

    Columns: audio, and if you have them image, speaker, split, text, language, and start and end (seconds) of
    pieces of long recordings. Sounds of any common format and rate are taken.
    """
    from vgsplus.corpora.sources.table import prepare_table

    Console().print(prepare_table(csv, out, regions=regions, seed=seed, overwrite=overwrite))


@data.command("kaldi")
def data_kaldi(
    out: Annotated[Path, typer.Argument(help="The corpus folder to make.")],
    train: Annotated[
        Path, typer.Option(help="The data folder to train on: wav.scp, utt2spk, segments, text.")
    ],
    *,
    validation: Annotated[Path | None, typer.Option(help="The data folder to validate on.")] = None,
    test: Annotated[Path | None, typer.Option(help="The data folder to test on.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare Kaldi data folders: speech alone, whole recordings or the pieces that `segments` names."""
    from vgsplus.corpora.sources.kaldi import prepare_kaldi

    named = {"train": train, "validation": validation, "test": test}
    folders = {split: folder for split, folder in named.items() if folder is not None}
    Console().print(prepare_kaldi(folders, out, overwrite=overwrite))


@data.command("regions")
def data_regions(
    images: Annotated[Path, typer.Argument(help="The folder of pictures, in folders or not.")],
    out: Annotated[Path, typer.Argument(help="The HDF5 file to make.")],
    model: Annotated[
        str,
        typer.Option(
            help="fasterrcnn_resnet50_fpn_v2, efficientnet-lite0, timm:NAME, transformers:NAME or "
            "transformers:FOLDER."
        ),
    ] = "fasterrcnn_resnet50_fpn_v2",
    *,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="The model's weights, safetensors or PyTorch's. By default its library finds them."
        ),
    ] = None,
    dtype: Annotated[
        Literal["float16", "float32"], typer.Option(help="Numbers of the features.")
    ] = "float16",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures described at once.")] = 16,
    skip_faulty: Annotated[
        bool, typer.Option("--skip-faulty", help="Leave out pictures that cannot be decoded.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Describe pictures by a model's regions, for --regions and --features; started again, it goes on."""
    import torch

    from vgsplus.regions.extract import describe_folder
    from vgsplus.regions.models import open_describer
    from vgsplus.training.machine import device_name

    describer = open_describer(model, weights=weights, device=torch.device(device_name("auto")))
    with stage_bars() as progress:
        written = describe_folder(
            images,
            out,
            describer,
            dtype=dtype,
            batch_size=batch_size,
            skip_faulty=skip_faulty,
            overwrite=overwrite,
            progress=progress,
        )
    Console().print(str(written), markup=False, highlight=False, soft_wrap=True)


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
    download: Download = False,
    mirror: Mirror = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare LibriSpeech or Libri-Light: read speech, to train on sound alone."""
    from vgsplus.corpora.sources.librispeech import VALIDATION_SUBSETS, prepare_librispeech

    if download:
        fetching.fetch_librispeech(root, train or (), validation or VALIDATION_SUBSETS, mirror or ())
    with bars("reading chapters", "decoding") as (read, decoded):
        summary = prepare_librispeech(
            root,
            out,
            train=train or (),
            validation=validation or None,
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
    from vgsplus.corpora.sources.manifest import prepare_manifests

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
    from vgsplus.corpora.sources.manifest import write_manifests

    for path, sounds in write_manifests(Corpus.open(corpus), out, overwrite=overwrite).items():
        Console().print(f"{path}: {sounds} sounds", markup=False, highlight=False, soft_wrap=True)


@data.command("pack")
def data_pack(
    corpus: Annotated[Path, typer.Argument(help="A prepared corpus.")],
    out: Annotated[Path, typer.Argument(help="The corpus folder to make.")],
    *,
    shard_mb: Annotated[int, typer.Option(min=1, help="Size of a shard, in 10⁶ bytes.")] = 1000,
    decode: Annotated[
        bool,
        typer.Option(
            "--decode", help="Store FLAC as WAV: up to twice the bytes, read 2.5 to 3 times as fast."
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Pack a corpus's sounds into few large tar files, for cluster file systems and object stores."""
    from vgsplus.corpora.packing import pack

    with bars("packing", "decoding") as (packed, decoded):
        summary = pack(
            corpus,
            out,
            shard_bytes=shard_mb * 1_000_000,
            decode=decode,
            overwrite=overwrite,
            progress=packed,
            checking=decoded,
        )
    Console().print(summary)


@data.command("check")
def data_check(corpus: Annotated[Path, typer.Argument(help="A prepared corpus.")]) -> None:
    """Look for every fault of a prepared corpus: files, lengths, features, splits."""
    from vgsplus.corpora.format import validate

    if faults := validate(corpus):
        raise CorpusError(faults)
    Console().print(f"{corpus}: no faults", markup=False, highlight=False)
