"""Run a study as jobs of SLURM, by submitit: a job for each run, and one for the report after them.

OUT/jobs/ID_submission.sh      the script of a job
OUT/jobs/ID_0_log.out, .err    its output

A job whose time limit comes near gets SIGUSR1: it saves a checkpoint, requeues itself and goes on from there.
"""

import contextlib
import io
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vgsplus.errors import Interrupted, VgsplusError, some
from vgsplus.experiments.study import OpenStudy, Study
from vgsplus.progress import SILENT, Progress, console_progress
from vgsplus.training.processes import join_processes

if TYPE_CHECKING:
    from submitit import Job as SubmittedJob
    from submitit.helpers import DelayedSubmission

JOBS = "jobs"
REPORT = "report"
WARNING = signal.SIGUSR1
"""Sent by SLURM before the time limit; submitit answers it by requeueing the job."""
DEFAULTS: Mapping[str, str | bool] = {"signal": "USR1@90", "requeue": True, "kill-on-invalid-dep": "yes"}
REQUEUES = 100
"""Times that a job requeues itself, so that one that never gets anywhere ends."""


@dataclass(frozen=True)
class Job:
    """A job of a plan.

    Attributes:
        name: of the run's folder, or "report".
        title: title of the run.
        run: index of the run in the study, None for the report.
        after: places in the plan of the jobs that must succeed before.
    """

    name: str
    title: str
    run: int | None
    after: tuple[int, ...]


def parse_options(options: Iterable[str]) -> dict[str, str | bool]:
    """Return options of sbatch, such as "time=12:00:00" and "exclusive", by name.

    Raises:
        VgsplusError: the time limit is missing, or an option is set by vgsplus.
    """
    parsed: dict[str, str | bool] = {}
    for option in options:
        key, equals, value = option.strip().removeprefix("--").partition("=")
        if key in ("array", "dependency"):
            raise VgsplusError(f"--slurm {option}: {key} is set by vgsplus. Leave it out.")
        parsed[key] = value if equals else True
    if "time" not in parsed:
        raise VgsplusError(
            "--slurm time=… is missing: give the time limit of a job, such as --slurm time=12:00:00. A run "
            "that takes longer saves a checkpoint shortly before, and its job requeues itself and goes on."
        )
    return parsed


def require_slurm() -> None:
    """Raise VgsplusError if submitit or the commands of SLURM are missing."""
    try:
        import submitit  # noqa: F401, PLC0415 - optional
    except ImportError:
        raise VgsplusError(
            "--slurm needs the package submitit: install vgsplus with its extra slurm, as in "
            "pip install 'vgsplus[slurm]'."
        ) from None
    if missing := [name for name in ("sbatch", "srun", "squeue", "scontrol") if not shutil.which(name)]:
        raise VgsplusError(
            f"--slurm needs SLURM, but there is no {', '.join(missing)} on the PATH. Run the command on a "
            "machine that submits to SLURM, or leave --slurm out to train on this one."
        )


def plan(study: Study) -> tuple[Job, ...]:
    """Return the jobs of a study in an order in which they can be submitted: unfinished runs, the report."""
    jobs: list[Job] = []
    places: dict[Path, int] = {}
    for number, run in enumerate(study.runs):
        if run.finished():
            continue
        origin = run.waits_for()
        after = () if origin is None or origin not in places else (places[origin],)
        places[run.folder] = len(jobs)
        jobs.append(Job(run.folder.relative_to(study.out).as_posix(), run.title, number, after))
    return (*jobs, Job(REPORT, REPORT, None, tuple(range(len(jobs)))))


