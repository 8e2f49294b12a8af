"""Train and evaluate the paper's nine variants, and write the report.

OUT/corpus/          the corpus, if the preset makes it
OUT/runs/VARIANT/    a run folder per variant: "vgs+", "w2v2-then-vgs+"
OUT/runs/seed-1/…    the same variants, trained from the next seed
OUT/report/          see `report.page`
OUT/command.json     the arguments of the command, as {"argv": […]}
OUT/seconds          wall time spent so far
OUT/items            the SHA-256 of the ABX item file, or "none"

Variants with the same first phase share it: the first of them trains it, and the others start from the
checkpoint at its end.
"""

import contextlib
import dataclasses
import functools
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import JsonValue

from vgsplus import config as settings
from vgsplus.config import RunConfig, load_config
from vgsplus.corpora import Corpus
from vgsplus.corpora.sources.stamps import prepare_stamps
from vgsplus.corpora.sources.toy.corpus import prepare_toy
from vgsplus.errors import Interrupted, VgsplusError
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
from vgsplus.files import file_digest, write_file
from vgsplus.interop.loading import load_weights
from vgsplus.progress import SILENT, Progress
from vgsplus.remote import locate
from vgsplus.report import Results, check_report_folder, gallery_items, write_report
from vgsplus.report import results as report
from vgsplus.schedule import VARIANTS, Phase, parse_variant, variant_title
from vgsplus.training.checkpoint import checkpoints, load_model
from vgsplus.training.checks import check_run
from vgsplus.training.data import open_additional_speech
from vgsplus.training.log import read_log
from vgsplus.training.run_folder import CONFIG_FILE, data_fingerprint, load_latest, resolve_precision
from vgsplus.training.runtime import RandomStream, device_name, indexed_seed, versions
from vgsplus.training.trainer import train

CORPUS, RUNS, SECONDS, ITEMS, COMMAND = "corpus", "runs", "seconds", "items", "command.json"
NO_ITEMS = "none"
OWN_CORPUS = ("smoke", "toy", "stamps")
"""The presets that make a corpus."""
SELECTION_K = 10
"""The k of the recall by which the gallery's variant is selected."""


