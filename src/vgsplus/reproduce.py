"""The paper's nine variants from start to report: corpus, runs, Table I, curves and gallery.

OUT/corpus/          the corpus, for presets that make their own
OUT/runs/VARIANT/    a run folder a variant: "vgs+", "w2v2-then-vgs+"
OUT/report/          see `report.page`
OUT/seconds          wall time spent so far

Variants whose first phase is the same share it: the first of them trains it, the others start from its end.
"""

import contextlib
import dataclasses
import functools
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
from vgsplus import history
from vgsplus.config import RunConfig, load_config
from vgsplus.corpora.format import Corpus
from vgsplus.corpora.stamps import prepare_stamps
from vgsplus.corpora.toy import prepare_toy
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.retrieval import RetrievalResult, evaluate
from vgsplus.interop.loading import load_weights
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.report import Results, gallery_items, print_table, write_report
from vgsplus.report import results as report
from vgsplus.training.checkpoint import checkpoints, load_model
from vgsplus.training.checks import check_run
from vgsplus.training.interruption import Interrupted
from vgsplus.training.log import read_log
from vgsplus.training.machine import device_name, versions
from vgsplus.training.progress import console_progress
from vgsplus.training.run_folder import settle_precision
from vgsplus.training.schedule import VARIANTS, Phase, parse_variant, variant_title
from vgsplus.training.trainer import train

CORPUS, RUNS, SECONDS = "corpus", "runs", "seconds"
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
    console: Console | None = None,
) -> Path:
    """Train and evaluate the paper's variants (Table I, Fig. 3) and write the report.

    The same call goes on where an earlier one stopped; what is finished is not done again.

    Args:
        preset: a preset's name, or a YAML file whose schedule is a variant.
        out: folder of everything that is made.
        variants: names of those to train; all nine by default.
        corpus: a prepared corpus, in place of the one that the preset makes.
        overrides: settings such as "schedule.epochs=2".
        stamps_root: the folder of stamps from which the preset "stamps" makes its corpus.
        console: where to show progress and the table; nothing is shown without one.

    Returns:
        The path of the report's page.

    Raises:
        VgsplusError: the variants, settings, corpus or machine do not fit; nothing was trained.
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
        runs = [_run_folder(out, key) for key in VARIANTS]
        configs = {
            key: settle_precision(dataclasses.replace(config, corpus=str(place)), *runs)
            for key, config in configs.items()
        }
        study = _Study(preset, out, opened, _required_test_sets(opened), configs, console)
        for config in configs.values():
            check_run(config, opened, load_weights)
        study.train()
        results = study.results(seconds)
        page = write_report(results, out, corpus=opened)
    if console:
        print_table(results, console)
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


def test_sets(corpus: Corpus) -> tuple[str, ...]:
    """The splits held out for retrieval: those named test… whose captions all have a picture."""
    return tuple(
        split
        for split in corpus.splits
        if split.startswith("test") and all(caption.image for caption in corpus.captions(split))
    )


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
            report.write_whole(file, f"{spent():.1f}\n".encode())


# ---- training and evaluation ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Study:
    """The variants of one call, on one corpus."""

    preset: str
    out: Path
    corpus: Corpus
    test_sets: tuple[str, ...]
    configs: Mapping[str, RunConfig]
    console: Console | None

    def train(self) -> None:
        """Train every variant that is not finished."""
        shared: dict[Phase, Path] = {}
        for number, (key, config) in enumerate(self.configs.items(), start=1):
            if self.console:
                self.console.rule(f"{variant_title(key)}, {number} of {len(self.configs)}")
            run, first = self._run(key), config.schedule.phases[0]
            try:
                train(
                    config,
                    run,
                    start=shared.get(first),
                    resume=True,
                    evaluate=functools.partial(
                        recalls, config=config, corpus=self.corpus, splits=self.test_sets
                    ),
                    load_weights=load_weights,
                    progress=console_progress(self.console) if self.console else None,
                )
            except Interrupted:
                raise Interrupted(
                    f"stopped as asked; {run} is saved. The same command goes on from there."
                ) from None
            shared.setdefault(first, _end_of_phase(run, first))

    def results(self, seconds: Callable[[], float]) -> Results:
        """Evaluate the trained variants in full and gather what the report shows."""
        outcomes: dict[str, dict[str, RetrievalResult]] = {}
        variants = []
        for key, config in self.configs.items():
            if self.console:
                self.console.print(f"Evaluating {variant_title(key)}")
            model = load_model(self._run(key)).to(device_name(config.accelerator))
            outcomes[key] = {name: evaluate_run(model, config, self.corpus, name) for name in self.test_sets}
            variants.append(self._variant(key, model, outcomes[key]))
        best = _best(outcomes)
        config = next(iter(self.configs.values()))
        plain = settings.to_dict(config)
        return Results(
            preset=self.preset,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
            machine=_machine(config),
            corpus={
                name: self.corpus.info.get(name)
                for name in ("name", "version", "provenance", "licence", "counts")
            },
            settings={name: value for name, value in plain.items() if name not in ("corpus", "schedule")},
            test_sets=self.test_sets,
            variants=tuple(variants),
            gallery=tuple(
                item
                for result in outcomes[best].values()
                for item in gallery_items(result, self.corpus, best)
            ),
            seconds=seconds(),
        )

    def _run(self, key: str) -> Path:
        return _run_folder(self.out, key)

    def _variant(self, key: str, model: VGSPlus, found: Mapping[str, RetrievalResult]) -> report.Variant:
        config = self.configs[key]
        records = list(read_log(self._run(key)))
        return report.Variant(
            key=key,
            name=variant_title(key),
            phases=tuple(
                history.phase(records, config, index) for index in range(len(config.schedule.phases))
            ),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            retrieval={name: result.scores for name, result in found.items()},
            losses=tuple(history.losses(records, len(config.schedule.phases))),
            recalls=tuple(history.recall_points(records, self.test_sets)),
        )


def evaluate_run(
    model: VGSPlus,
    config: RunConfig,
    corpus: Corpus,
    split: str,
    *,
    replicates: int = 2000,
    gallery: int = 200,
) -> RetrievalResult:
    """Score a run's model, where it is, in the precision of its training; see `retrieval.evaluate`.

    Raises:
        VgsplusError: as `retrieval.evaluate`.
    """
    return evaluate(
        model,
        corpus,
        split,
        device=next(model.parameters()).device,
        precision={"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(config.precision),
        replicates=replicates,
        gallery=gallery,
        seed=config.seed,
    )


def recalls(model: VGSPlus, config: RunConfig, corpus: Corpus, splits: Sequence[str]) -> dict[str, float]:
    """Recall of a run's model on each split, as flat names: "test/speech_to_image/R@10".

    Raises:
        VgsplusError: as `retrieval.evaluate`.
    """
    return {
        f"{split}/{direction}/R@{k}": estimate.value
        for split in splits
        for scores in [evaluate_run(model, config, corpus, split, replicates=1, gallery=1).scores]
        for direction in ("speech_to_image", "image_to_speech")
        for k, estimate in scores.side(direction).recall.items()
    }


def _run_folder(out: Path, key: str) -> Path:
    return out / RUNS / key.replace(",", "-then-")


def _end_of_phase(run: Path, phase: Phase) -> Path:
    return next(path for path in checkpoints(run) if path.name.endswith(f"-end-of-{phase.name}"))


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
