import dataclasses
import json
import math
import multiprocessing
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from vgsplus import config as settings
from vgsplus.corpora import Corpus
from vgsplus.errors import CheckpointError, Interrupted, NotFiniteError, VgsplusError
from vgsplus.files import lock_file
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.progress import Progress
from vgsplus.schedule import Alpha, OptimizerSettings, Phase, Schedule
from vgsplus.training import checkpoint, validate
from vgsplus.training.checkpoint import MODEL_FILE, OPTIMIZER_FILE, load_model, load_state
from vgsplus.training.data import SpeechImageDataset
from vgsplus.training.log import losses_in, read_log
from vgsplus.training.optimizer import BertAdam
from vgsplus.training.run_folder import LOCK_FILE
from vgsplus.training.trainer import train

STEPS = 9
"""Of the two phases of `make_config`: 5 and 4."""
FIRST_STEPS = {"w2v2": 0}
SPEEDS = ("captions_per_second", "audio_seconds_per_second")


class At(Progress):
    """Does something after a step of the whole run."""

    def __init__(self, step, action):
        self._step, self._action = step, action

    def update(self, stage, done, _total=None, detail=""):
        if detail and FIRST_STEPS.get(stage, 5) + done == self._step:
            self._action()


def raising(number=signal.SIGINT):
    return lambda: signal.raise_signal(number)


def tensors(path):
    return {name: load_file(path / name) for name in (MODEL_FILE, OPTIMIZER_FILE)}


def assert_same_bits(one, other):
    """Two checkpoints hold the same weights, buffers and optimiser state."""
    ours, theirs = tensors(one), tensors(other)
    for file in ours:
        assert ours[file].keys() == theirs[file].keys()
        different = [name for name in ours[file] if not torch.equal(ours[file][name], theirs[file][name])]
        assert not different


def numbers(run, kind="train"):
    """The log without what depends on the clock."""
    return [{k: v for k, v in record.items() if k not in SPEEDS} for record in read_log(run, kind)]


