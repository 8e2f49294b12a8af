"""The paper's nine variants from start to report: corpus, runs, Table I, curves and gallery.

OUT/corpus/          the corpus, for presets that make their own
OUT/runs/VARIANT/    a run folder a variant: "vgs+", "w2v2-then-vgs+"
OUT/runs/seed-1/…    the same, trained again from the next seed
OUT/report/          see `report.page`
OUT/seconds          wall time spent so far
OUT/items            the SHA-256 of the ABX item file, or "none"

Variants whose first phase is the same share it: the first of them trains it, the others start from its end.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import torch
from pydantic import JsonValue
from rich.console import Console

from vgsplus import config as settings
from vgsplus.config import RunConfig, load_config
from vgsplus.corpora import Corpus
from vgsplus.corpora.sources.stamps import prepare_stamps
from vgsplus.corpora.sources.toy.corpus import prepare_toy
from vgsplus.errors import Interrupted, VgsplusError
from vgsplus.evaluation.abx_layers import (
    AbxRow,
    AbxTask,
    check_task,
    score_log_mel,
    score_untrained,
)
from vgsplus.evaluation.retrieval import RetrievalResult
from vgsplus.experiments import curves as history
from vgsplus.experiments.scoring import (
    Scoring,
    abx_task,
    check_retrieval,
    evaluate_run,
    own_abx_task,
    test_sets,
)
from vgsplus.files import atomic_file
from vgsplus.interop.loading import load_weights
from vgsplus.progress import SILENT, console_progress
from vgsplus.report import Results, check_place, gallery_items, print_tables, write_report
from vgsplus.report import results as report
from vgsplus.schedule import VARIANTS, Phase, parse_variant, variant_title
from vgsplus.training.checkpoint import checkpoints, load_model
from vgsplus.training.checks import check_run
from vgsplus.training.data import open_additional_speech
from vgsplus.training.log import read_log
from vgsplus.training.run_folder import CONFIG_FILE, check_resumable, data_fingerprint, resolve_precision
from vgsplus.training.runtime import RandomStream, device_name, indexed_seed, versions
from vgsplus.training.trainer import train

CORPUS, RUNS, SECONDS, ITEMS = "corpus", "runs", "seconds", "items"
NO_ITEMS = "none"
RANK = 10
"""The k of the recall by which the gallery's variant is chosen."""


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
    console: Console | None = None,
) -> Path:
    """Train and evaluate the paper's variants (Tables I and II, Figs. 2 and 3) and write the report.

    The same call goes on where an earlier one stopped; what is finished is not done again.

    Args:
        preset: a preset's name, or a YAML file whose schedule is a variant.
        out: folder of everything that is made.
        variants: names of those to train; all nine by default.
        corpus: a prepared corpus, in place of the one that the preset makes.
        overrides: settings such as "schedule.epochs=2".
        stamps_root: the folder of stamps from which the preset "stamps" makes its corpus.
        seeds: how many times every variant is trained, from the setting `seed` and those that follow it.
        abx: an item file and the folder of its sounds, in place of those of the corpus's test set.
        console: where to show progress and the table; nothing is shown without one.

    Returns:
        The path of the report's page.

    Raises:
        VgsplusError: the variants, settings, corpus, items or machine do not fit; nothing was trained.
        Interrupted: SIGINT or SIGTERM; the run saved.
    """
    keys = _keys(variants)
    chosen = list(overrides)
    configs = {key: load_config(preset, [*chosen, f"schedule.variant={key}"]) for key in keys}
    place = _corpus_folder(preset, out, corpus, configs[keys[0]])
    with _timed(out) as seconds:
        if corpus is None:
            _prepare(preset, place, stamps_root, console)
        opened = Corpus.open(place)
        runs = [variant_folder(out, key, repeat) for key in VARIANTS for repeat in range(seeds)]
        configs = {
            key: resolve_precision(dataclasses.replace(config, corpus=str(place)), *runs)
            for key, config in configs.items()
        }
        names = _required_test_sets(opened)
        task = abx_task(*abx) if abx else own_abx_task(opened, names)
        study = _Study(preset, out, Scoring(opened, names, task, cache=out), configs, seeds, console)
        study.check()
        study.train()
        results = study.results(seconds)
        page = write_report(results, out, corpus=opened)
    if console:
        print_tables(results, console)
    return page


