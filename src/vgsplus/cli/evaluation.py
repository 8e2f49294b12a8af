"""Commands that evaluate a model: `vgsplus evaluate --help`."""

import math
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from vgsplus.cli.options import Layers, Model, results_folder, run_config
from vgsplus.progress import SILENT, console_progress

scoring = typer.Typer(
    help="Evaluate a run, or a checkpoint that `vgsplus convert` reads. Processes of torchrun "
    "(torchrun --nproc-per-node 4 -m vgsplus evaluate …) share the work.",
    no_args_is_help=True,
)


@scoring.command("retrieval")
def evaluate_retrieval(
    run: Annotated[Path, typer.Argument(help="A run folder of `vgsplus train` or `vgsplus reproduce`.")],
    corpus: Annotated[
        Path | None, typer.Option(help="A prepared corpus. Default: the training corpus of the run.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split to evaluate.")] = "test",
    by: Annotated[
        Literal["speaker", "length"] | None,
        typer.Option(help="Also score speech to image by speaker, or by quartile of the caption length."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for retrieval.csv, by_speaker.csv and by_length.csv.")
    ] = None,
) -> None:
    """Compute recall between speech and pictures with 95 % intervals, and the median rank."""
    from vgsplus.corpora import Corpus
    from vgsplus.evaluation.retrieval import breakdown, rank_split, score
    from vgsplus.experiments.scoring import embed_run
    from vgsplus.report.tables import (
        part_table,
        part_terminal,
        retrieval_table,
        retrieval_terminal,
        write_csv,
    )
    from vgsplus.training.checkpoint import load_model
    from vgsplus.training.processes import join_processes

    processes = join_processes()
    config = run_config(run, "Name a folder of `vgsplus train`.")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    model = load_model(run).to(processes.fabric.device)
    embedded = embed_run(model, config, Corpus.open(corpus or config.corpus), split)
    if not processes.first:
        return
    ranks = rank_split(embedded)
    scores = score(ranks, seed=config.seed)
    kinds: tuple[Literal["speaker", "length"], ...] = ("speaker", "length")
    parts = {
        kind: breakdown(embedded.captions, ranks, kind, seed=config.seed)
        for kind in kinds
        if out is not None or kind == by
    }
    console = Console()
    console.print(retrieval_terminal(scores))
    if by is not None:
        title = f"Speech → image by {by}, recall in %, below it the 95 % interval"
        console.print(part_terminal(parts[by], title))
    if out is not None:
        write_csv(retrieval_table(scores), out / "retrieval.csv")
        for kind, found in parts.items():
            write_csv(part_table(found, kind), out / f"by_{kind}.csv")
        typer.echo(out)


@scoring.command("lexical")
def evaluate_lexical(
    run: Model,
    words: Annotated[Path, typer.Argument(help="A folder of spoken words: WAV, FLAC, MP3 and others.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder for scores.csv, confusion.csv and confusion.png.")],
    mode: Annotated[
        Literal["utterance", "frame"],
        typer.Option(help="Compare one vector per word, or sequences of frames, by DTW."),
    ] = "utterance",
    layer: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Transformer layer, from 1 on, whose frames or their mean are compared. Default: the speech "
            "embedding, or the frames that it is computed from.",
        ),
    ] = None,
    rule: Annotated[
        Literal["coco", "cdi"],
        typer.Option(
            help='File names: WORD_… (coco), or WORD and three more characters, such as "bye_bye_Aq" (cdi).'
        ),
    ] = "coco",
) -> None:
    """Compute the fraction of spoken words whose nearest neighbour is the same word."""
    from vgsplus.evaluation.lexical import RULES, check_layer, embed_words, evaluate, find_words
    from vgsplus.interop.pretrained import load
    from vgsplus.report.lexical import write_lexical
    from vgsplus.training.processes import join_processes

    processes = join_processes()
    model = load(run).to(device := processes.fabric.device)
    check_layer(model, layer, mode)
    out.mkdir(parents=True, exist_ok=True)
    recordings = find_words(words, model, RULES[rule])
    with console_progress() if processes.first else SILENT as progress:
        embeddings = embed_words(model, recordings, mode, layer, device=device, progress=progress)
        if not processes.first:
            return
        result = evaluate(list(recordings), embeddings, RULES[rule], progress)
    write_lexical(result, out)
    typer.echo(
        f"{result.score:.3f} of the nearest are the same word, {result.chance:.3f} by chance "
        f"({len(recordings)} tokens of {len(result.words)} words); {out}"
    )