def reproduce(
    preset: str,
    out: Path,
    *,
    variants: Sequence[str] | None = None,
    corpus: Path | None = None,
    overrides: Iterable[str] = (),
    stamps_root: Path | None = None,
    seeds: int = 1,
    abx: tuple[Path, Path] | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Train and evaluate the paper's variants (Tables I and II, Figs. 2 and 3) and write the report.

    The same call resumes an interrupted one; finished work is not repeated.

    Args:
        preset: name of a preset, or a YAML file whose schedule is a variant.
        out: output folder.
        variants: names of the variants to train; all nine by default.
        corpus: a prepared corpus to use instead of the one that the preset makes.
        overrides: settings such as "schedule.epochs=2".
        stamps_root: the folder of stamps from which the preset "stamps" makes its corpus.
        seeds: number of runs per variant, with consecutive seeds from the setting `seed`.
        abx: an item file and the folder of its sounds, to use instead of those of the corpus.
        progress: receives the stages of training, and a line per variant.

    Returns:
        The path of the report's page.

    Raises:
        VgsplusError: the variants, settings, corpus, items or machine do not fit; raised before any training.
        Interrupted: by SIGINT or SIGTERM; the run is saved.
    """
    selected = {parse_variant(name) for name in variants or VARIANTS}
    overrides = list(overrides)
    configs = {
        key: load_config(preset, [*overrides, f"schedule.variant={key}"])
        for key in VARIANTS
        if key in selected
    }
    with _timed(out) as seconds:
        config = next(iter(configs.values()))
        opened = _open_corpus(preset, out, corpus, config, stamps_root, progress)
        runs = [variant_folder(out, key, repeat) for key in VARIANTS for repeat in range(seeds)]
        configs = {
            key: resolve_precision(dataclasses.replace(config, corpus=str(opened.root)), *runs)
            for key, config in configs.items()
        }
        names = test_sets(opened)
        if not names:
            splits = ", ".join(opened.splits)
            raise VgsplusError(f"{opened.root}: has no test split with images, only {splits}")
        task = abx_task(*abx) if abx else own_abx_task(opened, names)
        study = _Study(preset, out, Scoring(opened, names, task, cache=out), configs, seeds, progress)
        study.check()
        item, audio = abx or (None, None)
        options: list[tuple[str, object]] = [
            *(("--variants", name) for name in variants or ()),
            *(
                ("--corpus", corpus and locate(corpus)),
                ("--root", stamps_root),
                ("--seeds", seeds if seeds > 1 else None),
            ),
            *(("--item", item), ("--audio", audio)),
            *(("--set", override) for override in overrides),
        ]
        words = [str(word) for option in options if option[1] is not None for word in option]
        write_file(out / COMMAND, json.dumps({"argv": ["reproduce", preset, "--out", str(out), *words]}))
        study.train()
        return write_report(study.results(seconds), out, corpus=opened)


# ---- the corpus -------------------------------------------------------------------------------------------


def _open_corpus(
    preset: str, out: Path, given: Path | None, config: RunConfig, stamps: Path | None, progress: Progress
) -> Corpus:
    """Open the corpus: the given one, or the preset's, made if it does not exist, or that of the settings."""
    if given is not None:
        given = locate(given)
        if not given.is_dir():
            raise VgsplusError(f"{given}: there is no such folder; --corpus names a prepared corpus")
        return Corpus.open(given)
    if preset not in OWN_CORPUS:
        if preset in settings.presets():
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


@contextlib.contextmanager
def _timed(out: Path) -> Iterator[Callable[[], float]]:
    """Yield a function that returns the wall time spent on `out` in all calls, and save the time on exit."""
    file = out / SECONDS
    before = float(file.read_text(encoding="utf-8")) if file.is_file() else 0.0
    started = time.monotonic()

    def spent() -> float:
        return before + time.monotonic() - started

    try:
        yield spent
    finally:
        if out.is_dir():
            write_file(file, f"{spent():.1f}\n")


# ---- training and evaluation ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Study:
    """The variants of one call of `reproduce`, trained on one corpus from one seed or several."""

    preset: str
    out: Path
    scoring: Scoring
    configs: Mapping[str, RunConfig]
    seeds: int
    progress: Progress

    def check(self) -> None:
        """Raise VgsplusError for anything that would stop the study later, and record the ABX items."""
        check_report_folder(self.out)
        for key, config in self.configs.items():
            check_run(config, self.scoring.corpus, load_weights)
            check_retrieval(config.model, self.scoring.corpus)
            data = data_fingerprint(self.scoring.corpus, open_additional_speech(config.schedule))
            for repeat in range(self.seeds):
                load_latest(self._run(key, repeat), self._config(key, repeat), data)
        task, file = self.scoring.abx, self.out / ITEMS
        if task is not None:
            check_task(task, self._first_config().model)
        digest = NO_ITEMS if task is None else file_digest(task.items.path)
        started = any((self._run(key, 0) / CONFIG_FILE).is_file() for key in VARIANTS)
        if started and file.is_file() and (recorded := file.read_text(encoding="utf-8").strip()) != digest:
            before = "without ABX items" if recorded == NO_ITEMS else "on other ABX items"
            raise VgsplusError(
                f"{self.out}: its runs were scored {before}. Give --item and --audio as before, or choose "
                "another folder."
            )
        self.out.mkdir(parents=True, exist_ok=True)
        write_file(file, f"{digest}\n")

    def train(self) -> None:
        """Train every variant that is not finished."""
        for repeat in range(self.seeds):
            shared: dict[Phase, Path] = {}
            for number, key in enumerate(self.configs, start=1):
                config, run = self._config(key, repeat), self._run(key, repeat)
                self.progress.note(f"{self._title(key, repeat)}, {number} of {len(self.configs)}")
                first = config.schedule.phases[0]
                try:
                    train(
                        config,
                        run,
                        start=shared.get(first),
                        resume=True,
                        evaluate=functools.partial(self.scoring, config=config),
                        load_weights=load_weights,
                        progress=self.progress,
                    )
                except Interrupted:
                    raise Interrupted(
                        f"stopped by a signal; {run} is saved. Run the same command again to resume."
                    ) from None
                if first not in shared and (end := _end_of_phase(run, first)):
                    shared[first] = end

    def results(self, seconds: Callable[[], float]) -> Results:
        """Evaluate the trained variants and return the data of the report."""
        outcomes, variants = self._evaluate(0)
        repeats = tuple(
            report.Repeat(seed=self._first_config().seed + repeat, variants=self._evaluate(repeat)[1])
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
            abx=None if task is None else self._abx_results(task),
            lower_is_better=tuple(measure.prefix for measure in MEASURES if not measure.higher_is_better),
            gallery=tuple(
                item for result in outcomes[best].values() for item in gallery_items(result, corpus, best)
            ),
            seconds=seconds(),
        )

    def _evaluate(
        self, repeat: int
    ) -> tuple[dict[str, dict[str, RetrievalResult]], tuple[report.Variant, ...]]:
        """Return the retrieval of each variant on each test set, and the variants' data for the report."""
        outcomes: dict[str, dict[str, RetrievalResult]] = {}
        variants = []
        names = self.scoring.test_sets
        for key in self.configs:
            config, run = self._config(key, repeat), self._run(key, repeat)
            self.progress.note(f"Evaluating {self._title(key, repeat)}")
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

    def _abx_results(self, task: AbxTask) -> report.AbxSummary:
        """Return the item file, and the errors of log-Mel energies and of the variants' initial model."""
        self.progress.note("Evaluating the ABX of untrained features")
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

    def _run(self, key: str, repeat: int) -> Path:
        return variant_folder(self.out, key, repeat)

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


def _end_of_phase(run: Path, phase: Phase) -> Path | None:
    """Return the checkpoint at the end of a run's phase, or None if it was removed."""
    return next((path for path in checkpoints(run) if path.name.endswith(f"-end-of-{phase.name}")), None)


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
