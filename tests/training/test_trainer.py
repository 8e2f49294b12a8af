import copy
import dataclasses
import json
import math
import multiprocessing
import os
import shutil
import signal
import threading
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vgsplus import config as settings
from vgsplus.corpora import Corpus
from vgsplus.doctor.run import run_progress
from vgsplus.errors import CheckpointError, Interrupted, NotFiniteError, VgsplusError
from vgsplus.files import lock_file
from vgsplus.functional import check_stop
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.regions.pixel_grid import PIXEL_GRID
from vgsplus.schedule import Alpha, OptimizerSettings, Phase, Schedule
from vgsplus.training import checkpoint, validate
from vgsplus.training.checkpoint import MODEL_FILE, OPTIMIZER_FILE, Checkpoint, load_model, load_state
from vgsplus.training.data import SpeechImageDataset, training_batches
from vgsplus.training.log import losses_in, read_log
from vgsplus.training.optimizer import BertAdam
from vgsplus.training.processes import Processes
from vgsplus.training.run_folder import LOCK_FILE, fingerprint_changes
from vgsplus.training.runtime import STOP_SIGNALS
from vgsplus.training.sampler import WHOLE
from vgsplus.training.trainer import STEPS_AHEAD, Trainer, train

STEPS = 9
"""Of the two phases of `make_config`: 5 and 4."""


@pytest.fixture
def whole(runs, make_config):
    """The run that nothing interrupted."""
    return runs.finished(make_config())


# ---- a run ------------------------------------------------------------------------------------------------


def test_a_run_leaves_checkpoints_settings_and_a_line_a_step(runs, whole, make_config):
    latest = checkpoint.latest_path(whole)
    assert latest == whole / "checkpoints" / "step-00000009-end-of-mixed"
    assert load_state(latest).global_step == STEPS
    assert (whole / "checkpoints" / "step-00000005-end-of-w2v2").is_dir()
    assert settings.load_config(whole / "config.yaml") == make_config()
    lines = runs.log(whole)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["phase_step"] for line in lines] == [1, 2, 3, 4, 5, 1, 2, 3, 4]
    assert [line["phase"] for line in lines] == ["w2v2"] * 5 + ["mixed"] * 4
    assert lines[-1]["epoch"] == pytest.approx(3.0)
    assert any((whole / "tensorboard").iterdir())


def test_alpha_and_learning_rate_follow_the_schedule_and_losses_follow_alpha(runs, whole):
    lines = runs.log(whole)
    assert [line["alpha"] for line in lines] == pytest.approx([0.0] * 5 + [0.2, 0.35, 0.5, 0.65])
    factors = [0.0, 0.8 / 0.9, 0.6 / 0.9, 0.4 / 0.9, 0.2 / 0.9, 0.0, 0.75 / 0.9, 0.5 / 0.9, 0.25 / 0.9]
    assert [line["lr"] for line in lines] == pytest.approx([1e-2 * factor for factor in factors])
    assert all(line["grounding"] is None and line["contrastive"] is not None for line in lines[:5])
    assert all(line["grounding"] is not None and line["contrastive"] is not None for line in lines[5:])
    assert all(math.isfinite(line["total"]) and line["grad_norm"] > 0 for line in lines)


def test_validation_follows_each_epoch_and_phase(runs, whole):
    lines = runs.log(whole, "validation")
    assert [line["step"] for line in lines] == [3, 5, 8, 9]
    assert [line["alpha"] for line in lines] == pytest.approx([0.0, 0.0, 0.5, 0.65])
    assert "grounding" not in lines[0]
    assert {"total", "grounding", "contrastive"} <= losses_in(lines[-1]).keys()


def test_validation_is_a_function_of_the_weights(runs, whole, make_config, tmp_path):
    """Neither how often it happens nor where changes it, nor the training around it."""
    train(make_config(validate_every=1 / 3), tmp_path)
    often = {line["step"]: line for line in runs.log(tmp_path, "validation")}
    assert often.keys() == set(range(1, STEPS + 1))
    assert all(often[line["step"]] == line for line in runs.log(whole, "validation"))
    runs.assert_same(tmp_path, whole)


