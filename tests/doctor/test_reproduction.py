import itertools
import shlex
import shutil

from vgsplus.config import load_config, save
from vgsplus.doctor import examine
from vgsplus.doctor.commands import reproduce_command
from vgsplus.experiments.reproduce import ITEMS, items_digest, variant_folder
from vgsplus.training import checkpoint
from vgsplus.training.run_folder import CONFIG_FILE

VARIANT, STEPS = "w2v2,vgs", 6
"""Of the run that is trained in conftest.py."""
TITLE = "(W2V2, VGS)"


def options(command, name):
    words = shlex.split(command)
    return [value for flag, value in itertools.pairwise(words) if flag == name]


def test_finished_and_absent_variants_and_the_missing_report_are_told(reproduction, found):
    diagnosis = examine(reproduction)
    assert diagnosis.well
    told = dict(found(diagnosis, "ok"))
    assert f"finished after {STEPS} steps" in told[TITLE]
    assert "VGS+; (W2V2, VGS+)" in told["not begun"]
    assert TITLE not in told["not begun"]
    assert "report" in dict(found(diagnosis, "hint"))


def test_the_command_has_the_settings_of_the_runs(reproduction, trained, tiny_corpus):
    command = examine(reproduction).command
    assert shlex.split(command)[:5] == ["vgsplus", "reproduce", "smoke", "--out", str(reproduction)]
    assert options(command, "--variants") == [TITLE]
    assert options(command, "--corpus") == [str(tiny_corpus)]
    overrides = options(command, "--set")
    again = load_config("smoke", [*overrides, f"schedule.variant={VARIANT}", f"corpus={tiny_corpus}"])
    assert again == load_config(trained / CONFIG_FILE)


def test_a_run_of_a_reproduction_goes_on_by_its_command(reproduction):
    run = variant_folder(reproduction, VARIANT, 0)
    shutil.rmtree(checkpoint.latest(run))
    assert examine(run).command == examine(reproduction).command
    assert "vgsplus reproduce" in examine(run).command


def test_seeds_are_counted_and_asked_for(reproduction, trained, found):
    again = variant_folder(reproduction, VARIANT, 1)
    shutil.copytree(trained, again)
    shutil.rmtree(checkpoint.latest(again))
    diagnosis = examine(reproduction)
    assert f"at step 2 of {STEPS}" in dict(found(diagnosis, "hint"))[f"{TITLE}, seed-1"]
    assert options(diagnosis.command, "--seeds") == ["2"]


def test_a_broken_run_is_a_fault_that_points_to_its_own_examination(reproduction, found):
    run = variant_folder(reproduction, VARIANT, 0)
    (checkpoint.latest(run) / "state.json").write_text("{")
    fault = dict(found(examine(reproduction), "fault"))[TITLE]
    assert "state.json" in fault
    assert f"vgsplus doctor {run}" in fault


def test_settings_that_no_preset_reaches_leave_no_command(reproduction, found):
    path = variant_folder(reproduction, VARIANT, 0) / CONFIG_FILE
    path.write_text(path.read_text().replace("alpha: 0.0", "alpha: {linear: [0, 1]}"))
    assert load_config(path).schedule.phases[0].alpha.form == "linear"
    diagnosis = examine(reproduction)
    assert not diagnosis.command
    assert "goes on where it stopped" in dict(found(diagnosis, "hint"))["command"]


def test_a_report_that_is_none_and_leftovers_are_told(reproduction, found):
    (reproduction / "report").mkdir()
    (reproduction / "report" / "results.json").write_text("{}")
    (reproduction / ".report-abc").mkdir()
    diagnosis = examine(reproduction)
    assert "results.json" in dict(found(diagnosis, "fault"))["report"]
    assert ".report-abc" in dict(found(diagnosis, "hint"))["leftovers"]


def test_items_from_elsewhere_are_to_be_named_again(reproduction, corpus, found):
    def hints():
        return "\n".join(hint for about, hint in found(examine(reproduction), "hint") if about == "command")

    config = variant_folder(reproduction, VARIANT, 0) / CONFIG_FILE
    save(load_config(config, [f"corpus={corpus}"]), config)
    (reproduction / ITEMS).write_text(items_digest(corpus / "test.item") + "\n")
    assert "--item" not in hints()
    assert "all nine" in hints()
    (corpus / "test.item").write_text("other items")
    assert "--item" in hints()


def test_what_is_heard_beside_the_captions_is_in_the_command(tmp_path):
    begun = [f"schedule.variant={VARIANT}", "corpus=c"]
    config = load_config("smoke", [*begun, "schedule.additional_speech={corpus: s, weight: 0.5}"])
    command = reproduce_command(tmp_path, {VARIANT: config})
    assert load_config("smoke", [*options(command, "--set"), *begun]) == config