@pytest.fixture(scope="session")
def whole(make_config, tmp_path_factory):
    """The run that nothing interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return train(make_config(), out), out


# ---- a run ------------------------------------------------------------------------------------------------


def test_a_run_leaves_checkpoints_settings_and_a_line_a_step(whole, make_config):
    result, out = whole
    assert result.state.global_step == STEPS
    assert result.path == out / "checkpoints" / "step-00000009-end-of-mixed"
    assert (out / "checkpoints" / "step-00000005-end-of-w2v2").is_dir()
    assert settings.load_config(out / "config.yaml") == make_config()
    lines = numbers(out)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["phase_step"] for line in lines] == [1, 2, 3, 4, 5, 1, 2, 3, 4]
    assert [line["phase"] for line in lines] == ["w2v2"] * 5 + ["mixed"] * 4
    assert lines[-1]["epoch"] == pytest.approx(3.0)
    assert any((out / "tensorboard").iterdir())


def test_alpha_and_learning_rate_follow_the_schedule_and_losses_follow_alpha(whole):
    lines = numbers(whole[1])
    assert [line["alpha"] for line in lines] == pytest.approx([0.0] * 5 + [0.2, 0.35, 0.5, 0.65])
    factors = [0.0, 0.8 / 0.9, 0.6 / 0.9, 0.4 / 0.9, 0.2 / 0.9, 0.0, 0.75 / 0.9, 0.5 / 0.9, 0.25 / 0.9]
    assert [line["lr"] for line in lines] == pytest.approx([1e-2 * factor for factor in factors])
    assert all(line["grounding"] is None and line["contrastive"] is not None for line in lines[:5])
    assert all(line["grounding"] is not None and line["contrastive"] is not None for line in lines[5:])
    assert all(math.isfinite(line["total"]) and line["grad_norm"] > 0 for line in lines)


def test_validation_follows_each_epoch_and_phase(whole):
    lines = numbers(whole[1], "validation")
    assert [line["step"] for line in lines] == [3, 5, 8, 9]
    assert [line["alpha"] for line in lines] == pytest.approx([0.0, 0.0, 0.5, 0.65])
    assert "grounding" not in lines[0]
    assert {"total", "grounding", "contrastive"} <= losses_in(lines[-1]).keys()


def test_validation_is_a_function_of_the_weights(whole, make_config, tmp_path):
    """Neither how often it happens nor where changes it, nor the training around it."""
    train(make_config(validate_every=1 / 3), tmp_path / "often")
    often = {line["step"]: line for line in numbers(tmp_path / "often", "validation")}
    assert often.keys() == set(range(1, STEPS + 1))
    assert all(often[line["step"]] == line for line in numbers(whole[1], "validation"))
    assert numbers(tmp_path / "often") == numbers(whole[1])


def test_the_seed_decides_the_run(whole, make_config, tmp_path):
    again = train(make_config(), tmp_path / "again")
    assert_same_bits(again.path, whole[0].path)
    assert numbers(tmp_path / "again") == numbers(whole[1])
    other = train(make_config(seed=4), tmp_path / "other")
    ours, theirs = tensors(whole[0].path)[MODEL_FILE], tensors(other.path)[MODEL_FILE]
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_workers_do_not_change_the_run(whole, make_config, tmp_path):
    helped = train(make_config(workers=2), tmp_path / "helped")
    assert_same_bits(helped.path, whole[0].path)


def test_the_trained_model_is_loaded_back(whole):
    model = load_model(whole[1])
    saved = load_file(whole[0].path / MODEL_FILE)
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())


def test_a_run_without_grounding_never_touches_images(make_config, tmp_path, monkeypatch, speech_root):
    monkeypatch.setattr(Corpus, "stored_regions", lambda *_: pytest.fail("images were read"))
    config = make_config(schedule=Schedule.variant("w2v2", epochs=1), corpus=str(speech_root))
    assert train(config, tmp_path / "run").state.global_step == 3


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_mixed_precision_trains_in_32_bit_weights(make_config, tmp_path, precision):
    result = train(make_config(precision=precision), tmp_path / "run")
    assert {t.dtype for t in load_file(result.path / MODEL_FILE).values() if t.is_floating_point()} == {
        torch.float32
    }


def test_a_run_resumes_in_the_precision_it_started_in(make_config, tmp_path, monkeypatch):
    config = make_config(precision="auto")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    first = train(config, tmp_path / "run")
    assert settings.load_config(tmp_path / "run" / "config.yaml").precision == "32-true"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert train(config, tmp_path / "run", resume=True) == first


def test_the_optimizer_is_given_the_logged_rate_and_a_clipped_gradient(make_config, tmp_path, monkeypatch):
    step, seen = BertAdam.step, []

    def spy(self, closure=None):
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([grad.norm() for grad in grads]).norm().item()
        seen.append((self.param_groups[0]["lr"], norm))
        return step(self, closure)

    monkeypatch.setattr(BertAdam, "step", spy)
    train(make_config(gradient_clip=0.1), tmp_path)
    lines = numbers(tmp_path)
    assert [lr for lr, _ in seen] == [line["lr"] for line in lines]
    assert [norm for _, norm in seen] == pytest.approx(
        [min(0.1, line["grad_norm"]) for line in lines], rel=1e-3
    )
    assert max(line["grad_norm"] for line in lines) > 0.1


# ---- evaluation -------------------------------------------------------------------------------------------


def test_evaluation_sees_the_model_in_evaluation_mode_when_due(make_config, tmp_path, whole):
    seen = []

    def evaluate(model, phase_ended):
        assert isinstance(model, VGSPlus)
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append(phase_ended)
        torch.manual_seed(0)  # what an evaluation does to the generators does not reach training
        return {"recall": len(seen) / 10}

    result = train(make_config(evaluate_every=1.0), tmp_path / "run", evaluate=evaluate)
    lines = numbers(tmp_path / "run", "evaluation")
    assert [(line["step"], line["scores"]["recall"]) for line in lines] == [
        (3, 0.1),
        (5, 0.2),
        (8, 0.3),
        (9, 0.4),
    ]
    assert seen == [False, True, False, True]
    assert_same_bits(result.path, whole[0].path)


def test_without_an_interval_evaluation_follows_each_phase(make_config, tmp_path):
    train(make_config(), tmp_path / "run", evaluate=lambda *_: {"a": 1})
    assert [line["step"] for line in numbers(tmp_path / "run", "evaluation")] == [5, 9]


def test_an_evaluation_that_failed_is_made_up_for(make_config, tmp_path, whole):
    def fail(*_):
        raise RuntimeError("broken evaluation")

    with pytest.raises(RuntimeError, match="broken evaluation"):
        train(make_config(), tmp_path / "run", evaluate=fail)
    result = train(make_config(), tmp_path / "run", resume=True, evaluate=lambda *_: {"a": 1})
    assert [line["step"] for line in numbers(tmp_path / "run", "evaluation")] == [5, 9]
    assert numbers(tmp_path / "run") == numbers(whole[1])
    assert_same_bits(result.path, whole[0].path)


# ---- stopping and resuming --------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(1, STEPS + 1))
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_stopped_after_any_step_and_resumed_is_the_run_that_was_not(
    make_config, tmp_path, whole, step, number
):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match="--resume") as stopped:
        train(make_config(), tmp_path, progress=At(step, raising(number)))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    saved = checkpoint.latest_path(tmp_path)
    assert str(saved) in str(stopped.value)
    assert load_state(saved).global_step == step
    result = train(make_config(), tmp_path, resume=True)
    assert_same_bits(result.path, whole[0].path)
    assert numbers(tmp_path) == numbers(whole[1])
    assert numbers(tmp_path, "validation") == numbers(whole[1], "validation")


def test_a_second_interrupt_stops_at_once(make_config, tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(make_config(), tmp_path, progress=At(2, twice))
    assert checkpoint.latest_path(tmp_path) is None


def test_an_interrupted_validation_is_done_after_resuming(make_config, tmp_path, whole, monkeypatch):
    real = validate.loss_terms

    def interrupt(losses):
        signal.raise_signal(signal.SIGINT)
        return real(losses)

    with monkeypatch.context() as patch:
        patch.setattr(validate, "loss_terms", interrupt)
        with pytest.raises(Interrupted):
            train(make_config(), tmp_path)
    assert numbers(tmp_path, "validation") == []
    assert load_state(checkpoint.latest_path(tmp_path)).global_step == 3
    train(make_config(), tmp_path, resume=True)
    assert numbers(tmp_path, "validation") == numbers(whole[1], "validation")


def test_checkpoints_on_the_way_are_pruned(make_config, tmp_path, whole):
    result = train(make_config(checkpoint_minutes=1e-9), tmp_path)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == [
        "step-00000005-end-of-w2v2",
        "step-00000008",
        "step-00000009-end-of-mixed",
    ]
    assert_same_bits(result.path, whole[0].path)


def in_another_process(config, out, *, step, action, resume=False):
    """Train in a process of its own, and process group, that acts upon itself after a step.

    Returns its exit code (or minus the signal that killed it) and the message of its error.
    """
    message = out.parent / "message"

    def work():
        os.setsid()
        try:
            train(config, out, resume=resume, progress=At(step, action))
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


def test_ctrl_c_reaches_the_whole_group_and_the_run_saves(make_config, tmp_path, whole):
    config, out = make_config(workers=2), tmp_path / "run"
    code, message = in_another_process(config, out, step=2, action=interrupt_group)
    assert code == 130
    assert "--resume" in message
    assert load_state(checkpoint.latest_path(out)).global_step == 2
    assert_same_bits(train(config, out, resume=True).path, whole[0].path)


@pytest.mark.parametrize(
    ("signals", "expected"),
    [([signal.SIGINT], 130), ([signal.SIGTERM], 130), ([signal.SIGINT, signal.SIGINT], 1)],
)
def test_workers_live_until_the_step_is_done_and_end_with_the_run(
    make_config, tmp_path, whole, signals, expected
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
        code, message = in_another_process(config, out, step=0, action=None)
    assert code == expected
    assert ("--resume" in message) is (len(signals) == 1)
    assert_same_bits(train(config, out, resume=True).path, whole[0].path)


def test_a_killed_run_resumes_and_its_log_has_every_step_once(make_config, tmp_path, whole):
    out = tmp_path / "run"
    assert in_another_process(make_config(), out, step=3, action=interrupt_group)[0] == 130
    code, _ = in_another_process(make_config(), out, step=5, action=kill_self, resume=True)
    assert code == -signal.SIGKILL
    assert load_state(checkpoint.latest_path(out)).global_step == 3
    assert [line["step"] for line in numbers(out)] == [1, 2, 3, 4, 5], "steps 4 and 5 are to be redone"
    with (out / "log.jsonl").open("a") as log:
        log.write('{"kind": "train", "st')
    result = train(make_config(), out, resume=True)
    assert numbers(out) == numbers(whole[1])
    assert_same_bits(result.path, whole[0].path)


def test_a_run_killed_before_its_first_checkpoint_starts_again(make_config, tmp_path, whole):
    out = tmp_path / "run"
    code, _ = in_another_process(make_config(), out, step=2, action=kill_self)
    assert code == -signal.SIGKILL
    assert checkpoint.latest_path(out) is None
    result = train(make_config(), out, resume=True)
    assert numbers(out) == numbers(whole[1])
    assert_same_bits(result.path, whole[0].path)


def test_a_finished_run_returns_at_once(whole, make_config, monkeypatch):
    monkeypatch.setattr(Corpus, "open", lambda *_: pytest.fail("the corpus was opened"))
    assert train(make_config(), whole[1], resume=True) == whole[0]


def test_a_full_disk_stops_the_run_and_it_resumes(make_config, tmp_path, whole, monkeypatch):
    with pytest.raises(Interrupted):
        train(make_config(), tmp_path, progress=At(2, raising()))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(CheckpointError, match="step-00000002"):
            train(make_config(), tmp_path, resume=True)
    assert_same_bits(train(make_config(), tmp_path, resume=True).path, whole[0].path)


# ---- starting from another run's phases -------------------------------------------------------------------


def test_shared_pretraining_gives_the_weights_of_training_in_one_go(make_config, tmp_path, whole):
    schedule = make_config().schedule
    train(make_config(schedule=Schedule(schedule.phases[:1])), tmp_path / "first")
    for name, start in (("run", tmp_path / "first"), ("folder", checkpoint.latest_path(tmp_path / "first"))):
        result = train(make_config(), tmp_path / name, start=start)
        assert_same_bits(result.path, whole[0].path)
        assert numbers(tmp_path / name) == numbers(whole[1]), "the log is complete"
        assert [path.name for path in checkpoint.checkpoints(tmp_path / name)] == [
            "step-00000005-end-of-w2v2",
            "step-00000009-end-of-mixed",
        ]


def test_a_started_run_resumes(make_config, tmp_path, whole):
    train(make_config(schedule=Schedule(make_config().schedule.phases[:1])), tmp_path / "first")
    with pytest.raises(Interrupted):
        train(make_config(), tmp_path / "run", start=tmp_path / "first", progress=At(7, raising()))
    result = train(make_config(), tmp_path / "run", start=tmp_path / "first", resume=True)
    assert_same_bits(result.path, whole[0].path)


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
            start=whole[1] / "checkpoints" / "step-00000005-end-of-w2v2",
        )
    assert not (tmp_path / "run").exists()


def test_a_start_in_the_middle_of_a_phase_is_refused(make_config, tmp_path):
    with pytest.raises(Interrupted):
        train(make_config(), tmp_path / "first", progress=At(2, raising()))
    with pytest.raises(CheckpointError, match="not at the end of a phase"):
        train(make_config(), tmp_path / "second", start=tmp_path / "first")


def test_the_optimiser_starts_afresh_at_each_phase(make_config, tmp_path, whole):
    """The state at a phase's end has forgotten the phase before: its moments are those of 4 steps."""
    moved = make_config()
    phases = list(moved.schedule.phases)
    result = train(moved, tmp_path / "run", start=checkpoint.checkpoints(whole[1])[0])
    assert_same_bits(result.path, whole[0].path)
    longer = Schedule((phases[0], Phase(name="b", alpha=Alpha.parse(0.0), epochs=1 / 3)))
    one_step = train(make_config(schedule=longer), tmp_path / "one").path
    state = load_file(one_step / OPTIMIZER_FILE)
    for name in state:
        if name.startswith("exp_avg/"):
            g, g2 = state[name], state[name.replace("exp_avg/", "exp_avg_sq/")]
            torch.testing.assert_close((g / 0.1).square() * 0.001, g2, rtol=1e-3, atol=1e-12)


