"""The pointing game: whether the strongest region for a spoken word lies on the object that it names.

A word is right if the centre of the region with the highest score, averaged over the times of the word, is in
the box of its object, or in one of them. If no region has its centre there, it is the one that covers most of
the box. Baselines know neither the word nor the picture (chance, the central and the largest region), or the
picture alone (other captions: the words of the captions of all other pictures in the place of each word).

Intervals are percentiles of a bootstrap over pictures, each drawn with all of its words.

Shape letters: R regions, P pictures, W words, D dimensions.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vgsplus import audio
from vgsplus.corpora import Corpus
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.pointing.localise import STEP, corpus_picture, region_shares, window_shares
from vgsplus.evaluation.pointing.words import NamedObject
from vgsplus.evaluation.retrieval import Estimate, bootstrap_means
from vgsplus.functional import check_stop, gather_objects, own_share
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.progress import SILENT, Progress

MODEL, OTHER, CENTRAL = "model", "other captions", "central region"
LARGEST, CHANCE = "largest region", "chance"
METHODS = (MODEL, OTHER, CENTRAL, LARGEST, CHANCE)
ALL_WORDS = "all"


@dataclass(frozen=True, slots=True)
class PointingRow:
    """The share of words that a method gets right: of all words, or of one word by the model."""

    method: str
    word: str
    tokens: int
    pictures: int
    accuracy: Estimate


def evaluate(
    model: VGSPlus,
    corpus: Corpus,
    objects: Sequence[NamedObject],
    *,
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[PointingRow]:
    """Score a model and the baselines on the words of a corpus.

    The processes of a run share the pictures, and must all call this.

    Args:
        model: a model on any device; its train/eval modes are restored.
        corpus: with regions as those of the model's training, or pictures for one that reads them.
        objects: words and the boxes of what they name.
        seed: of the bootstrap.
        progress: receives the stage "pointing".

    Returns:
        The model, the baselines, and the model by word, most frequent first.

    Raises:
        VgsplusError: the model is not grounded or takes other features, or its embeddings are not finite.
        AudioError: a sound cannot be read.
    """
    check_model(model, corpus)
    pictures: dict[str, list[NamedObject]] = defaultdict(list)
    for named in objects:
        assert named.caption.image is not None
        pictures[named.caption.image].append(named)
    found: dict[str, tuple[Tensor, Tensor, NDArray[np.float32]]] = {}
    own = own_share(list(pictures))
    for done, image in enumerate(own, start=1):
        check_stop()
        words = torch.stack(list(_word_shares(model, corpus, pictures[image])))
        _, regions, boxes = region_shares(model, corpus_picture(model, corpus, image))
        found[image] = words, regions, boxes.numpy()
        progress.update("pointing", done, len(own))
    for part in gather_objects(found):
        found |= part
    return _rows(pictures, found, seed)


def check_model(model: VGSPlus, corpus: Corpus) -> None:
    """Raise VgsplusError if a model has no grounding modules, or takes other features than a corpus has."""
    if not model.config.grounded:
        raise VgsplusError(
            "This model is a wav2vec 2.0 or HuBERT without grounding modules, which points to nothing. "
            "Evaluate a model that was trained with pictures."
        )
    if model.config.image is None and corpus.feature_dim != model.config.feature_dim:
        raise VgsplusError(
            f"{corpus.root}: its regions have {corpus.feature_dim} features, but the model takes "
            f"{model.config.feature_dim}. Name the corpus of its training by --corpus."
        )


def regions_on(boxes: NDArray[np.floating], objects: Sequence[Sequence[float]]) -> NDArray[np.bool_]:
    """Return which regions (R,) of boxes (R, 4) lie on one of several objects, each (x1, y1, x2, y2)."""
    found = np.zeros(len(boxes), dtype=bool)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    for box in np.asarray(objects):
        inside = ((centres >= box[:2]) & (centres <= box[2:])).all(axis=1)
        if not inside.any():
            sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
            covered = sides.clip(0).prod(axis=1)
            inside = (covered == covered.max()) & (covered > 0)
        found |= inside
    return found


def _word_shares(model: VGSPlus, corpus: Corpus, words: Sequence[NamedObject]) -> Iterator[Tensor]:
    """Yield the mean of the shares (D,) of the windows within each word; words of a caption are adjacent."""
    for caption, group in groupby(words, key=lambda named: named.caption):
        times = [_times(named) for named in group]
        signal = audio.normalise(audio.load_any(corpus.audio_path(caption)))
        _, shares = window_shares(model, signal, np.concatenate(times))
        yield from (part.mean(dim=0) for part in torch.split(shares, [len(part) for part in times]))


def _times(named: NamedObject) -> NDArray[np.float64]:
    """Return times within a word, at most `STEP` apart."""
    edges = np.linspace(named.onset, named.offset, 1 + max(1, round((named.offset - named.onset) / STEP)))
    return np.asarray((edges[:-1] + edges[1:]) / 2, dtype=np.float64)


def _rows(
    pictures: Mapping[str, Sequence[NamedObject]],
    found: Mapping[str, tuple[Tensor, Tensor, NDArray[np.float32]]],
    seed: int,
) -> list[PointingRow]:
    every_word = torch.cat([found[image][0] for image in pictures])
    owner = np.repeat(np.arange(len(pictures)), [len(named) for named in pictures.values()])
    right: dict[str, list[float]] = defaultdict(list)
    for number, (image, objects) in enumerate(pictures.items()):
        words, regions, boxes = found[image]
        on = np.stack([regions_on(boxes, named.boxes) for named in objects])
        right[MODEL] += on[range(len(on)), (words @ regions.T).argmax(dim=1).numpy()].tolist()
        strongest = (every_word[torch.from_numpy(owner != number)] @ regions.T).argmax(dim=1).numpy()
        if len(strongest):
            right[OTHER] += on[:, strongest].mean(axis=1).tolist()
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        right[CENTRAL] += on[:, _highest(-np.square(centres - 0.5).sum(axis=1))].mean(axis=1).tolist()
        right[LARGEST] += on[:, _highest((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))].mean(axis=1).tolist()
        right[CHANCE] += on.mean(axis=1).tolist()
    rows = [
        _row(method, ALL_WORDS, np.array(right[method]), owner, seed) for method in METHODS if right[method]
    ]
    names = np.array([named.word for objects in pictures.values() for named in objects])
    spoken, counts = np.unique(names, return_counts=True)
    for word in spoken[np.argsort(-counts, kind="stable")]:
        of_word = names == word
        rows.append(_row(MODEL, str(word), np.array(right[MODEL])[of_word], owner[of_word], seed))
    return rows


def _highest(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return where values are highest, all of them if several are but for rounding."""
    return np.asarray(values >= values.max() - 1e-6)


def _row(
    method: str, word: str, right: NDArray[np.float64], owner: NDArray[np.int64], seed: int
) -> PointingRow:
    """Average over words (W,), of the pictures `owner` (W,), with an interval."""
    _, picture = np.unique(owner, return_inverse=True)
    (estimate,) = bootstrap_means(right[:, None], picture, seed=seed)
    return PointingRow(method, word, len(right), int(picture.max()) + 1, estimate)
