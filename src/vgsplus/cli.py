"""The command line: `vgsplus --help`.

What needs PyTorch is imported by the commands that use it, so that help comes at once.
"""
# ruff: noqa: PLC0415 - see above

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from vgsplus.errors import VgsplusError
from vgsplus.training.interruption import Interrupted

INTERRUPTED = 130
"""The exit status of a program that Ctrl-C ended."""

app = typer.Typer(
    help="VGS+: one speech encoder that learns from speech alone and from speech with pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Prepare and check corpora.", no_args_is_help=True)
scoring = typer.Typer(help="Score a trained run.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(scoring, name="evaluate")

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in OUT.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a setting, as schedule.epochs=2; may be repeated."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Every random choice is a function of it.")]


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
        console.print(f"vgsplus: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


# ---- corpora ----------------------------------------------------------------------------------------------


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
    from vgsplus.report.abx import stage_bars

    named = {"train": train, "validation": validation, "test": test}
    lists = {split: path for split, path in named.items() if path is not None}
    if root is not None:
        lists = find_lists(root, besides=lists) | lists
    sounds = audio_root or root
    if sounds is None:
        raise VgsplusError("--audio-root is missing: the folder that the wavs' paths start in")
    with stage_bars(Console(stderr=True)) as progress:
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

    with _bars("reading chapters", "decoding") as (read, decoded):
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

    with _bars("reading headers", "decoding") as (read, decoded):
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


@data.command("check")
def data_check(corpus: Annotated[Path, typer.Argument(help="A prepared corpus.")]) -> None:
    """Look for every fault of a prepared corpus: files, lengths, features, splits."""
    from vgsplus.corpora.format import CorpusError, validate

    if faults := validate(corpus):
        raise CorpusError(faults)
    Console().print(f"{corpus}: no faults", markup=False, highlight=False)


# ---- training ---------------------------------------------------------------------------------------------


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a preset.")],
    out: Annotated[Path, typer.Option(help="The run folder.")],
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT.")] = False,
) -> None:
    """Train one run and score its retrieval on the test splits; Ctrl-C saves and stops it."""
    from vgsplus.config import load_config
    from vgsplus.corpora.format import Corpus
    from vgsplus.interop.loading import load_weights
    from vgsplus.scoring import recalls, test_sets
    from vgsplus.training.checks import needs_images
    from vgsplus.training.progress import console_progress
    from vgsplus.training.run_folder import settle_precision
    from vgsplus.training.trainer import train as train_run

    loaded = settle_precision(load_config(config, settings or []), out)
    corpus = Corpus.open(loaded.corpus)
    splits = test_sets(corpus) if needs_images(loaded) else ()
    result = train_run(
        loaded,
        out,
        resume=resume,
        evaluate=partial(recalls, config=loaded, corpus=corpus, splits=splits) if splits else None,
        load_weights=load_weights,
        progress=console_progress(),
    )
    Console().print(
        f"{result.steps} updates; {result.checkpoint}", markup=False, highlight=False, soft_wrap=True
    )


@app.command()
def reproduce(
    preset: Annotated[str, typer.Argument(help="smoke, toy, stamps, paper, or a YAML file.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the corpus, the runs and the report.")],
    variants: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help='One variant, as "VGS+" or "W2V2, VGS+"; may be repeated. All nine by default.',
        ),
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help="A prepared corpus to use.")] = None,
    root: Annotated[Path | None, typer.Option(help="The folder of stamps, for the preset stamps.")] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Train every variant so often, to tell the schedule from luck.")
    ] = 1,
    item: Annotated[
        Path | None,
        typer.Option(help="An ABX item file, as LibriSpeech's; by default that of the corpus's test set."),
    ] = None,
    audio: Annotated[Path | None, typer.Option(help="The folder with the sounds of --item.")] = None,
    settings: Settings = None,
) -> None:
    """Train the paper's nine variants, evaluate them and write the report.

    The same command goes on where it was stopped; with more --seeds it trains those that are not there yet.
    """
    from vgsplus.reproduce import reproduce as run

    if (item is None) != (audio is None):
        raise VgsplusError("--item and --audio come together: an item file, and the folder of its sounds")

    page = run(
        preset,
        out,
        variants=variants,
        corpus=corpus,
        overrides=settings or [],
        stamps_root=root,
        seeds=seeds,
        abx=(item, audio) if item and audio else None,
        console=Console(),
    )
    Console().print(f"Report: {page}", markup=False, highlight=False, soft_wrap=True)


