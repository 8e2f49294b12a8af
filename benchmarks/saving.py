"""What a checkpoint written while training goes on costs the steps, at the paper's size.

Blocks of steps with and without a checkpoint begun at their start take turns. Reported is the time that a
checkpoint adds to its block, as a share of the interval between checkpoints (the setting
`checkpoint_minutes`), and for comparison the time to write one while training waits.

    python benchmarks/saving.py --repeats 3
"""

import argparse
import dataclasses
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peers import Ours, draw_num_samples, make_batch, open_systems, step
from written import write_json

from vgsplus.config import load_config, to_dict
from vgsplus.training.checkpoint import CheckpointWriter, TrainingState
from vgsplus.training.optimizer import named_state
from vgsplus.training.runtime import tune_process


def main() -> None:
    """Time blocks by turns, and print the cost of a checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", default="paper", help="preset of the model")
    parser.add_argument("--captions", type=int, default=3, help="in a batch")
    parser.add_argument("--steps", type=int, default=4, help="of a block")
    parser.add_argument("--repeats", type=int, default=3, help="blocks of each kind")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the results here too")
    arguments = parser.parse_args()
    tune_process()
    config = load_config(arguments.size, ["corpus=synthetic"])
    device = torch.device("cpu")
    (ours,) = open_systems(arguments.size, [], device)
    assert isinstance(ours, Ours)
    batch = make_batch(draw_num_samples(arguments.captions, 0), config.model.feature_dim, 0, device)
    for _ in range(2):
        step(ours, batch, 0.5, "fp32")

    def block() -> float:
        start = time.perf_counter()
        for _ in range(arguments.steps):
            step(ours, batch, 0.5, "fp32")
        return time.perf_counter() - start

    begun = TrainingState(
        phase=0,
        phase_name="phase",
        step=0,
        steps=10**6,
        epoch=0.0,
        global_step=0,
        seed=0,
        model=to_dict(config.model),
        run=to_dict(config),
        corpus={},
    )
    without, extra, waiting = [], [], []
    with TemporaryDirectory() as folder, CheckpointWriter(Path(folder)) as writer:
        for number in range(arguments.repeats):
            without.append(block())
            state = dataclasses.replace(begun, global_step=2 * number)
            start = time.perf_counter()
            writer.start(state, ours.model.state_dict(), named_state(ours.optimizer, ours.model))
            copied = time.perf_counter() - start
            extra.append(copied + block() - without[-1])
            writer.finish()
            start = time.perf_counter()
            writer.start(
                dataclasses.replace(begun, global_step=2 * number + 1),
                ours.model.state_dict(),
                named_state(ours.optimizer, ours.model),
            )
            writer.finish()
            waiting.append(time.perf_counter() - start)
    interval = 60 * config.checkpoint_minutes
    results = {
        "step_seconds": statistics.median(without) / arguments.steps,
        "added_seconds": statistics.median(extra),
        "share_of_interval": statistics.median(extra) / interval,
        "waiting_seconds": statistics.median(waiting),
    }
    print(", ".join(f"{name} {value:.4g}" for name, value in results.items()))
    write_json(arguments.json, results=results)


if __name__ == "__main__":
    main()