def test_the_seed_decides_the_run_and_workers_do_not(runs, whole, make_config, tmp_path):
    train(make_config(workers=2), tmp_path / "again")
    runs.assert_same(tmp_path / "again", whole)
    train(make_config(seed=4), tmp_path / "other")
    ours, theirs = runs.tensors(whole), runs.tensors(tmp_path / "other")
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_trained_model_is_loaded_back(runs, whole):
    saved = runs.tensors(whole)
    assert all(torch.equal(saved[name], tensor) for name, tensor in load_model(whole).state_dict().items())


def test_a_run_without_grounding_never_touches_images(make_config, tmp_path, monkeypatch, speech_root):
    monkeypatch.setattr(Corpus, "stored_regions", lambda *_: pytest.fail("images were read"))
    config = make_config(schedule=Schedule.variant("w2v2", epochs=1), corpus=str(speech_root))
    assert train(config, tmp_path / "run").state.global_step == 3


def test_mixed_precision_trains_in_32_bit_weights(runs, make_config, tmp_path):
    train(make_config(precision="bf16-mixed"), tmp_path)
    assert {t.dtype for t in runs.tensors(tmp_path).values() if t.is_floating_point()} == {torch.float32}


def test_a_run_resumes_in_the_precision_it_started_in(make_config, tmp_path, monkeypatch):
    config = make_config(precision="auto")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    first = train(config, tmp_path / "run")
    assert settings.load_config(tmp_path / "run" / "config.yaml").precision == "32-true"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert train(config, tmp_path / "run", resume=True) == first


def test_the_optimizer_is_given_the_logged_rate_and_a_clipped_gradient(
    runs, make_config, tmp_path, monkeypatch
):
    step, seen = BertAdam.step, []

    def spy(self, closure=None):
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([grad.norm() for grad in grads]).norm().item()
        seen.append((self.param_groups[0]["lr"], norm))
        return step(self, closure)

    monkeypatch.setattr(BertAdam, "step", spy)
    train(make_config(gradient_clip=0.1), tmp_path)
    lines = runs.log(tmp_path)
    assert [lr for lr, _ in seen] == [line["lr"] for line in lines]
    assert [norm for _, norm in seen] == pytest.approx(
        [min(0.1, line["grad_norm"]) for line in lines], rel=1e-3
    )
    assert max(line["grad_norm"] for line in lines) > 0.1


# ---- evaluation -------------------------------------------------------------------------------------------


def test_evaluation_sees_the_model_in_evaluation_mode_when_due(runs, make_config, tmp_path, whole):
    seen = []

    def evaluate(model, phase_ended):
        assert isinstance(model, VGSPlus)
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append(phase_ended)
        torch.manual_seed(0)  # what an evaluation does to the generators does not reach training
        return {"recall": len(seen) / 10}

    train(make_config(evaluate_every=1.0), tmp_path, evaluate=evaluate)
    lines = runs.log(tmp_path, "evaluation")
    assert [line["step"] for line in lines] == [3, 5, 8, 9]
    assert [line["scores"]["recall"] for line in lines] == [0.1, 0.2, 0.3, 0.4]
    assert seen == [False, True, False, True]
    runs.assert_same(tmp_path, whole)


def test_without_an_interval_evaluation_follows_each_phase_and_is_repeated_if_it_failed(
    runs, make_config, tmp_path, whole
):
    def fail(*_):
        raise RuntimeError("broken evaluation")

    with pytest.raises(RuntimeError, match="broken evaluation"):
        train(make_config(), tmp_path, evaluate=fail)
    train(make_config(), tmp_path, resume=True, evaluate=lambda *_: {"a": 1})
    assert [line["step"] for line in runs.log(tmp_path, "evaluation")] == [5, 9]
    runs.assert_same(tmp_path, whole)


# ---- stopping and resuming --------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(1, STEPS + 1))
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_run_stopped_after_any_step_and_resumed_is_the_run_that_was_not(
    runs, make_config, tmp_path, whole, step, number
):
    handlers = [signal.getsignal(n) for n in STOP_SIGNALS]
    message = runs.stop(step, make_config(), tmp_path, number=number)
    assert [signal.getsignal(n) for n in STOP_SIGNALS] == handlers
    saved = checkpoint.latest_path(tmp_path)
    assert str(saved) in message
    assert "--resume" in message
    assert load_state(saved).global_step == step
    train(make_config(), tmp_path, resume=True)
    runs.assert_same(tmp_path, whole, "validation")


