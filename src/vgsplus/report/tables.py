"""Tables as data frames, from which CSV files, the page and the output in the terminal are made.

Data frames hold numbers, with NaN for what was not measured. Only the functions in the first section format
them.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vgsplus.evaluation.abx import CONDITIONS
from vgsplus.evaluation.abx_layers import AbxRow
from vgsplus.evaluation.retrieval import DIRECTIONS, KS, Estimate, PartScores, RetrievalScores
from vgsplus.files import write_file
from vgsplus.report.paper import PAPER, PAPER_KS, TITLES
from vgsplus.report.results import PhaseResult, Results, ordered

DASH = "\N{EN DASH}"
ARROWS = {"speech_to_image": "speech → image", "image_to_speech": "image → speech"}
CHANCE = "Chance"
LOSSES = {
    "grounding": ("L_AV", "L_AV, grounding"),
    "ssl": ("L_AUD", "L_AUD, self-supervision"),
    "additional_speech/ssl": ("L_AUD additional", "L_AUD, additional speech"),
}
"""{term: (metric in curves.csv, title of figure)} of the paper's losses; others have their term's name."""
BEST = "*"
WIDE = 110  # minimum number of columns of a terminal for intervals

# ---- numbers as text --------------------------------------------------------------------------------------


def percent(value: float, small: int = 2) -> str:
    """Format a percentage with one decimal, or with `small` decimals below 1 %."""
    if math.isnan(value):
        return DASH
    return f"{value:.{small}f}" if 0 < value < 0.995 else f"{value:.1f}"


def interval(low: float, high: float) -> str:
    """Format the ends of an interval in percent, joined by a dash; empty for NaN."""
    return "" if math.isnan(low) else f"{percent(low)}{DASH}{percent(high)}"


def error_text(row: Mapping[str, float], column: str) -> str:
    """Format an ABX error in percent, followed by its layer in brackets if it has one."""
    error, layer = row[column], row[f"{column} layer"]
    if pd.isna(error):
        return DASH
    return f"{error:.2f}" if pd.isna(layer) else f"{error:.2f} ({layer:.0f})"


def duration(seconds: float) -> str:
    """Format a time span in its two largest units: "2 d 4 h", "3 h 20 min", "1 min 5 s", "8.2 s"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    days, hours, minutes = rounded // 86_400, rounded // 3600 % 24, rounded // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rounded % 60} s" if minutes else f"{rounded} s"


def label(test_set: str) -> str:
    """Return the name of a test set with spaces instead of underscores."""
    return test_set.replace("_", " ")


# ---- tables of a reproduction -----------------------------------------------------------------------------


def recalls(results: Results, test_set: str) -> pd.DataFrame:
    """Return Table I for one test set, in percent.

    Rows are the nine variants, then others, then chance if a variant was scored. Columns are "<direction>
    R@k", the same followed by " low" and " high" for the 95 % interval, and "paper <direction> R@k".
    """
    scored = {v.name: v.retrieval[test_set] for v in ordered(results) if test_set in v.retrieval}
    rows: dict[str, dict[str, float]] = {name: {} for name in scored}
    for name, scores in scored.items():
        for direction in DIRECTIONS:
            for k, share in scores.direction(direction).recall.items():
                rows[name] |= _estimate(f"{direction} R@{k}", share, 100)
    names = [*TITLES, *(v.name for v in ordered(results) if v.name not in TITLES)]
    if scored:
        names.append(CHANCE)
        first = next(iter(scored.values()))
        rows[CHANCE] = {
            f"{direction} R@{k}": 100 * share
            for direction in DIRECTIONS
            for k, share in first.direction(direction).chance.items()
        }
    suffixes = ("", " low", " high")
    columns = [f"{direction} R@{k}{suffix}" for direction in DIRECTIONS for k in KS for suffix in suffixes]
    ours = pd.DataFrame(list(rows.values()), index=list(rows), columns=columns, dtype=float)
    return ours.reindex(names).join(PAPER.filter(like="R@").add_prefix("paper "))