def submit(
    open_study: OpenStudy, options: Mapping[str, str | bool], progress: Progress, *, dry_run: bool
) -> tuple[Study, tuple[Job, ...], tuple[str, ...]]:
    """Check a study, plan its jobs and submit them, or none.

    Args:
        open_study: opens the study, here and in every job; pickled by submitit.
        options: of sbatch, by name, see `parse_options`.
        progress: receives the preparation of the corpus.
        dry_run: only check and plan.

    Returns:
        The study, its jobs, and their ids, of which there are none with `dry_run`.

    Raises:
        VgsplusError: SLURM or submitit is missing, something does not fit, jobs of an earlier call have not
            ended, or SLURM refuses a job. No job is left in the queue.
    """
    if not dry_run:
        require_slurm()
    study = open_study(progress)
    study.check(here=False)
    jobs = plan(study)
    if dry_run:
        return study, jobs, ()
    if queued := _queued(study.out):
        raise VgsplusError(
            f"{study.out}: its jobs {some(queued)} have not ended. Wait for them, or cancel them by "
            f"scancel {' '.join(queued)}."
        )
    study.record()
    return study, jobs, _submit(study.out, jobs, open_study, options)


def _queued(out: Path) -> list[str]:
    """Return the ids of the jobs of a folder that SLURM has not finished."""
    ours = {path.name.split("_")[0] for path in (out / JOBS).glob("*_submitted.pkl")}
    if not ours:
        return []
    command = ["squeue", "--me", "--noheader", "--format=%A"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if found.returncode:
        raise VgsplusError(f"squeue: {found.stderr.strip()}")
    return sorted(ours & set(found.stdout.split()), key=int)


def _submit(
    out: Path, jobs: Sequence[Job], open_study: OpenStudy, options: Mapping[str, str | bool]
) -> tuple[str, ...]:
    from submitit import SlurmExecutor  # noqa: PLC0415 - optional
    from submitit.core.utils import FailedJobError, FailedSubmissionError  # noqa: PLC0415

    executor = SlurmExecutor(out / JOBS, max_num_timeout=REQUEUES)
    submitted: list[SubmittedJob[None]] = []
    try:
        for job in jobs:
            after = ":".join(submitted[place].job_id for place in job.after)
            executor.update_parameters(
                job_name=f"{out.name}/{job.name}",
                dependency=f"afterok:{after}" if after else None,
                setup=[
                    f"export SUBMITIT_PREEMPT_SIGNAL={WARNING.name.removeprefix('SIG')}",
                    # Since SLURM 22.05, srun does not inherit it.
                    '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
                ],
                additional_parameters={**DEFAULTS, **options},
            )
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises
                submitted.append(executor.submit(_Work(open_study, job.run)))
    except (FailedJobError, FailedSubmissionError) as error:
        for other in submitted:
            other.cancel(check=False)
        given = " ".join(
            f"--{name}" + ("" if value is True else f"={value}") for name, value in options.items()
        )
        raise VgsplusError(
            f"SLURM refused a job ({given}):\n{error}\nNo job was left in the queue."
        ) from None
    return tuple(job.job_id for job in submitted)


# ---- in a job ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """What a job does: train one run, or, without one, write the report."""

    open_study: OpenStudy
    run: int | None

    def __call__(self) -> None:
        if os.environ.get("SLURM_PROCID", "0") != "0":
            self._follow()
            return
        with console_progress() as progress:
            study = self.open_study(progress)
            if self.run is None:
                print(study.write_report(join_processes(), progress))  # noqa: T201 - the output of the job
                return
            try:
                study.train(study.runs[self.run], progress)
            except Interrupted:
                if _is_running():
                    signal.raise_signal(WARNING)  # submitit requeues the job
                raise

    def _follow(self) -> None:
        """Join the work of the first task of the job."""
        study = self.open_study(SILENT)
        if self.run is None:
            study.write_report(join_processes(), SILENT)
            return
        with contextlib.suppress(Interrupted):
            study.runs[self.run].train(study.scoring, SILENT)

    def checkpoint(self) -> "DelayedSubmission":
        """Return what the requeued job does, which is the same; called by submitit on a warning."""
        from submitit.helpers import DelayedSubmission  # noqa: PLC0415 - optional

        return DelayedSubmission(self)


def _is_running() -> bool:
    """Return whether SLURM counts this job as running; a job that is cancelled gets SIGTERM as well."""
    command = ["squeue", "--noheader", "--format=%T", f"--job={os.environ.get('SLURM_JOB_ID')}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return "RUNNING" in found.stdout
