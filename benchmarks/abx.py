"""What ABX costs at the size of LibriSpeech: seconds, peak memory and differences, against fastabx itself.

Tokens are drawn: 39 phones and their neighbours, of frequencies between equal and Zipf's law, 3 to 12 frames,
speakers alike; frames are normal, around a centre for each phone. Both programs get the same frames and make
their comparisons anew; fastabx is called as in its documentation, in float32. Every run is a process of its
own, so that its peak is its own (Linux); the programs take turns in each repeat, and medians are reported.

    python benchmarks/abx.py --cases any one thirty --widths 256 768 --repeats 3   # against fastabx
    python benchmarks/abx.py --cases thirty --widths 768 --layers 12 --programs vgsplus   # twelve layers
"""

import argparse
import dataclasses
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import torch
from fastabx import Dataset, InMemoryAccessor, Score, Task
from numpy.typing import NDArray
from peers import machine
from torch import Tensor
from written import write_json

from vgsplus.corpora.items import Items, Token
from vgsplus.evaluation.abx import CONDITIONS, AbxScorer
from vgsplus.evaluation.abx_items import TokenFrames

PHONES, LENGTHS, ZIPF, CENTRE = 39, (3, 13), -0.5, 0.1


@dataclass(frozen=True, kw_only=True)
class Case:
    """Tokens to compare, in the same context ("within") or in any."""

    tokens: int
    speakers: int
    context: str

    @property
    def conditions(self) -> tuple[str, ...]:
        """Those that there are with these speakers."""
        return CONDITIONS if self.speakers > 1 else ("within",)


