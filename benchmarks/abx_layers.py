"""Cost of all layers compared to one: seconds to extract frames of layers for ABX, on synthetic sound.

Compares one pass that keeps all layers, one pass that keeps the last layer, and a pass for every layer in
turn, as programs do that take one layer at a time. Reading sound, the model and keeping the frames on disk
are timed; scoring is not. The three take turns in each repeat, so that a machine that slows down slows all of
them; medians over the repeats are reported, and ratios within repeats.

    python benchmarks/abx_layers.py --sizes toy --repeats 5 --json times.json
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peers import machine
from written import write_json

from vgsplus.audio import SAMPLE_RATE, write_wav
from vgsplus.config import load_config
from vgsplus.evaluation.hidden_states import LayerStore, iterate_hidden_states
from vgsplus.models.published import build_model
from vgsplus.models.vgsplus import VGSPlus

SIZES = ("toy", "paper")
WAYS = ("all layers, one pass", "last layer, one pass", "all layers, a pass each")
MEAN_SECONDS, DEVIATION_SECONDS, SHORTEST_SECONDS = 7.0, 4.0, 1.5


@dataclass(frozen=True, kw_only=True)
class Result:
    """The time of one way.

    Attributes:
        layers: of the model.
        audio_seconds: of sound, each counted once.
        seconds: median.
        ratio: median over the repeats of its time over that of one pass for the last layer.
    """

    size: str
    way: str
    layers: int
    audio_seconds: float
    seconds: float
    ratio: float


def write_sounds(folder: Path, files: int, seed: int) -> dict[str, Path]:
    """Noise as long as the utterances of read speech, about 7 s in the mean."""
    rng = np.random.default_rng(seed)
    sounds = {}
    for number in range(files):
        seconds = max(SHORTEST_SECONDS, rng.normal(MEAN_SECONDS, DEVIATION_SECONDS))
        sounds[str(number)] = folder / f"{number}.wav"
        noise = rng.normal(0, 0.1, int(seconds * SAMPLE_RATE)).astype(np.float32)
        write_wav(sounds[str(number)], noise)
    return sounds


def extract(
    model: VGSPlus, sounds: Mapping[str, Path], layers: Sequence[int], device: torch.device, folder: Path
) -> float:
    """Extract layers in one pass; returns the seconds it took, to the last frame on disk."""
    start = time.perf_counter()
    store = LayerStore(layers, folder)
    for _, outputs in iterate_hidden_states(model, sounds, layers, device=device):
        for layer, frames in zip(layers, outputs, strict=True):
            store.add(layer, frames)
    return time.perf_counter() - start


def measure(
    size: str, *, files: int, repeats: int, warmup: int, seed: int, device: torch.device
) -> list[Result]:
    """Time the three ways, in turn, `repeats` times after `warmup` times that do not count."""
    torch.manual_seed(seed)
    model = build_model(load_config(size, ["corpus=synthetic"]).model).to(device).eval()
    every = range(1, len(model.speech.layers) + 1)
    passes: dict[str, list[Sequence[int]]] = {
        WAYS[0]: [every],
        WAYS[1]: [every[-1:]],
        WAYS[2]: [[layer] for layer in every],
    }
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as place:
        sounds = write_sounds(Path(place), files, seed)
        audio_seconds = sum(path.stat().st_size for path in sounds.values()) / 2 / SAMPLE_RATE
        for repeat in range(warmup + repeats):
            for way, groups in passes.items():
                seconds = sum(extract(model, sounds, layers, device, Path(place)) for layers in groups)
                if repeat >= warmup:
                    times[way].append(seconds)
    return [
        Result(
            size=size,
            way=way,
            layers=len(every),
            audio_seconds=audio_seconds,
            seconds=statistics.median(times[way]),
            ratio=statistics.median(
                one / other for one, other in zip(times[way], times[WAYS[1]], strict=True)
            ),
        )
        for way in WAYS
    ]


def show(results: Sequence[Result]) -> None:
    """Print a line a way."""
    print(f"{'size':<6} {'layers':>6} {'audio s':>8}  {'way':<24} {'s':>8} {'ratio':>6}")
    for r in results:
        print(
            f"{r.size:<6} {r.layers:>6} {r.audio_seconds:>8.0f}  {r.way:<24} "
            f"{r.seconds:>8.2f} {r.ratio:>6.2f}"
        )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="presets to time")
    parser.add_argument("--files", type=int, default=40, help="sounds, about 7 s each")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns")
    parser.add_argument("--warmup", type=int, default=1, help="turns before timing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the results here too")
    arguments = parser.parse_args()
    if arguments.repeats < 1 or arguments.files < 1:
        parser.error("--repeats and --files must be at least 1")
    return arguments


def main() -> None:
    """Time the sizes asked for, print a table, and write JSON where asked."""
    arguments = parse_arguments()
    device = torch.device(arguments.device)
    results: list[Result] = []
    for size in arguments.sizes:
        results += measure(
            size,
            files=arguments.files,
            repeats=arguments.repeats,
            warmup=arguments.warmup,
            seed=arguments.seed,
            device=device,
        )
    show(results)
    write_json(arguments.json, machine=machine(device), repeats=arguments.repeats, results=results)


if __name__ == "__main__":
    main()