# ---- initial weights --------------------------------------------------------------------------------------


def test_a_phases_initial_weights_are_loaded_once(make_config, tmp_path):
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
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", load_weights=load, progress=At(6, raising()))
    (tmp_path / "weights").unlink()
    result = train(config, tmp_path / "run", load_weights=load, resume=True)
    assert loaded == [str(tmp_path / "weights")]
    parameters = dict(VGSPlus(config.model).named_parameters())
    weights = load_file(result.path / MODEL_FILE)
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
        train(make_config(), whole[1])


@pytest.mark.parametrize("before_checkpoint", [True, False])
def test_changed_settings_are_named(make_config, tmp_path, before_checkpoint):
    if before_checkpoint:
        settings.save_config(make_config(), tmp_path / "config.yaml")
    else:
        with pytest.raises(Interrupted):
            train(make_config(), tmp_path, progress=At(1, raising()))
    with pytest.raises(CheckpointError) as error:
        train(make_config(seed=5, max_seconds=4.0), tmp_path, resume=True)
    assert "- seed: 3 → 5" in str(error.value)
    assert "- max_seconds: 8.0 → 4.0" in str(error.value)
    assert str(error.value).count("→") == 2


def test_what_does_not_change_the_weights_may_change(make_config, tmp_path, whole):
    with pytest.raises(Interrupted):
        train(make_config(), tmp_path, progress=At(1, raising()))
    config = make_config(workers=1, checkpoint_minutes=1.0, validate_every=None)
    result = train(config, tmp_path, resume=True)
    assert not numbers(tmp_path, "validation")
    assert_same_bits(result.path, whole[0].path)


