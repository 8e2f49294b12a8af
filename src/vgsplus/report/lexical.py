"""Files of the lexical test: scores by word, confusions as a table and as an image."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure

from vgsplus.evaluation.lexical import Separability
from vgsplus.files import write_file
from vgsplus.report.figures import COLOURS, FONT, png_bytes
from vgsplus.report.tables import write_csv

SCORES, CONFUSION, PICTURE = "scores.csv", "confusion.csv", "confusion.png"
CELL = 0.115  # inches per word
MARGINS = (1.1, 1.3)  # inches left and right of the matrix, and above and below it
SMALLEST, LARGEST = 3.0, 24.0  # inches of the matrix
LABELLED = 200  # maximum number of words whose names are drawn


def confusion_png(result: Separability) -> bytes:
    """Draw the share of neighbours by query word (rows); perfect separation is a diagonal.

    The colours have a square-root scale, so that small confusions are visible.
    """
    words = len(result.words)
    side = float(np.clip(CELL * words, SMALLEST, LARGEST))
    size = min(FONT - 1, 72 * 0.85 * side / words)
    shares = result.confusion / result.confusion.sum(axis=1, keepdims=True)
    colours = LinearSegmentedColormap.from_list(
        "share", [COLOURS["background"], COLOURS["w2v2"], COLOURS["ink"]], N=256
    )
    with mpl.rc_context({"font.size": FONT, "font.family": "sans-serif"}):
        width, height = side + 2 * MARGINS[0], side + 2 * MARGINS[1]
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((MARGINS[0] / width, MARGINS[1] / height, side / width, side / height))
        picture = axes.imshow(shares, cmap=colours, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
        names = result.words if words <= LABELLED else ()
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size, color=COLOURS["ink"])
        axes.set_yticks(range(len(names)), names, fontsize=size, color=COLOURS["ink"])
        axes.tick_params(length=0)
        axes.set_xlabel("word of the neighbour", color=COLOURS["muted"])
        axes.set_ylabel("word of the query", color=COLOURS["muted"])
        for spine in axes.spines.values():
            spine.set_color(COLOURS["grid"])
        title = f"Score {result.score:.3f}, chance {result.chance:.3f}"
        axes.set_title(
            title, loc="left", color=COLOURS["ink"], fontsize=FONT + 1.5, fontweight="bold", pad=12
        )
        bar = figure.add_axes((1 - 0.85 * MARGINS[0] / width, MARGINS[1] / height, 0.12 / width, 2 / height))
        figure.colorbar(picture, cax=bar, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
        bar.set_yticklabels(["0 %", "1 %", "5 %", "20 %", "50 %", "100 %"], color=COLOURS["muted"])
        bar.tick_params(length=0, labelsize=FONT - 1.5)
        bar.set_title("neighbours", loc="left", color=COLOURS["muted"], fontsize=FONT - 1.5)
    # Words may be longer than the margins.
    return png_bytes(figure, bbox_inches="tight", pad_inches=0.2)


def write_lexical(result: Separability, folder: Path) -> None:
    """Write scores.csv, confusion.csv and confusion.png to a folder, each atomically.

    scores.csv has a row per word: word, tokens, score. confusion.csv has counts of neighbours: rows are words
    of queries, columns words of neighbours.
    """
    words = pd.Index(result.words, name="word")
    scores = pd.DataFrame({"tokens": result.tokens, "score": result.word_scores}, index=words)
    write_csv(scores, folder / SCORES, index=True)
    write_csv(pd.DataFrame(result.confusion, words, list(words)), folder / CONFUSION, index=True)
    write_file(folder / PICTURE, confusion_png(result))