def test_a_run_with_batches_by_length_resumes(runs, make_config, tmp_path):
    config = make_config(batch_seconds=1.3, max_seconds=0.6)
    whole = runs.finished(config)
    captions = {(record["phase"], record["captions"]) for record in read_log(whole, "train")}
    assert len({number for phase, number in captions if phase == "w2v2"}) > 1
    assert {number for phase, number in captions if phase == "mixed"} == {config.batch_size}
    runs.stop(2, config, tmp_path)
    run_steps = sum(1 for _ in read_log(whole, "train"))
    assert (
        run_progress(tmp_path, checkpoint.latest_path(tmp_path), config, evaluated=False).steps == run_steps
    )
    train(config, tmp_path, resume=True)
    runs.assert_same(tmp_path, whole, "validation")


def test_a_run_with_compiled_layers_trains_alike(runs, make_config, tmp_path, whole, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    train(make_config(compile=True), tmp_path)
    for name, tensor in runs.tensors(whole).items():
        torch.testing.assert_close(runs.tensors(tmp_path)[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_second_interrupt_stops_at_once(runs, make_config, tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(make_config(), tmp_path, progress=runs.Shown(2, twice))
    assert checkpoint.latest_path(tmp_path) is None


def test_an_interrupted_validation_is_done_after_resuming(runs, make_config, tmp_path, whole, monkeypatch):
    real = validate.loss_terms

    def interrupt(losses):
        signal.raise_signal(signal.SIGINT)
        return real(losses)

    with monkeypatch.context() as patch:
        patch.setattr(validate, "loss_terms", interrupt)
        with pytest.raises(Interrupted):
            train(make_config(), tmp_path)
    assert runs.log(tmp_path, "validation") == []
    assert load_state(checkpoint.latest_path(tmp_path)).global_step == 3
    train(make_config(), tmp_path, resume=True)
    assert runs.log(tmp_path, "validation") == runs.log(whole, "validation")


def test_an_evaluation_breaks_off_and_is_done_after_resuming(runs, make_config, tmp_path):
    begun = []

    def evaluate(_model, phase_ended):
        begun.append(phase_ended)
        if len(begun) == 1:
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGTERM)  # at SLURM's time limit
            check_stop()
            raise AssertionError("goes on after a signal")
        return {"score": 1.0}

    config = make_config(evaluate_every=1)
    with pytest.raises(Interrupted):
        train(config, tmp_path, evaluate=evaluate)
    assert runs.log(tmp_path, "evaluation") == []
    step = load_state(checkpoint.latest_path(tmp_path)).global_step
    train(config, tmp_path, evaluate=evaluate, resume=True)
    assert begun[1] == begun[0]
    assert runs.log(tmp_path, "evaluation")[0]["step"] == step


def test_checkpoints_on_the_way_are_pruned(runs, make_config, tmp_path, whole):
    train(make_config(checkpoint_minutes=1e-9), tmp_path)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == [
        "step-00000005-end-of-w2v2",
        "step-00000008",
        "step-00000009-end-of-mixed",
    ]
    runs.assert_same(tmp_path, whole)


def in_another_process(config, out, progress, *, resume=False):
    """Train in a process, and process group, of its own.

    Returns its exit code (or minus the signal that killed it) and the message of its error.
    """
    message = out.parent / "message"

    def work():
        os.setsid()
        try:
            train(config, out, resume=resume, progress=progress)
        except VgsplusError as error:
            message.write_text(str(error))
            os._exit(130)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(timeout=60)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode, message.read_text() if message.exists() else ""


def interrupt_group():
    os.killpg(0, signal.SIGINT)


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def test_ctrl_c_reaches_the_whole_group_and_the_run_saves(runs, make_config, tmp_path, whole):
    config, out = make_config(workers=2), tmp_path / "run"
    code, message = in_another_process(config, out, runs.Shown(2, interrupt_group))
    assert code == 130
    assert "--resume" in message
    assert load_state(checkpoint.latest_path(out)).global_step == 2
    train(config, out, resume=True)
    runs.assert_same(out, whole)


@pytest.mark.parametrize(
    ("signals", "expected"),
    [([signal.SIGINT], 130), ([signal.SIGTERM], 130), ([signal.SIGINT, signal.SIGINT], 1)],
)
def test_workers_live_until_the_step_is_done_and_end_with_the_run(
    runs, make_config, tmp_path, whole, signals, expected
):
    """A worker that died of a signal would take the step with it; one that never died, block the exit."""
    config, out = make_config(workers=1, validate_every=None), tmp_path / "run"
    read, left = SpeechImageDataset.__getitem__, list(signals)

    def interrupt_while_reading(self, indices):
        if left:
            os.killpg(0, left.pop())
        return read(self, indices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpeechImageDataset, "__getitem__", interrupt_while_reading)
        code, message = in_another_process(config, out, runs.Shown())
    assert code == expected
    assert ("--resume" in message) is (len(signals) == 1)
    train(config, out, resume=True)
    runs.assert_same(out, whole)


def test_a_killed_run_resumes_and_its_log_has_every_step_once(runs, make_config, tmp_path, whole):
    out = tmp_path / "run"
    assert in_another_process(make_config(), out, runs.Shown(3, interrupt_group))[0] == 130
    code, _ = in_another_process(make_config(), out, runs.Shown(5, kill_self), resume=True)
    assert code == -signal.SIGKILL
    assert load_state(checkpoint.latest_path(out)).global_step == 3
    assert [line["step"] for line in runs.log(out)] == [1, 2, 3, 4, 5], "steps 4 and 5 are to be redone"
    with (out / "log.jsonl").open("a") as log:
        log.write('{"kind": "train", "st')
    train(make_config(), out, resume=True)
    runs.assert_same(out, whole)


def test_a_run_killed_before_its_first_checkpoint_starts_again(runs, make_config, tmp_path, whole):
    out = tmp_path / "run"
    code, _ = in_another_process(make_config(), out, runs.Shown(2, kill_self))
    assert code == -signal.SIGKILL
    assert checkpoint.latest_path(out) is None
    train(make_config(), out, resume=True)
    runs.assert_same(out, whole)


def test_a_finished_run_returns_at_once(whole, make_config, monkeypatch):
    monkeypatch.setattr(Corpus, "open", lambda *_: pytest.fail("the corpus was opened"))
    latest = checkpoint.latest_path(whole)
    assert train(make_config(), whole, resume=True) == Checkpoint(latest, load_state(latest))


def test_a_full_disk_stops_the_run_and_it_resumes(runs, make_config, tmp_path, whole, monkeypatch):
    runs.stop(2, make_config(), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(CheckpointError, match="step-00000002"):
            train(make_config(), tmp_path, resume=True)
    train(make_config(), tmp_path, resume=True)
    runs.assert_same(tmp_path, whole)


def test_a_checkpoint_that_cannot_be_written_between_phases_is_told_and_training_goes_on(
    runs, make_config, tmp_path, whole, monkeypatch
):
    write, calls = checkpoint.save_file, []

    def fail_twice(*arguments):
        calls.append(arguments)
        if len(calls) < 3:
            raise OSError(28, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(checkpoint, "save_file", fail_twice)
    shown = runs.Shown()
    train(make_config(checkpoint_minutes=1e-9), tmp_path, progress=shown)
    runs.assert_same(tmp_path, whole)
    told = [note for note in shown.notes if "Training goes on" in note]
    assert len(told) == 2
    assert "No space left" in told[0]


def test_checkpoints_are_written_while_training_goes_on(runs, make_config, tmp_path, whole, monkeypatch):
    write, stepped = checkpoint.save_file, threading.Event()
    monkeypatch.setattr(checkpoint, "save_file", lambda *a: write(*a) if stepped.wait(60) else None)
    shown = runs.Shown(3, stepped.set)
    train(make_config(checkpoint_minutes=1e-9), tmp_path / "late", progress=runs.Shown(2, stepped.set))
    runs.assert_same(tmp_path / "late", whole)
    stepped.clear()
    waiting = threading.Timer(0.5, stepped.set)
    waiting.start()
    train(make_config(), tmp_path / "end", progress=shown)
    runs.assert_same(tmp_path / "end", whole)


# ---- starting from another run's phases -------------------------------------------------------------------


@pytest.fixture
def first(runs, make_config):
    """A run of the first phase alone."""
    return runs.finished(make_config(schedule=Schedule(make_config().schedule.phases[:1])))


def test_shared_pretraining_gives_the_weights_of_training_in_one_go(
    runs, make_config, tmp_path, first, whole
):
    for name, start in (("run", first), ("folder", checkpoint.latest_path(first))):
        train(make_config(), tmp_path / name, start=start)
        runs.assert_same(tmp_path / name, whole)
        assert [path.name for path in checkpoint.checkpoints(tmp_path / name)] == [
            "step-00000005-end-of-w2v2",
            "step-00000009-end-of-mixed",
        ]


def test_a_started_run_resumes(runs, make_config, tmp_path, first, whole):
    runs.stop(7, make_config(), tmp_path / "run", start=first)
    train(make_config(), tmp_path / "run", start=first, resume=True)
    runs.assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 9}, "seed: 3 → 9"),
        ({"schedule": Schedule.variant("vgs,w2v2", pretraining_epochs=1, epochs=2)}, r"schedule\.0\.name"),
    ],
)
def test_a_start_of_another_kind_is_refused_and_nothing_written(
    make_config, tmp_path, whole, changes, message
):
    with pytest.raises(CheckpointError, match=message):
        train(
            make_config(**changes),
            tmp_path / "run",
            start=whole / "checkpoints" / "step-00000005-end-of-w2v2",
        )
    assert not (tmp_path / "run").exists()


def test_a_start_in_the_middle_of_a_phase_is_refused(runs, make_config, tmp_path):
    runs.stop(2, make_config(), tmp_path / "first")
    with pytest.raises(CheckpointError, match="not at the end of a phase"):
        train(make_config(), tmp_path / "second", start=tmp_path / "first")


def test_the_optimiser_starts_afresh_at_each_phase(runs, make_config, tmp_path, first, whole):
    """The moments after one step of a second phase are those of this step alone."""
    train(make_config(), tmp_path / "run", start=checkpoint.checkpoints(whole)[0])
    runs.assert_same(tmp_path / "run", whole)
    second = Phase(name="b", alpha=Alpha.parse(0.0), epochs=1 / 3)
    longer = Schedule((make_config().schedule.phases[0], second))
    train(make_config(schedule=longer), tmp_path / "one", start=first)
    state = runs.tensors(tmp_path / "one", OPTIMIZER_FILE)
    for name in state:
        if name.startswith("exp_avg/"):
            g, g2 = state[name], state[name.replace("exp_avg/", "exp_avg_sq/")]
            torch.testing.assert_close((g / 0.1).square() * 0.001, g2, rtol=1e-3, atol=1e-12)


# ---- initial weights --------------------------------------------------------------------------------------


def test_a_phases_initial_weights_are_loaded_once(runs, make_config, tmp_path):
    (tmp_path / "weights").write_text("x")
    loaded = []

    def load(model, path):
        if not next(model.parameters()).is_meta:
            loaded.append(path)
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(0.5)
        return "all tensors taken"

    phases = make_config().schedule.phases
    second = Phase(
        name="b",
        alpha=Alpha.parse(0.0),
        epochs=2 / 3,
        init=str(tmp_path / "weights"),
        optimizer=OptimizerSettings(lr=1e-12),
    )
    config = make_config(schedule=Schedule((phases[0], second)))
    runs.stop(6, config, tmp_path / "run", load_weights=load)
    (tmp_path / "weights").unlink()
    train(config, tmp_path / "run", load_weights=load, resume=True)
    assert loaded == [str(tmp_path / "weights")]
    parameters = dict(VGSPlus(config.model).named_parameters())
    weights = runs.tensors(tmp_path / "run")
    assert all(torch.allclose(weights[name], torch.tensor(0.5)) for name in parameters)


# ---- refusals ---------------------------------------------------------------------------------------------


def test_a_folder_in_which_another_process_trains_is_left_alone(make_config, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with lock_file(run / LOCK_FILE):
        with pytest.raises(CheckpointError, match=rf"process {os.getpid()} on .* is training in it"):
            train(make_config(), run)
        assert [path.name for path in run.iterdir()] == [LOCK_FILE]


def test_an_existing_run_is_not_started_anew(whole, make_config):
    with pytest.raises(CheckpointError, match="holds a run already"):
        train(make_config(), whole)


@pytest.mark.parametrize("before_checkpoint", [True, False])
def test_changed_settings_are_named(runs, make_config, tmp_path, before_checkpoint):
    if before_checkpoint:
        settings.save_config(make_config(), tmp_path / "config.yaml")
    else:
        runs.stop(1, make_config(), tmp_path)
    with pytest.raises(CheckpointError) as error:
        train(make_config(seed=5, max_seconds=4.0), tmp_path, resume=True)
    assert "- seed: 3 → 5" in str(error.value)
    assert "- max_seconds: 8.0 → 4.0" in str(error.value)
    assert str(error.value).count("→") == 2


def test_what_does_not_change_the_weights_may_change(runs, make_config, tmp_path, whole):
    runs.stop(1, make_config(), tmp_path)
    config = make_config(workers=1, checkpoint_minutes=1.0, validate_every=None)
    train(config, tmp_path, resume=True)
    assert not runs.log(tmp_path, "validation")
    runs.assert_same(tmp_path, whole)


def test_a_corpus_that_changed_is_noticed(runs, make_config, tmp_path, corpus_root):
    copy = shutil.copytree(corpus_root, tmp_path / "moved")
    runs.stop(1, make_config(), tmp_path / "run")
    moved = make_config(corpus=str(copy))
    runs.stop(2, moved, tmp_path / "run", resume=True)
    info = json.loads((copy / "corpus.json").read_text())
    (copy / "corpus.json").write_text(json.dumps(info | {"provenance": {"regions": {"model": "another"}}}))
    with pytest.raises(CheckpointError, match="another corpus:\n- described_by"):
        train(moved, tmp_path / "run", resume=True)
    (copy / "corpus.json").write_text(json.dumps(info))
    lines = (copy / "captions.jsonl").read_text().splitlines(keepends=True)
    (copy / "captions.jsonl").write_text("".join(reversed(lines)))
    with pytest.raises(CheckpointError, match="another corpus"):
        train(moved, tmp_path / "run", resume=True)


@pytest.mark.parametrize("saved", [None, []])
def test_a_corpus_prepared_again_that_now_records_its_pixel_grid_is_the_same(saved):
    assert not fingerprint_changes({"described_by": saved}, {"described_by": PIXEL_GRID})
    assert fingerprint_changes({"described_by": saved}, {"described_by": {"model": "another"}})
    assert fingerprint_changes({"described_by": {"model": "another"}}, {"described_by": PIXEL_GRID})


def test_losses_read_late_change_nothing(runs, whole, make_config, tmp_path, monkeypatch):
    monkeypatch.setitem(STEPS_AHEAD, "cpu", 3)
    train(make_config(), tmp_path / "run")
    runs.assert_same(tmp_path / "run", whole, "validation")


@pytest.mark.parametrize("steps_ahead", [0, 3])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_update(
    runs, make_config, tmp_path, monkeypatch, what, steps_ahead
):
    runs.stop(6, make_config(), tmp_path)
    monkeypatch.setitem(STEPS_AHEAD, "cpu", steps_ahead)
    before = checkpoint.latest_path(tmp_path)
    forward, models = VGSPlus.forward, []

    def broken(self, batch, alpha=0.5, **options):
        losses = forward(self, batch, alpha, **options)
        models.append(self)
        if not self.training:
            return losses
        if what == "loss":
            total = losses.total
            terms = losses.terms | {"grounding": total * math.inf}
            return dataclasses.replace(losses, total=total * math.nan, terms=terms)
        losses.total.register_hook(lambda gradient: gradient * math.inf)
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(VGSPlus, "forward", broken)
        with pytest.raises(NotFiniteError) as error:
            train(make_config(validate_every=None), tmp_path, resume=True)
    message = str(error.value)
    assert ("total, grounding" if what == "loss" else "the gradient") in message
    assert "step 2 of phase mixed" in message
    assert str(before) in message
    assert checkpoint.latest_path(tmp_path) == before
    assert len(runs.log(tmp_path)) == 6
    (stop,) = runs.log(tmp_path, "stopped")
    assert (stop["step"], "grad_norm" in stop["not_finite"]) == (6, True)
    saved = load_file(before / MODEL_FILE)
    assert all(torch.equal(saved[name], p) for name, p in models[-1].named_parameters())


def test_bad_settings_made_in_python_are_refused_before_anything_is_written(make_config, tmp_path):
    with pytest.raises(VgsplusError, match="batch_size"):
        train(make_config(batch_size=0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_log_is_plain_json(whole):
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"train", "validation"}
    speeds = {"captions_per_second", "audio_seconds_per_second", "loader_wait", "padding_share"}
    for line in lines:
        if line["kind"] == "train":
            assert speeds <= line.keys()
            assert 0 <= line["loader_wait"] <= 1
            assert 0 <= line["padding_share"] < 1
            assert line["matrix_share"] > 0
            parts = [line[name] for name in line if name.startswith("grad_norm/")]
            assert len(parts) > 3
            assert math.hypot(*parts) == pytest.approx(line["grad_norm"], rel=1e-3), "before clipping"


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_operations_are_counted_as_those_of_forward_and_backward_passes(make_config, tmp_path, alpha):
    config = make_config()
    phase = dataclasses.replace(config.schedule.phases[0], alpha=Alpha.parse(alpha))
    config = dataclasses.replace(config, schedule=Schedule((phase,)))
    trainer = Trainer(config, tmp_path, Corpus.open(config.corpus), {}, Processes())
    model = trainer.model.train()
    batches = next(training_batches(config, trainer.plan[0], trainer.corpus, None, WHOLE, 0))
    before = copy.deepcopy(model.state_dict())
    counted = trainer.step.count_operations(batches, alpha)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter, sdpa_kernel(SDPBackend.MATH):
        trainer.step.losses(batches[0], alpha, seed=0).total.backward()
    # The waveform and the features of regions have no gradient.
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_crops_that_would_be_silent_are_moved_and_reported(runs, make_config, make_corpus, tmp_path):
    corpus = make_corpus(tmp_path / "corpus", silence=16_000)
    shown = runs.Shown()
    config = make_config(corpus=str(corpus), max_seconds=0.5, validation_max_seconds=0.5)
    train(config, tmp_path / "run", progress=shown)
    assert {record["moved_crops"] for record in read_log(tmp_path / "run", "train")} == {1.0}
    assert sum("silent throughout the 0.5 s" in text for text in shown.notes) == 1
    assert any("moved_crops 1" in text for text in shown.notes)
    # Of zeros the model would predict every target, and the penalty of their features would vanish.
    *_, validation = read_log(tmp_path / "run", "validation")
    assert validation["contrastive"] > 0.5
    assert validation["feature_penalty"] > 1e-4


def test_a_run_from_before_a_setting_of_the_model_resumes(runs, make_config, tmp_path, whole):
    runs.stop(3, make_config(), tmp_path / "run")
    for path in (tmp_path / "run").rglob("state.json"):
        state = json.loads(path.read_text())
        for model in (state["model"], state["run"]["model"]):
            for setting in ("extractor_mode", "conv_bias", "layer_norm_first", "cls_after_positions"):
                del model[setting]
        path.write_text(json.dumps(state))
    train(make_config(), tmp_path / "run", resume=True)
    runs.assert_same(tmp_path / "run", whole)


def test_a_further_loss_is_logged_averaged_and_shown_by_its_name(runs, make_config, tmp_path, monkeypatch):
    forward = VGSPlus.forward

    def extended(self, batch, alpha=0.5, **options):
        losses = forward(self, batch, alpha, **options)
        return dataclasses.replace(
            losses, terms={**losses.terms, "further": losses.total.detach() * 0 + 0.25}
        )

    monkeypatch.setattr(VGSPlus, "forward", extended)
    shown = runs.Shown()
    train(make_config(), tmp_path, progress=shown)
    assert {record["further"] for record in read_log(tmp_path)} == {0.25}
    assert all(losses_in(record)["further"] == 0.25 for record in read_log(tmp_path, "validation"))
    first, *steps = [text for text in shown.details if text]
    assert len(steps) == STEPS - 1
    for part in ("total ", "contrastive ", "further 0.250", "captions/s"):
        assert part in first
    assert "perplexity" not in first
    assert {record["moved_crops"] for record in read_log(tmp_path)} == {0.0}, "no crop is silent"
    assert not any("moved_crops" in text for text in shown.notes)