def _estimate(name: str, share: Estimate, unit: float = 1) -> dict[str, float]:
    """Return the columns of an estimate: its value and the ends of its interval, times `unit`."""
    return {name: unit * share.value, f"{name} low": unit * share.low, f"{name} high": unit * share.high}


def table1(results: Results) -> pd.DataFrame:
    """Return Table I for all test sets, with nine rows and the columns of `recalls` after "<test set> "."""
    tables = {test_set: recalls(results, test_set).loc[list(TITLES)] for test_set in results.test_sets}
    paper = PAPER.filter(like="R@").add_prefix("paper ")
    ours = [table.drop(columns=paper.columns).add_prefix(f"{name} ") for name, table in tables.items()]
    return pd.concat([*ours, paper], axis=1).round(4).rename_axis("variant").reset_index()


def abx_errors(results: Results) -> pd.DataFrame:
    """Return every ABX error of every seed in [0, 1], one per row."""
    columns = ["features", "seed", "epoch", "condition", "protocol", "layer", "error"]
    return pd.DataFrame(list(_abx_errors(results)), columns=columns).astype({"layer": "Int64"})


def _abx_errors(results: Results) -> Iterator[tuple[object, ...]]:
    first = results.settings.get("seed")
    for seed, variants in [(first, results.variants), *((r.seed, r.variants) for r in results.repeats)]:
        for variant in variants:
            for point in variant.abx:
                for protocol, errors in (("corrected", point.errors), ("as published", point.published)):
                    for condition, of_layers in errors.items():
                        for layer, error in of_layers.items():
                            yield variant.name, seed, point.epoch, condition, protocol, layer, error
    for baseline in results.abx.baselines if results.abx else ():
        for protocol, found in (("corrected", baseline.errors), ("as published", baseline.published)):
            for condition, error in found.items():
                yield baseline.features, None, None, condition, protocol, baseline.layer, error


def table2(results: Results) -> pd.DataFrame:
    """Return Table II: the error of the best layer after training in percent, and that layer.

    Rows ("features") are the nine variants, then others and untrained features. Columns are "<condition>",
    "<condition> as published" and "paper <condition>", each followed by the same with " layer".
    """
    final = {v.name: v.abx[-1] for v in ordered(results) if v.abx}
    best: dict[str, dict[str, float]] = {name: {} for name in [*TITLES, *final]}

    def add(name: str, column: str, error: float, layer: int | None) -> None:
        row = best.setdefault(name, {})
        if 100 * error < row.get(column, math.inf):
            row |= {column: 100 * error, f"{column} layer": math.nan if layer is None else layer}

    for name, point in final.items():
        for suffix, errors in (("", point.errors), (" as published", point.published)):
            for condition, of_layers in errors.items():
                for layer, error in sorted(of_layers.items()):
                    add(name, condition + suffix, error, layer)
    for baseline in results.abx.baselines if results.abx else ():
        for suffix, found in (("", baseline.errors), (" as published", baseline.published)):
            for condition, error in found.items():
                add(baseline.features, condition + suffix, error, baseline.layer)
    errors_of = [name for c in CONDITIONS for name in (c, f"{c} as published", f"paper {c}")]
    columns = [f"{name}{suffix}" for name in errors_of for suffix in ("", " layer")]
    paper = PAPER[[f"{c}{suffix}" for c in CONDITIONS for suffix in ("", " layer")]].add_prefix("paper ")
    ours = pd.DataFrame(list(best.values()), index=list(best)).join(paper).reindex(columns=columns).round(4)
    table = ours.astype({column: "Int64" for column in columns if column.endswith("layer")})
    return table.rename_axis("features").reset_index()


def curves(results: Results) -> pd.DataFrame:
    """Return every loss, recall and further score during training, one value per row."""
    columns = ["variant", "split", "phase", "epoch", "step", "metric", "value"]
    return pd.DataFrame(list(_curves(results)), columns=columns).astype({"phase": "Int64", "step": "Int64"})