# ---- the corpus -------------------------------------------------------------------------------------------


def _keys(variants: Sequence[str] | None) -> tuple[str, ...]:
    """The variants asked for, each once, in the paper's order."""
    wanted = {parse_variant(name) for name in variants} if variants else set(VARIANTS)
    return tuple(key for key in VARIANTS if key in wanted)


def _smoke_corpus(root: Path, _stamps: Path | None) -> None:
    prepare_toy(root, train_images=32, validation_images=6, test_images=12, workers=1)


def _toy_corpus(root: Path, _stamps: Path | None) -> None:
    prepare_toy(root)


def _stamps_corpus(root: Path, stamps: Path | None) -> None:
    if stamps is None:
        raise VgsplusError(
            "the preset stamps makes its corpus from a folder of stamps: name it by --root, or a prepared "
            "corpus by --corpus"
        )
    prepare_stamps(stamps, root)


_MAKERS: Mapping[str, Callable[[Path, Path | None], None]] = MappingProxyType(
    {"smoke": _smoke_corpus, "toy": _toy_corpus, "stamps": _stamps_corpus}
)
"""The presets that make their own corpus."""


def _corpus_folder(preset: str, out: Path, corpus: Path | None, config: RunConfig) -> Path:
    """Where the corpus is, or will be made."""
    if corpus is not None:
        if not corpus.is_dir():
            raise VgsplusError(f"{corpus}: there is no such folder; --corpus names a prepared corpus")
        return corpus
    if preset in _MAKERS:
        return out / CORPUS
    if preset in settings.presets():
        raise VgsplusError(f"the preset {preset} makes no corpus of its own: name a prepared one by --corpus")
    return Path(config.corpus)


def _prepare(preset: str, root: Path, stamps: Path | None, console: Console | None) -> None:
    if preset not in _MAKERS or root.exists():
        return
    if console:
        console.print(f"Preparing the corpus in {root}")
    root.parent.mkdir(parents=True, exist_ok=True)
    _MAKERS[preset](root, stamps)


def _required_test_sets(corpus: Corpus) -> tuple[str, ...]:
    names = test_sets(corpus)
    if not names:
        raise VgsplusError(f"{corpus.root}: has no test split with pictures, only {', '.join(corpus.splits)}")
    return names


@contextlib.contextmanager
def _timed(out: Path) -> Iterator[Callable[[], float]]:
    """Gives the wall time spent on `out` until now, by earlier calls too, and saves it at the end."""
    file = out / SECONDS
    before = float(file.read_text(encoding="utf-8")) if file.is_file() else 0.0
    started = time.monotonic()

    def spent() -> float:
        return before + time.monotonic() - started

    try:
        yield spent
    finally:
        if out.is_dir():
            with atomic_file(file) as written:
                written.write(f"{spent():.1f}\n".encode())


