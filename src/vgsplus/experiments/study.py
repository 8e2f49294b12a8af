"""The runs of a reproduction or a sweep, the phases that they share, and their training.

Runs whose first phases are the same share them: the first of the runs trains them, and the others start from
the checkpoint at their end.
"""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vgsplus.config import RunConfig, presets, to_dict
from vgsplus.corpora import Corpus
from vgsplus.corpora.sources.stamps.corpus import prepare_stamps
from vgsplus.corpora.sources.toy.corpus import prepare_toy
from vgsplus.errors import Interrupted, VgsplusError
from vgsplus.experiments.scoring import Scoring
from vgsplus.files import write_file
from vgsplus.interop.loading import load_weights
from vgsplus.progress import Progress
from vgsplus.remote import locate
from vgsplus.training.checkpoint import checkpoints, latest_path
from vgsplus.training.processes import Processes
from vgsplus.training.run_folder import load_finished, weight_settings
from vgsplus.training.trainer import train

CORPUS, COMMAND = "corpus", "command.json"
OWN_CORPUS = ("smoke", "toy", "stamps")
"""The presets that make a corpus."""


@dataclass(frozen=True)
class Run:
    """A run of a study.

    Attributes:
        title: name in messages.
        folder: run folder.
        config: settings.
        origins: the ends of phases, as (earlier run, name of the phase), from which this run can start; those
            that share the most phases come first.
    """

    title: str
    folder: Path
    config: RunConfig
    origins: tuple[tuple[Path, str], ...] = ()

    def start(self) -> Path | None:
        """Return the first checkpoint in `origins` that exists, or None."""
        ends = (
            path
            for folder, phase in self.origins
            for path in checkpoints(folder)
            if path.name.endswith(f"-end-of-{phase}")
        )
        return next(ends, None)

    def waits_for(self) -> Path | None:
        """Return the run that must be trained before, unless this run has started or need not wait."""
        return None if not self.origins or latest_path(self.folder) or self.start() else self.origins[0][0]

    def finished(self) -> bool:
        """Whether nothing is left to train, validate or evaluate."""
        return load_finished(self.folder, self.config, evaluated=True) is not None

    def train(self, scoring: Scoring, progress: Progress) -> None:
        """Train what is left of the run, and score it after each phase.

        Raises:
            Interrupted: the run is saved.
            VgsplusError: as `training.trainer.train`.
        """
        try:
            train(
                self.config,
                self.folder,
                start=self.start(),
                resume=True,
                evaluate=functools.partial(scoring, config=self.config),
                load_weights=load_weights,
                progress=progress,
            )
        except Interrupted:
            raise Interrupted(
                f"stopped by a signal; {self.folder} is saved. Run the same command again to resume."
            ) from None


class Study(Protocol):
    """What trains several runs and reports them together."""

    @property
    def out(self) -> Path:
        """The output folder."""

    @property
    def runs(self) -> Sequence[Run]:
        """The runs, each after those that it can start from."""

    @property
    def scoring(self) -> Scoring:
        """How the models are scored."""

    def check(self, *, here: bool = True) -> None:
        """Raise VgsplusError for anything that would stop the study later; `here`: on this machine."""

    def record(self) -> None:
        """Record in the output folder what is about to be trained."""

    def train(self, run: Run, progress: Progress) -> None:
        """Train what is left of one of the runs; raises as `Run.train`."""

    def write_report(self, processes: Processes, progress: Progress) -> Path:
        """Write the report of the trained runs in the first process; return the path of its page in all."""


type OpenStudy = Callable[[Progress], Study]
"""Opens the study of a command, on any machine that sees its files."""


def share_phases(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Return the runs, each with the earlier ones that have the same first phases as its origins."""
    trained: dict[str, list[tuple[Path, str]]] = {}
    shared = []
    for run in runs:
        config, origins = to_dict(run.config), []
        for phases in range(len(run.config.schedule.phases), 0, -1):
            same = trained.setdefault(json.dumps(weight_settings(config, phases)), [])
            origins += same
            same.append((run.folder, run.config.schedule.phases[phases - 1].name))
        shared.append(Run(run.title, run.folder, run.config, tuple(origins)))
    return tuple(shared)


def record_command(out: Path, argv: Sequence[str]) -> None:
    """Write the command that made a study, which resumes it."""
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / COMMAND, json.dumps({"argv": list(argv)}))


def open_corpus(
    preset: str, out: Path, given: Path | None, config: RunConfig, stamps: Path | None, progress: Progress
) -> Corpus:
    """Open the corpus: the given one, or the preset's, made if it does not exist, or that of the settings.

    Raises:
        VgsplusError: there is none, or it is broken.
    """
    if given is not None:
        given = locate(given)
        if not given.is_dir():
            raise VgsplusError(f"{given}: there is no such folder; --corpus names a prepared corpus")
        return Corpus.open(given)
    if preset not in OWN_CORPUS:
        if preset in presets():
            raise VgsplusError(
                f"the preset {preset} makes no corpus of its own: name a prepared one by --corpus"
            )
        return Corpus.open(config.corpus)
    root = out / CORPUS
    if not root.exists():
        progress.note(f"Preparing the corpus in {root}")
        if preset == "toy":
            prepare_toy(root, progress=progress)
        elif preset == "smoke":
            small = functools.partial(prepare_toy, train_images=32, validation_images=6, test_images=12)
            small(root, workers=1, progress=progress)
        elif stamps is None:
            raise VgsplusError(
                "the preset stamps makes its corpus from a folder of stamps: name it by --root, or name a "
                "prepared corpus by --corpus"
            )
        else:
            prepare_stamps(stamps, root, progress=progress)
        progress.close()
    return Corpus.open(root)