def _curves(results: Results) -> Iterator[tuple[object, ...]]:
    for variant in ordered(results):
        for point in variant.losses:
            for term, value in point.terms.items():
                if value is not None:
                    metric, _ = LOSSES.get(term, (term, ""))
                    yield variant.name, point.split, point.phase, point.epoch, point.step, metric, value
        for recall in variant.recalls:
            for direction in DIRECTIONS:
                for k, share in getattr(recall, direction).items():
                    yield variant.name, recall.test_set, None, recall.epoch, None, f"{direction} R@{k}", share
        for further in variant.scores:
            for name, value in further.scores.items():
                yield variant.name, None, None, further.epoch, None, name, value


def further_scores(results: Results) -> pd.DataFrame:
    """Return the last value of every further score: a row per variant, a column per name."""
    found = {v.name: v.scores[-1].scores for v in ordered(results) if v.scores}
    return pd.DataFrame(list(found.values()), index=list(found), dtype=float)


def times(results: Results) -> pd.DataFrame:
    """Return the `PhaseResult` and the variants of every phase that was trained; shared phases once."""
    users: dict[tuple[str, str], list[str]] = {}
    phases: dict[tuple[str, str], PhaseResult] = {}
    for variant in ordered(results):
        for phase in variant.phases:
            run = (phase.name, "" if phase.shared else variant.name)
            phases.setdefault(run, phase)
            users.setdefault(run, []).append(variant.name)
    columns = ["name", "epochs", "steps", "seconds", "shared", "variants"]
    rows = [{**asdict(phase), "variants": users[run]} for run, phase in phases.items()]
    return pd.DataFrame(rows, columns=columns)


# ---- tables of the evaluate commands ----------------------------------------------------------------------


def retrieval_table(scores: RetrievalScores) -> pd.DataFrame:
    """Return recalls with intervals and chance in [0, 1], and median ranks: a row per direction and k."""
    return pd.DataFrame(
        {
            "direction": direction,
            "k": k,
            "recall": share.value,
            "low": share.low,
            "high": share.high,
            "chance": scores.direction(direction).chance[k],
            "median rank": scores.direction(direction).median_rank,
        }
        for direction in DIRECTIONS
        for k, share in scores.direction(direction).recall.items()
    )


def part_table(parts: Sequence[PartScores], heading: str) -> pd.DataFrame:
    """Return the recalls from speech to image in [0, 1] and the lengths in seconds: a row per part."""
    rows = []
    for part in parts:
        row: dict[str, object] = {heading: part.name, "captions": part.captions, "pictures": part.images}
        row |= {"shortest": part.shortest, "longest": part.longest}
        for k, share in part.recall.items():
            row |= _estimate(f"R@{k}", share)
        rows.append(row | {"median rank": part.median_rank})
    return pd.DataFrame(rows)


def abx_table(rows: Sequence[AbxRow]) -> pd.DataFrame:
    """Return ABX errors in [0, 1], a row per error."""
    columns = ["features", "layer", "context", "protocol", "condition", "error"]
    values = [
        [row.features, row.layer, row.context, protocol, condition, error]
        for row in rows
        for protocol in ["as published" if row.as_published else "corrected"]
        for condition, error in row.errors.items()
    ]
    return pd.DataFrame(values, columns=columns).astype({"layer": "Int64"})


