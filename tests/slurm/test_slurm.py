"""`reproduce --slurm` on a SLURM of this machine alone: a time limit, a requeue, a cancellation."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm

VGSPLUS = [sys.executable, "-c", "from vgsplus.cli import main; main()"]
SMOKE = [
    *("reproduce", "smoke", "--variants", "VGS, VGS+", "--variants", "VGS, W2V2"),
    *("--set", "accelerator=cpu", "--set", "schedule.pretraining_epochs=6", "--set", "schedule.epochs=7"),
    *("--set", "validate_every=null"),
]
FIRST = "vgs-then-vgs+"
TABLES = ("table1.csv", "table2.csv", "abx.csv", "claims.csv", "curves.csv")


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    folder, script = tmp_path_factory.mktemp("slurm"), Path(__file__).with_name("start.sh")
    started = subprocess.run([script, folder], capture_output=True, text=True, check=False)
    if started.returncode:
        subprocess.run([script, "--stop", folder], check=True)
        pytest.skip(f"SLURM did not start: {started.stderr.strip()}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", started.stdout.strip())
        yield
        subprocess.run(["scancel", "--me"], check=True)
        subprocess.run([script, "--stop", folder], check=True)


def call(*arguments, code=0):
    done = subprocess.run([str(word) for word in arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def submit(out, *more):
    """Return the ids of the jobs, the report's last."""
    said = call(*VGSPLUS, *SMOKE, "--out", out, "--slurm", "time=10", *more)
    return re.findall(r"^ *(\d+) ", said, re.MULTILINE)


def wait(condition):
    for _ in range(600):
        if found := condition():
            return found
        time.sleep(0.5)
    raise AssertionError(condition)


def wait_for_steps(out):
    log = out / "runs" / FIRST / "log.jsonl"
    wait(lambda: log.is_file() and log.read_text().count('"train"') > 5)


def wait_for_jobs():
    wait(lambda: not call("squeue", "--me", "--noheader"))


def about(job, what):
    return re.search(rf"{what}=(\S+)", call("scontrol", "show", "job", job))[1]


def output(out, job):
    return "".join(path.read_text() for path in (out / "jobs").glob(f"{job}_0_log.*"))


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A reproduction without SLURM."""
    out = tmp_path_factory.mktemp("local") / "out"
    call(*VGSPLUS, *SMOKE, "--out", out)
    return out


def assert_same_report(out, local):
    for table in TABLES:
        assert (out / "report" / table).read_bytes() == (local / "report" / table).read_bytes(), table


def test_a_job_goes_on_after_its_time_limit_to_the_same_tables(tmp_path, local):
    first, second, report = submit(tmp_path)
    assert about(second, "Dependency").startswith(f"afterok:{first}(")
    assert {found.split("(")[0] for found in about(report, "Dependency").split(",")} == {
        f"afterok:{first}",
        f"afterok:{second}",
    }
    assert "have not ended" in call(*VGSPLUS, *SMOKE, "--out", tmp_path, "--slurm", "time=10", code=1)
    wait_for_steps(tmp_path)
    # SLURM looks at time limits every 30 s, and the run is shorter: it stands still until its warning comes,
    # which SLURM sends after SIGCONT.
    (trainer,) = (
        pid
        for pid in (int(row.split()[0]) for row in call("scontrol", "listpids", first).splitlines()[1:])
        if b"_submit" in (words := Path(f"/proc/{pid}/cmdline").read_bytes())
        and not words.startswith(b"srun")
    )
    os.kill(trainer, signal.SIGSTOP)
    call("scontrol", "update", f"JobId={first}", "TimeLimit=2")
    wait(lambda: about(first, "Restarts") == "1")
    call("scontrol", "update", f"JobId={first}", "TimeLimit=10")
    wait_for_jobs()
    assert about(first, "Restarts") == "1"
    assert about(second, "Restarts") == "0"
    assert f"Requeued job {first}" in output(tmp_path, first)
    assert about(report, "JobState") == "COMPLETED", output(tmp_path, report)
    assert_same_report(tmp_path, local)


def test_a_cancelled_job_saves_and_stays_cancelled(tmp_path, local):
    first, second, report = submit(tmp_path)
    wait_for_steps(tmp_path)
    call("scancel", first)
    wait_for_jobs()
    assert [about(job, "JobState") for job in (first, second, report)] == ["CANCELLED"] * 3
    assert list((tmp_path / "runs" / FIRST / "checkpoints").glob("step-*"))
    assert len(submit(tmp_path)) == 3
    wait_for_jobs()
    assert_same_report(tmp_path, local)
    assert len(submit(tmp_path)) == 1
    wait_for_jobs()


def test_what_slurm_refuses_is_said_in_its_words(tmp_path):
    said = call(*VGSPLUS, *SMOKE, "--out", tmp_path, "--slurm", "time=1", "--slurm", "colour=red", code=1)
    assert "unrecognized option '--colour=red'" in said
    said = call(*VGSPLUS, *SMOKE, "--out", tmp_path, "--slurm", "time=1", "--slurm", "partition=gpu", code=1)
    assert "invalid partition specified: gpu" in said
    assert not call("squeue", "--me", "--noheader")
