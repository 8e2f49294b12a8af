"""Table II's shape and Fig. 2 out of results: ABX errors by variant, by layer and by epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from vgsplus.evaluation.abx import CONDITIONS
from vgsplus.report.figures import Line, Panel, switches
from vgsplus.report.paper import PAPER, VARIANTS
from vgsplus.report.tables import DASH, ordered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vgsplus.report.results import AbxBaseline, Results, Variant

type Best = tuple[float, int | None]
"""The smallest error in [0, 1], and the layer that makes it."""

TITLES = {"within": "within speakers", "across": "across speakers"}


@dataclass(frozen=True, slots=True)
class Row:
    """A row of Table II: by condition the corrected error, as published, and the paper's, each as text."""

    name: str
    baseline: bool
    ours: dict[str, str]
    published: dict[str, str]
    paper: dict[str, str]
    best: dict[str, bool]


def table_rows(results: Results) -> tuple[Row, ...]:
    """The nine rows, then one for each kind of untrained features; none where ABX was not measured."""
    if results.abx is None:
        return ()
    found = _best(results)
    trained = [errors for name, errors in found.items() if name in PAPER]
    lowest = {
        condition: min((errors[condition][0] for errors in trained if condition in errors), default=0.0)
        for condition in CONDITIONS
    }
    published = _best(results, published=True)
    return tuple(
        Row(
            name=name,
            baseline=name not in PAPER,
            ours={c: _text(found.get(name, {}).get(c)) for c in CONDITIONS},
            published={c: _text(published.get(name, {}).get(c)) for c in CONDITIONS},
            paper={c: _paper(name, c) for c in CONDITIONS},
            best={c: name in PAPER and found.get(name, {}).get(c, (1,))[0] == lowest[c] for c in CONDITIONS},
        )
        for name in [*VARIANTS, *(name for name in found if name not in PAPER)]
    )


def table2(results: Results) -> pd.DataFrame:
    """A row a variant and kind of untrained features: errors in percent, their layers, and the paper's."""
    found, published = _best(results), _best(results, published=True)
    rows = []
    for name in [*VARIANTS, *(name for name in found if name not in PAPER)]:
        row: dict[str, object] = {"features": name}
        for condition in CONDITIONS:
            for suffix, best in (("", found), (" as published", published)):
                error, layer = best.get(name, {}).get(condition, (None, None))
                row[f"{condition}{suffix}"] = None if error is None else round(100 * error, 4)
                row[f"{condition}{suffix} layer"] = layer
            error, layer = getattr(PAPER[name], f"abx_{condition}") if name in PAPER else (None, None)
            row[f"paper {condition}"], row[f"paper {condition} layer"] = error, layer
        rows.append(row)
    layers = [column for column in rows[0] if column.endswith("layer")]
    return pd.DataFrame(rows).astype(dict.fromkeys(layers, "Int64"))


def every_error(results: Results) -> pd.DataFrame:
    """Every ABX error of every seed, one a row, in [0, 1]."""
    columns = ["features", "seed", "epoch", "condition", "protocol", "layer", "error"]
    return pd.DataFrame(list(_every(results)), columns=columns).astype({"layer": "Int64"})


def layer_panels(results: Results) -> tuple[Panel, ...]:
    """Errors in percent by layer after the last epoch (Fig. 2, left), a panel a condition."""
    return _panels(
        results,
        lambda variant, condition: sorted(
            (float(layer), 100 * error) for layer, error in variant.abx[-1].errors[condition].items()
        ),
        axis="layer",
    )


def epoch_panels(results: Results) -> tuple[Panel, ...]:
    """Errors in percent of the best layer by epoch (Fig. 2, right), a panel a condition."""
    return _panels(
        results,
        lambda variant, condition: [
            (point.epoch, 100 * min(point.errors[condition].values())) for point in variant.abx
        ],
        axis="epoch",
    )


def _panels(
    results: Results, points: Callable[[Variant, str], list[tuple[float, float]]], *, axis: str
) -> tuple[Panel, ...]:
    panels = []
    for condition in CONDITIONS:
        lines = []
        for variant in ordered(results):
            if variant.abx and condition in variant.abx[-1].errors:
                x, y = zip(*points(variant, condition), strict=True)
                lines.append(Line(variant.name, x, y))
        if lines:
            title = f"ABX {TITLES[condition]} (%)"
            marks = switches(results) if axis == "epoch" else ()
            panels.append(Panel(title, tuple(lines), marks, log=False, axis=axis, from_zero=False))
    return tuple(panels)


def _best(results: Results, *, published: bool = False) -> dict[str, dict[str, Best]]:
    """The best layer of each variant and of each kind of untrained features, by condition."""
    found: dict[str, dict[str, Best]] = {}
    for variant in ordered(results):
        if variant.abx:
            errors = variant.abx[-1].published if published else variant.abx[-1].errors
            found[variant.name] = {
                condition: min((error, layer) for layer, error in of_layers.items())
                for condition, of_layers in errors.items()
            }
    for baseline in results.abx.baselines if results.abx else ():
        errors_of = baseline.published if published else baseline.errors
        known = found.setdefault(baseline.features, {})
        for condition, error in errors_of.items():
            if condition not in known or error < known[condition][0]:
                known[condition] = (error, baseline.layer)
    return found


def _text(best: Best | None) -> str:
    if best is None:
        return DASH
    error, layer = best
    return f"{100 * error:.2f}" + ("" if layer is None else f" ({layer})")


def _paper(name: str, condition: str) -> str:
    if name not in PAPER:
        return DASH
    error, layer = getattr(PAPER[name], f"abx_{condition}")
    return f"{error:.2f} ({layer})"


def _every(results: Results) -> Iterator[tuple[object, ...]]:
    first = results.settings.get("seed")
    for seed, variants in [(first, results.variants), *((r.seed, r.variants) for r in results.repeats)]:
        for variant in variants:
            for point in variant.abx:
                for protocol, errors in (("corrected", point.errors), ("as published", point.published)):
                    for condition, of_layers in errors.items():
                        for layer, error in of_layers.items():
                            yield variant.name, seed, point.epoch, condition, protocol, layer, error
    for baseline in results.abx.baselines if results.abx else ():
        yield from _of_baseline(baseline)


def _of_baseline(baseline: AbxBaseline) -> Iterator[tuple[object, ...]]:
    both: Mapping[str, Mapping[str, float]] = {
        "corrected": baseline.errors,
        "as published": baseline.published,
    }
    for protocol, errors in both.items():
        for condition, error in errors.items():
            yield baseline.features, None, None, condition, protocol, baseline.layer, error
