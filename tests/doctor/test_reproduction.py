import json
import shutil

import pytest

from vgsplus.doctor import examine
from vgsplus.experiments.reproduce import variant_folder
from vgsplus.experiments.study import COMMAND
from vgsplus.training import checkpoint
from vgsplus.training.run_folder import CONFIG_FILE

VARIANT, STEPS = "w2v2,vgs", 6
"""Of the run that is trained in conftest.py."""
TITLE = "(W2V2, VGS)"


ARGV = ["reproduce", "smoke", "--out", "an out", "--seeds", "2"]


@pytest.fixture
def recorded(reproduction):
    """A reproduction that recorded its command."""
    (reproduction / COMMAND).write_text(json.dumps({"argv": ARGV}))
    return reproduction


def test_finished_and_absent_variants_and_the_missing_report_are_reported(reproduction, found):
    diagnosis = examine(reproduction)
    assert diagnosis.ok
    reported = dict(found(diagnosis, "ok"))
    assert f"finished after {STEPS} steps" in reported[TITLE]
    assert "VGS+; (W2V2, VGS+)" in reported["not started"]
    assert TITLE not in reported["not started"]
    assert "report" in dict(found(diagnosis, "hint"))


def test_the_recorded_command_resumes_what_is_unfinished(recorded):
    assert examine(recorded).command == "vgsplus reproduce smoke --out 'an out' --seeds 2"


def test_a_run_of_a_reproduction_resumes_by_its_command(recorded):
    run = variant_folder(recorded, VARIANT, 0)
    shutil.rmtree(checkpoint.latest_path(run))
    assert examine(run).command == examine(recorded).command


@pytest.mark.parametrize("content", [None, "{", "[]", '{"argv": 3}', '{"argv": [1]}'])
def test_without_a_recorded_command_a_hint_says_to_repeat_it(reproduction, found, content):
    if content is not None:
        (reproduction / COMMAND).write_text(content)
    diagnosis = examine(reproduction)
    assert not diagnosis.command
    assert "resumes where it stopped" in dict(found(diagnosis, "hint"))["command"]
    run = variant_folder(reproduction, VARIANT, 0)
    shutil.rmtree(checkpoint.latest_path(run))
    assert examine(run).command == f"vgsplus train {run / CONFIG_FILE} --out {run} --resume"


def test_seeds_are_counted(reproduction, trained, found):
    again = variant_folder(reproduction, VARIANT, 1)
    shutil.copytree(trained, again)
    shutil.rmtree(checkpoint.latest_path(again))
    diagnosis = examine(reproduction)
    assert f"at step 2 of {STEPS}" in dict(found(diagnosis, "hint"))[f"{TITLE}, seed-1"]


def test_a_broken_run_is_a_fault_that_points_to_its_own_examination(reproduction, found):
    run = variant_folder(reproduction, VARIANT, 0)
    (checkpoint.latest_path(run) / "state.json").write_text("{")
    fault = dict(found(examine(reproduction), "fault"))[TITLE]
    assert "state.json" in fault
    assert f"vgsplus doctor {run}" in fault


def test_a_broken_report_and_leftovers_are_reported(reproduction, found):
    (reproduction / "report").mkdir()
    (reproduction / "report" / "results.json").write_text("{}")
    (reproduction / ".report-abc").mkdir()
    diagnosis = examine(reproduction)
    assert "results.json" in dict(found(diagnosis, "fault"))["report"]
    assert ".report-abc" in dict(found(diagnosis, "hint"))["leftovers"]
