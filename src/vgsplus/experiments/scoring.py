"""What a run's model is scored on while it trains and afterwards: retrieval on test sets, ABX on items.

Scores have flat names, under which a run's log keeps them: "test/speech_to_image/R@10", "abx/across/3",
"abx as published/across/3".
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vgsplus.config import RunConfig
from vgsplus.corpora import Corpus
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.abx_items import read_items
from vgsplus.evaluation.abx_layers import AbxTask, score_layers
from vgsplus.evaluation.embeddings import SplitEmbeddings, embed_split
from vgsplus.evaluation.retrieval import DIRECTIONS, RetrievalResult, evaluate, rank_split, score
from vgsplus.models.vgsplus import ModelConfig, VGSPlus

ABX, ABX_PUBLISHED = "abx", "abx as published"


@dataclass(frozen=True)
class Scoring:
    """What every model of a study is scored on.

    Attributes:
        corpus: holds the test sets.
        test_sets: splits on which retrieval is scored.
        abx: items on which ABX is scored; None for none.
        cache: a folder in which a temporary one holds the frames of layers that ABX has not come to yet; None
            keeps them in memory.
    """

    corpus: Corpus
    test_sets: tuple[str, ...]
    abx: AbxTask | None = None
    cache: Path | None = None

    def __call__(self, model: VGSPlus, phase_ended: bool, *, config: RunConfig) -> dict[str, float]:
        """The scores of a run's model, where it is, by flat name; ABX as published only where a phase ended.

        Raises:
            VgsplusError: as `embed_run` and `score_layers`.
        """
        found = recalls(model, config, self.corpus, self.test_sets)
        if self.abx is None:
            return found
        task = self.abx if phase_ended else dataclasses.replace(self.abx, as_published=False)
        return found | self._abx_errors(model, task)

    def _abx_errors(self, model: VGSPlus, task: AbxTask) -> dict[str, float]:
        device = next(model.parameters()).device
        return {
            f"{ABX_PUBLISHED if row.as_published else ABX}/{condition}/{row.layer}": error
            for row in score_layers(model, task, device=device, cache=self.cache)
            for condition, error in row.errors.items()
        }


def abx_task(item: Path, audio: Path) -> AbxTask:
    """Return the ABX task of an item file, of both protocols and conditions.

    Raises:
        CorpusError: as `read_items`.
    """
    return AbxTask(items=read_items(item, audio_root=audio), as_published=True)


def own_abx_task(corpus: Corpus, test_sets: Sequence[str]) -> AbxTask | None:
    """Return the ABX task of the first test set for which a corpus has an item file, or None.

    Raises:
        CorpusError: as `read_items`.
    """
    for split in test_sets:
        item = corpus.root / f"{split}.item"
        if item.is_file():
            return abx_task(item, corpus.audio_root)
    return None


def test_sets(corpus: Corpus) -> tuple[str, ...]:
    """The splits held out for retrieval: those named test… whose captions all have a picture."""
    return tuple(
        split
        for split in corpus.splits
        if split.startswith("test") and all(caption.image for caption in corpus.captions(split))
    )


def evaluate_run(
    model: VGSPlus,
    config: RunConfig,
    corpus: Corpus,
    split: str,
) -> RetrievalResult:
    """Score the retrieval of a run's model, on its device, in the precision of its training.

    Raises:
        VgsplusError: as `embed_run`.
    """
    return evaluate(embed_run(model, config, corpus, split), seed=config.seed)


def check_retrieval(model: ModelConfig, corpus: Corpus) -> None:
    """Raise VgsplusError where a model of these sizes cannot retrieve in a corpus."""
    if not model.grounded:
        raise VgsplusError("The model has no grounding side (model.grounded): it retrieves nothing.")
    if corpus.feature_dim != model.feature_dim:
        raise VgsplusError(
            f"{corpus.root}: its regions have {corpus.feature_dim} features, but the model takes "
            f"{model.feature_dim} (model.feature_dim)."
        )


def embed_run(model: VGSPlus, config: RunConfig, corpus: Corpus, split: str) -> SplitEmbeddings:
    """Embed a split with a run's model, where it is, in the precision of its training; see `embed_split`.

    Raises:
        VgsplusError: the model has no grounding side, or the corpus other features; as `embed_split`.
    """
    check_retrieval(model.config, corpus)
    device = next(model.parameters()).device
    return embed_split(
        model,
        corpus,
        split,
        device=device,
        pad_to_max=model.config.padding == "published",
        precision=_autocast(config),
    )


def _autocast(config: RunConfig) -> torch.dtype | None:
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(config.precision)


def recalls(model: VGSPlus, config: RunConfig, corpus: Corpus, splits: Sequence[str]) -> dict[str, float]:
    """Recall of a run's model on each split, as flat names: "test/speech_to_image/R@10".

    Raises:
        VgsplusError: as `embed_run`.
    """
    return {
        f"{split}/{direction}/R@{k}": estimate.value
        for split in splits
        for scores in [score(rank_split(embed_run(model, config, corpus, split)), replicates=1)]
        for direction in DIRECTIONS
        for k, estimate in scores.side(direction).recall.items()
    }