# ---- training and evaluation ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Study:
    """The variants of one call, on one corpus, trained from one seed or several."""

    preset: str
    out: Path
    scoring: Scoring
    configs: Mapping[str, RunConfig]
    seeds: int
    console: Console | None

    def check(self) -> None:
        """Find what would stop the study later, before anything is trained.

        Raises:
            VgsplusError: a run cannot work, or is there with other settings or on another corpus; the items
                make no comparison, or are not those that the runs were scored on; there is no place for the
                report.
        """
        check_place(self.out)
        for key, config in self.configs.items():
            check_run(config, self.scoring.corpus, load_weights)
            check_retrieval(config.model, self.scoring.corpus)
            data = data_fingerprint(self.scoring.corpus, open_additional_speech(config.schedule))
            for repeat in range(self.seeds):
                check_resumable(self._run(key, repeat), self._config(key, repeat), data)
        if self.scoring.abx is not None:
            check_task(self.scoring.abx, next(iter(self.configs.values())).model)
        self._settle_items()

    def _settle_items(self) -> None:
        """Note the ABX items; refuse others than those that the runs were scored on."""
        task, noted = self.scoring.abx, self.out / ITEMS
        given = NO_ITEMS if task is None else items_digest(task.items.path)
        begun = any((self._run(key, 0) / CONFIG_FILE).is_file() for key in VARIANTS)
        if begun and noted.is_file() and (known := noted.read_text(encoding="utf-8").strip()) != given:
            before = "without ABX items" if known == NO_ITEMS else "on other ABX items"
            raise VgsplusError(
                f"{self.out}: its runs were scored {before}. Give --item and --audio as before, or choose "
                "another folder."
            )
        self.out.mkdir(parents=True, exist_ok=True)
        with atomic_file(noted) as written:
            written.write(f"{given}\n".encode())

    def train(self) -> None:
        """Train every variant that is not finished."""
        for repeat in range(self.seeds):
            shared: dict[Phase, Path] = {}
            for number, key in enumerate(self.configs, start=1):
                config = self._config(key, repeat)
                if self.console:
                    seed = f", seed {config.seed}" if self.seeds > 1 else ""
                    self.console.rule(f"{variant_title(key)}, {number} of {len(self.configs)}{seed}")
                run, first = self._run(key, repeat), config.schedule.phases[0]
                self._train(config, run, shared.get(first))
                if first not in shared and (end := _end_of_phase(run, first)):
                    shared[first] = end

    def _train(self, config: RunConfig, run: Path, start: Path | None) -> None:
        try:
            train(
                config,
                run,
                start=start,
                resume=True,
                evaluate=functools.partial(self.scoring, config=config),
                load_weights=load_weights,
                progress=console_progress(self.console) if self.console else SILENT,
            )
        except Interrupted:
            raise Interrupted(
                f"stopped as asked; {run} is saved. The same command goes on from there."
            ) from None

    def results(self, seconds: Callable[[], float]) -> Results:
        """Evaluate the trained variants in full and gather what the report shows."""
        outcomes, variants = self._evaluate(0)
        repeats = tuple(
            report.Repeat(seed=self._config(next(iter(self.configs)), repeat).seed, variants=found)
            for repeat in range(1, self.seeds)
            for _, found in [self._evaluate(repeat)]
        )
        best = _best(outcomes)
        config = next(iter(self.configs.values()))
        plain = settings.to_dict(config)
        corpus = self.scoring.corpus
        return Results(
            preset=self.preset,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
            machine=_machine(config),
            corpus={
                name: corpus.info.get(name) for name in ("name", "version", "provenance", "licence", "counts")
            },
            settings={name: value for name, value in plain.items() if name not in ("corpus", "schedule")}
            | self._additional_speech(),
            test_sets=self.scoring.test_sets,
            variants=variants,
            repeats=repeats,
            abx=None if self.scoring.abx is None else self._abx_task(self.scoring.abx),
            gallery=tuple(
                item for result in outcomes[best].values() for item in gallery_items(result, corpus, best)
            ),
            seconds=seconds(),
        )

    def _additional_speech(self) -> dict[str, JsonValue]:
        """What the variants heard beside the captions, as a setting to be shown; empty for nothing."""
        heard: dict[str, JsonValue] = {
            phase.name: settings.to_dict(speech)
            for config in self.configs.values()
            for phase in config.schedule.phases
            if (speech := phase.weighted_speech)
        }
        return {"additional_speech": heard} if heard else {}

    def _evaluate(
        self, repeat: int
    ) -> tuple[dict[str, dict[str, RetrievalResult]], tuple[report.Variant, ...]]:
        """What each variant retrieves on each test set, and the variants as the report shows them."""
        outcomes: dict[str, dict[str, RetrievalResult]] = {}
        variants = []
        for key in self.configs:
            config = self._config(key, repeat)
            if self.console:
                seed = f", seed {config.seed}" if self.seeds > 1 else ""
                self.console.print(f"Evaluating {variant_title(key)}{seed}")
            run = self._run(key, repeat)
            model = load_model(run).to(device_name(config.accelerator))
            outcomes[key] = {
                name: evaluate_run(model, config, self.scoring.corpus, name)
                for name in self.scoring.test_sets
            }
            records = list(read_log(run))
            variants.append(
                report.Variant(
                    key=key,
                    name=variant_title(key),
                    phases=tuple(
                        history.phase(records, config, index) for index in range(len(config.schedule.phases))
                    ),
                    parameters=sum(parameter.numel() for parameter in model.parameters()),
                    retrieval={name: result.scores for name, result in outcomes[key].items()},
                    losses=tuple(history.losses(records, len(config.schedule.phases))),
                    recalls=tuple(history.recall_points(records, self.scoring.test_sets)),
                    abx=tuple(history.abx_points(records)),
                )
            )
        return outcomes, tuple(variants)

    def _abx_task(self, task: AbxTask) -> report.AbxTask:
        """The items, and the errors of log-Mel energies and of the model that every variant starts from."""
        if self.console:
            self.console.print("Evaluating the ABX of untrained features")
        config = next(iter(self.configs.values()))
        device, seed = device_name(config.accelerator), indexed_seed(config.seed, RandomStream.MODEL)
        rows = score_untrained(config.model, task, seed=seed, device=device, cache=self.out)
        return report.AbxTask(
            item=task.items.path.name,
            tokens=len(task.items.tokens),
            baselines=tuple(_baselines([*rows, *score_log_mel(task, device=device)])),
        )

    def _config(self, key: str, repeat: int) -> RunConfig:
        config = self.configs[key]
        return dataclasses.replace(config, seed=config.seed + repeat)

    def _run(self, key: str, repeat: int) -> Path:
        return variant_folder(self.out, key, repeat)


