"""Train and evaluate the paper's nine variants, and write the report.

OUT/corpus/          the corpus, if the preset makes it
OUT/runs/VARIANT/    a run folder per variant: "vgs+", "w2v2-then-vgs+"
OUT/runs/seed-1/…    the same variants, trained from the next seed
OUT/report/          see `report.page`
OUT/command.json     the arguments of the command, as {"argv": […]}
OUT/jobs/            with --slurm, scripts and logs of the jobs
OUT/seconds          wall time spent so far, but for training; that of a run is in its folder
OUT/items            the SHA-256 of the ABX item file, or "none"
"""

import contextlib
import dataclasses
import functools
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import JsonValue

from vgsplus import config as settings
from vgsplus.config import RunConfig, load_config
from vgsplus.corpora import Corpus
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.abx_layers import AbxTask, check_task, score_layers, score_log_mel, untrained_model
from vgsplus.evaluation.retrieval import RetrievalResult
from vgsplus.experiments import curves
from vgsplus.experiments.scoring import (
    MEASURES,
    Scoring,
    abx_task,
    check_retrieval,
    evaluate_run,
    own_abx_task,
    test_sets,
)
from vgsplus.experiments.study import CORPUS, Run, open_corpus, record_command, share_phases
from vgsplus.files import file_digest, write_file
from vgsplus.interop.loading import load_weights
from vgsplus.parallel import process_rank
from vgsplus.progress import SILENT, Progress
from vgsplus.remote import locate
from vgsplus.report import results as report
from vgsplus.report.gallery import gallery_items
from vgsplus.report.page import check_report_folder, write_report
from vgsplus.report.results import Results
from vgsplus.schedule import VARIANTS, parse_variant, variant_title
from vgsplus.training.checkpoint import load_model
from vgsplus.training.checks import check_run
from vgsplus.training.data import open_additional_speech
from vgsplus.training.log import read_log
from vgsplus.training.processes import Processes
from vgsplus.training.run_folder import CONFIG_FILE, data_fingerprint, load_latest, resolve_precision
from vgsplus.training.runtime import RandomStream, device_name, indexed_seed, versions

RUNS, SECONDS, ITEMS = "runs", "seconds", "items"
NO_ITEMS = "none"
SELECTION_K = 10
"""The k of the recall by which the gallery's variant is selected."""


def load_variants(
    preset: str, variants: Sequence[str] | None = None, overrides: Iterable[str] = ()
) -> dict[str, RunConfig]:
    """Return the settings of variants in the order of the paper, {key in `VARIANTS`: settings}.

    Args:
        preset: name of a preset, or a YAML file whose schedule is a variant.
        variants: names of the variants; all nine by default.
        overrides: settings such as "schedule.epochs=2".

    Raises:
        ConfigError: there is no such variant, or the settings are not valid.
    """
    selected = {parse_variant(name) for name in variants or VARIANTS}
    overrides = list(overrides)
    return {
        key: load_config(preset, [*overrides, f"schedule.variant={key}"])
        for key in VARIANTS
        if key in selected
    }


def open_reproduction(
    progress: Progress = SILENT,
    *,
    preset: str,
    out: Path,
    configs: Mapping[str, RunConfig],
    corpus: Path | None = None,
    stamps_root: Path | None = None,
    seeds: int = 1,
    abx: tuple[Path, Path] | None = None,
    argv: Sequence[str] = (),
) -> "Reproduction":
    """Open the reproduction of the paper's variants (Tables I and II, Figs. 2 and 3) in a folder.

    Args:
        progress: receives the preparation of the corpus.
        preset: name of a preset, or a YAML file.
        out: output folder.
        configs: settings of the variants, see `load_variants`.
        corpus: a prepared corpus to use instead of the one that the preset makes.
        stamps_root: the folder of stamps from which the preset "stamps" makes its corpus.
        seeds: number of runs per variant, with consecutive seeds from the setting `seed`.
        abx: an item file and the folder of its sounds, to use instead of those of the corpus.
        argv: the command, to be recorded.

    Raises:
        VgsplusError: the corpus or the items do not exist or are broken.
    """
    made, started = (out / CORPUS).exists(), time.monotonic()
    opened = open_corpus(preset, out, corpus, next(iter(configs.values())), stamps_root, progress)
    if made != (out / CORPUS).exists():
        _add_seconds(out, time.monotonic() - started)
    folders = [variant_folder(out, key, repeat) for key in VARIANTS for repeat in range(seeds)]
    configs = {
        key: resolve_precision(dataclasses.replace(config, corpus=str(opened.root)), *folders)
        for key, config in configs.items()
    }
    names = test_sets(opened)
    if not names:
        splits = ", ".join(opened.splits)
        raise VgsplusError(f"{opened.root}: has no test split with images, only {splits}")
    task = abx_task(*abx) if abx else own_abx_task(opened, names)
    return Reproduction(preset, out, Scoring(opened, names, task, cache=out), configs, seeds, tuple(argv))


