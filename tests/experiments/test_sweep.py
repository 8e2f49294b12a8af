import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from vgsplus.cli import main
from vgsplus.errors import ConfigError
from vgsplus.experiments.sweep import load_points
from vgsplus.training.checkpoint import MODEL_FILE, checkpoints, latest_path


def test_several_grids_make_a_product():
    """Values are spelled as on the command line; an α with commas is in braces, a variant in quotes."""
    points = load_points(
        "smoke", ["schedule.phases.0.alpha=0, {linear: [0, 0.5]}", "seed=1,2"], ["batch_size=4"]
    )
    spelled = ["0", "{linear: [0, 0.5]}"]
    assert list(points) == [
        (("schedule.phases.0.alpha", alpha), ("seed", seed)) for alpha in spelled for seed in ("1", "2")
    ]
    config = points[("schedule.phases.0.alpha", spelled[1]), ("seed", "2")]
    assert (config.schedule.phases[0].alpha.at(0.5), config.seed, config.batch_size) == (0.25, 2, 4)
    variants = load_points("smoke", ['schedule.variant="w2v2,vgs+",vgs'])
    assert [len(config.schedule.phases) for config in variants.values()] == [2, 1]


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (["seed"], "must read KEY=VALUE,VALUE"),
        (["seed=[1"], "must read KEY=VALUE,VALUE"),
        (["seed="], "has no value"),
        (["seed=1,1"], "names a value twice"),
        (["seed=1", "seed=2"], "seed has a grid already"),
        (["sead=1"], "nearest is 'seed'"),
        (["schedule.0.init=a/b,a b"], "folder names"),
    ],
)
def test_grids_that_make_no_sense_are_refused(grid, said):
    with pytest.raises(ConfigError, match=said):
        load_points("smoke", grid)


@pytest.fixture
def sweep(tiny_corpus, tmp_path, capsys):
    def call(*arguments):
        settings = [
            "accelerator=cpu",
            "model.feature_dim=12",
            "schedule.variant=w2v2,vgs",
            "schedule.epochs=0.4",
        ]
        words = [word for setting in settings for word in ("--set", setting)]
        out = ["--out", str(tmp_path / "out"), "--corpus", str(tiny_corpus)]
        with pytest.raises(SystemExit) as stop:
            main(["sweep", "smoke", *out, *words, *arguments])
        return stop.value.code, *capsys.readouterr()

    return call


def test_a_sweep_shares_first_phases_resumes_and_reports(sweep, tmp_path):
    code, out, err = sweep(
        "--grid", "schedule.1.alpha=0.5,1", "--seeds", "2", "--slurm", "time=5", "--dry-run"
    )
    assert code == 0, err
    waits = [line.split("seed")[1].split() for line in out.splitlines() if "seed" in line]
    assert waits == [["0"], ["0", "1"], ["1"], ["1", "3"]]
    assert not (tmp_path / "out").exists()

    assert sweep("--grid", "schedule.1.alpha=0.5")[0] == 0
    code, out, err = sweep("--grid", "schedule.1.alpha=0.5,1")
    assert code == 0, err
    assert "has the best recall on test" in out
    first, second = (
        tmp_path / "out" / "points" / f"schedule.1.alpha={alpha}" / "seed-0" for alpha in ("0.5", "1")
    )
    ends = [checkpoints(run)[0] / "model.safetensors" for run in (first, second)]
    assert ends[0].samefile(ends[1])
    found = pd.read_csv(tmp_path / "out" / "report" / "sweep.csv")
    records = [json.loads(line) for line in (second / "log.jsonl").read_text().splitlines()]
    scores = next(record["scores"] for record in reversed(records) if record["kind"] == "evaluation")
    row = found[(found.measure == "R@10 on test, speech to image") & (found["schedule.1.alpha"] == 1)].iloc[0]
    assert row["mean"] == pytest.approx(100 * scores["test/speech_to_image/R@10"], abs=1e-5)
    assert {"recall on test", "ABX error across speakers, best layer", "validation loss L_AV, grounding"} <= {
        *found.measure
    }


def test_runs_trained_in_parallel_are_those_trained_one_by_one(sweep, tmp_path):
    """The second run starts from the first phase of the first; it waits for it."""
    found = []
    for jobs in ("1", "2"):
        code, _, err = sweep("--grid", "schedule.1.alpha=0.5,1", "--jobs", jobs)
        assert code == 0, err
        ends = [latest_path(folder.parent) for folder in (tmp_path / "out").rglob("checkpoints")]
        found.append({end.relative_to(tmp_path / "out"): load_file(end / MODEL_FILE) for end in ends})
        (tmp_path / "out").rename(tmp_path / jobs)
    assert len(found[0]) == 2
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    code, _, err = sweep("--grid", "seed=1,2", "--jobs", "2", "--set", "devices=2")
    assert (code, "--jobs trains each run in one process" in err) == (1, True), err


def test_a_sweep_is_checked_before_it_trains(sweep, tmp_path):
    code, _, err = sweep("--grid", "model.feature_dim=12,7")
    assert (code, "model.feature_dim = 7: " in err) == (1, True), err
    assert not (tmp_path / "out" / "points").exists()