def _baselines(rows: Sequence[AbxRow]) -> Iterator[report.AbxBaseline]:
    """Rows of both protocols as one record for each kind of features and layer."""
    published = {(row.features, row.layer): row.errors for row in rows if row.as_published}
    for row in rows:
        if not row.as_published:
            yield report.AbxBaseline(
                features=row.features,
                layer=row.layer,
                errors=row.errors,
                published=published.get((row.features, row.layer), {}),
            )


def corpus_of(out: Path, keys: Iterable[str]) -> Corpus | None:
    """The corpus of the variants in `out`, None where it is not there any more.

    Raises:
        CorpusError: it is there, but broken.
    """
    configs = (variant_folder(out, key, 0) / CONFIG_FILE for key in keys)
    named = (Path(load_config(str(config)).corpus) for config in configs if config.is_file())
    return next((Corpus.open(place) for place in (out / CORPUS, *named) if place.is_dir()), None)


def items_digest(path: Path) -> str:
    """By what a reproduction knows its ABX item file again: the SHA-256 of its contents."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def variant_folder(out: Path, key: str, repeat: int) -> Path:
    """Where a variant is trained: for the first time, or again from the seed that lies `repeat` behind."""
    folder = out / RUNS / f"seed-{repeat}" if repeat else out / RUNS
    return folder / key.replace(",", "-then-")


def _end_of_phase(run: Path, phase: Phase) -> Path | None:
    """The checkpoint at the end of a run's phase; None where it was removed."""
    return next((path for path in checkpoints(run) if path.name.endswith(f"-end-of-{phase.name}")), None)


def _best(outcomes: Mapping[str, Mapping[str, RetrievalResult]]) -> str:
    """The variant with the best recall of those that end in VGS, if there are any."""

    def quality(key: str) -> float:
        return sum(found.scores.speech_to_image.recall[RANK].value for found in outcomes[key].values())

    return max([key for key in outcomes if VARIANTS[key][-1] == "vgs"] or list(outcomes), key=quality)


def _machine(config: RunConfig) -> dict[str, JsonValue]:
    device = device_name(config.accelerator)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
    }