CASES = {
    "any": Case(tokens=7_674, speakers=30, context="any"),
    "one": Case(tokens=42_000, speakers=1, context="within"),
    "thirty": Case(tokens=55_000, speakers=30, context="within"),
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """The cost of one program, medians over the repeats.

    Attributes:
        width: dimensions of a frame.
        seconds: from labels and frames to the errors of all layers.
        cpu_seconds: the same, of all threads together, which other work on the machine disturbs less.
        peak_gb: peak resident memory of the process, 10⁹ bytes, with Python and the frames of a layer.
        errors: {condition: error} of the last layer.
    """

    case: str
    program: str
    width: int
    layers: int
    seconds: float
    cpu_seconds: float
    peak_gb: float
    errors: dict[str, float]


def draw_tokens(case: Case, seed: int) -> tuple[pl.DataFrame, NDArray[np.int64]]:
    """Return the labels of tokens in the columns of item files, and their frames [start, end)."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, PHONES + 1) ** ZIPF
    names = ("#phone", "prev-phone", "next-phone")
    drawn = {name: rng.choice(PHONES, case.tokens, p=weights / weights.sum()) for name in names}
    drawn["speaker"] = rng.integers(case.speakers, size=case.tokens)
    ends = np.cumsum(rng.integers(*LENGTHS, case.tokens))
    spans = np.stack([np.append(0, ends[:-1]), ends], axis=1)
    return pl.DataFrame({name: values.astype(str) for name, values in drawn.items()}), spans


def draw_frames(labels: pl.DataFrame, spans: NDArray[np.int64], width: int, seed: int) -> Tensor:
    """Return frames (N, width) in float32."""
    generator = torch.Generator().manual_seed(seed)
    centres = CENTRE * torch.randn(PHONES, width, generator=generator)
    phones = torch.from_numpy(np.repeat(labels["#phone"].cast(pl.Int64).to_numpy(), np.diff(spans)[:, 0]))
    frames = torch.randn(len(phones), width, generator=generator)
    for start in range(0, len(frames), 2**16):
        frames[start : start + 2**16] += centres[phones[start : start + 2**16]]
    return frames


# ---- programs ---------------------------------------------------------------------------------------------


def by_vgsplus(
    case: Case, labels: pl.DataFrame, spans: NDArray[np.int64]
) -> Callable[[Tensor], dict[str, float]]:
    """Prepare the comparisons as `evaluate abx` does."""
    tokens = tuple(
        Token(
            line=line,
            file="f",
            onset=Decimal(0),
            offset=Decimal(1),
            phone=phone,
            previous=previous,
            following=following,
            speaker=speaker,
        )
        for line, (phone, previous, following, speaker) in enumerate(labels.iter_rows(), start=2)
    )
    items = Items(path=Path("drawn.item"), tokens=tokens)
    scorer = AbxScorer(items, spans, case.conditions, context=case.context)
    found = TokenFrames(items, spans)
    found.select("f", int(spans[-1, 1]))
    return lambda frames: scorer.errors(frames, found)


def by_fastabx(
    case: Case, labels: pl.DataFrame, spans: NDArray[np.int64]
) -> Callable[[Tensor], dict[str, float]]:
    """Prepare fastabx's tasks."""
    around = ["prev-phone", "next-phone"] if case.context == "within" else []
    slices = dict(enumerate(map(tuple, spans.tolist())))

    def errors(frames: Tensor) -> dict[str, float]:
        found = {}
        for name in case.conditions:
            dataset = Dataset(labels, InMemoryAccessor(slices, frames, frames.device))
            by, across = (around, ["speaker"]) if name == "across" else ([*around, "speaker"], None)
            scored = Score(Task(dataset, on="#phone", by=by, across=across), "angular", progress=False)
            found[name] = scored.collapse(levels=[*([tuple(around)] if around else []), "speaker"])
        return found

    return errors


PROGRAMS = {"vgsplus": by_vgsplus, "fastabx": by_fastabx}


# ---- timing -----------------------------------------------------------------------------------------------


def run_once(name: str, program: str, width: int, layers: int, seed: int, threads: int) -> Result:
    """Score layers of a case in this process, each of other frames."""
    torch.set_num_threads(threads)
    case = CASES[name]
    small = Case(tokens=300, speakers=case.speakers, context="any")
    tokens = draw_tokens(small, seed)
    PROGRAMS[program](small, *tokens)(draw_frames(*tokens, width, seed))  # compiles
    labels, spans = draw_tokens(case, seed)
    seconds, cpu_seconds, scorer = 0.0, 0.0, None
    for layer in range(layers):
        frames = draw_frames(labels, spans, width, seed + layer)
        start, cpu_start = time.perf_counter(), time.process_time()
        scorer = scorer or PROGRAMS[program](case, labels, spans)
        errors = scorer(frames)
        seconds += time.perf_counter() - start
        cpu_seconds += time.process_time() - cpu_start
        del frames
    return Result(
        case=name,
        program=program,
        width=width,
        layers=layers,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        errors=errors,
    )


def measure(name: str, width: int, arguments: argparse.Namespace) -> list[Result]:
    """Run the programs in turn, each time in a fresh process."""
    context = multiprocessing.get_context("spawn")
    runs: dict[str, list[Result]] = {program: [] for program in arguments.programs}
    for _ in range(arguments.repeats):
        for program in arguments.programs:
            with context.Pool(1) as pool:
                call = (name, program, width, arguments.layers, arguments.seed, arguments.threads)
                runs[program].append(pool.apply(run_once, call))
            print(f"  {runs[program][-1]}", flush=True)
    return [
        dataclasses.replace(
            found[0],
            seconds=statistics.median(run.seconds for run in found),
            cpu_seconds=statistics.median(run.cpu_seconds for run in found),
            peak_gb=statistics.median(run.peak_gb for run in found),
        )
        for found in runs.values()
    ]


def show(results: Sequence[Result]) -> None:
    """Print a line for each program, with the time of fastabx over its time, and the difference of errors."""
    line = "{:<8} {:>5} {:>6}  {:<8} {:>8} {:>8} {:>8} {:>11} {:>10}  {}"
    heads = (
        "case",
        "width",
        "layers",
        "program",
        "s",
        "CPU s",
        "peak GB",
        "times (CPU)",
        "difference",
        "errors",
    )
    print(line.format(*heads))
    other = {(r.case, r.width): r for r in results if r.program == "fastabx"}
    for r in results:
        times = difference = ""
        if theirs := other.get((r.case, r.width)):
            times = f"{theirs.seconds / r.seconds:.1f} ({theirs.cpu_seconds / r.cpu_seconds:.1f})"
            difference = f"{max(abs(error - r.errors[name]) for name, error in theirs.errors.items()):.1e}"
        errors = ", ".join(f"{name} {100 * error:.3f} %" for name, error in r.errors.items())
        amounts = f"{r.seconds:.1f}", f"{r.cpu_seconds:.1f}", f"{r.peak_gb:.2f}"
        print(line.format(r.case, r.width, r.layers, r.program, *amounts, times, difference, errors))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="tokens to compare")
    parser.add_argument("--widths", nargs="+", type=int, default=[256, 768], help="dimensions of a frame")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--layers", type=int, default=1, help="number of layers that are scored")
    parser.add_argument("--repeats", type=int, default=1, help="timed turns")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the results here too")
    arguments = parser.parse_args()
    if min(arguments.repeats, arguments.layers, arguments.threads, *arguments.widths) < 1:
        parser.error("--repeats, --layers, --threads and --widths must be at least 1")
    return arguments


def main() -> None:
    """Time the cases asked for, print a table, and write JSON where asked."""
    arguments = parse_arguments()
    results = []
    for name in arguments.cases:
        for width in arguments.widths:
            results += measure(name, width, arguments)
    show(results)
    found = machine(torch.device("cpu")) | {"threads": arguments.threads}
    write_json(arguments.json, machine=found, repeats=arguments.repeats, results=results)


if __name__ == "__main__":
    main()
