"""Two processes train as one does. How they end together and resume is tested with benchmarks/kills.py."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from vgsplus.cli import main
from vgsplus.config import save_config
from vgsplus.training import checkpoint
from vgsplus.training.checkpoint import MODEL_FILE
from vgsplus.training.log import losses_in, read_log


def run(folder, *words):
    """Run Python with a module and its arguments, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_train_as_one(runs, make_config, tmp_path):
    save_config(make_config(), tmp_path / "config.yaml")
    shown = run(tmp_path, "vgsplus", "train", "config.yaml", "--out", "run", "--set", "devices=2")
    assert shown.count("9 updates") == 1, "one process prints"
    one, other = tmp_path / "run", runs.finished(make_config())
    ours, theirs = (load_file(checkpoint.latest_path(run) / MODEL_FILE) for run in (one, other))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    for kind in ("train", "validation"):
        for line, expected in zip(read_log(one, kind), read_log(other, kind), strict=True):
            assert losses_in(line) == pytest.approx(losses_in(expected), rel=1e-4)
            assert line.get("captions") == expected.get("captions")


def test_two_processes_evaluate_as_one(runs, make_config, tmp_path, capsys):
    command = ["evaluate", "retrieval", str(runs.finished(make_config())), "--split", "validation", "--out"]
    with pytest.raises(SystemExit, match="0"):
        main([*command, str(tmp_path)])
    torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "-m", "vgsplus"]
    together = run(tmp_path, *torchrun, *command, "together")
    assert together.split("\n")[:-2] == capsys.readouterr().out.split("\n")[:-2], "one process prints"
    for table in ("retrieval.csv", "by_speaker.csv"):
        assert (tmp_path / "together" / table).read_text() == (tmp_path / table).read_text()
