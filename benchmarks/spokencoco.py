"""Measure time and memory to prepare SpokenCOCO at its full size, and to open it for training.

Writes caption lists in SpokenCOCO's grouped form (the wavs are links to a few sounds) and an obj36 TSV with
few features per region to a temporary folder, prepares them with `vgsplus data spokencoco`, and opens the
corpus as training does, in a new process. Memory is the sum over all processes, with shared pages counted
once, sampled four times per second (Linux).

    python benchmarks/spokencoco.py --json spokencoco.json
"""

import argparse
import base64
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from written import write_json

from vgsplus.audio import SAMPLE_RATE, write_wav
from vgsplus.regions.published import COLUMNS

REGIONS, FEATURES = 36, 16
HELD_OUT = 5_000
"""Pictures of the validation list, in addition to those of the training list."""
SAMPLE_INTERVAL = 0.25
"""Seconds."""
OPEN = """
import sys, time
from vgsplus.corpora import Corpus
start = time.perf_counter()
captions = len(Corpus.open(sys.argv[1]).captions("train"))
print(captions, time.perf_counter() - start)
"""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Measured costs.

    Attributes:
        pictures: number in all lists.
        captions: number in all lists.
        prepare_seconds: of the command.
        prepare_peak_gb: peak memory of its processes, 10⁹ bytes.
        open_seconds: of `Corpus.open`, without imports.
        open_peak_gb: peak memory of that process, 10⁹ bytes.
    """

    pictures: int
    captions: int
    prepare_seconds: float
    prepare_peak_gb: float
    open_seconds: float
    open_peak_gb: float


def write_source(root: Path, pictures: int, captions: int, wavs: int, seed: int) -> None:
    """Write lists, wavs and regions: `captions` of `pictures` to train on, five per held-out picture."""
    rng = np.random.default_rng(seed)
    (root / "wavs").mkdir(parents=True)
    for wav in range(wavs):
        noise = rng.normal(0, 0.1, int(rng.uniform(2, 7) * SAMPLE_RATE)).astype(np.float32)
        write_wav(root / f"{wav}.wav", noise)
    least, more = divmod(captions, pictures)
    counts = [least + 1] * more + [least] * (pictures - more)
    _write_list(root / "SpokenCOCO_train.json", range(pictures), counts)
    held = range(pictures, pictures + min(HELD_OUT, pictures))
    _write_list(root / "SpokenCOCO_val.json", held, [5] * len(held))
    for number, count in zip(range(held.stop), [*counts, *[5] * len(held)], strict=True):
        for take in range(count):
            (root / _wav(number, take)).symlink_to(root / f"{(5 * number + take) % wavs}.wav")
    with (root / "obj36.tsv").open("wb") as file:
        file.writelines(_line(number, rng) for number in range(held.stop))


def _write_list(path: Path, numbers: Sequence[int], counts: Sequence[int]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write('{"data": [')
        for place, (number, count) in enumerate(zip(numbers, counts, strict=True)):
            file.write((", " if place else "") + json.dumps(_entry(number, count)))
        file.write("]}")


def _entry(number: int, count: int) -> dict[str, Any]:
    spoken = [
        {
            "text": f"a caption of some ten words about the picture with the number {number}",
            "speaker": f"m{number % 2353}",
            "uttid": f"m{number % 2353}-{number:012d}_{take}",
            "wav": _wav(number, take),
        }
        for take in range(count)
    ]
    return {"image": f"train2014/{_name(number)}.jpg", "captions": spoken}


def _wav(number: int, take: int) -> str:
    return f"wavs/{number}_{take}.wav"


def _name(number: int) -> str:
    return f"COCO_train2014_{number:012d}"


def _line(number: int, rng: np.random.Generator) -> bytes:
    corners = rng.uniform(0, 300, (REGIONS, 2))
    arrays = {
        "objects_id": rng.integers(0, 1600, REGIONS),
        "objects_conf": rng.random(REGIONS, np.float32),
        "attrs_id": rng.integers(0, 400, REGIONS),
        "attrs_conf": rng.random(REGIONS, np.float32),
        "boxes": np.hstack([corners, corners + 100]).astype(np.float32),
        "features": rng.random((REGIONS, FEATURES), np.float32),
    }
    cells = {name: base64.b64encode(array.tobytes()).decode() for name, array in arrays.items()}
    cells |= {"img_id": _name(number), "img_h": "480", "img_w": "640", "num_boxes": str(REGIONS)}
    return ("\t".join(cells[name] for name in COLUMNS) + "\n").encode()


def watch(command: Sequence[str]) -> tuple[str, float, float]:
    """Run a command; return its output, its seconds and its peak memory in 10⁹ bytes."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:  # noqa: S603 - commands of this file
        while process.poll() is None:
            peak = max(peak, sum(_memory(pid) for pid in _process_tree(process.pid)))
            time.sleep(SAMPLE_INTERVAL)
        seconds = time.perf_counter() - start
        assert process.stdout is not None
        printed = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with {process.returncode}")
    return printed, seconds, peak / 1e9


def _process_tree(pid: int) -> Iterator[int]:
    """Yield a process and its descendants."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return
    for child in children:
        yield from _process_tree(int(child))


def _memory(pid: int) -> int:
    """Return the bytes of a process, with its share of shared pages; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def measure(root: Path, pictures: int, captions: int) -> Result:
    """Prepare the source in `root` and open the corpus."""
    corpus = root / "corpus"
    command = "from vgsplus.cli import main; main()"
    source = ["--root", str(root), "--features", str(root / "obj36.tsv")]
    _, seconds, peak = watch([sys.executable, "-c", command, "data", "spokencoco", str(corpus), *source])
    printed, _, open_peak = watch([sys.executable, "-c", OPEN, str(corpus)])
    opened, open_seconds = printed.split()
    assert int(opened) == captions
    held = min(HELD_OUT, pictures)
    return Result(
        pictures=pictures + held,
        captions=captions + 5 * held,
        prepare_seconds=seconds,
        prepare_peak_gb=peak,
        open_seconds=float(open_seconds),
        open_peak_gb=open_peak,
    )


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=118_287, help="pictures to train on")
    parser.add_argument("--captions", type=int, default=592_000, help="captions to train on")
    parser.add_argument("--wavs", type=int, default=20, help="number of distinct sounds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json", type=Path, default=None, metavar="FILE", help="also write the results to this file"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_source(root, options.pictures, options.captions, options.wavs, options.seed)
        result = measure(root, options.pictures, options.captions)
    print(
        f"{result.captions:,} captions of {result.pictures:,} pictures: "
        f"prepared in {result.prepare_seconds:.0f} s with {result.prepare_peak_gb:.2f} GB, "
        f"opened in {result.open_seconds:.1f} s with {result.open_peak_gb:.2f} GB"
    )
    about = {"machine": platform.machine(), "python": platform.python_version()}
    write_json(options.json, **about, **asdict(result))


if __name__ == "__main__":
    main()
