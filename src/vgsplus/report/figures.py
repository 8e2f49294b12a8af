"""Curves: the panels of the paper's Figs. 2 and 3, and recall and further scores by epoch.

The colour of a line shows the last phase of the variant, its dashes the first; its name is at its end. On the
page a figure is an SVG whose colours are CSS variables, so that it follows the light and dark schemes; PNGs
have the light colours.
"""

import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from scipy.optimize import isotonic_regression

from vgsplus.evaluation.abx import CONDITIONS
from vgsplus.evaluation.retrieval import DIRECTIONS
from vgsplus.report.paper import phases_of
from vgsplus.report.results import Results, Variant, ordered
from vgsplus.report.tables import ARROWS, LOSSES

type Points = list[tuple[float, float]]

# Light colours by role; the page's style sheet defines --fig-ROLE for both schemes. Blue, vermilion and green
# of Okabe and Ito's palette, darkened for contrast with the background.
COLOURS = {
    "w2v2": "#0067a6",
    "vgs": "#bf4e00",
    "vgs-plus": "#00805c",
    "other": "#8a3f78",
    "ink": "#24211d",
    "muted": "#6a645b",
    "grid": "#e6e0d4",
    "background": "#fbf9f5",
}
ROLES = {"W2V2": "w2v2", "VGS": "vgs", "VGS+": "vgs-plus"}
DASHES = {"W2V2": "solid", "VGS": (0, (6, 2)), "VGS+": (0, (1.4, 1.6))}
SIZE = (4.6, 3.6)  # inches of a panel
FONT = 9.5
LABEL_SHARE = 0.33  # share of the panel's width that is reserved for names
GAP = 0.058  # minimum distance of names, as a share of the panel's height
MIN_POINTS = 14  # minimum number of points of a loss curve; short runs are averaged over less than an epoch
CONDITION_TITLES = {"within": "within speakers", "across": "across speakers"}


@dataclass(frozen=True, slots=True)
class Line:
    """The curve of a variant: its name, and points (epoch or layer, value).

    Other curves have a role, which is their colour (`COLOURS`).
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    role: str | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: title above the axes.
        lines: lines to draw.
        switches: epochs at which a phase ends and another begins.
        log: whether the vertical axis is logarithmic.
        chance: value of the line "chance", or None.
        axis: label of the horizontal axis.
        from_zero: whether the vertical axis starts at 0.
    """

    title: str
    lines: tuple[Line, ...]
    switches: tuple[float, ...]
    log: bool
    chance: float | None = None
    axis: str = "epoch"
    from_zero: bool = True


def loss_terms(results: Results) -> tuple[str, ...]:
    """Return the names of all terms of the loss, those of the paper first."""
    found = {term for variant in results.variants for point in variant.losses for term in point.terms}
    return (*(term for term in LOSSES if term in found), *sorted(found - LOSSES.keys()))


def loss_panels(
    results: Results, split: Literal["train", "validation"], terms: Iterable[str] = tuple(LOSSES)
) -> tuple[Panel, ...]:
    """Return a panel per term of the loss that has values: means over epochs, by epoch (Fig. 3)."""
    panels: list[Panel] = []
    for term in terms:
        _, title = LOSSES.get(term, ("", term.replace("_", " ").replace("/", ", ")))
        panels += _panel(results, title, partial(_by_epoch, split=split, term=term), log=True)
    return tuple(panels)


def recall_panels(results: Results, test_set: str) -> tuple[Panel, ...]:
    """Return recall by epoch on a test set, in percent, a panel per direction, at the largest k up to 10."""
    found = {v.name: [point for point in v.recalls if point.test_set == test_set] for v in results.variants}
    ks = [set(point.speech_to_image) for points in found.values() for point in points]
    common = set.intersection(*ks) if ks else set()
    if not common:
        return ()
    k = max((k for k in common if k <= 10), default=min(common))
    scores = next((v.retrieval[test_set] for v in ordered(results) if test_set in v.retrieval), None)
    panels: list[Panel] = []
    for direction in DIRECTIONS:
        chance = scores.direction(direction).chance.get(k) if scores else None

        def points(variant: Variant, direction: str = direction) -> Points:
            return [(point.epoch, 100 * getattr(point, direction)[k]) for point in found[variant.name]]

        title = f"R@{k}, {ARROWS[direction]} (%)"
        panels += _panel(results, title, points, chance=chance and 100 * chance)
    return tuple(panels)


def recall_sets(results: Results) -> tuple[str, ...]:
    """Return the test sets on which recall was measured during training."""
    return tuple(dict.fromkeys(p.test_set for variant in results.variants for p in variant.recalls))


