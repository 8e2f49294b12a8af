"""What retrieval over a large test set costs: seconds and peak memory, from embeddings to intervals.

Compares ranking by tiles of the scores, as `vgsplus.evaluation.ranks` does it, with the plain ways: the
full matrix of similarities, sorted in both directions; and the ten largest of the same matrix, which give
recall but no median rank. Embeddings are normal, of unit variance, those of a caption correlated
with those of its picture. Every run is a process of its own, so that its peak is its own (Linux); the ways
take turns in each repeat, and medians over the repeats are reported.

    python benchmarks/retrieval.py --repeats 3 --json retrieval.json
"""

import argparse
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from written import write_json

from vgsplus.evaluation.ranks import Ranks, rank_embeddings
from vgsplus.evaluation.retrieval import KS, score

CORRELATION = 0.15


@dataclass(frozen=True, kw_only=True)
class Case:
    """The sizes of a test set: pictures, captions of each, dimensions; and the seed of its embeddings."""

    pictures: int
    captions_each: int
    dim: int
    seed: int

    def embeddings(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, D), speech (M, D), and the row of each caption's picture (M,)."""
        generator = torch.Generator().manual_seed(self.seed)
        images = torch.randn(self.pictures, self.dim, generator=generator)
        speech = torch.randn(self.pictures * self.captions_each, self.dim, generator=generator)
        rows = torch.arange(len(speech)) // self.captions_each
        speech.mul_((1 - CORRELATION**2) ** 0.5)
        for row in range(self.pictures):
            captions = slice(row * self.captions_each, (row + 1) * self.captions_each)
            speech[captions].add_(images[row], alpha=CORRELATION)
        return images, speech, rows


@dataclass(frozen=True, kw_only=True)
class Result:
    """One way, medians over the repeats.

    Attributes:
        seconds: from embeddings to scores.
        peak_gb: peak resident memory of the process, 10⁹ bytes, with Python, PyTorch and the embeddings.
        recall: R@10 in both directions.
        median_rank: in both directions; None where the way does not know it.
    """

    way: str
    seconds: float
    peak_gb: float
    recall: tuple[float, float]
    median_rank: tuple[float, float] | None


# ---- the ways ---------------------------------------------------------------------------------------------


def by_tiles(images: Tensor, speech: Tensor, rows: Tensor) -> Ranks:
    """Ranks as the package computes them."""
    return rank_embeddings(images, speech, range(len(images)), rows.tolist())


def by_argsort(images: Tensor, speech: Tensor, rows: Tensor) -> Ranks:
    """Ranks from the full matrix, sorted along either side."""
    similarity = images @ speech.T
    order = similarity.argsort(dim=0, descending=True)
    to_image = (order == rows).int().argmax(dim=0) + 1
    del order
    order = similarity.argsort(dim=1, descending=True)
    to_speech = (rows[order] == torch.arange(len(images))[:, None]).int().argmax(dim=1) + 1
    return _ranks(to_image, to_speech, rows)


def by_topk(images: Tensor, speech: Tensor, rows: Tensor) -> Ranks:
    """Ranks up to the largest k from the full matrix; larger ranks are set to k + 1."""
    similarity = images @ speech.T
    largest = max(KS)
    found = similarity.topk(largest, dim=0).indices == rows
    to_image = torch.where(found.any(dim=0), found.int().argmax(dim=0) + 1, largest + 1)
    found = rows[similarity.topk(largest, dim=1).indices] == torch.arange(len(images))[:, None]
    to_speech = torch.where(found.any(dim=1), found.int().argmax(dim=1) + 1, largest + 1)
    return _ranks(to_image, to_speech, rows)


def _ranks(to_image: Tensor, to_speech: Tensor, rows: Tensor) -> Ranks:
    return Ranks(
        speech_to_image=to_image.numpy(), image_to_speech=to_speech.numpy(), image_of_caption=rows.numpy()
    )


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Ranks]] = {
    "tiles": by_tiles,
    "matrix, argsort": by_argsort,
    "matrix, topk": by_topk,
}


# ---- timing -----------------------------------------------------------------------------------------------


def run_once(way: str, case: Case, replicates: int) -> Result:
    """Score a case in this process."""
    images, speech, rows = case.embeddings()
    start = time.perf_counter()
    scores = score(WAYS[way](images, speech, rows), replicates=replicates)
    seconds = time.perf_counter() - start
    sides = (scores.speech_to_image, scores.image_to_speech)
    known = way != "matrix, topk"
    return Result(
        way=way,
        seconds=seconds,
        peak_gb=_peak() / 1e9,
        recall=(sides[0].recall[10].value, sides[1].recall[10].value),
        median_rank=(sides[0].median_rank, sides[1].median_rank) if known else None,
    )


def _peak() -> int:
    """Peak resident bytes of this process; unlike getrusage's, not of the one that started it (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measure(case: Case, ways: Sequence[str], repeats: int, replicates: int) -> list[Result]:
    """Run the ways in turn, each time in a fresh process."""
    context = multiprocessing.get_context("spawn")
    runs: dict[str, list[Result]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way in ways:
            with context.Pool(1) as pool:
                runs[way].append(pool.apply(run_once, (way, case, replicates)))
    return [
        Result(
            way=way,
            seconds=statistics.median(run.seconds for run in found),
            peak_gb=statistics.median(run.peak_gb for run in found),
            recall=found[0].recall,
            median_rank=found[0].median_rank,
        )
        for way, found in runs.items()
    ]


def show(results: Sequence[Result]) -> None:
    """Print a line a way."""
    print(f"{'way':<16} {'s':>7} {'peak GB':>8} {'R@10, both ways':>18} {'median rank':>13}")
    for r in results:
        recall = f"{r.recall[0]:.4f} {r.recall[1]:.4f}"
        ranks = f"{r.median_rank[0]:g} {r.median_rank[1]:g}" if r.median_rank else ""
        print(f"{r.way:<16} {r.seconds:>7.2f} {r.peak_gb:>8.2f} {recall:>18} {ranks:>13}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--captions-each", type=int, default=5, help="captions of a picture")
    parser.add_argument("--dim", type=int, default=768, help="of the embeddings")
    parser.add_argument("--replicates", type=int, default=2000, help="of the bootstrap")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="what to time")
    parser.add_argument("--repeats", type=int, default=3, help="timed turns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the results here too")
    arguments = parser.parse_args()
    if min(arguments.repeats, arguments.captions_each) < 1 or arguments.pictures < max(KS):
        parser.error(f"needs a repeat, a caption of each picture, and at least {max(KS)} pictures")
    return arguments


def main() -> None:
    """Time the ways asked for, print a table, and write JSON where asked."""
    arguments = parse_arguments()
    case = Case(
        pictures=arguments.pictures,
        captions_each=arguments.captions_each,
        dim=arguments.dim,
        seed=arguments.seed,
    )
    results = measure(case, arguments.ways, arguments.repeats, arguments.replicates)
    show(results)
    write_json(
        arguments.json,
        machine={"name": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        case=case,
        replicates=arguments.replicates,
        repeats=arguments.repeats,
        results=results,
    )


if __name__ == "__main__":
    main()
