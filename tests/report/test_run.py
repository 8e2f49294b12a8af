import json

import pytest

from vgsplus.cli import main
from vgsplus.config import load_config, save_config
from vgsplus.errors import VgsplusError
from vgsplus.report.run import RunReport

STEPS, EPOCH = 60, 20
"""Steps in the log and in an epoch, of a run of (W2V2, VGS) with an epoch of each."""


@pytest.fixture
def run(tmp_path):
    """The folder of a run that trains: its settings and log, with validation and evaluation."""
    folder = tmp_path / "my run"
    folder.mkdir()
    settings = ["schedule.variant=w2v2,vgs", "schedule.pretraining_epochs=1", "schedule.epochs=4"]
    save_config(load_config("smoke", [*settings, f"corpus={tmp_path / 'gone'}"]), folder / "config.yaml")
    lines = []
    for step in range(1, STEPS + 1):
        index = int(step > EPOCH)
        place = {"step": step, "phase": ("w2v2", "vgs")[index], "phase_index": index, "epoch": step / EPOCH}
        place |= {"phase_step": step - EPOCH * index, "alpha": float(index)}
        numbers = {"lr": 1e-3, "captions": 8, "captions_per_second": 4.0, "audio_seconds_per_second": 10.0}
        numbers |= {"total": 5.0, "grad_norm": 1.0, "grad_norm/speech": 0.5, "loader_wait": 0.1}
        terms = {"contrastive": 4.0 - step / 100, "grounding": None}
        if index:
            terms = {"grounding": 5.0, "image_embedding_std": 0.0, "speech_embedding_std": 0.5}
        lines.append({"kind": "train"} | place | numbers | terms)
        if step % EPOCH == 0:
            lines.append({"kind": "validation", "total": 5.5, "alpha": 0.0} | place)
    lines.append({"kind": "evaluation", "scores": {"test/speech_to_image/R@10": 0.25}} | place)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_page_and_terminal_show_curves_warnings_and_settings(run, capsys):
    with pytest.raises(SystemExit):
        main(["report", str(run)])
    page = (run / "report.html").read_text()
    for text in (
        "Run my run",
        "The image embeddings collapse",
        "step 45",
        "L_AV, grounding",
        "Gradient norm",
    ):
        assert text in page
    for text in ("Standard deviation of embeddings", "test/speech_to_image/R@10", "schedule 1", "chance"):
        assert text in page
    assert "GPU (GB)" not in page, "nothing is drawn that was not logged"
    out = " ".join(capsys.readouterr().out.split())
    assert "Step 60 " in out, "how many there will be is not known without corpus and checkpoint"
    assert "Hours of sound per hour 10" in out
    assert "Warning, step 45" in out
    assert "report.html" in out


def test_the_time_left_is_that_of_the_steps_left(run):
    found = RunReport.read(run)
    planned = RunReport(found.run, found.config, found.records, 80)
    assert planned.facts["Time left"] == "40 s"
    assert RunReport(found.run, found.config, found.records, 60).facts["Time left"] == "none: trained"
    stop = found.records[-1] | {"kind": "stopped", "not_finite": ["grounding"]}
    stopped = RunReport(found.run, found.config, (*found.records, stop), 80)
    assert "grounding was not finite" in stopped.facts["Time left"]


def test_a_run_without_steps_has_no_report_yet(run):
    (run / "log.jsonl").unlink()
    with pytest.raises(VgsplusError, match="holds no step yet"):
        RunReport.read(run)
