"""Whether runs that collapse are named before half of their steps, and a healthy one not at all.

Trains the toy preset on a corpus made for it: a healthy run to its end, and up to half of their steps a run
with too high a learning rate, one without the diversity loss and one whose pictures are all the same. Prints
a line for each warning, and exits with 1 if a collapse is not named or the healthy run is.

    python benchmarks/collapse.py out/collapse
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import h5py

from vgsplus.config import load_config
from vgsplus.corpora.sources.toy.corpus import prepare_toy
from vgsplus.errors import Interrupted, NotFiniteError
from vgsplus.progress import Progress
from vgsplus.regions.store import REGIONS_FILE
from vgsplus.training.log import read_log
from vgsplus.training.trainer import train

HEALTHY = "healthy"
SETTINGS = {
    HEALTHY: ["schedule.variant=w2v2,vgs", "schedule.pretraining_epochs=0.9", "schedule.epochs=2.2"],
    "learning rate": ["schedule.variant=vgs+", "schedule.epochs=1.8", "schedule.optimizer.lr=0.1"],
    "diversity": ["schedule.variant=w2v2", "schedule.epochs=2.4", "model.diversity_weight=0"],
    "pictures": ["schedule.variant=vgs", "schedule.epochs=1.2"],
}
RULES = {
    HEALTHY: set[str](),
    "learning rate": {"embeddings", "similarity", "codebook", "grounding", "contrastive"},
    "diversity": {"codebook"},
    "pictures": {"embeddings"},
}
"""Rules of which at least one must have warned."""


class StopHalfway(Progress):
    """Ends a run of one phase after half of its steps, as Ctrl-C does."""

    def update(self, stage: str, done: int, total: int | None = None, detail: str = "") -> None:
        """Send the signal when it is time."""
        del stage, detail
        if total is not None and done == total // 2:
            signal.raise_signal(signal.SIGINT)


def with_one_picture(corpus: Path, copy: Path) -> Path:
    """Make a corpus whose pictures all have the regions of the first; everything else is linked."""
    copy.mkdir()
    for path in corpus.iterdir():
        if path.name != REGIONS_FILE:
            (copy / path.name).symlink_to(path.resolve())
    with h5py.File(corpus / REGIONS_FILE) as source, h5py.File(copy / REGIONS_FILE, "w") as target:
        for name in source:
            source.copy(name, target)
        for name in ("features", "boxes"):
            target[name][:] = source[name][:1]
    return copy


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the corpora, train, and print the warnings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for corpora and runs, which must not exist")
    parser.add_argument("--images", type=int, default=800, help="training pictures of the corpus")
    parser.add_argument("--only", choices=SETTINGS, nargs="+", default=list(SETTINGS), help="runs to train")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True)
    corpus, same = options.out / "corpus", options.out / "same"
    prepare_toy(corpus, train_images=options.images, validation_images=6, test_images=6)
    with_one_picture(corpus, same)
    wrong = False
    for name in options.only:
        run = options.out / name.replace(" ", "-")
        data = f"corpus={same if name == 'pictures' else corpus}"
        common = ["accelerator=cpu", "validate_every=null", data]
        started = time.perf_counter()
        with suppress(Interrupted, NotFiniteError):
            progress = Progress() if name == HEALTHY else StopHalfway()
            train(load_config("toy", [*common, *SETTINGS[name]]), run, progress=progress)
        records = list(read_log(run))
        warnings = [record for record in records if record["kind"] == "warning"]
        seconds = time.perf_counter() - started
        print(f"{name}: {records[-1]['step']} steps in {seconds:.0f} s, {len(warnings)} warnings")
        for warning in warnings:
            print(f"  step {warning['step']}, {warning['rule']}: {warning['what']}")
        found = {warning["rule"] for warning in warnings}
        wrong |= bool(found) if name == HEALTHY else not found & RULES[name]
    sys.exit(int(wrong))


if __name__ == "__main__":
    main()
