"""The report of a reproduction: a self-contained HTML page, and its tables and figures as files."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from vgsplus.errors import VgsplusError
from vgsplus.evaluation.retrieval import KS
from vgsplus.files import atomic_folder
from vgsplus.progress import SILENT
from vgsplus.report import figures, tables
from vgsplus.report.claims import claim_table, claims, headline
from vgsplus.report.gallery import PICTURES, cards
from vgsplus.report.paper import PAPER_KS, TITLES, phases_of
from vgsplus.report.results import ordered

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jinja2 import Template
    from pydantic import JsonValue

    from vgsplus.corpora import Corpus
    from vgsplus.progress import Progress
    from vgsplus.report.claims import Evidence
    from vgsplus.report.gallery import Load
    from vgsplus.report.results import Results

FOLDER = "report"
PAGE, DATA = "index.html", "results.json"


def check_report_folder(out: Path, data: str = DATA) -> None:
    """Raise VgsplusError if `out`/report holds something that is not a report, which has the file `data`."""
    target = out / FOLDER
    if target.exists() and not (target / data).is_file() and (target.is_file() or any(target.iterdir())):
        raise VgsplusError(
            f"{target}: is not a report (no {data} in it), so it is not replaced. Move it away."
        )


def write_report(
    results: Results,
    out: Path,
    *,
    corpus: Corpus | None = None,
    load: Load | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Write `out`/report: index.html, results.json, the tables as CSV and the figures as PNG.

    The tables are table1.csv (recalls), claims.csv, curves.csv, with ABX table2.csv and abx.csv, and with
    further scores scores.csv. An earlier report is replaced when the new one is complete.

    Args:
        results: results of a complete or partial reproduction.
        out: folder of the reproduction; made if missing.
        corpus: source of the gallery's images and sounds. Without it the gallery shows their names.
        load: loads the model of a variant by its key, for heat maps over the images. Without it there are
            none.
        progress: receives the stage "heat maps".

    Returns:
        The path of index.html.

    Raises:
        VgsplusError: `out`/report holds something that is not a report.
        OSError: the report cannot be written.
    """
    check_report_folder(out)
    with atomic_folder(out / FOLDER, replace=True) as folder:
        results.save(folder / DATA)
        (folder / PAGE).write_text(render(results, corpus, load, progress), encoding="utf-8")
        tables.write_csv(tables.table1(results), folder / "table1.csv")
        tables.write_csv(tables.curves(results), folder / "curves.csv")
        tables.write_csv(claim_table(results), folder / "claims.csv")
        if results.abx is not None:
            tables.write_csv(tables.table2(results), folder / "table2.csv")
            tables.write_csv(tables.abx_errors(results), folder / "abx.csv")
        if not (further := tables.further_scores(results)).empty:
            tables.write_csv(further.rename_axis("variant"), folder / "scores.csv", index=True)
        drawn = {
            "fig2_abx_by_layer": figures.abx_panels(results, "layer"),
            "fig2_abx_by_epoch": figures.abx_panels(results, "epoch"),
            "fig3_losses": figures.loss_panels(results, _split(results)),
        }
        for index, test_set in enumerate(figures.recall_sets(results)):
            name = f"recall_by_epoch_{test_set}" if index else "recall_by_epoch"
            drawn[name] = figures.recall_panels(results, test_set)
        for name, panels in drawn.items():
            if panels:
                (folder / f"{name}.png").write_bytes(figures.png(panels))
    return out / FOLDER / PAGE


def render(
    results: Results, corpus: Corpus | None = None, load: Load | None = None, progress: Progress = SILENT
) -> str:
    """Return the page as HTML; arguments as in `write_report`."""
    recalls = {test_set: tables.recalls(results, test_set) for test_set in results.test_sets}
    variants = {name: table.drop(tables.CHANCE, errors="ignore") for name, table in recalls.items()}
    abx = tables.table2(results).set_index("features") if results.abx else pd.DataFrame()
    further = tables.further_scores(results)
    trained = sum(variant.name in TITLES for variant in results.variants)
    return template("page.html.j2").render(
        results=results,
        heading=f"{'Nine' if trained == len(TITLES) else f'{trained} of the nine'} schedules, trained on ",
        corpus_name=str(results.corpus.get("name", "a corpus without a name")),
        headlines=[headline(results, test_set) for test_set in results.test_sets],
        details=ordered(results),
        # The scores of any variant on a test set state its size.
        sizes={name: v.retrieval[name] for v in results.variants for name in v.retrieval},
        tables={name: table.to_dict("index") for name, table in recalls.items()},
        highest={name: table.max() for name, table in variants.items()},
        scored={name: [v.name for v in results.variants if name in v.retrieval] for name in recalls},
        abx_rows=abx.to_dict("index"),
        lowest={name: errors.min() for name, errors in abx.reindex(TITLES).items()},
        further=further.to_dict("index"),
        best_further=_best(further, results.lower_is_better),
        claims={name: claims(results, name) for name in results.test_sets},
        seeds=1 + len(results.repeats),
        figures=_figures(results),
        cards=cards(results, corpus, load, progress),
        timing=tables.times(results),
    )


