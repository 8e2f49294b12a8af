"""Where in a picture and when in a sound a model finds what they share: a figure, and tables of accuracy."""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from vgsplus.audio import SAMPLE_RATE, Signal
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.pointing.evaluate import ALL_WORDS, PointingRow
from vgsplus.evaluation.pointing.localise import WINDOW, Localisation, heat_map
from vgsplus.files import write_file
from vgsplus.regions.pixel_grid import over_white
from vgsplus.report.figures import COLOURS, FONT
from vgsplus.report.tables import interval, percent, terminal_table

SUFFIXES = (".png", ".pdf", ".svg")
MOMENTS = 5
SIDE = 600  # maximum pixels of a side of the picture
PALEST = 0.2  # share of its own colours that a region keeps whose score is not positive
WIDTH, TOP, PART = 9.0, 0.62, 1.0  # inches of the figure, of its title, and of waveform and curve
LARGE, GAP, EDGE = 2.3, 0.13, 0.32  # inches of the picture of the complete sound, between and around all
SMALL = (WIDTH - 2 * EDGE - LARGE - GAP) / MOMENTS - GAP


def check_figure(path: Path) -> None:
    """Raise VgsplusError if a figure cannot be written in the format of a file name."""
    if path.suffix.lower() not in SUFFIXES:
        raise VgsplusError(f"{path}: its name must end with {', '.join(SUFFIXES)}, the format of the figure.")


def write_figure(path: Path, signal: Signal, image: Image.Image, found: Localisation, title: str) -> None:
    """Draw the regions of the complete sound and of a few moments, the waveform, and the score over time.

    The picture is pale where the score of its regions is low, and shows its own colours where it is highest;
    the strongest region has a frame. Moments are those at which a region has the highest scores, at least
    `WINDOW` seconds apart.

    Args:
        path: file to write atomically; its folder is made.
        signal: (S,) at 16 kHz.
        image: the picture.
        found: the contributions to the similarity of both.
        title: title of the figure.

    Raises:
        VgsplusError: as `check_figure`.
    """
    check_figure(path)
    chosen = moments(found.times.numpy(), found.scores.numpy())
    shown = over_white(image)
    shown.thumbnail((SIDE, SIDE))
    height = TOP + LARGE + 2 * PART + 3 * EDGE
    with mpl.rc_context({"font.size": FONT, "font.family": "sans-serif", "svg.hashsalt": "explain"}):
        figure = Figure(figsize=(WIDTH, height))

        def place(left: float, bottom: float, width: float, tall: float) -> Axes:
            return figure.add_axes((left / WIDTH, bottom / height, width / WIDTH, tall / height))

        bottom = 2 * PART + 3 * EDGE
        boxes = found.boxes.numpy()
        whole = place(EDGE, bottom, LARGE, LARGE)
        _draw_regions(whole, shown, boxes, found.region_scores.numpy(), "complete sound")
        for number, moment in enumerate(chosen):
            left = EDGE + LARGE + 2 * GAP + number * (SMALL + GAP)
            axes = place(left, bottom + (LARGE - SMALL) / 2, SMALL, SMALL)
            name = f"{number + 1}: {found.times[moment]:.2f} s"
            _draw_regions(axes, shown, boxes, found.scores[moment].numpy(), name)
        wave = place(EDGE, PART + 1.6 * EDGE, WIDTH - 2 * EDGE, PART)
        curve = place(EDGE, 1.2 * EDGE, WIDTH - 2 * EDGE, PART)
        _draw_time(wave, curve, signal, found, chosen)
        figure.text(EDGE / WIDTH, 1 - 0.24 / height, title, va="top", color=COLOURS["ink"],
                    fontsize=FONT + 1.5, fontweight="bold")  # fmt: skip
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        metadata = {"Software": None} if path.suffix.lower() == ".png" else None
        figure.savefig(buffer, format=path.suffix.lower()[1:], dpi=160, facecolor=COLOURS["background"],
                       metadata=metadata)  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, buffer.getvalue())


