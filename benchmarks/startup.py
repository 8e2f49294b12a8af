# ruff: noqa: S603 - starts its own interpreter
"""How long a start takes: the import, every `vgsplus … --help`, and the embedding of 4 s, with their limits.

Each time is of a new process, in milliseconds by the clock and by the processor, which other programs disturb
less; medians over the repeats. Imports are timed after `import torch`, and the embedding after a first call.

OMP_NUM_THREADS=1 python benchmarks/startup.py --repeats 7
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table
from typer.main import get_command

from vgsplus.audio import SAMPLE_RATE
from vgsplus.cli import app

type Times = tuple[float, float]
"""Milliseconds by the clock and by the processor."""

START = """
import json, sys, time
import torch

def timed(call):
    clock, processor = time.perf_counter(), time.process_time()
    call()
    return 1e3 * (time.perf_counter() - clock), 1e3 * (time.process_time() - processor)

def named():
    import vgsplus
    vgsplus.load

def loaded():
    global model
    import vgsplus
    model = vgsplus.load(sys.argv[1])

sound = sys.argv[2]
found = {"import": timed(lambda: __import__("vgsplus")), "name": timed(named), "load": timed(loaded)}
model.encode_speech([sound])
found["encode"] = timed(lambda: model.encode_speech([sound]))
print(json.dumps(found))
"""
ROWS = {
    "import": ("import vgsplus", 300),
    "name": ("vgsplus.load, its modules", None),
    "load": ("vgsplus.load(MODEL)", None),
    "encode": ("model.encode_speech([FILE]), 4 s", 50),
}
"""What is measured, and its limit in milliseconds."""
HELP_LIMIT = 1000


def start(model: str, sound: str) -> dict[str, Times]:
    """Import, load and embed in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", START, model, sound], check=True, capture_output=True, text=True
    )
    found: dict[str, Times] = {name: tuple(times) for name, times in json.loads(done.stdout).items()}
    return found


def commands(group: object, *names: str) -> Iterator[tuple[str, ...]]:
    """The names of all commands of a group, and of those of its groups."""
    yield names
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *names, name)


def show_help(command: tuple[str, ...]) -> Times:
    """Display the help of a command in a new process."""
    clock, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "vgsplus", *command, "--help"], check=True, capture_output=True)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = now.ru_utime - used.ru_utime + now.ru_stime - used.ru_stime
    return 1e3 * (time.perf_counter() - clock), 1e3 * processor


def medians(runs: list[Times]) -> Times:
    """The median of each kind of time."""
    return statistics.median(clock for clock, _ in runs), statistics.median(used for _, used in runs)


def main() -> None:
    """Print a table of medians and limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", default="toy", help="a run or saved model (default: toy)")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sound = str(Path(folder) / "sound.wav")
        soundfile.write(sound, np.random.default_rng(0).normal(0, 0.1, 4 * SAMPLE_RATE), SAMPLE_RATE)
        starts = [start(options.model, sound) for _ in range(options.repeats)]
    listed = list(commands(get_command(app)))
    helps = {command: medians([show_help(command) for _ in range(options.repeats)]) for command in listed}
    rows = [(what, medians([run[key] for run in starts]), limit) for key, (what, limit) in ROWS.items()]
    slowest = max(helps, key=helps.__getitem__)
    shown = " ".join(("vgsplus", *slowest, "--help"))
    rows.append((f"{shown}, the slowest of {len(helps)}", helps[slowest], HELP_LIMIT))
    table = Table("", *(f"{name}, ms" for name in ("clock", "processor", "limit")))
    for what, (clock, processor), limit in rows:
        table.add_row(what, f"{clock:.0f}", f"{processor:.0f}", "" if limit is None else str(limit))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
