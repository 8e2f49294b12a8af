"""The report of one run, also while it trains: curves so far, time left, and warnings."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vgsplus.config import RunConfig, load_config, to_dict
from vgsplus.corpora import Corpus
from vgsplus.errors import VgsplusError
from vgsplus.files import write_file
from vgsplus.losses import METRICS
from vgsplus.report import page
from vgsplus.report.figures import Line, Panel
from vgsplus.report.tables import LOSSES, duration
from vgsplus.training import checkpoint
from vgsplus.training.data import plan_steps
from vgsplus.training.log import GRADIENTS, LOG_FILE, Record, losses_in, read_log
from vgsplus.training.run_folder import CONFIG_FILE
from vgsplus.training.watch import TrainingWarning, chance_levels, warnings_in

PAGE = "report.html"
POINTS = 200
"""Number of points of a curve, each the mean of consecutive steps."""
RECENT = 50
"""Steps whose speed the remaining ones are expected to have."""
COLOURS = ("w2v2", "vgs", "vgs-plus", "other", "muted")
"""Roles of the lines of a panel, in order."""


@dataclass(frozen=True)
class RunReport:
    """What the log of a run says so far.

    Attributes:
        run: its folder.
        config: its settings.
        records: its log.
        steps: of the whole schedule; None if neither a checkpoint nor the corpus tells.
    """

    run: Path
    config: RunConfig
    records: tuple[Record, ...]
    steps: int | None

    @classmethod
    def read(cls, run: Path) -> "RunReport":
        """Read settings and log.

        Raises:
            VgsplusError: a file is missing or broken, or no step is logged yet.
        """
        config, records = load_config(run / CONFIG_FILE), tuple(read_log(run))
        if not any(record["kind"] == "train" for record in records):
            raise VgsplusError(f"{run / LOG_FILE}: holds no step yet. Try again when the run has begun.")
        return cls(run, config, records, _planned_steps(run, config))

    @property
    def train(self) -> list[Record]:
        """Records of the steps."""
        return [record for record in self.records if record["kind"] == "train"]

    @property
    def warnings(self) -> list[TrainingWarning]:
        """Warnings about the run."""
        return list(warnings_in(self.records, self.config.model))

    @property
    def facts(self) -> dict[str, str]:
        """How far the run is, as a short text by name."""
        recent = self.train[-RECENT:]
        last = recent[-1]
        sound = median(record["audio_seconds_per_second"] for record in recent)
        facts = {
            "Step": f"{last['step']:,}" + ("" if self.steps is None else f" of {self.steps:,}"),
            "Phase": f"{last['phase']}, α = {last['alpha']:g}",
            "Epoch": f"{last['epoch']:.4g} of {self.config.schedule.epochs:g}",
            "Hours of sound per hour": f"{sound:,.0f}",
        }
        if self.records[-1]["kind"] == "stopped":
            facts["Time left"] = "none: stopped, because " + ", ".join(self.records[-1]["not_finite"])
            facts["Time left"] += " was not finite"
        elif self.steps == last["step"]:
            facts["Time left"] = "none: trained"
        elif self.steps is not None:
            # Older logs have no number of captions: it was the same in every step.
            seconds = median(
                record.get("captions", self.config.batch_size) / record["captions_per_second"]
                for record in recent
            )
            facts["Time left"] = duration((self.steps - last["step"]) * seconds)
        return facts


def _planned_steps(run: Path, config: RunConfig) -> int | None:
    """Return the steps of the schedule, from a checkpoint or, before the first one, from the corpus."""
    try:
        if path := checkpoint.latest_path(run):
            return checkpoint.load_state(path).run_steps
        last = plan_steps(config, Corpus.open(config.corpus))[-1]
    except VgsplusError:
        return None
    return last.first_step + last.steps


# ---- the page and the terminal ----------------------------------------------------------------------------


def write_run_report(report: RunReport) -> Path:
    """Write RUN/report.html and return its path.

    Raises:
        OSError: it cannot be written.
    """
    content = page.template("run.html.j2").render(
        name=report.run.resolve().name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        facts=report.facts,
        warnings=report.warnings,
        figures=page.drawn(_views(report)),
        settings=to_dict(report.config),
    )
    write_file(report.run / PAGE, content)
    return report.run / PAGE


def print_run(report: RunReport, console: Console) -> None:
    """Print how far the run is, its last losses and scores, and the warnings."""
    table = Table("", "", box=SIMPLE_HEAD, title=f"Run {report.run}", title_justify="left", show_header=False)
    for name, fact in report.facts.items():
        table.add_row(name, fact)
    recent = [losses_in(record) for record in report.train[-RECENT:]]
    names = [name for name in recent[-1] if all(name in losses for losses in recent)]
    means = {name: fmean(losses[name] for losses in recent) for name in names}
    table.add_row(f"Last {len(recent)} steps", _listed(means))
    last = {record["kind"]: record for record in report.records}
    if "validation" in last:
        table.add_row("Last validation", _listed(losses_in(last["validation"])))
    if "evaluation" in last:
        table.add_row("Last evaluation", _listed(last["evaluation"]["scores"]))
    for warning in report.warnings:
        table.add_row(f"Warning, step {warning.step:,}", str(warning), style="yellow")
    console.print(table, highlight=False, markup=False)


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


# ---- curves -----------------------------------------------------------------------------------------------


def _views(report: RunReport) -> list[tuple[str, list[Panel]]]:
    """Return the figures, (title, panels)."""
    train = report.train
    validation = [record for record in report.records if record["kind"] == "validation"]
    scores = [record | record["scores"] for record in report.records if record["kind"] == "evaluation"]
    ends = itertools.pairwise(train)
    switches = tuple(a["epoch"] for a, b in ends if a["phase_index"] != b["phase_index"])
    losses = dict.fromkeys(name for record in train for name in losses_in(record))
    parts = dict.fromkeys(name for record in train for name in record if name.startswith(GRADIENTS))
    stds = [name for name in METRICS if name.endswith("embedding_std")]

    chance = chance_levels(report.config.model, train[-1].get("captions", report.config.batch_size))

    def panel(title: str, lines: Iterable[Line | None], *, log: bool = False, name: str = "") -> list[Panel]:
        found = tuple(line for line in lines if line)
        return [Panel(title, found, switches, log=log, chance=chance.get(name))] if found else []

    def single(name: str, title: str, *, log: bool = False) -> list[Panel]:
        return panel(title, [_line("training", train, name, COLOURS[0], log=log)], log=log)

    loss_panels: list[Panel] = []
    for name in losses:
        _, title = LOSSES.get(name, ("", name.replace("_", " ").replace("/", ", ")))
        loss_panels += panel(
            title,
            [
                _line("training", train, name, COLOURS[0], log=True),
                _line("validation", validation, name, COLOURS[1], log=True),
            ],
            log=True,
            name=name,
        )
    score_panels = [
        one
        for name in dict.fromkeys(name for record in scores for name in record["scores"])
        for one in panel(name, [_line("evaluation", scores, name, COLOURS[1])])
    ]
    embeddings = (
        _line(name.split("_")[0], train, name, role) for name, role in zip(stds, COLOURS, strict=False)
    )
    gradients = (
        _line(name.removeprefix(GRADIENTS), train, name, role, log=True)
        for name, role in zip(
            ["grad_norm", *parts], itertools.chain(["ink"], itertools.cycle(COLOURS)), strict=False
        )
    )
    return [
        ("Losses and perplexities", loss_panels),
        ("Scores", score_panels),
        (
            "Embeddings, gradient and schedule",
            [
                *panel("Standard deviation of embeddings", embeddings),
                *single("similarity_std", "Standard deviation of similarities"),
                *panel("Gradient norm by part", gradients, log=True),
                *single("lr", "Learning rate"),
                *single("temperature", "Gumbel temperature"),
            ],
        ),
        (
            "Speed and use of the machine",
            [
                *single("audio_seconds_per_second", "Hours of sound per hour"),
                *single("loader_wait", "Share of time waiting for data"),
                *single("matrix_share", "Share of the rate of a large product"),
                *single("padding_share", "Share of rows that are no speech"),
                *single("masked_share", "Share of frames that are masked"),
                *single("gpu_gigabytes", "Largest memory on the GPU (GB)"),
            ],
        ),
    ]


def _line(name: str, records: Sequence[Record], key: str, role: str, *, log: bool = False) -> Line | None:
    """Return the means of a value over consecutive records that have it, or None if none has.

    Values that a log axis cannot show are skipped, as in the report of a reproduction.
    """
    points = [
        (record["epoch"], value)
        for record in records
        if (value := record.get(key)) is not None and (value > 0 or not log)
    ]
    size = -(-len(points) // POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    if not groups:
        return None
    x = tuple(group[-1][0] for group in groups)
    return Line(name, x, tuple(fmean(value for _, value in group) for group in groups), role)