def abx_panels(results: Results, axis: Literal["layer", "epoch"]) -> tuple[Panel, ...]:
    """Return ABX errors in percent (Fig. 2), a panel per condition.

    By layer after the last epoch (left in the paper), or of the best layer by epoch (right).
    """
    panels: list[Panel] = []
    for condition in CONDITIONS:

        def points(variant: Variant, condition: str = condition) -> Points:
            errors = [
                (point.epoch, point.errors[condition]) for point in variant.abx if condition in point.errors
            ]
            if axis == "epoch" or not errors:
                return [(epoch, 100 * min(of_layers.values())) for epoch, of_layers in errors]
            return sorted((float(layer), 100 * error) for layer, error in errors[-1][1].items())

        panels += _panel(
            results, f"ABX {CONDITION_TITLES[condition]} (%)", points, axis=axis, from_zero=False
        )
    return tuple(panels)


def score_panels(results: Results) -> tuple[Panel, ...]:
    """Return further scores by epoch, a panel per name."""
    panels: list[Panel] = []
    for name in dict.fromkeys(n for v in results.variants for point in v.scores for n in point.scores):

        def points(variant: Variant, name: str = name) -> Points:
            return [(point.epoch, point.scores[name]) for point in variant.scores if name in point.scores]

        panels += _panel(results, name, points, from_zero=False)
    return tuple(panels)


def _panel(
    results: Results,
    title: str,
    points: Callable[[Variant], Points],
    *,
    log: bool = False,
    axis: str = "epoch",
    **options: Any,  # noqa: ANN401 - of Panel
) -> list[Panel]:
    """Return a panel with a line per variant that has points, or [] if no variant has."""
    found = {variant.name: points(variant) for variant in ordered(results)}
    lines = tuple(Line(n, tuple(x for x, _ in of), tuple(y for _, y in of)) for n, of in found.items() if of)
    marks = switches(results) if axis == "epoch" else ()
    return [Panel(title, lines, marks, log=log, axis=axis, **options)] if lines else []


def _by_epoch(variant: Variant, split: str, term: str) -> Points:
    """Return means over epochs, or over shorter intervals of a short run, each at the end of its interval.

    Values that a log axis cannot show are skipped.
    """
    points = [(p.phase, p.epoch, p.terms.get(term)) for p in variant.losses if p.split == split]
    losses = pd.DataFrame(points, columns=["phase", "epoch", "value"], dtype=float)
    width = min(1.0, losses["epoch"].max() / MIN_POINTS)
    losses = losses[np.isfinite(losses["value"]) & (losses["value"] > 0)]
    intervals = losses.groupby([losses["phase"], np.ceil(losses["epoch"] / width - 1e-9)])
    return list(intervals.agg({"epoch": "max", "value": "mean"}).itertuples(index=False, name=None))


def switches(results: Results) -> tuple[float, ...]:
    """Return the distinct epochs at which a phase of a variant ends and another begins."""
    ends: set[float] = set()
    for variant in results.variants:
        ends.update(np.cumsum([phase.epochs for phase in variant.phases])[:-1].tolist())
    return tuple(sorted(ends))