@scoring.command("semantic")
def evaluate_semantic(
    run: Model,
    table: Annotated[
        Path,
        typer.Argument(
            help="CSV file with the columns sound, picture, and word or category or both: a row for each "
            "recording of a word, picture of a category, or pair. `vgsplus data toy-words` makes one."
        ),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for semantic.csv and semantic_words.csv. Default: the folder of RUN."),
    ] = None,
) -> None:
    """Compare spoken words with pictures of objects: do pictures of the own category come first?

    The score, of Khorrami and Räsänen (2024), is the probability that a picture of the category of a word is
    more similar to the word than a picture of another category. Higher is better, and 0.5 is chance.
    """
    from vgsplus.evaluation.lexical import check_layer
    from vgsplus.evaluation.semantic.scores import CHANCE, semantic_scores
    from vgsplus.evaluation.semantic.word_pictures import check_files, read_word_pictures
    from vgsplus.interop.pretrained import load
    from vgsplus.report.semantic import WORDS, write_semantic
    from vgsplus.training.processes import join_processes

    processes = join_processes()
    if not processes.first:
        return
    model = load(run).to(processes.fabric.device)
    check_layer(model, None)
    regions = model.region_function()
    found = read_word_pictures(table)
    folder = results_folder(out, run)
    with console_progress() as progress:
        check_files(found, model, progress)
        images = model.encode_image(found.pictures, regions=regions, progress=progress)
        speech = model.encode_speech(found.sounds, progress=progress)
    scores = semantic_scores(model.similarity(speech, images), found.own, found.words)
    write_semantic(found, scores, folder)
    mean, published = scores.mean, scores.published_mean
    typer.echo(
        f"score {mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f}), by chance {CHANCE}; as published "
        f"{published.value:.3f} ({published.low:.3f} to {published.high:.3f}), by chance "
        f"{scores.published_chance:.3f}, at most {2 * scores.published_chance:.3f} "
        f"({len(found.sounds)} recordings of {len(scores.by_word)} words, {len(found.pictures)} pictures)"
    )
    typer.echo(folder / WORDS)


@scoring.command("abx")
def evaluate_abx(
    run: Model,
    item: Annotated[Path, typer.Argument(help="An ABX item file.")],
    audio: Annotated[Path, typer.Argument(help="Folder of the sounds of the items, at any depth.")],
    *,
    layers: Layers = "all",
    conditions: Annotated[
        list[str] | None,
        typer.Option(
            "--condition",
            metavar="within|across",
            help="Compare within or across speakers; may be repeated. Default: both.",
        ),
    ] = None,
    context: Annotated[
        Literal["within", "any"],
        typer.Option(
            help="Require the same preceding and following phone (within), or ignore the context (any)."
        ),
    ] = "within",
    as_published: Annotated[
        bool, typer.Option("--as-published", help="Also compute the errors like the program of Libri-Light.")
    ] = False,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also evaluate log-Mel energies and an untrained model.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for abx.csv. Default: the folder of RUN.")] = None,
) -> None:
    """Compute the ABX error of every layer: how often a phone is nearer to another one than to its own.

    abx.csv is written after every layer. The same command continues an interrupted evaluation: abx.json,
    beside it, tells which errors are of the same model, items, sounds and options.
    """
    from vgsplus.evaluation.abx_items import read_items
    from vgsplus.evaluation.abx_layers import (
        AbxResults,
        AbxTask,
        score_layers,
        score_log_mel,
        untrained_model,
    )
    from vgsplus.evaluation.hidden_states import parse_layers
    from vgsplus.interop.pretrained import load
    from vgsplus.report.tables import abx_table, abx_terminal, write_csv
    from vgsplus.training.processes import join_processes

    processes = join_processes()
    chosen_conditions = tuple(dict.fromkeys(conditions or ("within", "across")))
    items = read_items(item, conditions=chosen_conditions, audio_root=audio)
    task = AbxTask(items=items, conditions=chosen_conditions, context=context, as_published=as_published)
    model = load(run).to(device := processes.fabric.device)
    chosen = parse_layers(layers, len(model.speech.layers))
    folder = results_folder(out, run)
    results = None
    if processes.first:
        table = folder / "abx.csv"
        results = AbxResults(folder / "abx.json", task, lambda rows: write_csv(abx_table(rows), table))
    with console_progress() if processes.first else SILENT as progress:
        rows = score_layers(
            model, task, layers=chosen, device=device, cache=folder, results=results, progress=progress
        )
        if baseline:
            untrained = untrained_model(model.config).to(device)
            rows += score_layers(
                untrained,
                task,
                layers=chosen,
                features="untrained",
                device=device,
                cache=folder,
                results=results,
                progress=progress,
            )
        if not processes.first:
            return
        if baseline:
            rows += score_log_mel(task, device=device, results=results, progress=progress)
    Console().print(abx_terminal(rows, f"ABX, {context} context: {len(items.tokens)} tokens of {item.name}"))
    typer.echo(folder / "abx.csv")