def test_a_corpus_that_changed_is_noticed(make_config, tmp_path, corpus_root):
    copy = shutil.copytree(corpus_root, tmp_path / "moved")
    with pytest.raises(Interrupted):
        train(make_config(), tmp_path / "run", progress=At(1, raising()))
    moved = make_config(corpus=str(copy))
    with pytest.raises(Interrupted):
        train(moved, tmp_path / "run", resume=True, progress=At(2, raising()))
    info = json.loads((copy / "corpus.json").read_text())
    (copy / "corpus.json").write_text(json.dumps(info | {"provenance": {"regions": {"model": "another"}}}))
    with pytest.raises(CheckpointError, match="another corpus:\n- described_by"):
        train(moved, tmp_path / "run", resume=True)
    (copy / "corpus.json").write_text(json.dumps(info))
    lines = (copy / "captions.jsonl").read_text().splitlines(keepends=True)
    (copy / "captions.jsonl").write_text("".join(reversed(lines)))
    with pytest.raises(CheckpointError, match="another corpus"):
        train(moved, tmp_path / "run", resume=True)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_update(
    make_config, tmp_path, monkeypatch, what
):
    with pytest.raises(Interrupted):
        train(make_config(), tmp_path, progress=At(6, raising()))
    before = checkpoint.latest_path(tmp_path)
    forward, models = VGSPlus.forward, []

    def broken(self, batch, alpha=0.5, **options):
        losses = forward(self, batch, alpha, **options)
        models.append(self)
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
    assert len(numbers(tmp_path)) == 6
    (stop,) = numbers(tmp_path, "stopped")
    assert (stop["step"], "grad_norm" in stop["not_finite"]) == (6, True)
    saved = load_file(before / MODEL_FILE)
    assert all(torch.equal(saved[name], p) for name, p in models[-1].named_parameters())