# ---- models ------------------------------------------------------------------------------------------------


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A run or checkpoint of ours, a published bundle (.pth), a fairseq wav2vec 2.0 checkpoint, "
            "or a Hugging Face wav2vec 2.0 folder."
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(help="The folder to make; or a file ending in .pth, for a published bundle."),
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write a model in our format, or back as a published bundle with its args.pkl.

    Prints which blocks were taken, which were not used, and which stay at their initial values. Nothing in
    the source is executed.
    """
    from vgsplus.interop.convert import convert as run

    report = run(source, target, overwrite=overwrite)
    Console().print(f"{report}\n{target}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def embed(
    model: Annotated[Path, typer.Argument(help="A run, or any model that convert takes.")],
    sounds: Annotated[
        Path,
        typer.Argument(
            help="A folder of .wav, .flac or .ogg files at any depth, or one file; for zerospeech, the "
            "folder of the challenge's dataset."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write to; for hdf5, the file to make.")],
    *,
    layers: Annotated[str, typer.Option(help='"all", or numbers from 1, as "1,2,8".')] = "all",
    form: Annotated[
        Literal["npy", "pt", "hdf5", "zerospeech"],
        typer.Option(
            "--format",
            help="A NumPy or PyTorch file a sound, one HDF5 file, or the phonetic part of a submission to "
            "ZeroSpeech 2021, which takes one layer.",
        ),
    ] = "npy",
) -> None:
    """Write the frames of transformer layers of every sound: (T, D) of one layer, (L, T, D) of several.

    Stopped and started again, it goes on with the sounds that are missing (but for hdf5).
    """
    from vgsplus.evaluation.export import export, open_store, origin_of, select
    from vgsplus.evaluation.layers import choose_layers
    from vgsplus.evaluation.sounds import find_sounds
    from vgsplus.evaluation.zerospeech import FILL_IN, META, Submission, find_phonetic
    from vgsplus.interop.loading import load
    from vgsplus.training.machine import device_name

    found, absent = find_phonetic(sounds) if form == "zerospeech" else (find_sounds(sounds), ())
    device = device_name("auto")
    loaded = load(model).to(device)
    chosen = choose_layers(layers, len(loaded.speech.layers))
    origin = origin_of(loaded, model, chosen)
    store = Submission(out, origin, loaded) if form == "zerospeech" else open_store(form, out, origin)
    with _bar("checking") as checked:
        missing = select(store, found, loaded, chosen, checked)
    with _bar("embedding") as embedded:
        export(store, missing, loaded, chosen, device=device, progress=embedded)
    said = [f"{len(missing)} sounds embedded, {len(found) - len(missing)} were there; {out}"]
    if absent:
        said.append(f"Absent from {sounds}, and so from {out}: {', '.join(absent)}")
    if form == "zerospeech":
        said.append(f'{out / META}: replace what says "{FILL_IN}"')
    Console().print("\n".join(said), markup=False, highlight=False, soft_wrap=True)


# ---- evaluation -------------------------------------------------------------------------------------------


@scoring.command("retrieval")
def evaluate_retrieval(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    corpus: Annotated[Path | None, typer.Option(help="Another corpus than that of the run.")] = None,
    split: Annotated[str, typer.Option(help="The split to score.")] = "test",
    by: Annotated[
        Literal["speaker", "length"] | None,
        typer.Option(help="Also from speech to image by speaker, or by quarters of the captions' lengths."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for retrieval.csv, by_speaker.csv and by_length.csv.")
    ] = None,
) -> None:
    """Recall between speech and pictures, with 95 % intervals, and the median rank of the right answer."""
    from vgsplus.config import load_config
    from vgsplus.corpora.format import Corpus
    from vgsplus.evaluation.breakdown import by_length, by_speaker
    from vgsplus.evaluation.retrieval import rank_split, score_ranks
    from vgsplus.report.lexical import prepare_folder
    from vgsplus.report.retrieval import part_table, retrieval_table, write_retrieval
    from vgsplus.scoring import embed_run
    from vgsplus.training.checkpoint import load_model
    from vgsplus.training.machine import device_name
    from vgsplus.training.run_folder import CONFIG_FILE

    config = load_config(run / CONFIG_FILE)
    if out is not None:
        prepare_folder(out)
    model = load_model(run).to(device_name(config.accelerator))
    embedded = embed_run(model, config, Corpus.open(corpus or config.corpus), split)
    found = rank_split(embedded)
    scores = score_ranks(found, seed=config.seed)
    breakdowns = {"speaker": by_speaker, "length": by_length}
    parts = {
        name: breakdown(embedded.captions, found, seed=config.seed)
        for name, breakdown in breakdowns.items()
        if out is not None or name == by
    }
    console = Console()
    console.print(retrieval_table(scores))
    if by is not None:
        console.print(
            part_table(parts[by], f"Speech → image by {by}, recall in %, below it the 95 % interval")
        )
    if out is not None:
        write_retrieval(scores, parts["speaker"], parts["length"], out)
        console.print(f"{out}", markup=False, highlight=False, soft_wrap=True)


@scoring.command("lexical")
def evaluate_lexical(
    run: Annotated[Path, typer.Argument(help="A run, or any model that convert takes.")],
    words: Annotated[Path, typer.Argument(help="A folder of spoken words: .wav, .flac or .ogg.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder for scores.csv, confusion.csv and confusion.png.")],
    mode: Annotated[
        Literal["utterance", "frame"], typer.Option(help="Compare one vector a word, or its frames by DTW.")
    ] = "utterance",
    layer: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Transformer layer, from 1: its frames or their mean. By default the speech embedding, or "
            "the frames that it is made from.",
        ),
    ] = None,
    rule: Annotated[
        Literal["coco", "cdi"],
        typer.Option(
            help='How a file is named: WORD_…, or WORD and three more characters as in "bye_bye_Aq".'
        ),
    ] = "coco",
) -> None:
    """How well spoken words keep apart: is what lies nearest to a word the same word?"""
    from vgsplus.evaluation.lexical import RULES, evaluate
    from vgsplus.evaluation.words import check_layer, embed_words, open_words
    from vgsplus.interop.loading import load
    from vgsplus.report.lexical import prepare_folder, write_lexical
    from vgsplus.training.machine import device_name

    device = device_name("auto")
    model = load(run).to(device)
    check_layer(model, layer)
    prepare_folder(out)
    recordings = open_words(words, model, RULES[rule])
    with _bar("embedding") as embedded:
        embeddings = embed_words(model, recordings, mode, layer, device=device, progress=embedded)
    with _bar("comparing") as compared:
        result = evaluate(recordings.names, embeddings, RULES[rule], compared)
    write_lexical(result, out)
    Console().print(
        f"{result.score:.3f} of the nearest are the same word, {result.chance:.3f} by chance "
        f"({len(recordings.names)} tokens of {len(result.words)} words); {out}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@scoring.command("abx")
def evaluate_abx(
    run: Annotated[Path, typer.Argument(help="A run, or any model that convert takes.")],
    item: Annotated[Path, typer.Argument(help="An ABX item file.")],
    audio: Annotated[Path, typer.Argument(help="A folder with the sounds that it names, at any depth.")],
    *,
    layers: Annotated[str, typer.Option(help='"all", or numbers from 1, as "1,2,8".')] = "all",
    conditions: Annotated[
        list[str] | None,
        typer.Option(
            "--condition", metavar="within|across", help="Speakers; may be repeated. Both by default."
        ),
    ] = None,
    context: Annotated[
        Literal["within", "any"], typer.Option(help="Equal phones before and behind, or any.")
    ] = "within",
    as_published: Annotated[
        bool, typer.Option("--as-published", help="Also as Libri-Light's program counts.")
    ] = False,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also log-Mel energies and an untrained model.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for abx.csv; that of RUN by default.")] = None,
) -> None:
    """ABX errors of every layer: how often a phone is taken for another."""
    from vgsplus.evaluation.abx_items import read_items
    from vgsplus.evaluation.abx_layers import (
        Means,
        Question,
        score_layers,
        score_log_mel,
        score_untrained,
    )
    from vgsplus.evaluation.layers import choose_layers
    from vgsplus.interop.loading import load
    from vgsplus.report.abx import abx_table, stage_bars, write_abx
    from vgsplus.training.machine import device_name

    asked = tuple(dict.fromkeys(conditions or ("within", "across")))
    items = read_items(item, conditions=asked, audio_root=audio)
    question = Question(items=items, conditions=asked, context=context, as_published=as_published)
    device, folder = device_name("auto"), out or (run if run.is_dir() else run.parent)
    model = load(run).to(device)
    chosen = choose_layers(layers, len(model.speech.layers))
    with stage_bars(Console(stderr=True)) as progress:
        means = Means(device=device, cache=folder, progress=progress)
        rows = score_layers(model, question, means, layers=chosen)
        if baseline:
            rows += score_untrained(model.config, question, means, layers=chosen)
            rows += score_log_mel(question, means)
    write_abx(rows, folder / "abx.csv")
    console = Console()
    console.print(abx_table(rows, f"ABX, {context} context: {len(items.tokens)} tokens of {item.name}"))
    console.print(f"{folder / 'abx.csv'}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def report(out: Annotated[Path, typer.Argument(help="The folder of a reproduction.")]) -> None:
    """Write the report of a reproduction again from its saved results."""
    from vgsplus.corpora.format import Corpus
    from vgsplus.report import Results, print_table, write_report
    from vgsplus.report.page import DATA

    results = Results.load(out / "report" / DATA)
    own = out / "corpus"
    page = write_report(results, out, corpus=Corpus.open(own) if own.is_dir() else None)
    console = Console()
    print_table(results, console)
    console.print(f"Report: {page}", markup=False, highlight=False, soft_wrap=True)


# ---- examination ------------------------------------------------------------------------------------------


@app.command()
def doctor(
    what: Annotated[
        str,
        typer.Argument(
            help='"machine", or the folder of a corpus, a run or a reproduction.', show_default=False
        ),
    ],
) -> None:
    """Tell what is there, what is wrong and what to do.

    Exits with 1 if something is wrong, and changes nothing. All sound of a corpus and all tensors of a run's
    checkpoints are read.
    """
    from vgsplus.doctor import examine
    from vgsplus.doctor.table import print_diagnosis

    with Console(stderr=True).status(f"examining {escape(what)}"):
        diagnosis = examine(what)
    print_diagnosis(diagnosis, Console())
    if not diagnosis.well:
        raise typer.Exit(1)


# ---- progress ---------------------------------------------------------------------------------------------


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, and the call that moves it to what is done of a total."""
    with _bars(title) as (move,):
        yield move


@contextmanager
def _bars(*titles: str) -> Iterator[tuple[Callable[[int, int], None], ...]]:
    """A bar for each of the stages of one piece of work."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = [progress.add_task(title, total=None) for title in titles]

        def move(task: TaskID, done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield tuple(partial(move, task) for task in tasks)
