"""Train a configuration with all combinations of some settings, from one seed or several, and compare them.

OUT/corpus/                      the corpus, if the preset makes it
OUT/points/KEY=VALUE,…/seed-N/   a run folder per grid point and seed
OUT/report/                      see `report.sweep`
OUT/command.json, OUT/jobs/      as of `reproduce`
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from vgsplus.config import RunConfig, load_config
from vgsplus.errors import ConfigError, VgsplusError
from vgsplus.evaluation.abx_layers import check_task
from vgsplus.experiments.curves import ABX, ABX_PUBLISHED
from vgsplus.experiments.scoring import MEASURES, Scoring, check_retrieval, own_abx_task, test_sets
from vgsplus.experiments.study import Run, open_corpus, record_command, share_phases
from vgsplus.interop.loading import load_weights
from vgsplus.progress import SILENT, Progress
from vgsplus.report.page import check_report_folder
from vgsplus.report.paper import PAPER_KS
from vgsplus.report.sweep import TABLE, Measure, Point, title, write_sweep
from vgsplus.report.tables import LOSSES, label
from vgsplus.training.checks import check_run
from vgsplus.training.data import open_additional_speech
from vgsplus.training.log import losses_in, read_log
from vgsplus.training.processes import Processes
from vgsplus.training.run_folder import data_fingerprint, load_latest, resolve_precision

POINTS = "points"


def load_points(config: str, grid: Iterable[str], overrides: Iterable[str] = ()) -> dict[Point, RunConfig]:
    """Return the settings of all grid points, {grid point: settings}.

    Args:
        config: a YAML file, or the name of a preset.
        grid: settings with their values, such as "schedule.0.alpha=0,0.25,0.5"; several make a product.
            Values are YAML: one with commas is in quotes, brackets or braces.
        overrides: settings of all points.

    Raises:
        ConfigError: a grid has no values or one twice, or the settings of a point are not valid.
    """
    axes: dict[str, list[str]] = {}
    for axis in grid:
        key, values = _parse_axis(axis)
        if key in axes:
            raise ConfigError(f"--grid {axis}: {key} has a grid already. Give all of its values in one.")
        axes[key] = values
    points: list[Point] = [
        tuple(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    ]
    folders = {_folder(point): point for point in points}
    if len(folders) < len(points):
        raise ConfigError(
            "grid points differ only in characters that folder names lack; change their spelling"
        )
    overrides = list(overrides)
    return {point: load_config(config, [*overrides, *map("=".join, point)]) for point in points}


def _parse_axis(axis: str) -> tuple[str, list[str]]:
    """Return a setting and the values of its grid as they are spelled."""
    key, equals, text = axis.partition("=")
    listed = f"[{text}]"
    try:
        node = yaml.compose(listed, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        node = None
    if not equals or not key.strip() or not isinstance(node, yaml.SequenceNode):
        raise ConfigError(f"--grid {axis}: must read KEY=VALUE,VALUE,…, such as schedule.0.alpha=0,0.25,0.5")
    values = [listed[one.start_mark.index : one.end_mark.index].strip() for one in node.value]
    if not values or len(set(values)) < len(values):
        raise ConfigError(f"--grid {axis}: {'has no value' if not values else 'names a value twice'}")
    return key.strip(), values


def _folder(point: Point) -> str:
    return re.sub(r"[^\w.+=,-]+", "_", ",".join(map("=".join, point)))


def _run_folder(out: Path, point: Point, seed: int) -> Path:
    return out / POINTS / _folder(point) / f"seed-{seed}"


def open_sweep(
    progress: Progress = SILENT,
    *,
    config: str,
    out: Path,
    points: Mapping[Point, RunConfig],
    corpus: Path | None = None,
    seeds: int = 1,
    argv: Sequence[str] = (),
) -> "Sweep":
    """Open a sweep in a folder.

    Args:
        progress: receives the preparation of the corpus.
        config: name of the configuration.
        out: output folder.
        points: settings of the grid points, see `load_points`.
        corpus: a prepared corpus to use instead of that of the configuration.
        seeds: number of runs per grid point, with consecutive seeds from the setting `seed`.
        argv: the command, to be recorded.

    Raises:
        VgsplusError: the corpus does not exist or is broken.
    """
    opened = open_corpus(config, out, corpus, next(iter(points.values())), None, progress)
    grounded = all(one.model.grounded for one in points.values())
    names = test_sets(opened) if grounded else ()
    scoring = Scoring(opened, names, own_abx_task(opened, names), cache=out)
    folders = [_run_folder(out, point, one.seed + n) for point, one in points.items() for n in range(seeds)]
    placed = {
        point: resolve_precision(dataclasses.replace(one, corpus=str(opened.root)), *folders)
        for point, one in points.items()
    }
    return Sweep(config, out, scoring, placed, seeds, tuple(argv))


@dataclass(frozen=True)
class Sweep:
    """The grid points of one call of `sweep`, trained on one corpus from one seed or several. A `Study`."""

    config: str
    out: Path
    scoring: Scoring
    points: Mapping[Point, RunConfig]
    seeds: int
    argv: tuple[str, ...]

    @functools.cached_property
    def runs(self) -> tuple[Run, ...]:
        """The runs of all points from the first seed, then from the next."""
        return share_phases(
            Run(
                f"{title(point)}, seed {config.seed + repeat}",
                _run_folder(self.out, point, config.seed + repeat),
                dataclasses.replace(config, seed=config.seed + repeat),
            )
            for repeat in range(self.seeds)
            for point, config in self.points.items()
        )

    def check(self, *, here: bool = True) -> None:
        """Raise VgsplusError for anything that would stop the sweep later."""
        check_report_folder(self.out, TABLE)
        corpus, task = self.scoring.corpus, self.scoring.abx
        if not self.scoring.test_sets and any(
            config.validate_every is None for config in self.points.values()
        ):
            raise VgsplusError(
                f"{corpus.root}: has no test split with images, and validate_every is null, so there is "
                "nothing to compare. Set validate_every."
            )
        for point, config in self.points.items():
            try:
                check_run(config, corpus, load_weights, here=here)
                if self.scoring.test_sets:
                    check_retrieval(config.model, corpus)
                if task is not None:
                    check_task(task, config.model)
            except VgsplusError as error:
                raise ConfigError(f"{title(point)}: {error}") from None
        for run in self.runs:
            load_latest(
                run.folder, run.config, data_fingerprint(corpus, open_additional_speech(run.config.schedule))
            )

    def record(self) -> None:
        """Record the command."""
        record_command(self.out, self.argv)

    def train(self, run: Run, progress: Progress) -> None:
        """Train what is left of a run; raises as `Run.train`."""
        run.train(self.scoring, progress)

    def write_report(self, processes: Processes, progress: Progress) -> Path:
        """Compare the trained points by their logs, and return the path of the report's page."""
        progress.note("Writing the report")
        first = next(iter(self.points.values())).seed
        seeds = range(first, first + self.seeds)
        corpus = self.scoring.corpus.name
        return processes.on_first(lambda: write_sweep(self.out, self.config, corpus, seeds, self.measures()))

    def measures(self) -> tuple[Measure, ...]:
        """Return the numbers of the finished runs, those of retrieval first."""
        found: dict[tuple[str, str, bool], dict[Point, list[float]]] = {}
        for repeat in range(self.seeds):
            for point, config in self.points.items():
                run = _run_folder(self.out, point, config.seed + repeat)
                for name, unit, higher, value in _numbers(run, self.scoring.test_sets):
                    found.setdefault((name, unit, higher), {}).setdefault(point, []).append(value)
        return tuple(
            Measure(*about, {point: tuple(values) for point, values in of_points.items()})
            for about, of_points in found.items()
        )


