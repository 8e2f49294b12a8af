import os
import signal
from multiprocessing import get_context

import pytest

from vgsplus.config import load_config
from vgsplus.errors import Interrupted, VgsplusError
from vgsplus.experiments import local
from vgsplus.experiments.study import Run

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class _Study:
    """Two runs, trained by a function."""

    def __init__(self, folder, act):
        config = load_config("smoke", ["schedule.variant=vgs"])
        self.runs = [Run(title, folder / title, config) for title in ("first", "second")]
        self.act = act

    def train(self, run, progress):
        progress.update("vgs", 1, 2)
        self.act(run)


@pytest.fixture
def train_in_parallel(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "get_context", lambda _: get_context("fork"))

    def call(act, *, jobs=2, progress=local.SILENT):
        study = _Study(tmp_path, act)
        local._train_in_parallel(lambda _: study, study.runs, jobs, progress)

    return call


def test_the_error_of_a_run_names_it_and_stops_the_others(train_in_parallel):
    def act(run):
        if run.title == "first":
            raise VgsplusError("the sound is broken")
        signal.pause()

    with pytest.raises(VgsplusError, match="first: the sound is broken"):
        train_in_parallel(act)


def test_a_run_that_is_killed_is_named(train_in_parallel):
    with pytest.raises(VgsplusError, match="second: its process ended with exit status -9"):
        train_in_parallel(lambda run: run.title == "second" and os.kill(os.getpid(), signal.SIGKILL))


def test_a_signal_reaches_the_runs(train_in_parallel):
    parent = os.getpid()

    def act(run):
        if run.title == "first":
            os.kill(parent, signal.SIGTERM)
        signal.pause()

    with pytest.raises(Interrupted, match="the runs are saved"):
        train_in_parallel(act)


def test_progress_names_the_run(train_in_parallel, recorded_progress):
    train_in_parallel(lambda _: None, jobs=1, progress=recorded_progress)
    assert recorded_progress.of("first, vgs") == recorded_progress.of("second, vgs") == [(1, 2)]
