import dataclasses
import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from vgsplus.config import load_config, save_config
from vgsplus.corpora import Corpus
from vgsplus.doctor import examine
from vgsplus.doctor import run as subject
from vgsplus.doctor.run import RunProgress
from vgsplus.training import checkpoint
from vgsplus.training.checkpoint import MODEL_FILE, OPTIMIZER_FILE
from vgsplus.training.log import LOG_FILE
from vgsplus.training.run_folder import CONFIG_FILE, fingerprint
from vgsplus.training.trainer import train

STEPS, FIRST_STEPS = 6, 2
"""Of the run that is trained in conftest.py, and of its first phase."""
SCORES = {"test/speech_to_image/R@10": 0.5}


def unfinish(run):
    shutil.rmtree(checkpoint.latest_path(run))


def records(run):
    return [json.loads(line) for line in (run / LOG_FILE).read_text().splitlines()]


def write(run, lines):
    (run / LOG_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_finished_run_is_ok_and_needs_no_command(trained, found):
    diagnosis = examine(trained)
    assert diagnosis.ok
    assert not diagnosis.command
    reported = dict(found(diagnosis, "ok"))
    assert f"finished after {STEPS} steps" in reported["progress"]
    assert "2 of 2 complete" in reported["checkpoints"]
    assert "the one that was trained on" in reported["corpus"]
    assert "R@10 0.500" in reported["last scores"]
    assert "grounding" in reported["last train"]


def test_the_command_of_an_unfinished_run_finishes_it(run, found):
    unfinish(run)
    diagnosis = examine(run)
    assert diagnosis.ok
    assert f"at step {FIRST_STEPS} of {STEPS}" in dict(found(diagnosis, "hint"))["progress"]
    assert f"{STEPS - FIRST_STEPS} of them after the checkpoint" in dict(found(diagnosis, "ok"))["log"]
    assert diagnosis.command == f"vgsplus train {run / CONFIG_FILE} --out {run} --resume"
    train(load_config(run / CONFIG_FILE), run, resume=True, evaluate=lambda *_: SCORES)
    assert not examine(run).command


def test_scores_that_are_missing_at_the_end_leave_a_run_unfinished(run, found):
    write(run, [r for r in records(run) if not (r["kind"] == "evaluation" and r["step"] == STEPS)])
    diagnosis = examine(run)
    assert "the last evaluation missing" in dict(found(diagnosis, "hint"))["progress"]
    assert diagnosis.command


@pytest.mark.parametrize("name", [MODEL_FILE, OPTIMIZER_FILE])
def test_a_tensor_file_that_is_cut_off_is_a_fault_and_the_one_before_is_named(run, found, name):
    newest = checkpoint.latest_path(run)
    path = newest / name
    path.write_bytes(path.read_bytes()[:-100])
    diagnosis = examine(run)
    (fault,) = [text for about, text in found(diagnosis, "fault") if about == "checkpoint"]
    assert str(path) in fault
    assert f"resumes from step-{FIRST_STEPS:08d}-end-of-w2v2" in fault
    assert f"at step {FIRST_STEPS} of {STEPS}" in dict(found(diagnosis, "hint"))["progress"]


def test_a_checkpoint_that_lacks_a_file_is_a_fault(run, found):
    (checkpoint.latest_path(run) / "state.json").unlink()
    assert "state.json missing" in dict(found(examine(run), "fault"))["checkpoint"]


def test_weights_that_are_not_finite_are_a_fault(run, found):
    path = checkpoint.latest_path(run) / MODEL_FILE
    weights = load_file(path)
    name = next(name for name, tensor in weights.items() if tensor.ndim == 2)
    weights[name][0, 0] = float("nan")
    save_file(weights, path)
    assert name in dict(found(examine(run), "fault"))["checkpoint"]


def test_a_log_shorter_than_its_checkpoint_is_a_fault(run, found):
    write(run, [r for r in records(run) if r["step"] < STEPS - 1])
    assert f"lacks 2 steps of the checkpoint's {STEPS}" in dict(found(examine(run), "fault"))["log"]
    (run / LOG_FILE).unlink()
    assert "is missing" in dict(found(examine(run), "fault"))["log"]


def test_a_step_logged_twice_and_a_broken_line_are_faults(run, found):
    lines = records(run)
    write(run, [*lines, *lines])
    assert "more than once" in dict(found(examine(run), "fault"))["log"]
    text = (run / LOG_FILE).read_text()
    (run / LOG_FILE).write_text("{broken\n" + text)
    assert ":1: is not JSON" in dict(found(examine(run), "fault"))["log"]


def test_a_stop_by_a_loss_that_is_not_finite_is_reported_until_the_run_has_resumed(run, found):
    lines = [r for r in records(run) if r["step"] <= FIRST_STEPS]
    stop = {key: lines[-1][key] for key in ("step", "phase", "phase_index", "phase_step", "epoch")}
    stop |= {"kind": "stopped", "not_finite": ["grounding"]}
    unfinish(run)
    write(run, [*lines, stop])
    assert "grounding not finite" in dict(found(examine(run), "fault"))["stop"]
    write(run, [*lines, stop, lines[-1] | {"step": FIRST_STEPS + 1}])
    assert examine(run).ok


def test_losses_that_are_not_finite_are_a_fault_but_skipped_updates_are_not(run, found):
    lines = records(run)
    write(run, [r | {"grad_norm": float("inf")} if r["kind"] == "train" else r for r in lines])
    assert f"{STEPS} updates skipped" in dict(found(examine(run), "ok"))["numbers"]
    write(run, [r | {"total": float("nan")} if r["kind"] == "validation" else r for r in lines])
    assert "validation at step 2: total" in dict(found(examine(run), "fault"))["numbers"]


def test_what_collapsed_in_training_is_a_hint(run, found):
    first = next(r for r in records(run) if r["kind"] == "train")
    write(run, [first | {"step": n, "phase_step": n, "image_embedding_std": 0.0} for n in range(1, 26)])
    assert "at step 25: the image embeddings collapse" in dict(found(examine(run), "hint"))["training"]


def test_a_corpus_that_changed_is_a_fault(run, corpus, found):
    config = load_config(run / CONFIG_FILE, [f"corpus={corpus}"])
    save_config(config, run / CONFIG_FILE)
    assert examine(run).ok  # the same one, elsewhere
    path = corpus / "captions.jsonl"
    path.write_text(path.read_text().replace("tone number", "a tone, number"))
    assert "not what was trained on: captions" in dict(found(examine(run), "fault"))["corpus"]


def test_a_corpus_that_is_gone_is_a_fault_only_while_the_run_needs_it(run, found):
    save_config(load_config(run / CONFIG_FILE, ["corpus=/nowhere/at/all"]), run / CONFIG_FILE)
    diagnosis = examine(run)
    assert diagnosis.ok
    assert "/nowhere/at/all" in dict(found(diagnosis, "hint"))["corpus"]
    unfinish(run)
    assert "--set corpus=" in dict(found(examine(run), "fault"))["corpus"]


def test_settings_that_were_changed_or_cannot_be_read_are_faults(run, found):
    save_config(load_config(run / CONFIG_FILE, ["batch_size=4"]), run / CONFIG_FILE)
    assert "batch_size: 8 → 4" in dict(found(examine(run), "fault"))["settings"]
    (run / CONFIG_FILE).write_text("batch_sice: 4\n")
    assert "batch_size" in dict(found(examine(run), "fault"))["settings"]
    (run / CONFIG_FILE).unlink()
    assert "is missing" in dict(found(examine(run), "fault"))["settings"]


def test_what_this_machine_lacks_to_go_on_is_a_fault(run, found):
    unfinish(run)
    save_config(load_config(run / CONFIG_FILE, ["accelerator=cpu", "precision=16-mixed"]), run / CONFIG_FILE)
    assert "16-mixed needs a CUDA device" in dict(found(examine(run), "fault"))["resuming"]


def test_a_precision_that_is_only_imitated_is_a_hint(run, found, monkeypatch):
    save_config(load_config(run / CONFIG_FILE, ["precision=bf16-mixed"]), run / CONFIG_FILE)
    monkeypatch.setattr(subject, "native_precision", lambda _: "32-true")
    assert "bf16-mixed" in dict(found(examine(run), "hint"))["precision"]


def test_other_versions_are_a_hint(run, found, monkeypatch):
    current = subject.versions()
    monkeypatch.setattr(subject, "versions", lambda: current | {"torch": "9.9"})
    assert "'9.9'" in dict(found(examine(run), "hint"))["versions"]


def test_what_a_killed_process_left_is_a_hint(run, found):
    (run / "checkpoints" / ".step-00000003.writing").mkdir()
    (run / f".{LOG_FILE}.writing").touch()
    (run / ".gitignore").touch()
    hint = dict(found(examine(run), "hint"))["leftovers"]
    assert "2 paths" in hint
    assert ".step-00000003.writing" in hint
    assert "gitignore" not in hint


def test_a_run_without_a_checkpoint_starts_anew(run, found):
    shutil.rmtree(run / "checkpoints")
    diagnosis = examine(run)
    assert "no checkpoint yet" in dict(found(diagnosis, "hint"))["progress"]
    assert diagnosis.command.endswith("--resume")


def test_additional_speech_that_is_no_longer_the_same_is_a_fault(trained, tiny_corpus):
    speech = f"schedule.additional_speech={{corpus: {tiny_corpus}, weight: 0.5}}"
    config = load_config("smoke", ["schedule.variant=w2v2,vgs", speech])
    known = fingerprint(Corpus.open(tiny_corpus))
    state = checkpoint.load_state(checkpoint.latest_path(trained))
    for heard, level in ((known, "ok"), (known | {"captions": "others"}, "fault")):
        place = RunProgress(dataclasses.replace(state, additional_speech={"w2v2": heard}), STEPS)
        (finding,) = subject._additional_speech(config, place)
        assert (finding.about, finding.level) == ("additional speech", level)
        assert "of phase w2v2" in finding.what
