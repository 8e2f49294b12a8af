"""ABX errors of runs with 95 % intervals over files, and their differences from those of log-Mel energies.

    python benchmarks/abx_intervals.py test.item SOUNDS out/speech/seed-0 out/speech/seed-1 --condition within

The files of the items are divided into groups, and every error is computed without each of them in turn: the
jackknife over groups gives the standard error, Student's distribution with one degree of freedom less than
groups the interval. A difference is that of the same files. The mean over runs has the interval of its files
alone; the range over runs shows what seeds add.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from vgsplus.evaluation.abx_items import read_items
from vgsplus.evaluation.abx_layers import AbxTask, score_layers, score_log_mel
from vgsplus.interop.pretrained import load


def main() -> None:
    """Print a line for each layer and for log-Mel energies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("item", type=Path)
    parser.add_argument("audio", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--condition", choices=("within", "across"), default="within")
    parser.add_argument("--groups", type=int, default=10)
    arguments = parser.parse_args()
    items = read_items(arguments.item, conditions=[arguments.condition], audio_root=arguments.audio)
    files = np.random.default_rng(0).permutation(sorted({token.file for token in items.tokens})).tolist()
    left_out = [set[str]()] + [set(files[group :: arguments.groups]) for group in range(arguments.groups)]
    tasks = [
        AbxTask(
            items=replace(
                items,
                tokens=tuple(token for token in items.tokens if token.file not in files),
                audio={file: sound for file, sound in items.audio.items() if file not in files},
            ),
            conditions=(arguments.condition,),
        )
        for files in left_out
    ]
    models = [load(run) for run in arguments.runs]
    log_mel = 100 * np.array([score_log_mel(task)[0].errors[arguments.condition] for task in tasks])
    errors = 100 * np.array(  # of each run, task and layer
        [
            [[row.errors[arguments.condition] for row in score_layers(model, task)] for task in tasks]
            for model in models
        ]
    )
    print(f"{len(files)} files, {len(items.tokens)} tokens of {items.path}, {arguments.condition} speakers")
    print(f"log-Mel: {_interval(log_mel)}")
    for layer in range(errors.shape[2]):
        every = errors[:, :, layer]
        print(
            f"layer {layer + 1}: {_interval(every.mean(0))}, runs {every[:, 0].min():.2f} to "
            f"{every[:, 0].max():.2f}; minus log-Mel {_interval(every.mean(0) - log_mel)}"
        )


def _interval(errors: NDArray[np.float64]) -> str:
    """Return the first value and the interval that the others, without a group each, give."""
    value, without = errors[0], errors[1:]
    deviation = np.sqrt((len(without) - 1) * without.var())
    half = t.ppf(0.975, len(without) - 1) * deviation
    return f"{value:.2f} ({value - half:.2f} to {value + half:.2f})"


if __name__ == "__main__":
    main()
