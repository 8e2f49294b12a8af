"""How long a published bundle of the paper's size takes to load, and how many times its size memory grows.

Call: python benchmarks/load_bundle.py --repeats 3
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import torch

import vgsplus
from vgsplus.interop.fast_vgs import UnusedTensors, save_bundle
from vgsplus.models.vgsplus import ModelConfig, VGSPlus


def load_once(path: str) -> tuple[float, float]:
    """Seconds, and the growth of this process's peak memory over the bytes of the model."""
    before = _peak()
    started = time.perf_counter()
    model = vgsplus.load(path)
    seconds = time.perf_counter() - started
    grown = _peak() - before
    size = sum(x.numel() * x.element_size() for x in model.state_dict().values())
    return seconds, grown / size


def _peak() -> int:
    """Peak resident bytes of this process; unlike getrusage's, not of the one that started it (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Load in fresh processes and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "best_bundle.pth"
        torch.manual_seed(0)
        model = VGSPlus(ModelConfig())
        parameters = sum(parameter.numel() for parameter in model.parameters())
        save_bundle(model, UnusedTensors({}), path)
        del model
        context = multiprocessing.get_context("spawn")
        runs = []
        for _ in range(options.repeats):
            with context.Pool(1) as pool:
                runs.append(pool.apply(load_once, (str(path),)))
        size = path.stat().st_size
    found = {
        "parameters": parameters,
        "bundle_bytes": size,
        "seconds": statistics.median(seconds for seconds, _ in runs),
        "memory_over_size": statistics.median(memory for _, memory in runs),
    }
    for name, value in found.items():
        print(f"{name:>18}  {value:,.3f}" if isinstance(value, float) else f"{name:>18}  {value:,}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
