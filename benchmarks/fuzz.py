"""Mutated inputs for every reader of users' files: how many are read, how many refused, and what escapes.

    python benchmarks/fuzz.py --cases 2000 --seed 1     # in all, shared by the readers
    python benchmarks/fuzz.py --reader table --cases 100

Exits with 1 if a case ends in anything but a result or a VgsplusError, takes over 10 s, or leaves files.
"""

import argparse
import importlib.util
import math
import sys
from pathlib import Path
from typing import Any


def load_fuzzing() -> Any:  # noqa: ANN401 - a module
    """The readers and mutations that the tests use, too."""
    path = Path(__file__).parent.parent / "tests" / "fuzz" / "fuzzing.py"
    spec = importlib.util.spec_from_file_location("fuzzing", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzzing"] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Run the cases and print a table."""
    fuzzing = load_fuzzing()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reader", action="append", choices=list(fuzzing.READERS))
    given = parser.parse_args()
    readers = given.reader or list(fuzzing.READERS)
    each = math.ceil(given.cases / len(readers))
    print(f"{'reader':20} {'cases':>6} {'read':>6} {'refused':>8} {'failed':>7} {'slowest s':>10}")
    failures = []
    for reader in readers:
        tally = fuzzing.fuzz(reader, each, given.seed)
        counts = [tally.outcomes[name] for name in ("read", "refused", "failed")]
        print(
            f"{reader:20} {sum(counts):6} {counts[0]:6} {counts[1]:8} {counts[2]:7} {tally.slowest:10.1f}",
            flush=True,
        )
        failures += tally.failures
    print(*failures, sep="\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
