"""Commands that prepare corpora: `vgsplus data --help`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vgsplus.cli import corpus_tools, fetching
from vgsplus.cli.options import (
    AudioRoot,
    CaptionList,
    CorpusOut,
    Download,
    Dtype,
    Features,
    Images,
    ListsRoot,
    Mirror,
    Overwrite,
    Regions,
    Seed,
    SkipFaulty,
    given,
)
from vgsplus.errors import VgsplusError
from vgsplus.progress import console_progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from vgsplus.corpora import Summary

data = typer.Typer(help="Download, prepare, pack and check corpora.", no_args_is_help=True)
data.command("fetch")(fetching.fetch)


def _prepare[**P](prepare: "Callable[P, Summary]", *arguments: P.args, **options: P.kwargs) -> None:
    """Call `prepare` with a progress bar, and print the summary that it returns."""
    with console_progress() as progress:
        options["progress"] = progress
        summary = prepare(*arguments, **options)
    Console().print(summary)


@data.command("toy")
def data_toy(
    out: CorpusOut,
    train_images: Annotated[int, typer.Option(min=1, help="Training pictures (5 captions each).")] = 1600,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make the toy corpus: drawn scenes with synthetic spoken descriptions.

    `vgsplus data toy-words` makes isolated words and pictures of the same shapes and colours, for `vgsplus
    evaluate semantic`.
    """
    from vgsplus.corpora.sources.toy.corpus import prepare_toy

    _prepare(prepare_toy, out, train_images=train_images, seed=seed, overwrite=overwrite)


@data.command("toy-words")
def data_toy_words(
    out: Annotated[Path, typer.Argument(help="Folder to create, with audio/, images/ and words.csv.")],
    seed: Seed = 0,
) -> None:
    """Make spoken names and pictures of the shapes and colours of the toy corpus.

    They are a set for `vgsplus evaluate semantic`: 20 words by 14 voices, 192 pictures of a single thing.
    """
    from vgsplus.corpora.sources.toy.words import TABLE, make_toy_words

    with console_progress() as progress:
        sounds, pictures = make_toy_words(out, seed=seed, progress=progress)
    typer.echo(f"{out / TABLE}: {sounds} recordings of words, {pictures} pictures")