@scoring.command("segmentation")
def evaluate_segmentation(
    run: Model,
    words: Annotated[
        Path,
        typer.Argument(
            help="Alignments of words: a folder or a file that `vgsplus data items` reads, such as "
            "test.ctm of the toy corpus; or an item file of words."
        ),
    ],
    *,
    audio: Annotated[
        Path | None,
        typer.Option(help="Folder of the sounds, at any depth. Default: WORDS, or the folder of that file."),
    ] = None,
    tier: Annotated[str | None, typer.Option(help="Tier of TextGrids. Default: words.")] = None,
    threshold: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.999,
            help="Share of the frames of a sound that a head does not attend to. Higher: fewer frames, and "
            "mostly fewer words. VG-HuBERT: 0.7 to 0.9.",
        ),
    ] = 0.7,
    insert_threshold: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="Seconds of a gap between words beyond which further ones are inserted, half as far apart. "
            "Default: none are.",
        ),
    ] = None,
    collar: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds by which a boundary may differ from that of the alignment. Published: 0.02."
        ),
    ] = 0.05,
    textgrids: Annotated[
        Path | None,
        typer.Option(help="New folder for the words found, as TextGrids with a tier for each layer."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for segmentation.csv. Default: the folder of RUN.")
    ] = None,
) -> None:
    """Find words in speech by the attention of the CLS token, and compare them with alignments.

    Frames to which a head of a layer attends most are a word if they are consecutive, as in VG-HuBERT (Peng
    and Harwath, Interspeech 2022). Every layer is scored with all heads together and with each alone, and by
    minimum cuts of the similarities of its frames, next to words of equal length and words between valleys of
    the energy; these three know the number of words. Scores are precision, recall, F1,
    over-segmentation (OS) and R-value of boundaries, and F1 of complete words. Higher is better, except for
    OS, which is 0 if as many boundaries were found as there are.
    """
    from vgsplus.evaluation.segmentation.evaluate import check_model, evaluate, read_words
    from vgsplus.interop.pretrained import load
    from vgsplus.report.segmentation import segmentation_table, segmentation_terminal
    from vgsplus.report.tables import write_csv
    from vgsplus.training.processes import join_processes

    processes = join_processes()
    model = load(run).to(device := processes.fabric.device)
    check_model(model)
    folder = results_folder(out, run)
    with console_progress() if processes.first else SILENT as progress:
        references = read_words(words, audio_root=audio, tier=tier, progress=progress)
        rows = evaluate(
            model,
            references,
            threshold=threshold,
            insert_threshold=math.inf if insert_threshold is None else insert_threshold,
            collar=collar,
            textgrids=textgrids,
            device=device,
            progress=progress,
        )
    if not processes.first:
        return
    table = segmentation_table(rows, collar=collar, threshold=threshold)
    write_csv(table, folder / "segmentation.csv")
    number = sum(len(reference.segments) for reference in references)
    title = f"Boundaries of {number} words in {len(references)} sounds of {words.name}"
    Console().print(segmentation_terminal(table, title))
    typer.echo(folder / "segmentation.csv")


@scoring.command("pointing")
def evaluate_pointing(
    run: Model,
    corpus: Annotated[
        Path | None, typer.Option(help="A prepared corpus. Default: the training corpus of the run.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split to evaluate.")] = "test",
    words: Annotated[
        Path | None,
        typer.Option(
            help="A table of spoken words and the boxes of what they name, with the columns #file onset "
            "offset word x1 y1 x2 y2. Default: SPLIT.boxes of the corpus, which the toy corpus has."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for pointing.csv. Default: the folder of RUN.")
    ] = None,
) -> None:
    """Play the pointing game: does the strongest region for a spoken word lie on the object that it names?

    The scores of regions are averaged over the times of the word. A word is right if the centre of the region
    with the highest score is in the box of the object. Baselines are chance, the central and the largest
    region, and the words of other captions; intervals are from a bootstrap over pictures.
    """
    from vgsplus.corpora import Corpus
    from vgsplus.evaluation.pointing.evaluate import check_model, evaluate
    from vgsplus.evaluation.pointing.words import read_named_objects
    from vgsplus.interop.pretrained import load
    from vgsplus.report.pointing import pointing_table, pointing_terminal
    from vgsplus.report.tables import write_csv
    from vgsplus.training.processes import join_processes

    processes = join_processes()
    opened = Corpus.open(corpus or run_config(run, "Name the corpus by --corpus.").corpus)
    captions = {caption.id: caption for caption in opened.captions(split)}
    objects = read_named_objects(words or opened.root / f"{split}.boxes", captions)
    model = load(run).to(processes.fabric.device)
    check_model(model, opened)
    folder = results_folder(out, run)
    with console_progress() if processes.first else SILENT as progress:
        rows = evaluate(model, opened, objects, progress=progress)
    if not processes.first:
        return
    write_csv(pointing_table(rows), folder / "pointing.csv")
    Console().print(pointing_terminal(rows, f"Pointing to the objects of words, {opened.name}, {split}"))
    typer.echo(folder / "pointing.csv")