def svg(panel: Panel, name: str) -> str:
    """Draw a panel as an <svg> element whose colours are CSS variables and whose ids start with `name`."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure = _figure([panel])
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 aria-hidden="true" focusable="false"', text, count=1)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for role, colour in COLOURS.items():
        text = text.replace(colour, f"var(--fig-{role})")
    return re.sub(r"font-family: [^;\"]*; ", "", text)


def png(panels: Sequence[Panel]) -> bytes:
    """Draw panels side by side in the light colours."""
    return png_bytes(_figure(panels))


def png_bytes(figure: Figure, **options: Any) -> bytes:  # noqa: ANN401 - of matplotlib
    """Return a figure as PNG on the page's background; `options` are passed to `savefig`."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    options |= {"facecolor": COLOURS["background"], "metadata": {"Software": None}}
    figure.savefig(buffer, format="png", dpi=160, **options)
    return buffer.getvalue()


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions as little as possible to be at least `gap` apart and between `low` and `high`.

    The order is preserved. The gap shrinks if not all of them fit.
    """
    if not positions:
        return []
    gap = min(gap, (high - low) / max(1, len(positions) - 1))
    order = np.argsort(np.asarray(positions), kind="stable")
    offsets = gap * np.arange(len(positions))
    # Without the gaps, the positions must not decrease.
    level = isotonic_regression(np.asarray(positions, float)[order] - offsets).x
    level = np.clip(level, low, high - offsets[-1]) + offsets
    placed = np.empty(len(positions))
    placed[order] = level
    return [float(value) for value in placed]


def _style(line: Line) -> dict[str, object]:
    first, last = phases_of(line.name)
    return {
        "color": COLOURS[line.role or ROLES.get(last, "other")],
        "linestyle": "solid" if line.role else DASHES.get(first, "dashdot"),
        "linewidth": 1.6,
        "dash_capstyle": "butt",
        "solid_capstyle": "round",
    }


def _figure(panels: Sequence[Panel]) -> Figure:
    with mpl.rc_context({"font.size": FONT, "font.family": "sans-serif"}):
        figure = Figure(figsize=(SIZE[0] * len(panels), SIZE[1]))
        for index, panel in enumerate(panels):
            left = (index + 0.115) / len(panels)
            width = (1 - 0.115 - LABEL_SHARE) / len(panels)
            _draw(figure.add_axes((left, 0.13, width, 0.74)), panel)
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    for line in panel.lines:
        marker = {"marker": "o", "markersize": 3.5} if len(line.x) == 1 else {}
        axes.plot(line.x, line.y, **_style(line), **marker)  # type: ignore[arg-type] # mixed keywords
    _format_axes(axes, panel)
    if panel.chance is not None:
        axes.axhline(panel.chance, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        # Curves begin after the start of training, so that the left end of this line is free.
        axes.text(0.01, panel.chance, "chance", transform=axes.get_yaxis_transform(), ha="left", va="bottom",
                  color=COLOURS["muted"], fontsize=FONT - 1.5)  # fmt: skip
    for epoch in panel.switches:
        axes.axvline(epoch, color=COLOURS["muted"], linewidth=0.8, zorder=1)
        axes.text(epoch, 1.015, "switch", transform=axes.get_xaxis_transform(), ha="center", va="bottom",
                  color=COLOURS["muted"], fontsize=FONT - 1.5)  # fmt: skip
    _label_lines(axes, panel)


def _format_axes(axes: Axes, panel: Panel) -> None:
    """Set scales, ticks, grid and title."""
    last = max(x for line in panel.lines for x in line.x)
    first = min(x for line in panel.lines for x in line.x)
    axes.set_xlim(min(first, 0.0) if panel.axis == "epoch" else first, last if last > first else last + 1)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    if panel.log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        near = high / low < 5
        axes.yaxis.set_major_locator(
            MaxNLocator(6, steps=[1, 2, 5, 10]) if near else LogLocator(subs=(1, 2, 5))
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif panel.from_zero:
        axes.set_ylim(bottom=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(COLOURS["muted"])
    axes.grid(axis="y", color=COLOURS["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    axes.tick_params(length=0, colors=COLOURS["muted"], labelsize=FONT - 0.5)
    axes.set_xlabel(panel.axis, color=COLOURS["muted"], loc="right")
    axes.set_title(
        panel.title, loc="left", color=COLOURS["ink"], fontsize=FONT + 1.5, fontweight="bold", pad=16
    )


def _label_lines(axes: Axes, panel: Panel) -> None:
    """Write each line's name next to its last point; names that would overlap are moved apart."""
    to_axes = axes.transData + axes.transAxes.inverted()
    groups: dict[float, list[tuple[Line, float]]] = defaultdict(list)
    for line in panel.lines:
        x, y = to_axes.transform((line.x[-1], line.y[-1]))
        groups[round(float(x), 3)].append((line, float(y)))
    for x, members in groups.items():
        at_edge = x > 1 - 1e-3
        background = {"facecolor": COLOURS["background"], "edgecolor": "none", "pad": 0.6, "alpha": 0.7}
        box = None if at_edge else background
        heights = spread([y for _, y in members], GAP / 0.74, 0.0, 1.0)
        for (line, y), height in zip(members, heights, strict=True):
            colour = _style(line)["color"]
            start = x + 0.045
            axes.plot([x + 0.006, start - 0.008], [y, height], transform=axes.transAxes, color=colour,
                      linewidth=0.6, clip_on=False)  # fmt: skip
            axes.text(start, height, line.name, transform=axes.transAxes, color=colour, va="center_baseline",
                      fontsize=FONT - 0.5, bbox=box, zorder=3 if at_edge else 4)  # fmt: skip


def describe(panels: Sequence[Panel]) -> str:
    """Return a text alternative: the titles, and the last value of every line."""
    parts = []
    for panel in panels:
        ends = [f"{line.name} {line.y[-1]:.3g} at {panel.axis} {line.x[-1]:g}" for line in panel.lines]
        parts.append(f"{panel.title}, last values: {'; '.join(ends)}.")
    return " ".join(parts)
