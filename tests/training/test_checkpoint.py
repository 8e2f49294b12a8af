import dataclasses
import errno
import json
import multiprocessing
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vgsplus import config as settings
from vgsplus.errors import CheckpointError, ConfigError
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.training.checkpoint import (
    FILES,
    MODEL_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    TrainingState,
    checkpoints,
    latest_path,
    link_checkpoint,
    load_model,
    load_state,
    load_tensors,
    load_weights,
    prune,
    resolve,
    save_checkpoint,
)


def state(step=3, *, steps=10, phase="vgs+", model=None):
    return TrainingState(
        phase=0,
        phase_name=phase,
        step=step,
        steps=steps,
        epoch=step / 2,
        global_step=step,
        seed=1,
        model=model or {},
        run={"corpus": "ä"},
        corpus={},
    )


TENSORS = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(4)}


def save(run, step=3, **kwargs):
    return save_checkpoint(run, state(step, **kwargs), TENSORS, {"exp_avg/w": torch.ones(2, 3)})


def test_what_is_saved_is_what_is_loaded(tmp_path):
    folder = save(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert load_state(folder) == state()
    loaded = load_tensors(folder / MODEL_FILE)
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], TENSORS[name]) for name in TENSORS)
    assert torch.equal(load_tensors(folder / OPTIMIZER_FILE)["exp_avg/w"], torch.ones(2, 3))
    assert len({(folder / name).stat().st_mode for name in FILES}) == 1


def test_newest_and_phase_ends_are_kept(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    save(tmp_path, 4, steps=4)
    for step in (5, 6, 7):
        save(tmp_path, step)
    prune(tmp_path, keep=2)
    names = [path.name for path in checkpoints(tmp_path)]
    assert names == ["step-00000004-end-of-vgs+", "step-00000006", "step-00000007"]
    assert latest_path(tmp_path).name == "step-00000007"
    assert resolve(tmp_path) == latest_path(tmp_path)
    assert resolve(latest_path(tmp_path)) == latest_path(tmp_path)


def test_what_cannot_be_removed_yet_stays_hidden(tmp_path, monkeypatch):
    def busy(*_, **__):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    for step in (1, 2):
        save(tmp_path, step)
    with monkeypatch.context() as patched:
        patched.setattr(os, "rmdir", busy)
        prune(tmp_path, keep=1)
        save(tmp_path, 3)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    save(tmp_path, 4)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_steps_sort_by_number(tmp_path):
    save(tmp_path, 99_999_999)
    save(tmp_path, 100_000_000)
    assert latest_path(tmp_path).name == "step-100000000"


def test_half_written_folders_are_invisible_and_cleared(tmp_path):
    save(tmp_path, 1)
    half = tmp_path / "checkpoints" / ".step-00000002.writing"
    half.mkdir()
    (half / MODEL_FILE).write_bytes(b"half")
    assert latest_path(tmp_path).name == "step-00000001"
    save(tmp_path, 3)
    assert not half.exists()


@pytest.mark.parametrize("failing", FILES)
def test_a_failure_while_writing_leaves_the_old_checkpoint_and_no_rubbish(tmp_path, monkeypatch, failing):
    old = save(tmp_path, 1)

    def full_disk(write):
        def attempt(*args, **kwargs):
            if any(isinstance(arg, Path) and arg.name == failing for arg in args):
                raise OSError(28, "No space left on device")
            return write(*args, **kwargs)

        return attempt

    with monkeypatch.context() as patch:
        patch.setattr("vgsplus.training.checkpoint.save_file", full_disk(save_file))
        patch.setattr(Path, "write_text", full_disk(Path.write_text))
        with pytest.raises(CheckpointError, match="No space left") as error:
            save(tmp_path, 2)
    assert str(old) in str(error.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [old.name]
    assert load_state(old) == state(1)


def test_a_disk_that_fills_up_leaves_the_old_checkpoint(tmp_path):
    """A limit on file sizes makes the operating system itself refuse the write."""
    old = save(tmp_path, 1)

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            save_checkpoint(tmp_path, state(2), {"w": torch.zeros(100_000)}, {})
        except CheckpointError as error:
            (tmp_path / "message").write_text(str(error))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    message = (tmp_path / "message").read_text()
    assert "could not be written" in message
    assert str(old) in message
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [old.name]
    load_state(old)


def test_a_run_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CheckpointError, match="could not be written"):
        save(tmp_path / "run")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damage_is_named(tmp_path, name, damage):
    path = save(tmp_path) / name
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 5)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_everything(path.parent)


def load_everything(folder):
    load_state(folder)
    load_tensors(folder / MODEL_FILE)
    load_tensors(folder / OPTIMIZER_FILE)


def test_another_format_is_refused(tmp_path):
    path = save(tmp_path) / STATE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        load_state(path.parent)


def test_a_pickle_is_never_loaded(tmp_path):
    folder = save(tmp_path)
    torch.save(TENSORS, folder / MODEL_FILE)
    with pytest.raises(CheckpointError, match="broken"):
        load_tensors(folder / MODEL_FILE)


def test_weights_of_another_model_are_refused_and_leave_the_model_alone(tmp_path):
    model = nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = {"weight": torch.ones(4, 3), "extra": torch.ones(1)}
    folder = save_checkpoint(tmp_path, state(), weights, {})
    with pytest.raises(CheckpointError) as error:
        load_weights(model, folder)
    for fault in ("missing: bias", "unexpected: extra", "of another shape: weight"):
        assert fault in str(error.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_nothing_to_load_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run"):
        resolve(tmp_path)


def test_load_model_rebuilds_the_model_from_a_run_or_a_checkpoint(tmp_path, tiny_model):
    torch.manual_seed(0)
    model = VGSPlus(tiny_model)
    folder = save_checkpoint(tmp_path, state(model=settings.to_dict(tiny_model)), model.state_dict(), {})
    for path in (tmp_path, folder, str(folder)):
        loaded = load_model(path)
        assert not loaded.training
        ours, theirs = loaded.state_dict(), model.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_load_model_refuses_an_unknown_setting(tmp_path, tiny_model):
    model = settings.to_dict(tiny_model) | {"colour": "red"}
    save_checkpoint(tmp_path, state(model=model), {}, {})
    with pytest.raises(ConfigError, match=r"model\.colour"):
        load_model(tmp_path)


def test_a_linked_checkpoint_outlives_its_run(tmp_path):
    folder = save(tmp_path / "first", 10)
    linked = link_checkpoint(folder, tmp_path / "second")
    assert linked == latest_path(tmp_path / "second")
    for file in folder.iterdir():
        file.unlink()
    assert dataclasses.asdict(load_state(linked)) == dataclasses.asdict(state(10))
    assert torch.equal(load_tensors(linked / MODEL_FILE)["w"], TENSORS["w"])