def write_csv(table: pd.DataFrame, path: Path, *, index: bool = False) -> None:
    """Write a table atomically, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, table.to_csv(index=index))


# ---- the terminal -----------------------------------------------------------------------------------------


def terminal_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], title: str, caption: str | None = None
) -> Table:
    """Return a table for the terminal, with the first column left-aligned and the others right-aligned."""
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", no_wrap=bool(index), overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def print_tables(results: Results, console: Console) -> None:
    """Print Table I for each test set with the paper's numbers, and further scores if there are any.

    In a narrow terminal, print only the paper's values of k, without intervals.
    """
    for test_set in results.test_sets:
        console.print(_recall_table(recalls(results, test_set), label(test_set), narrow=console.width < WIDE))
    if not (further := further_scores(results)).empty:
        rows = [
            [str(name), *map("{:g}".format, row.values())] for name, row in further.to_dict("index").items()
        ]
        console.print(terminal_table(["Variant", *map(str, further)], rows, "Further scores"))


def _recall_table(frame: pd.DataFrame, test_set: str, *, narrow: bool) -> Table:
    ks = [k for k in KS if k in PAPER_KS or not narrow]
    best = frame.drop(CHANCE, errors="ignore").max()
    headings = ["Variant"]
    for direction in DIRECTIONS:
        headings += [ARROWS[direction].replace(" →", "\n→") + f"\nR@{ks[0]}", *(f"\n\nR@{k}" for k in ks[1:])]
        headings.append("\npaper\n" + "/".join(f"R@{k}" for k in PAPER_KS))
    rows = []
    for name, row in frame.to_dict("index").items():
        texts = [str(name)]
        for direction in DIRECTIONS:
            for column in (f"{direction} R@{k}" for k in ks):
                text, ends = percent(row[column]), interval(row[f"{column} low"], row[f"{column} high"])
                text = f"[bold]{text}[/]" if row[column] == best[column] > 0 and name != CHANCE else text
                texts.append(f"{text}\n[dim]{ends}[/]" if ends and not narrow else text)
            paper = [percent(row[f"paper {direction} R@{k}"], small=1) for k in PAPER_KS]
            texts.append("/".join(paper))
        rows.append(texts)
    title = f"Recall in % on {test_set}{'' if narrow else ', below it the 95 % interval'}"
    table = terminal_table(headings, rows, title)
    for printed_column in table.columns:
        printed_column.style = "dim" if "paper" in str(printed_column.header) else ""
    for printed_row, missing in zip(
        table.rows, frame.filter(regex="^[^p].*R@").isna().all(axis=1), strict=True
    ):
        printed_row.style = "dim" if missing else None
    if CHANCE in frame.index:
        table.rows[-2].end_section = True
    return table


def retrieval_terminal(scores: RetrievalScores) -> Table:
    """Return `retrieval_table` for the terminal, in percent."""
    rows = []
    for row in retrieval_table(scores).to_dict("records"):
        first = row["k"] == min(scores.direction(row["direction"]).recall)
        value, low, high, chance = (100 * row[name] for name in ("recall", "low", "high", "chance"))
        texts = [str(row["k"]), percent(value), interval(low, high), percent(chance)]
        ends = [ARROWS[row["direction"]], f"{row['median rank']:g}"] if first else ["", ""]
        rows.append([ends[0], *texts, ends[1]])
    title = f"Recall in %, {scores.captions} captions of {scores.images} pictures"
    return terminal_table(["direction", "k", "recall", "95 %", "chance", "median rank"], rows, title)


def part_terminal(parts: Sequence[PartScores], title: str) -> Table:
    """Return `part_table` for the terminal, in percent, with intervals below the recalls."""
    rows = [
        [
            part.name,
            str(part.captions),
            f"{part.shortest:.2f}{DASH}{part.longest:.2f}",
            *(
                f"{percent(100 * share.value)}\n{interval(100 * share.low, 100 * share.high)}"
                for share in part.recall.values()
            ),
            f"{part.median_rank:g}",
        ]
        for part in parts
    ]
    headings = ["captions of", "count", "seconds", *(f"R@{k}" for k in parts[0].recall), "median\nrank"]
    return terminal_table(headings, rows, title)


def abx_terminal(rows: Sequence[AbxRow], title: str) -> Table:
    """Return the errors in percent, a row per layer; a star marks the model's lowest error of a column."""
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for row in abx_table(rows).to_dict("records"):
        column = row["condition"] + (", as published" if row["protocol"] == "as published" else "")
        layer = "" if pd.isna(row["layer"]) else str(row["layer"])
        cells.setdefault((row["features"], layer), {})[column] = row["error"]
    columns = list(dict.fromkeys(column for found in cells.values() for column in found))
    model = [found for (features, _), found in cells.items() if features == "model"]
    best = {column: min((found[column] for found in model), default=math.nan) for column in columns}
    texts = []
    for (features, layer), found in cells.items():
        errors = []
        for column in columns:
            star = BEST if features == "model" and found[column] == best[column] else " "
            errors.append(f"{100 * found[column]:.2f}{star}")
        texts.append([features, layer, *errors])
    caption = f"{BEST} the model's best layer. Errors in percent; chance is 50."
    return terminal_table(["features", "layer", *columns], texts, title, caption)
