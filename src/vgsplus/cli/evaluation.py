"""Commands that score a trained run: `vgsplus evaluate --help`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from vgsplus.cli.progress import bar, stage_bars

scoring = typer.Typer(help="Score a trained run, or any model that convert takes.", no_args_is_help=True)


@scoring.command("retrieval")
def evaluate_retrieval(
    run: Annotated[Path, typer.Argument(help="A run folder, of vgsplus train or reproduce.")],
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
    from vgsplus.experiments.scoring import embed_run
    from vgsplus.report.lexical import prepare_folder
    from vgsplus.report.retrieval import part_table, retrieval_table, write_retrieval
    from vgsplus.training.checkpoint import load_model
    from vgsplus.training.machine import device_name
    from vgsplus.training.run_folder import CONFIG_FILE

    config = load_config(run / CONFIG_FILE)
    if out is not None:
        prepare_folder(out)
    model = load_model(run).to(device_name("auto"))
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
    check_layer(model, layer, mode)
    prepare_folder(out)
    recordings = open_words(words, model, RULES[rule])
    with bar("embedding") as embedded:
        embeddings = embed_words(model, recordings, mode, layer, device=device, progress=embedded)
    with bar("comparing") as compared:
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
    from vgsplus.report.abx import abx_table, write_abx
    from vgsplus.training.machine import device_name

    asked = tuple(dict.fromkeys(conditions or ("within", "across")))
    items = read_items(item, conditions=asked, audio_root=audio)
    question = Question(items=items, conditions=asked, context=context, as_published=as_published)
    device, folder = device_name("auto"), out or (run if run.is_dir() else run.parent)
    model = load(run).to(device)
    chosen = choose_layers(layers, len(model.speech.layers))
    with stage_bars() as progress:
        means = Means(device=device, cache=folder, progress=progress)
        rows = score_layers(model, question, means, layers=chosen)
        if baseline:
            rows += score_untrained(model.config, question, means, layers=chosen)
            rows += score_log_mel(question, means)
    write_abx(rows, folder / "abx.csv")
    console = Console()
    console.print(abx_table(rows, f"ABX, {context} context: {len(items.tokens)} tokens of {item.name}"))
    console.print(f"{folder / 'abx.csv'}", markup=False, highlight=False, soft_wrap=True)