# ---- time -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _timed(folder: Path) -> Iterator[None]:
    """Add the wall time of the block to FOLDER/seconds, if there is a folder."""
    started = time.monotonic()
    try:
        yield
    finally:
        if folder.is_dir():
            _add_seconds(folder, time.monotonic() - started)


def _add_seconds(folder: Path, seconds: float) -> None:
    if process_rank() > 0:  # the first process writes
        return
    write_file(folder / SECONDS, f"{_seconds(folder) + seconds:.1f}\n")


def _seconds(folder: Path) -> float:
    file = folder / SECONDS
    return float(file.read_text(encoding="utf-8")) if file.is_file() else 0.0


# ---- training and evaluation ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reproduction:
    """The variants of one call of `reproduce`, trained on one corpus from one seed or several.

    A `Study`: it is checked, recorded, trained run by run, and reported.
    """

    preset: str
    out: Path
    scoring: Scoring
    configs: Mapping[str, RunConfig]
    seeds: int
    argv: tuple[str, ...]

    @functools.cached_property
    def runs(self) -> tuple[Run, ...]:
        """The runs of all variants from the first seed, then from the next."""
        return share_phases(
            Run(self._title(key, repeat), variant_folder(self.out, key, repeat), self._config(key, repeat))
            for repeat in range(self.seeds)
            for key in self.configs
        )

    def check(self, *, here: bool = True) -> None:
        """Raise VgsplusError for anything that would stop the study later."""
        check_report_folder(self.out)
        for config in self.configs.values():
            check_run(config, self.scoring.corpus, load_weights, here=here)
            check_retrieval(config.model, self.scoring.corpus)
        for run in self.runs:
            speech = open_additional_speech(run.config.schedule)
            load_latest(run.folder, run.config, data_fingerprint(self.scoring.corpus, speech))
        if self.scoring.abx is not None:
            check_task(self.scoring.abx, self._first_config().model)
        file = self.out / ITEMS
        started = any((variant_folder(self.out, key, 0) / CONFIG_FILE).is_file() for key in VARIANTS)
        if not started or not file.is_file():
            return
        if (recorded := file.read_text(encoding="utf-8").strip()) != self._items():
            before = "without ABX items" if recorded == NO_ITEMS else "on other ABX items"
            raise VgsplusError(
                f"{self.out}: its runs were scored {before}. Give --item and --audio as before, or choose "
                "another folder."
            )

    def record(self) -> None:
        """Record the command and the ABX items."""
        record_command(self.out, self.argv)
        write_file(self.out / ITEMS, f"{self._items()}\n")

    def train(self, run: Run, progress: Progress) -> None:
        """Train what is left of a run; raises as `Run.train`."""
        with _timed(run.folder):
            run.train(self.scoring, progress)

    def write_report(self, processes: Processes, progress: Progress) -> Path:
        """Evaluate the trained variants, write the report, and return the path of its page; as `Study`."""
        with _timed(self.out):
            started = time.monotonic()
            results = self._results(progress)
            # That of runs is in their folders, because they may be trained at the same time.
            before = _seconds(self.out) + sum(_seconds(run.folder) for run in self.runs)
            spent = dataclasses.replace(results, seconds=before + time.monotonic() - started)
            device = device_name(self._first_config().accelerator)
            write = functools.partial(
                write_report,
                spent,
                self.out,
                corpus=self.scoring.corpus,
                load=lambda key: load_model(variant_folder(self.out, key, 0)).to(device),
                progress=progress,
            )
            return processes.on_first(write)

    def _results(self, progress: Progress) -> Results:
        outcomes, variants = self._evaluate(0, progress)
        repeats = tuple(
            report.Repeat(
                seed=self._first_config().seed + repeat, variants=self._evaluate(repeat, progress)[1]
            )
            for repeat in range(1, self.seeds)
        )
        best = _best(outcomes)
        corpus, task = self.scoring.corpus, self.scoring.abx
        plain = settings.to_dict(self._first_config())
        shown = {name: value for name, value in plain.items() if name not in ("corpus", "schedule")}
        additional: dict[str, JsonValue] = {
            phase.name: settings.to_dict(speech)
            for config in self.configs.values()
            for phase in config.schedule.phases
            if (speech := phase.active_additional_speech)
        }
        about = ("name", "version", "provenance", "licence", "counts")
        return Results(
            preset=self.preset,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
            machine=_machine(device_name(self._first_config().accelerator)),
            corpus={name: corpus.info.get(name) for name in about},
            settings=shown | ({"additional_speech": additional} if additional else {}),
            test_sets=self.scoring.test_sets,
            variants=variants,
            repeats=repeats,
            abx=None if task is None else self._abx_results(task, progress),
            lower_is_better=tuple(measure.prefix for measure in MEASURES if not measure.higher_is_better),
            gallery=tuple(
                item for result in outcomes[best].values() for item in gallery_items(result, corpus, best)
            ),
            seconds=0.0,
        )

    def _evaluate(
        self, repeat: int, progress: Progress
    ) -> tuple[dict[str, dict[str, RetrievalResult]], tuple[report.Variant, ...]]:
        """Return the retrieval of each variant on each test set, and the variants' data for the report."""
        outcomes: dict[str, dict[str, RetrievalResult]] = {}
        variants = []
        names = self.scoring.test_sets
        for key in self.configs:
            config, run = self._config(key, repeat), variant_folder(self.out, key, repeat)
            progress.note(f"Evaluating {self._title(key, repeat)}")
            model = load_model(run).to(device_name(config.accelerator))
            outcomes[key] = {name: evaluate_run(model, config, self.scoring.corpus, name) for name in names}
            records, phases = list(read_log(run)), len(config.schedule.phases)
            variants.append(
                report.Variant(
                    key=key,
                    name=variant_title(key),
                    phases=tuple(curves.phase_result(records, config, index) for index in range(phases)),
                    parameters=sum(parameter.numel() for parameter in model.parameters()),
                    retrieval={name: result.scores for name, result in outcomes[key].items()},
                    losses=tuple(curves.losses(records, phases)),
                    recalls=tuple(curves.recall_points(records, names)),
                    abx=tuple(curves.abx_points(records)),
                    scores=tuple(curves.score_points(records, names)),
                )
            )
        return outcomes, tuple(variants)

    def _abx_results(self, task: AbxTask, progress: Progress) -> report.AbxSummary:
        """Return the item file, and the errors of log-Mel energies and of the variants' initial model."""
        progress.note("Evaluating the ABX of untrained features")
        config = self._first_config()
        device = device_name(config.accelerator)
        untrained = untrained_model(config.model, indexed_seed(config.seed, RandomStream.MODEL)).to(device)
        rows = score_layers(untrained, task, features="untrained", device=device, cache=self.out)
        rows += score_log_mel(task, device=device)
        return report.AbxSummary(
            item=task.items.path.name,
            tokens=len(task.items.tokens),
            baselines=tuple(curves.abx_baselines(rows)),
        )

    def _first_config(self) -> RunConfig:
        return next(iter(self.configs.values()))

    def _config(self, key: str, repeat: int) -> RunConfig:
        config = self.configs[key]
        return dataclasses.replace(config, seed=config.seed + repeat)

    def _items(self) -> str:
        return NO_ITEMS if self.scoring.abx is None else file_digest(self.scoring.abx.items.path)

    def _title(self, key: str, repeat: int) -> str:
        seed = f", seed {self.configs[key].seed + repeat}" if self.seeds > 1 else ""
        return f"{variant_title(key)}{seed}"


def corpus_of(out: Path, keys: Iterable[str]) -> Corpus | None:
    """Open the corpus of the variants in `out`, or return None if it was removed.

    Raises:
        CorpusError: it is broken.
    """
    configs = (variant_folder(out, key, 0) / CONFIG_FILE for key in keys)
    named = (locate(load_config(str(config)).corpus) for config in configs if config.is_file())
    return next((Corpus.open(folder) for folder in (out / CORPUS, *named) if folder.is_dir()), None)


def variant_folder(out: Path, key: str, repeat: int) -> Path:
    """Return the run folder of a variant; `repeat` is added to the setting `seed`."""
    folder = out / RUNS / f"seed-{repeat}" if repeat else out / RUNS
    return folder / key.replace(",", "-then-")


def _best(outcomes: Mapping[str, Mapping[str, RetrievalResult]]) -> str:
    """Return the key of the variant with the best recall, among those that end in VGS if there are any."""

    def quality(key: str) -> float:
        return sum(r.scores.speech_to_image.recall[SELECTION_K].value for r in outcomes[key].values())

    return max([key for key in outcomes if VARIANTS[key][-1] == "vgs"] or list(outcomes), key=quality)


def _machine(device: str) -> dict[str, JsonValue]:
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
    }