def template(name: str) -> Template:
    """Load a template, with what the templates call."""
    environment = page_environment()
    environment.globals.update(
        text=tables, figure=figures, ks=KS, paper_ks=PAPER_KS, titles=TITLES, pictures=PICTURES, mark=_mark
    )
    environment.filters |= {
        "duration": tables.duration,
        "label": tables.label,
        "percent": tables.percent,
        "plain": _plain,
        "evidence": _evidence,
    }
    return environment.get_template(name)


def drawn(views: Sequence[tuple[str, Sequence[figures.Panel]]]) -> list[tuple[str, list[str], str]]:
    """Draw figures, (title, panels): title, panels as <svg> elements, and a text alternative.

    Figures without panels are left out.
    """
    return [
        (
            title,
            [figures.svg(panel, f"figure-{number}-{index}") for index, panel in enumerate(panels)],
            figures.describe(panels),
        )
        for number, (title, panels) in enumerate(views)
        if panels
    ]


def page_environment() -> Environment:
    """Return the environment of the templates of pages."""
    environment = Environment(
        loader=PackageLoader("vgsplus.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["date"] = _date
    return environment


def _split(results: Results) -> Literal["train", "validation"]:
    """Return the split whose losses are drawn first: validation if a variant has it."""
    return "validation" if figures.loss_panels(results, "validation") else "train"


def _figures(results: Results) -> list[tuple[str, list[str], str]]:
    """Draw the figures of the page."""
    split = _split(results)
    words = {"train": "training", "validation": "validation"}
    views = [(f"Losses by epoch ({words[split]})", figures.loss_panels(results, split))]
    if split == "validation":
        views.append(("Losses by epoch (training)", figures.loss_panels(results, "train")))
    others = [term for term in figures.loss_terms(results) if term not in tables.LOSSES]
    views.append(
        (f"Terms of the losses by epoch ({words[split]})", figures.loss_panels(results, split, others))
    )
    views += [
        (f"Recall by epoch ({tables.label(test_set)})", figures.recall_panels(results, test_set))
        for test_set in figures.recall_sets(results)
    ]
    views += [
        ("ABX error by layer after training", figures.abx_panels(results, "layer")),
        ("ABX error of the best layer by epoch", figures.abx_panels(results, "epoch")),
        ("Further scores by epoch", figures.score_panels(results)),
    ]
    return drawn(views)


def _best(table: pd.DataFrame, lower_is_better: tuple[str, ...]) -> dict[str, float]:
    """Return the best value of each column."""
    columns = {str(name): values for name, values in table.items()}
    return {
        name: values.min() if name.startswith(lower_is_better) else values.max()
        for name, values in columns.items()
    }


def _plain(value: JsonValue) -> str:
    """Format a setting."""
    match value:
        case None | [] | {}:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int() if abs(value) >= 10_000:
            return f"{value:,}"
        case float():
            return f"{value:g}"
        case list():
            return ", ".join(
                f"({_plain(item)})" if isinstance(item, list) else _plain(item) for item in value
            )
        case _:
            return str(value)


def _evidence(evidence: Evidence) -> str:
    """Format evidence: mean, interval, and the values of several seeds."""
    text = f"{evidence.mean:+.1f}" if evidence.unit.startswith("points") else f"{evidence.mean:.0f}"
    if evidence.interval is not None:
        text += f" ({evidence.interval[0]:.1f} to {evidence.interval[1]:.1f})"
    text += f" {evidence.unit}"
    if len(evidence.by_seed) > 1:
        text += f"; by seed {', '.join(f'{value:.1f}' for value in evidence.by_seed)}"
    return text.replace("-", "−")


def _mark(name: str) -> dict[str, str]:
    """Return the CSS classes of the short line that marks a variant in tables and figures."""
    first, last = phases_of(name)
    return {"first": figures.ROLES.get(first, "other"), "last": figures.ROLES.get(last, "other")}


def _date(created: str) -> str:
    """Format an ISO time as "23 November 2025, 14:05"; return anything else as it is."""
    try:
        time = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{time.day} {time:%B %Y, %H:%M}"
