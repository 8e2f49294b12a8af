"""ABX errors while they are computed, as a table to look at and as a CSV file."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from vgsplus.evaluation.abx_layers import AbxRow
from vgsplus.report.results import write_whole

BEST = "*"


def abx_table(rows: Sequence[AbxRow], title: str) -> Table:
    """Errors in percent, a row a layer; the model's best layer of each column is marked with a star."""
    columns = list(dict.fromkeys((row.as_published, name) for row in rows for name in row.errors))
    table = Table(
        "features",
        "layer",
        *(f"{name}, as published" if published else name for published, name in columns),
        title=title,
        caption=f"{BEST} the model's best layer. Errors in percent; chance is 50.",
    )
    cells: dict[tuple[str, int | None], dict[tuple[bool, str], float]] = {}
    for row in rows:
        found = cells.setdefault((row.features, row.layer), {})
        found |= {(row.as_published, name): error for name, error in row.errors.items()}
    trained = [found for (features, _), found in cells.items() if features == "model"]
    best = {column: min(found[column] for found in trained) for column in columns if trained}
    for (features, layer), found in cells.items():
        marks = {column: features == "model" and found[column] == best[column] for column in columns}
        table.add_row(
            features,
            "" if layer is None else str(layer),
            *(f"{100 * found[column]:.2f}{BEST if marks[column] else ' '}" for column in columns),
        )
    return table


def write_abx(rows: Sequence[AbxRow], path: Path) -> None:
    """Write a line an error: features, layer, context, protocol, condition, error in [0, 1]."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["features", "layer", "context", "protocol", "condition", "error"])
    for row in rows:
        protocol = "as published" if row.as_published else "corrected"
        layer = "" if row.layer is None else row.layer
        for condition, error in row.errors.items():
            writer.writerow([row.features, layer, row.context, protocol, condition, error])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.getvalue().encode())
