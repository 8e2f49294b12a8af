"""Where a run stands: what is trained, and what of its last validation and evaluation is missing."""

from dataclasses import dataclass
from pathlib import Path

from vgsplus import config as settings
from vgsplus.config import RunConfig
from vgsplus.training.checkpoint import TrainingState, load_state
from vgsplus.training.log import read_log


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands at a checkpoint.

    Attributes:
        state: what the checkpoint says; None where there is none yet.
        steps: updates of the whole schedule; None where there is no checkpoint yet.
        unreported: reports ("validation", "evaluation") that are due after the last update and missing.
    """

    state: TrainingState | None
    steps: int | None
    unreported: tuple[str, ...] = ()

    @property
    def trained(self) -> bool:
        """Whether all updates are done."""
        return self.state is not None and self.state.global_step == self.steps

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.trained and not self.unreported

    def __str__(self) -> str:
        if self.state is None:
            return "begun, no checkpoint yet"
        if not self.trained:
            return f"at step {self.state.global_step:,} of {self.steps:,}, in phase {self.state.phase_name}"
        if self.unreported:
            return f"all {self.steps:,} steps done, the last {' and '.join(self.unreported)} missing"
        return f"finished after {self.steps:,} steps"


def standing(run: Path, checkpoint: Path | None, config: RunConfig, *, evaluated: bool) -> Standing:
    """Where a run stands at one of its checkpoints, None for none; `evaluated` if it is scored as it ends.

    Raises:
        CheckpointError: the checkpoint's state is missing or broken.
        ConfigError: the settings in it are none.
        VgsplusError: a line in the middle of the log is broken.
    """
    if checkpoint is None:
        return Standing(None, None)
    state = load_state(checkpoint)
    steps = planned_steps(state)
    due = [
        *(["validation"] if config.validate_every is not None else []),
        *(["evaluation"] if evaluated else []),
    ]
    reported = {record["kind"] for record in read_log(run) if record["step"] == steps}
    return Standing(state, steps, tuple(kind for kind in due if kind not in reported))


def planned_steps(state: TrainingState) -> int:
    """Updates of the whole schedule, from what a checkpoint says alone: the corpus may be away.

    Raises:
        ConfigError: the settings in it are none.
    """
    schedule = settings.from_dict(state.run).schedule
    before = sum(phase.epochs for phase in schedule.phases[: state.phase])
    last = schedule.plan(round(state.step / (state.epoch - before)))[-1]
    return last.first_step + last.steps
