"""Measures that score a model during and after training. To add one, add an entry to `MEASURES`."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from vgsplus.config import RunConfig
from vgsplus.corpora import Corpus
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.abx_items import read_items
from vgsplus.evaluation.abx_layers import AbxTask, score_layers
from vgsplus.evaluation.embeddings import SplitEmbeddings, embed_split
from vgsplus.evaluation.retrieval import RetrievalResult, evaluate, rank_split, score
from vgsplus.experiments.curves import ABX, abx_scores, recall_scores
from vgsplus.models.vgsplus import ModelConfig, VGSPlus


@dataclass(frozen=True)
class Scoring:
    """Score models on the same data.

    Attributes:
        corpus: a corpus with the test sets.
        test_sets: names of splits for retrieval.
        abx: the ABX task, or None.
        cache: folder for temporary files of ABX; None keeps all frames in memory.
    """

    corpus: Corpus
    test_sets: tuple[str, ...]
    abx: AbxTask | None = None
    cache: Path | None = None

    def __call__(self, model: VGSPlus, phase_ended: bool, *, config: RunConfig) -> dict[str, float]:
        """Return {flat name: score} of a model, with the scores that are due when a phase ends if one did.

        Raises:
            VgsplusError: as `embed_run` and `score_layers`.
        """
        scores: dict[str, float] = {}
        for measure in MEASURES:
            if measure.due == "evaluation" or phase_ended:
                scores |= measure.score(self, model, config, phase_ended)
        return scores


class Measure(NamedTuple):
    """An entry of `MEASURES`.

    Attributes:
        prefix: prefix of the flat names of its scores.
        due: whether it is computed at every evaluation, or only when a phase ends.
        higher_is_better: whether the highest score is the best.
        score: function (scoring, model, settings, whether a phase ended) -> {flat name: score}, which is
            empty if the measure does not apply.
    """

    prefix: str
    due: Literal["evaluation", "phase end"]
    higher_is_better: bool
    score: Callable[[Scoring, VGSPlus, RunConfig, bool], dict[str, float]]


def recalls(model: VGSPlus, config: RunConfig, corpus: Corpus, splits: Sequence[str]) -> dict[str, float]:
    """Return the recalls of a model on each split, {flat name: recall}; raises as `embed_run`."""
    found: dict[str, float] = {}
    for split in splits:
        ranks = rank_split(embed_run(model, config, corpus, split))
        found |= recall_scores(split, score(ranks, replicates=1))
    return found


def _recalls(scoring: Scoring, model: VGSPlus, config: RunConfig, _phase_ended: bool) -> dict[str, float]:
    return recalls(model, config, scoring.corpus, scoring.test_sets)


def _abx_errors(scoring: Scoring, model: VGSPlus, _: RunConfig, phase_ended: bool) -> dict[str, float]:
    """Return the ABX errors of all layers; those as published, which double the time, only at phase ends."""
    if scoring.abx is None:
        return {}
    task = scoring.abx if phase_ended else dataclasses.replace(scoring.abx, as_published=False)
    return abx_scores(score_layers(model, task, device=_device(model), cache=scoring.cache))


MEASURES = (
    Measure("test", "evaluation", higher_is_better=True, score=_recalls),
    Measure(ABX, "evaluation", higher_is_better=False, score=_abx_errors),
)


# ---- data -------------------------------------------------------------------------------------------------


def abx_task(item: Path, audio: Path) -> AbxTask:
    """Return the ABX task of an item file, with both protocols and conditions; raises as `read_items`."""
    return AbxTask(items=read_items(item, audio_root=audio), as_published=True)


def own_abx_task(corpus: Corpus, test_sets: Sequence[str]) -> AbxTask | None:
    """Return the ABX task of the first test set for which a corpus has an item file, or None."""
    items = (corpus.root / f"{split}.item" for split in test_sets)
    return next((abx_task(item, corpus.audio_root) for item in items if item.is_file()), None)


def test_sets(corpus: Corpus) -> tuple[str, ...]:
    """Return the splits for retrieval: those named "test…" in which every caption has an image."""
    return tuple(
        split
        for split in corpus.splits
        if split.startswith("test") and all(caption.image for caption in corpus.captions(split))
    )


# ---- retrieval of a run -----------------------------------------------------------------------------------


def check_retrieval(model: ModelConfig, corpus: Corpus) -> None:
    """Raise VgsplusError if a model of these sizes cannot retrieve in a corpus."""
    if not model.grounded:
        raise VgsplusError(
            "The model has no grounding modules (model.grounded: false), so it cannot retrieve. Name one "
            "that was trained with model.grounded: true."
        )
    if model.image is None and corpus.feature_dim != model.feature_dim:
        raise VgsplusError(
            f"{corpus.root}: its regions have {corpus.feature_dim} features, but the model takes "
            f"{model.feature_dim} (model.feature_dim)."
        )


def embed_run(model: VGSPlus, config: RunConfig, corpus: Corpus, split: str) -> SplitEmbeddings:
    """Embed a split with the model of a run, on its device and in the precision of its training.

    Raises:
        VgsplusError: as `check_retrieval` and `embed_split`.
    """
    check_retrieval(model.config, corpus)
    return embed_split(
        model,
        corpus,
        split,
        device=_device(model),
        pad_to_max=model.config.padding == "published",
        precision={"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(config.precision),
    )


def evaluate_run(model: VGSPlus, config: RunConfig, corpus: Corpus, split: str) -> RetrievalResult:
    """Score the retrieval of a run's model on a complete split; raises as `embed_run`."""
    return evaluate(embed_run(model, config, corpus, split), seed=config.seed)


def _device(model: VGSPlus) -> torch.device:
    return next(model.parameters()).device