def moments(times: NDArray[np.floating], scores: NDArray[np.floating]) -> list[int]:
    """Return up to `MOMENTS` of times (T,), in order, with the highest scores (T, R) of a region."""
    highest = scores.max(axis=1)
    chosen: list[int] = []
    for index in np.argsort(-highest, kind="stable"):
        if len(chosen) < MOMENTS and all(abs(times[index] - times[other]) >= WINDOW for other in chosen):
            chosen.append(int(index))
    return sorted(chosen)


def _draw_regions(
    axes: Axes, image: Image.Image, boxes: NDArray[np.floating], scores: NDArray[np.floating], name: str
) -> None:
    pixels = np.asarray(image, dtype=np.float64) / 255
    height, width = pixels.shape[:2]
    share = PALEST + (1 - PALEST) * heat_map(boxes, scores, width, height)[..., None]
    axes.imshow(share * pixels + (1 - share), interpolation="nearest")
    if scores.max() > 0:
        x1, y1, x2, y2 = boxes[scores.argmax()] * (width, height, width, height)
        frame = Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, linewidth=1.6)
        frame.set_edgecolor(COLOURS["vgs"])
        frame.set_clip_on(False)
        axes.add_patch(frame)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(COLOURS["muted"])
        spine.set_linewidth(0.6)
    axes.set_title(name, loc="left", color=COLOURS["ink"], fontsize=FONT - 0.5, pad=4)


def _draw_time(wave: Axes, curve: Axes, signal: Signal, found: Localisation, chosen: list[int]) -> None:
    times = np.arange(len(signal)) / SAMPLE_RATE
    wave.plot(times, signal, color=COLOURS["w2v2"], linewidth=0.4, rasterized=True)
    curve.axhline(0, color=COLOURS["muted"], linewidth=0.6)
    curve.plot(found.times, found.time_scores, color=COLOURS["vgs"], linewidth=1.6)
    for axes in (wave, curve):
        axes.set_xlim(0, len(signal) / SAMPLE_RATE)
        axes.patch.set_visible(False)
        axes.tick_params(length=0, colors=COLOURS["muted"], labelsize=FONT - 1)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom" and axes is curve)
            spine.set_color(COLOURS["muted"])
        for moment in chosen:
            axes.axvline(
                float(found.times[moment]), color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (2, 2))
            )
    wave.set_xticks([])
    wave.set_yticks([])
    for number, moment in enumerate(chosen, start=1):
        wave.text(float(found.times[moment]), 1.0, f"{number}", transform=wave.get_xaxis_transform(),
                  ha="center", va="bottom", color=COLOURS["ink"], fontsize=FONT - 0.5)  # fmt: skip
    curve.set_yticks([0])
    curve.set_xlabel("seconds", color=COLOURS["muted"], loc="right", labelpad=0)
    curve.set_title(f"similarity lost if {WINDOW:g} s are silent", loc="left", color=COLOURS["muted"],
                    fontsize=FONT - 0.5, pad=3)  # fmt: skip


# ---- tables of the pointing game ---------------------------------------------------------------------------


def pointing_table(rows: Sequence[PointingRow]) -> pd.DataFrame:
    """Return the share of words that each method gets right, as a fraction with its interval."""
    return pd.DataFrame(
        {
            "method": row.method,
            "word": row.word,
            "tokens": row.tokens,
            "pictures": row.pictures,
            "accuracy": row.accuracy.value,
            "low": row.accuracy.low,
            "high": row.accuracy.high,
        }
        for row in rows
    )


def pointing_terminal(rows: Sequence[PointingRow], title: str) -> Table:
    """Return the accuracies in percent, of all words, then of each word by the model."""
    texts = [
        [
            row.method if row.word == ALL_WORDS else f"  {row.word}",
            f"{row.tokens}",
            percent(100 * row.accuracy.value),
            interval(100 * row.accuracy.low, 100 * row.accuracy.high),
        ]
        for row in rows
    ]
    caption = (
        "In percent, with 95 % intervals over pictures; below the baselines, the model by word. Other "
        "captions: the words of all other pictures in the place of each."
    )
    return terminal_table(["method", "words", "on the object", "interval"], texts, title, caption)
