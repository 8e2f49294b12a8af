"""Two processes train as one does. How they end together and resume is tested with benchmarks/kills.py."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from vgsplus.config import save_config
from vgsplus.training import checkpoint
from vgsplus.training.checkpoint import MODEL_FILE
from vgsplus.training.log import losses_in, read_log


def test_two_processes_train_as_one(runs, make_config, tmp_path):
    save_config(make_config(), tmp_path / "config.yaml")
    command = [sys.executable, "-m", "vgsplus", "train", "config.yaml", "--out", "run", "--set", "devices=2"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("9 updates") == 1, "one process prints"
    one, other = tmp_path / "run", runs.finished(make_config())
    ours, theirs = (load_file(checkpoint.latest_path(run) / MODEL_FILE) for run in (one, other))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    for kind in ("train", "validation"):
        for line, expected in zip(read_log(one, kind), read_log(other, kind), strict=True):
            assert losses_in(line) == pytest.approx(losses_in(expected), rel=1e-4)
            assert line.get("captions") == expected.get("captions")