@data.command("stamps")
def data_stamps(
    out: CorpusOut,
    root: Annotated[Path, typer.Option(help="Folder of the stamps of Tux Paint.")],
    regions: Regions = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Prepare the stamps of Tux Paint: pictures with words recorded in many languages."""
    from vgsplus.corpora.sources.stamps.corpus import prepare_stamps

    _prepare(prepare_stamps, root, out, regions=regions, seed=seed, overwrite=overwrite)


@data.command("spokencoco")
def data_spokencoco(
    out: CorpusOut,
    features: Features = None,
    root: ListsRoot = None,
    train: CaptionList = None,
    validation: CaptionList = None,
    test: CaptionList = None,
    karpathy: Annotated[Path | None, typer.Option(help="dataset_coco.json of Karpathy's splits.")] = None,
    audio_root: AudioRoot = None,
    images: Annotated[Path | None, typer.Option(help="Folder with train2014/ and val2014/.")] = None,
    dtype: Dtype = "float16",
    skip_faulty: SkipFaulty = False,
    download: Download = False,
    mirror: Mirror = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare SpokenCOCO, with region features or its pictures. Run the same command again to resume."""
    from vgsplus.corpora.sources.lists import find_lists
    from vgsplus.corpora.sources.spokencoco import LIST_NAMES, prepare_spokencoco

    if download:
        root, features = fetching.fetch_spokencoco(root, features, images, mirror or ())
    lists = given(train=train, validation=validation, test=test)
    if root is not None:
        lists = find_lists([root], LIST_NAMES, exclude=lists) | lists
    _prepare(
        prepare_spokencoco,
        out,
        lists=lists,
        karpathy=karpathy,
        audio_root=_audio_root(audio_root, root),
        features=features or (),
        image_root=images,
        dtype=dtype,
        skip_faulty=skip_faulty,
        overwrite=overwrite,
    )


@data.command("places")
def data_places(
    out: CorpusOut,
    features: Features = None,
    root: ListsRoot = None,
    train: CaptionList = None,
    validation: CaptionList = None,
    validation_unseen: CaptionList = None,
    test: CaptionList = None,
    test_unseen: CaptionList = None,
    audio_root: AudioRoot = None,
    images: Images = None,
    dtype: Dtype = "float16",
    skip_faulty: SkipFaulty = False,
    download: Download = False,
    mirror: Mirror = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare Spoken Places, with region features or its pictures. Run the same command again to resume.

    Lists: train and val; or those of 2020: train, dev_seen (--validation), dev_unseen (--validation-unseen),
    test_seen (--test) and test_unseen.
    """
    from vgsplus.corpora.sources.lists import find_lists
    from vgsplus.corpora.sources.places import LIST_NAMES, prepare_places

    if download:
        root = fetching.fetch_corpus("places-audio", root, mirror or ())
    lists = given(
        train=train,
        validation=validation,
        validation_unseen=validation_unseen,
        test=test,
        test_unseen=test_unseen,
    )
    if root is not None:
        lists = find_lists([root, root / "metadata"], LIST_NAMES, exclude=lists) | lists
    _prepare(
        prepare_places,
        out,
        lists=lists,
        audio_root=_audio_root(audio_root, root),
        features=features or (),
        image_root=images,
        dtype=dtype,
        skip_faulty=skip_faulty,
        overwrite=overwrite,
    )


@data.command("flickr8k")
def data_flickr8k(
    out: CorpusOut,
    audio: Annotated[Path, typer.Option(help="Folder with wav2capt.txt, wav2spk.txt and wavs/.")],
    text: Annotated[
        Path, typer.Option(help="Folder of the lists of Flickr8k, or Karpathy's dataset_flickr8k.json.")
    ],
    features: Features = None,
    images: Images = None,
    dtype: Dtype = "float16",
    skip_faulty: SkipFaulty = False,
    download: Download = False,
    mirror: Mirror = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare the Flickr8k Audio Caption Corpus, with region features or its pictures."""
    from vgsplus.corpora.sources.flickr8k import prepare_flickr8k

    if download:
        audio = fetching.fetch_corpus("flickr8k-audio", audio, mirror or ())
    _prepare(
        prepare_flickr8k,
        out,
        audio=audio,
        text=text,
        features=features or (),
        image_root=images,
        dtype=dtype,
        skip_faulty=skip_faulty,
        overwrite=overwrite,
    )


def _audio_root(audio_root: Path | None, root: Path | None) -> Path:
    if (folder := audio_root or root) is None:
        raise VgsplusError("--audio-root is missing: name the folder of the sounds in the lists.")
    return folder


@data.command("table")
def data_table(
    csv: Annotated[Path, typer.Argument(help="CSV file with a row for each sound.")],
    out: CorpusOut,
    regions: Regions = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Prepare your own recordings and pictures, listed in a table.

    Columns: audio; optionally image, speaker, split, text, language, and start and end, in seconds, of
    segments of long recordings. Sounds may have any common format, sample rate and number of channels.
    """
    from vgsplus.corpora.sources.table import prepare_table

    _prepare(prepare_table, csv, out, regions=regions, seed=seed, overwrite=overwrite)


@data.command("folder")
def data_folder(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Sounds, with or without pictures.")],
    out: CorpusOut,
    speakers: Annotated[
        Path | None,
        typer.Option(
            help="Table of lines SOUND SPEAKER, such as `anna/dog_1 Anna`. Default: sub-folders are speakers."
        ),
    ] = None,
    regions: Regions = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Prepare a folder of your own recordings, alone or with pictures of the same name: dog.wav and dog.jpg.

    Several recordings of a picture are numbered: dog_1.wav, dog-2.wav. The picture is beside the sound or in
    a folder above it; dog.txt beside dog.wav is its text. Sub-folders train, validation and test are splits;
    without them, 80, 10 and 10 % of the pictures are, or of the recordings if there is no picture.
    """
    from vgsplus.corpora.sources.folder import prepare_folder

    _prepare(prepare_folder, folder, out, speakers=speakers, regions=regions, seed=seed, overwrite=overwrite)


@data.command("kaldi")
def data_kaldi(
    out: CorpusOut,
    train: Annotated[Path, typer.Option(help="Data folder to train on, with wav.scp and utt2spk.")],
    *,
    validation: Annotated[Path | None, typer.Option(help="Data folder to validate on.")] = None,
    test: Annotated[Path | None, typer.Option(help="Data folder to test on.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare data folders of Kaldi: speech without pictures, as recordings or segments."""
    from vgsplus.corpora.sources.kaldi import prepare_kaldi

    folders = given(train=train, validation=validation, test=test)
    _prepare(prepare_kaldi, folders, out, overwrite=overwrite)


@data.command("librispeech")
def data_librispeech(
    out: CorpusOut,
    root: Annotated[Path, typer.Option(help="Folder in which LibriSpeech was unpacked.")],
    *,
    train: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SUBSET", help="Subset to train on; may be repeated. Default: every train-… in ROOT."
        ),
    ] = None,
    validation: Annotated[
        list[str] | None,
        typer.Option(metavar="SUBSET", help="Subset to validate on; may be repeated. Default: dev-clean."),
    ] = None,
    items: Annotated[
        Path | None, typer.Option(help="Folder of ABX item files to include, such as dev-clean.item.")
    ] = None,
    download: Download = False,
    mirror: Mirror = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare LibriSpeech or Libri-Light: read speech without pictures."""
    from vgsplus.corpora.sources.librispeech import VALIDATION_SUBSETS, prepare_librispeech

    if download:
        fetching.fetch_librispeech(root, train or (), validation or VALIDATION_SUBSETS, mirror or ())
    _prepare(
        prepare_librispeech,
        root,
        out,
        train=train or (),
        validation=validation or None,
        items=items,
        overwrite=overwrite,
    )


@data.command("festvox")
def data_festvox(
    out: CorpusOut,
    root: Annotated[
        list[Path],
        typer.Option(help="Folder of a voice, with wav/, etc/txt.done.data and lab/; may be repeated."),
    ],
    *,
    held_out: Annotated[
        float,
        typer.Option(
            min=0.0, help="Sentences in validation, and as many in test: a number, or a fraction below 1."
        ),
    ] = 0.1,
    language: Annotated[str, typer.Option(help="Language code of the captions, such as ru.")] = "und",
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Prepare voices of festvox, such as CMU ARCTIC, with ABX items of their phone times.

    Example: vgsplus data festvox data/arctic --root cmu_us_slt_arctic --root cmu_us_bdl_arctic --language en
    """
    from vgsplus.corpora.sources.festvox import prepare_festvox

    _prepare(prepare_festvox, root, out, held_out=held_out, language=language, seed=seed, overwrite=overwrite)


@data.command("manifest")
def data_manifest(
    out: CorpusOut,
    train: Annotated[list[Path], typer.Option(help="Manifest to train on; may be repeated.")],
    *,
    valid: Annotated[
        list[Path] | None, typer.Option(help="Manifest to validate on; may be repeated.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare the sounds listed in fairseq manifests: speech without pictures.

    `vgsplus data to-manifest` writes the manifests of a corpus, so that several can be joined.
    """
    from vgsplus.corpora.sources.manifest import prepare_manifests

    _prepare(prepare_manifests, train, valid or (), out, overwrite=overwrite)


data.command("regions")(corpus_tools.regions)
data.command("items")(corpus_tools.items)
data.command("to-manifest")(corpus_tools.to_manifest)
data.command("pack")(corpus_tools.pack)
data.command("check")(corpus_tools.check)
