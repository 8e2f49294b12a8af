"""Kill training by SIGKILL at random moments, resume it, and compare the weights with an undisturbed run.

Runs of two phases that validate and evaluate often and write a checkpoint at every step, in one process and
in two, of which one is killed. After some kills each run goes on to its end; its last checkpoint must equal
that of the undisturbed run bit for bit, the weights and the state of the optimiser.

    python benchmarks/kills.py --kills 50
"""

import argparse
import json
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from vgsplus.config import RunConfig, load_config
from vgsplus.corpora import Corpus
from vgsplus.corpora.sources.toy.corpus import prepare_toy
from vgsplus.errors import VgsplusError
from vgsplus.experiments.scoring import recalls, test_sets
from vgsplus.training import checkpoint
from vgsplus.training.checkpoint import MODEL_FILE, OPTIMIZER_FILE
from vgsplus.training.trainer import train

KILLS_PER_RUN = 5
PATIENCE = 60.0
"""Seconds in which the other processes must end after one was killed."""

SETTINGS = (
    "schedule=[{name: alone, epochs: 1, alpha: 0}, {name: joint, epochs: 1, alpha: {linear: [0.2, 0.8]}}]",
    "model.dropout=0.1",
    "precision=32-true",
    "accelerator=cpu",
    "validate_every=0.3",
    "evaluate_every=0.4",
    "checkpoint_minutes=1e-9",
)


def run(config: RunConfig, out: Path, processes: int) -> list[int]:
    """Start or resume a run in processes forked from this one, and return their numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stdout.flush()
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            _train(config, out, rank, processes, port)
        children.append(child)
    return children


def _train(config: RunConfig, out: Path, rank: int, processes: int, port: int) -> None:
    """Train in a forked process, which ends here: 0 when the run is complete."""
    # Of a connection that breaks, the traceback is expected.
    os.dup2(os.open(out.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    if processes > 1:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({name: str(number) for name, number in numbers.items()})
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "kills"}
    code = 1
    try:
        corpus = Corpus.open(config.corpus)
        splits = test_sets(corpus)
        train(config, out, resume=True, evaluate=lambda model, _: recalls(model, config, corpus, splits))
        code = 0
    except VgsplusError as error:
        print(error, file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(children: list[int], seconds: float) -> list[int] | None:
    """Wait for processes: their statuses, or None if one is still there after some seconds."""
    until = time.monotonic() + seconds
    left, statuses = list(children), []
    while left:
        for child in list(left):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                left.remove(child)
                statuses.append(status)
        if left and time.monotonic() > until:
            return None
        time.sleep(0.002)
    return statuses


def moment(out: Path) -> str:
    """Say what a killed run was doing, as far as its folder tells."""
    folder = out / checkpoint.FOLDER
    if not folder.is_dir():
        return "before the first checkpoint"
    if any(path.name.startswith(".") for path in folder.iterdir()):
        return "writing a checkpoint"
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    with suppress(ValueError, IndexError):
        record = json.loads(lines[-1])
        if record["kind"] != "train":
            return "after a validation or evaluation"
        newest = checkpoint.latest_path(out)
        if newest and "-end-of-" in newest.name:
            return "at the end of a phase"
    return "between"


def same(one: Path, other: Path) -> bool:
    """Whether the last checkpoints of two runs are of the same step and have the same bits."""
    ours, theirs = checkpoint.latest_path(one), checkpoint.latest_path(other)
    return (
        ours is not None
        and theirs is not None
        and ours.name == theirs.name
        and all(
            (ours / file).read_bytes() == (theirs / file).read_bytes()
            for file in (MODEL_FILE, OPTIMIZER_FILE)
        )
    )


def kill_and_resume(
    config: RunConfig, folder: Path, kills: int, processes: int, seed: int
) -> tuple[Counter[str], int]:
    """Kill runs of some processes `kills` times; return the moments, and how many runs ended otherwise."""
    whole = folder / f"whole-{processes}"
    started = time.monotonic()
    if wait(run(config, whole, processes), 600) != [0] * processes:
        raise SystemExit(f"the undisturbed run failed:\n{(folder / 'output.txt').read_text()}")
    seconds = time.monotonic() - started
    draw = random.Random(seed)  # noqa: S311 - not for secrets
    moments: Counter[str] = Counter()
    different = number = 0
    while sum(moments.values()) < kills:
        number += 1
        out = folder / f"killed-{processes}-{number}"
        for _ in range(min(KILLS_PER_RUN, kills - sum(moments.values()))):
            children = run(config, out, processes)
            time.sleep(draw.uniform(0.1, 0.5) * seconds)
            os.kill(draw.choice(children), signal.SIGKILL)
            statuses = wait(children, PATIENCE)
            if statuses is None:
                raise SystemExit(f"a process still ran {PATIENCE:g} s after another one was killed")
            if signal.SIGKILL not in statuses:
                break  # the run had ended
            moments[moment(out)] += 1
        if wait(run(config, out, processes), 600) != [0] * processes or not same(out, whole):
            different += 1
            print(f"{out} differs from {whole}")
    return moments, different


def main() -> None:
    """Kill, resume, compare, and exit with 1 if a run ended with other weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="half of them in two processes")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    total: Counter[str] = Counter()
    failed = 0
    with TemporaryDirectory() as folder:
        root = Path(folder)
        prepare_toy(root / "corpus", train_images=16, validation_images=5, test_images=5, workers=1)
        config = load_config("smoke", [f"corpus={root / 'corpus'}", *SETTINGS])
        study = partial(kill_and_resume, config, root, seed=arguments.seed)
        for processes, kills in ((1, -(-arguments.kills // 2)), (2, arguments.kills // 2)):
            moments, different = study(kills=kills, processes=processes)
            total += moments
            failed += different
            print(
                f"{sum(moments.values())} kills in {processes} process(es), {different} runs differ",
                flush=True,
            )
    for what, count in total.most_common():
        print(f"{count:4d}  {what}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