# ---- numbers ----------------------------------------------------------------------------------------------


def _numbers(run: Path, splits: Sequence[str]) -> Iterator[tuple[str, str, bool, float]]:
    """Yield the numbers of a finished run, as the fields of a `Measure` with a value."""
    last = {
        record["kind"]: record for record in read_log(run) if record["kind"] in ("evaluation", "validation")
    }
    scores = last["evaluation"]["scores"] if "evaluation" in last else {}
    for split in splits:
        parts = {name: 100 * x for name, x in scores.items() if name.startswith(f"{split}/")}
        shown = [name for name in parts if int(name.rpartition("@")[2]) in PAPER_KS]
        yield f"recall on {label(split)}", "%", True, sum(parts[name] for name in shown) / len(shown)
        for name in shown:
            _, direction, at = name.split("/")
            yield f"{at} on {label(split)}, {direction.replace('_', ' ')}", "%", True, parts[name]
    errors: dict[str, float] = {}
    for name, score in scores.items():
        kind, *rest = name.split("/")
        if kind in (ABX, ABX_PUBLISHED):
            heading = f"{kind.replace(ABX, 'ABX error')} {rest[0]} speakers, best layer"
            errors[heading] = min(errors.get(heading, 100.0), 100 * score)
        elif kind not in splits:
            yield name, "", _higher_is_better(name), score
    for name, error in errors.items():
        yield name, "%", False, error
    for term, loss in losses_in(last.get("validation", {})).items():
        if term in LOSSES:
            yield f"validation loss {LOSSES[term][1]}", "", False, loss


def _higher_is_better(name: str) -> bool:
    return next((one.higher_is_better for one in MEASURES if name.startswith(one.prefix)), True)
