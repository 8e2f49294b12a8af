"""Several processes train as one does, and stop, resume and end together."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from vgsplus.config import save_config
from vgsplus.training import checkpoint
from vgsplus.training.checkpoint import MODEL_FILE, load_state
from vgsplus.training.log import losses_in, read_log


@pytest.fixture
def start(make_config, tmp_path):
    """Start `vgsplus train` in processes; validation has 6 captions, a batch of training 4."""

    def start(name, processes, *options, torchrun=False):
        config = tmp_path / "config.yaml"
        save_config(make_config(), config)
        launcher = ["torch.distributed.run", "--nproc-per-node", str(processes), "-m"] if torchrun else []
        command = [sys.executable, "-m", *launcher, "vgsplus", "train", config, "--out", tmp_path / name]
        if not torchrun:
            command += ["--set", f"devices={processes}"]
        environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
        return subprocess.Popen(
            [*map(str, command), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | {"OMP_NUM_THREADS": "1"},
        )

    return start


def assert_alike(one, other):
    ours, theirs = (load_file(checkpoint.latest_path(run) / MODEL_FILE) for run in (one, other))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    for kind in ("train", "validation"):
        for line, expected in zip(read_log(one, kind), read_log(other, kind), strict=True):
            assert losses_in(line) == pytest.approx(losses_in(expected), rel=1e-4)
            assert line.get("captions") == expected.get("captions")


def test_two_processes_end_together_resume_and_train_as_one(start, runs, make_config, tmp_path):
    whole = runs.finished(make_config())
    killed = start("run", 2, "--set", "checkpoint_minutes=1e-9", torchrun=True)
    while not (state := checkpoint.latest_path(tmp_path / "run")) or load_state(state).global_step < 2:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.02)
    children = subprocess.run(["pgrep", "-P", str(killed.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    killed.communicate(timeout=60)
    assert killed.returncode != 0
    resumed = start("run", 2, "--resume")
    out, error = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, error
    assert out.count("9 updates") == 1, "one process prints"
    assert_alike(tmp_path / "run", whole)
