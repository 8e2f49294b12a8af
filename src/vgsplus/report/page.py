"""The report of a run: one page that carries all it shows, and its tables and figures as files."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from vgsplus.errors import VgsplusError
from vgsplus.evaluation.retrieval import KS
from vgsplus.report import figures, table2, tables
from vgsplus.report.claims import claim_table, claims
from vgsplus.report.gallery import PICTURES, cards
from vgsplus.report.headline import headline
from vgsplus.report.paper import VARIANTS, phases_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from vgsplus.corpora import Corpus
    from vgsplus.evaluation.retrieval import RetrievalScores
    from vgsplus.report.claims import Evidence
    from vgsplus.report.figures import Panel
    from vgsplus.report.results import Results

FOLDER = "report"
PAGE, DATA = "index.html", "results.json"


@dataclass(frozen=True, slots=True)
class FigureView:
    """A figure as the page shows it: its panels as <svg> elements, and the same in words."""

    title: str
    panels: tuple[str, ...]
    alternative: str


def check_place(out: Path) -> None:
    """Raise VgsplusError where `out`/report holds something that is not a report."""
    target = out / FOLDER
    if target.exists() and not (target / DATA).is_file() and (target.is_file() or any(target.iterdir())):
        raise VgsplusError(f"{target}: is not a report (no {DATA} in it), so it is left alone. Move it away.")


def write_report(results: Results, out: Path, *, corpus: Corpus | None = None) -> Path:
    """Write `out`/report: index.html, results.json, the tables as CSV and the figures as PNG.

    table1.csv (recalls), table2.csv and abx.csv (ABX, where measured), claims.csv, curves.csv.

    Everything is written to a temporary folder, which then takes the place of an earlier report.

    Args:
        results: a whole or a partial run.
        out: the run's folder; made where absent.
        corpus: where the gallery's pictures and sounds are; without it the gallery shows their names.

    Returns:
        The path of index.html.

    Raises:
        VgsplusError: `out`/report holds something that is not a report, or cannot be written.
    """
    check_place(out)
    target = out / FOLDER
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{FOLDER}-", dir=out) as temporary:
            fresh = Path(temporary) / "new"
            fresh.mkdir()
            _write_files(results, fresh, corpus)
            _swap(fresh, target, Path(temporary) / "old")
    except OSError as error:
        raise VgsplusError(f"{target}: cannot be written ({error}).") from error
    return target / PAGE


def render(results: Results, corpus: Corpus | None = None) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("vgsplus.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": tables.duration,
        "label": tables.label,
        "date": _date,
        "millions": lambda count: f"{count / 1e6:,.1f} M",
    }
    timing = tables.time_rows(results)
    corpus_name = str(results.corpus.get("name", "a corpus without a name"))
    trained = sum(variant.name in VARIANTS for variant in results.variants)
    count = "Nine" if trained == len(VARIANTS) else f"{trained} of the nine"
    return environment.get_template("page.html.j2").render(
        results=results,
        ks=KS,
        paper_ks=tables.PAPER_KS,
        arrows=tables.ARROWS,
        dash=tables.DASH,
        chance=tables.CHANCE,
        trained=[variant.name for variant in tables.ordered(results)],
        number_of_variants=len(VARIANTS),
        headlines={test_set: headline(results, test_set) for test_set in results.test_sets},
        tables={test_set: tables.table_rows(results, test_set) for test_set in results.test_sets},
        details=tables.ordered(results),
        claims={test_set: claims(results, test_set) for test_set in results.test_sets},
        seeds=1 + len(results.repeats),
        abx_rows=table2.table_rows(results),
        conditions=table2.TITLES,
        points=_points,
        figures=_figures(results),
        cards=cards(results, corpus),
        timing=timing,
        training_seconds=sum(row.phase.seconds for row in timing),
        corpus_name=corpus_name,
        heading=f"{count} schedules, trained on {corpus_name}",
        sizes={test_set: _size(results, test_set) for test_set in results.test_sets},
        roles=figures.ROLES,
        shown=PICTURES,
        mark=_mark,
        plain=_plain,
    )


def _write_files(results: Results, folder: Path, corpus: Corpus | None) -> None:
    results.save(folder / DATA)
    (folder / PAGE).write_text(render(results, corpus), encoding="utf-8")
    tables.table1(results).to_csv(folder / "table1.csv", index=False)
    tables.curves(results).to_csv(folder / "curves.csv", index=False)
    claim_table(results).to_csv(folder / "claims.csv", index=False)
    if results.abx is not None:
        table2.table2(results).to_csv(folder / "table2.csv", index=False)
        table2.every_error(results).to_csv(folder / "abx.csv", index=False)
    drawn = {
        "fig2_abx_by_layer": table2.layer_panels(results),
        "fig2_abx_by_epoch": table2.epoch_panels(results),
        "fig3_losses": _loss_panels(results)[1],
    }
    for index, test_set in enumerate(figures.recall_sets(results)):
        name = "recall_by_epoch" if index == 0 else f"recall_by_epoch_{test_set}"
        drawn[name] = figures.recall_panels(results, test_set)
    for name, panels in drawn.items():
        if panels:
            (folder / f"{name}.png").write_bytes(figures.png(panels))


def _swap(fresh: Path, target: Path, aside: Path) -> None:
    """Put `fresh` in the place of `target`; on failure the earlier report is back where it was."""
    earlier = target.exists()
    if earlier:
        target.rename(aside)
    try:
        fresh.rename(target)
    except OSError:
        if earlier:
            aside.rename(target)
        raise
    with contextlib.suppress(OSError):
        shutil.rmtree(aside)


def _loss_panels(results: Results) -> tuple[str, Sequence[Panel]]:
    """The validation losses where a run has them, else those of training."""
    validation = figures.loss_panels(results, "validation")
    return ("validation", validation) if validation else ("training", figures.loss_panels(results, "train"))


def _figures(results: Results) -> tuple[FigureView, ...]:
    split, panels = _loss_panels(results)
    views = [(f"Losses by epoch ({split})", panels)]
    if split == "validation":
        views.append(("Losses by epoch (training)", figures.loss_panels(results, "train")))
    views += [
        (f"Recall by epoch ({tables.label(test_set)})", figures.recall_panels(results, test_set))
        for test_set in figures.recall_sets(results)
    ]
    views += [
        ("ABX error by layer, at the end", table2.layer_panels(results)),
        ("ABX error of the best layer, by epoch", table2.epoch_panels(results)),
    ]
    return tuple(
        FigureView(
            title,
            tuple(figures.svg(panel, f"figure-{number}-{index}") for index, panel in enumerate(drawn)),
            figures.describe(drawn),
        )
        for number, (title, drawn) in enumerate(views)
        if drawn
    )


def _size(results: Results, test_set: str) -> RetrievalScores | None:
    """Any scores on a test set: its size is the same for all variants."""
    return next((v.retrieval[test_set] for v in results.variants if test_set in v.retrieval), None)


def _plain(value: JsonValue) -> str:
    """A setting as text."""
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


def _points(evidence: Evidence) -> str:
    """The number behind a claim as text: mean, interval, and the values of several seeds."""
    text = f"{evidence.mean:+.1f}" if evidence.unit.startswith("points") else f"{evidence.mean:.0f}"
    if evidence.interval is not None:
        text += f" ({evidence.interval[0]:.1f} to {evidence.interval[1]:.1f})"
    text += f" {evidence.unit}"
    if len(evidence.by_seed) > 1:
        text += f"; by seed {', '.join(f'{value:.1f}' for value in evidence.by_seed)}"
    return text.replace("-", "−")


def _mark(name: str) -> dict[str, str]:
    """The classes of the small line that stands for a variant in tables as in figures."""
    first, last = phases_of(name)
    return {"first": figures.ROLES.get(first, "other"), "last": figures.ROLES.get(last, "other")}


def _date(created: str) -> str:
    """An ISO time as "23 November 2025, 14:05"; anything else as it is."""
    try:
        time = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{time.day} {time:%B %Y, %H:%M}"
