import sys
from pathlib import Path

import pytest

from vgsplus.cli import main
from vgsplus.config import load_config
from vgsplus.errors import VgsplusError
from vgsplus.experiments.slurm import parse_options
from vgsplus.experiments.study import Run, share_phases


def test_runs_start_from_the_earlier_ones_that_share_the_most_phases():
    phases = [
        (("sound", 1), ("both", 2)),
        (("sound", 1), ("pictures", 1)),
        (("sound", 1), ("both", 2), ("end", 3)),
    ]
    plain = [
        [{"name": name, "alpha": 0.5, "epochs": epochs} for name, epochs in schedule] for schedule in phases
    ]
    configs = [load_config("smoke", [f"schedule={schedule}"]) for schedule in plain]
    configs.append(load_config("smoke", [f"schedule={plain[1]}", "seed=1"]))
    runs = share_phases(Run(str(number), Path(str(number)), config) for number, config in enumerate(configs))
    assert [run.origins for run in runs] == [
        (),
        ((Path("0"), "sound"),),
        ((Path("0"), "both"), (Path("0"), "sound"), (Path("1"), "sound")),
        (),
    ]
    assert runs[2].waits_for() == Path("0")
    assert runs[3].waits_for() is None


def test_options_are_those_of_sbatch():
    assert parse_options(["time=12:00:00", "--gres=gpu:a100:2", "exclusive", "comment=a=b"]) == {
        "time": "12:00:00",
        "gres": "gpu:a100:2",
        "exclusive": True,
        "comment": "a=b",
    }
    with pytest.raises(VgsplusError, match="give the time limit of a job"):
        parse_options(["partition=gpu"])
    with pytest.raises(VgsplusError, match="dependency is set by vgsplus"):
        parse_options(["time=5", "dependency=singleton"])


@pytest.fixture
def reproduce(tiny_corpus, tmp_path, capsys):
    def call(*arguments):
        settings = ["accelerator=cuda", "model.feature_dim=12"]
        words = [word for setting in settings for word in ("--set", setting)]
        command = ["reproduce", "smoke", "--out", str(tmp_path / "out"), "--corpus", str(tiny_corpus), *words]
        with pytest.raises(SystemExit) as stop:
            main([*command, *arguments])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


def test_a_dry_run_shows_what_waits_for_what_and_leaves_nothing(reproduce, tmp_path):
    """The machine that submits need not have the GPU that trains."""
    variants = [word for name in ("VGS", "VGS, VGS+", "VGS, W2V2") for word in ("--variants", name)]
    code, out, err = reproduce(*variants, "--slurm", "time=5", "--slurm", "gpus-per-node=1", "--dry-run")
    assert code == 0, err
    rows = [line.strip() for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert [row.split(maxsplit=1)[0] for row in rows] == ["1", "2", "3", "4"]
    assert rows[0].endswith("VGS")
    assert rows[1].endswith("(VGS, VGS+)")
    assert rows[2].endswith(" 2")
    assert rows[3].endswith("1, 2, 3")
    assert "time=5 gpus-per-node=1" in out
    assert not (tmp_path / "out").exists()
    code, _, err = reproduce(*variants, "--slurm", "time=5", "--dry-run", "--set", "batch_size=1000")
    assert (code, "the run cannot start" in err) == (1, True), err


def test_what_slurm_needs_is_asked_for_before_any_work(reproduce, tmp_path, monkeypatch):
    code, _, err = reproduce("--dry-run")
    assert (code, "it needs --slurm" in err) == (1, True), err
    monkeypatch.setenv("PATH", "")
    code, _, err = reproduce("--slurm", "time=5")
    assert (code, "there is no sbatch, srun, squeue, scontrol on the PATH" in err) == (1, True), err
    monkeypatch.setitem(sys.modules, "submitit", None)
    code, _, err = reproduce("--slurm", "time=5")
    assert (code, "pip install 'vgsplus[slurm]'" in err) == (1, True), err
    assert not (tmp_path / "out").exists()
