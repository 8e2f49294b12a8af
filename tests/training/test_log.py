import json
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vgsplus.config import load_config
from vgsplus.corpora import Corpus
from vgsplus.errors import ConfigError, VgsplusError
from vgsplus.training.checks import check_run
from vgsplus.training.log import RunLog, copy_log, read_log
from vgsplus.training.watch import WINDOW

CONFIG = load_config("smoke")


def record(step, kind="train", **values):
    place = {"phase": "vgs+", "phase_index": 0, "phase_step": step, "epoch": step / 2}
    return {"kind": kind, "step": step} | place | values


def train(step):
    return record(step, total=1.5, grounding=None, captions_per_second=20.0)


def write(run, records, last_step=0):
    run.mkdir(exist_ok=True)
    with RunLog(run, last_step, CONFIG) as log:
        for one in records:
            log.write(one)


def test_records_are_read_back_by_kind(tmp_path):
    records = [train(1), record(1, "validation", total=2.0), train(2)]
    write(tmp_path, records)
    assert list(read_log(tmp_path)) == records
    assert list(read_log(tmp_path, "validation")) == records[1:2]
    assert list(read_log(tmp_path / "none")) == []


def test_resuming_discards_records_after_the_checkpoint(tmp_path):
    write(tmp_path, [train(1), train(2), record(2, "validation", total=2.0), train(3)])
    with RunLog(tmp_path, 2, CONFIG) as log:
        assert log.has("validation", 2)
        assert not log.has("validation", 3)
        log.write(train(3))
        assert list(read_log(tmp_path, "train")) == [train(1), train(2), train(3)], "written at once"


def test_a_full_disk_is_named(tmp_path):
    with RunLog(tmp_path, 0, CONFIG) as log:
        log._file.close()
        log._file = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115 - the log closes it
        with pytest.raises(VgsplusError, match=r"/dev/full: could not be written \(No space left"):
            log.write(train(1))


def test_a_line_cut_off_by_a_kill_is_left_out_and_replaced(tmp_path):
    write(tmp_path, [train(1)])
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "tr')
    assert list(read_log(tmp_path)) == [train(1)]
    write(tmp_path, [train(2)], last_step=1)
    assert list(read_log(tmp_path)) == [train(1), train(2)]


@pytest.mark.parametrize("line", ["nonsense", "3", '{"kind": "train"}'])
def test_a_broken_line_is_named(tmp_path, line):
    (tmp_path / "log.jsonl").write_text(f"{json.dumps(train(1))}\n{line}\n")
    with pytest.raises(VgsplusError, match=r"log\.jsonl:2"):
        list(read_log(tmp_path))


def test_another_runs_log_is_taken_over_up_to_a_step(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    write(tmp_path / "a", [train(step) for step in (1, 2, 3)])
    copy_log(tmp_path / "a", tmp_path / "b", 2)
    assert list(read_log(tmp_path / "b")) == [train(1), train(2)]


def test_tensorboard_shows_each_step_once_after_resuming(tmp_path):
    write(tmp_path, [train(1), train(2), train(3)])
    write(tmp_path, [train(3) | {"total": 9.0}, record(3, "evaluation", scores={"recall": 0.5})], last_step=2)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/total")] == [(1, 1.5), (2, 1.5), (3, 9.0)]
    assert [e.value for e in events.Scalars("evaluation/recall")] == [0.5]
    write(tmp_path, [train(1)])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train/total")] == [1], "a run that starts again has one curve"
    assert set(events.Tags()["scalars"]) == {
        "train/total",
        "train/captions_per_second",
        "evaluation/recall",
    }


def test_a_warning_is_written_once_when_a_run_resumes(tmp_path):
    records = [train(step) | {"lr": 0.1, "image_embedding_std": 0.0} for step in range(1, 2 * WINDOW)]
    write(tmp_path / "whole", records)
    (warning,) = read_log(tmp_path / "whole", "warning")
    assert (warning["step"], warning["rule"]) == (WINDOW, "embeddings")
    for last_step in (WINDOW - 1, WINDOW, WINDOW + 1):
        run = tmp_path / f"{last_step}"
        write(run, records[: WINDOW + 3])
        write(run, records[last_step:], last_step)
        assert list(read_log(run)) == list(read_log(tmp_path / "whole"))


def test_weights_and_biases_get_the_scalars_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for last_step, step in ((0, 1), (1, 2)):  # a run, and the same one resumed
        with RunLog(tmp_path, last_step, load_config("smoke", ["logger=wandb"])) as log:
            log.write(train(step))
    assert list(read_log(tmp_path)) == [train(1), train(2)]
    written = [path.read_bytes() for path in tmp_path.glob("wandb/offline-run-*/*.wandb")]
    assert len(written) == 2
    for content in written:
        assert all(word in content for word in (b"train/total", b"batch_size", tmp_path.name.encode()))
    assert not (tmp_path / "tensorboard").exists()


def test_a_logger_that_is_not_installed_is_named_before_training(make_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = make_config(logger="wandb")
    with pytest.raises(ConfigError, match="logger: wandb is not installed; install vgsplus with the extra"):
        check_run(config, Corpus.open(config.corpus), None)