def test_bad_settings_made_in_python_are_refused_before_anything_is_written(make_config, tmp_path):
    with pytest.raises(VgsplusError, match="batch_size"):
        train(make_config(batch_size=0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_log_is_plain_json(whole):
    lines = [json.loads(line) for line in (whole[1] / "log.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"train", "validation"}
    assert all(set(SPEEDS) <= line.keys() for line in lines if line["kind"] == "train")


class Notes(Progress):
    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


def test_crops_that_would_be_silent_are_moved_and_reported(make_config, make_corpus, tmp_path):
    corpus = make_corpus(tmp_path / "corpus", silence=16_000)
    notes = Notes()
    config = make_config(corpus=str(corpus), max_seconds=0.5, validation_max_seconds=0.5)
    train(config, tmp_path / "run", progress=notes)
    assert {record["moved_crops"] for record in read_log(tmp_path / "run", "train")} == {1.0}
    assert sum("silent throughout the 0.5 s" in text for text in notes.texts) == 1
    assert any("moved_crops 1" in text for text in notes.texts)
    # Of zeros the model would predict every target, and the penalty of their features would vanish.
    *_, validation = read_log(tmp_path / "run", "validation")
    assert validation["contrastive"] > 0.5
    assert validation["feature_penalty"] > 1e-4


def test_crops_with_sound_are_not_moved(make_config, tmp_path):
    notes = Notes()
    train(make_config(), tmp_path / "run", progress=notes)
    assert {record["moved_crops"] for record in read_log(tmp_path / "run")} == {0.0}
    assert not any("moved_crops" in text for text in notes.texts)


def test_a_run_from_before_a_setting_of_the_model_resumes(make_config, tmp_path):
    whole = train(make_config(), tmp_path / "whole").path
    with pytest.raises(Interrupted):
        train(make_config(), tmp_path / "run", progress=At(3, raising()))
    for path in (tmp_path / "run").rglob("state.json"):
        state = json.loads(path.read_text())
        for model in (state["model"], state["run"]["model"]):
            for setting in ("extractor_mode", "conv_bias", "layer_norm_first", "cls_after_positions"):
                del model[setting]
        path.write_text(json.dumps(state))
    assert_same_bits(train(make_config(), tmp_path / "run", resume=True).path, whole)


class Details(Progress):
    def __init__(self):
        self.texts = []

    def update(self, _stage, _done, _total=None, detail=""):
        self.texts.append(detail)


def test_a_further_loss_is_logged_averaged_and_shown_by_its_name(make_config, tmp_path, monkeypatch):
    forward = VGSPlus.forward

    def extended(self, batch, alpha=0.5, **options):
        losses = forward(self, batch, alpha, **options)
        return dataclasses.replace(
            losses, terms={**losses.terms, "further": losses.total.detach() * 0 + 0.25}
        )

    monkeypatch.setattr(VGSPlus, "forward", extended)
    details = Details()
    train(make_config(), tmp_path, progress=details)
    assert {record["further"] for record in read_log(tmp_path)} == {0.25}
    assert all(losses_in(record)["further"] == 0.25 for record in read_log(tmp_path, "validation"))
    first, *steps = [text for text in details.texts if text]
    assert len(steps) == STEPS - 1
    for part in ("total ", "contrastive ", "further 0.250", "captions/s"):
        assert part in first
    assert "perplexity" not in first
