"""The lexical test: do spoken words lie nearer to the same word than to others?

The tokens, in ASCII order of their names, are dealt into folds: the first token of every word makes the first
fold, the second of every word the second, and so on. Where every word has 20 tokens, as in the published sets
of words (SPEECHCOG's CDI_lextest and COCO_lextest, which came with the papers on these models), that is every
20th token, and a fold is one voice. Each token is a query once. It looks among the tokens of all other folds,
so never among words in its own voice, for as many neighbours as its word has other tokens (19 there), and its
score is the share of them that are its word. The score of a set is the mean over the queries.

One vector a token is compared by cosine, sequences of frames by dynamic time warping (see `dtw`).

Ties count against the model, as in retrieval: of candidates that are equally near, other words come first, in
ASCII order of their names. Cosines that agree to 10 decimals are equally near; an exact comparison would
have rounding decide between a vector and a multiple of it.

Shape letters: n tokens, W words, D dimensions, T frames.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from vgsplus.errors import VgsplusError
from vgsplus.evaluation.resampling import spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    type Array = NDArray[np.floating] | torch.Tensor
    type WordOf = Callable[[str], str]

DECIMALS = 10  # to which cosines are told apart
BLOCK_COSINES = 1 << 22  # held at once
SHOWN_NAMES = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokens:
    """Spoken words in ASCII order of their names.

    `order` (n,) are their places in the input, `word` (n,) their words as numbers in `words` (W, in ASCII
    order), `fold` (n,) the number of each token among those of its word; all int64.
    """

    names: tuple[str, ...]
    words: tuple[str, ...]
    order: NDArray[np.int64]
    word: NDArray[np.int64]
    fold: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Separability:
    """How well words keep apart.

    Attributes:
        mode: "utterance" for one vector a token, "frame" for sequences.
        score: mean share over all queries, in [0, 1].
        chance: what a random order of the candidates scores on average.
        words: W words in ASCII order.
        tokens: (W,) tokens of each word.
        word_scores: (W,) mean share over the queries of each word.
        confusion: (W, W) neighbours counted, word of the query by word of the neighbour.
    """

    mode: Literal["utterance", "frame"]
    score: float
    chance: float
    words: tuple[str, ...]
    tokens: NDArray[np.int64]
    word_scores: NDArray[np.float64]
    confusion: NDArray[np.int64]


def coco_word(name: str) -> str:
    """The word of a name in COCO_lextest: all before the first "_"."""
    return name.partition("_")[0]


def cdi_word(name: str) -> str:
    """The word of a name in CDI_lextest: without the last three characters (voice and style) and "_"."""
    return name[:-3].lower().replace("_", "")


RULES: Mapping[str, WordOf] = MappingProxyType({"coco": coco_word, "cdi": cdi_word})
"""Rules from a name to its word, by the published set whose names they fit."""


def separability(
    names: Sequence[str], embeddings: Array | Sequence[Array], word_of: WordOf | None = None
) -> float:
    """The score of a set of spoken words, in [0, 1]; arguments and errors as in `evaluate`."""
    return evaluate(names, embeddings, word_of).score


def evaluate(
    names: Sequence[str],
    embeddings: Array | Sequence[Array],
    word_of: WordOf | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Separability:
    """Score a set of spoken words, by word and in all.

    Args:
        names: n distinct names, in any order; NFC and NFD are one name.
        embeddings: (n, D), one vector a token, compared by cosine; or n arrays (T, D) of any lengths, whose
            frames that hold NaN are left out, compared by dynamic time warping. Arrays or tensors.
        word_of: maps a name to its word; by default `coco_word`.
        progress: called with the comparisons done and the comparisons in all: pairs of tokens for frames,
            queries for vectors.

    Raises:
        VgsplusError: names and embeddings that differ in number, a name given twice, an empty word, fewer
            than two words, a word with one token (it has no neighbour to find); embeddings of different D,
            values that are not finite, a vector of zeros, a token all of whose frames hold NaN.
    """
    tokens = group(names, word_of)
    if len(embeddings) != len(names):
        raise VgsplusError(
            f"There are {len(names)} names and {len(embeddings)} embeddings; each token needs one of both."
        )
    if isinstance(embeddings, np.ndarray | torch.Tensor) and embeddings.ndim == 2:
        vectors = _numbers(embeddings)[tokens.order]
        return _score("utterance", tokens, _cosine_distances(vectors, tokens, progress))
    sequences = _frames([embeddings[place] for place in tokens.order], tokens)
    from vgsplus.evaluation import dtw  # noqa: PLC0415 - numba takes a second to import

    distances = dtw.costs(sequences, tokens.fold, progress)
    return _score("frame", tokens, iter([(0, distances)]))


def group(names: Sequence[str], word_of: WordOf | None = None) -> Tokens:
    """Sort tokens and find their words and folds; arguments as in `evaluate`.

    Raises:
        VgsplusError: what `evaluate` says of names and words.
    """
    plain = [unicodedata.normalize("NFC", str(name)) for name in names]
    if twice := sorted(name for name, times in Counter(plain).items() if times > 1):
        raise VgsplusError(f"Names must be distinct; given more than once: {_some(twice)}.")
    order = sorted(range(len(plain)), key=plain.__getitem__)
    ordered = tuple(plain[place] for place in order)
    of = [(word_of or coco_word)(name) for name in ordered]
    if empty := [name for name, word in zip(ordered, of, strict=True) if not word]:
        raise VgsplusError(
            f"No word is left of {_some(empty)}. Rename, or choose the rule that fits the names."
        )
    counts = Counter(of)
    if len(counts) < 2:
        raise VgsplusError(
            f"There is nothing to tell apart: {len(plain)} token(s) of {len(counts)} word(s). "
            "It takes two words; choose the rule that fits the names."
        )
    if lonely := sorted(word for word, times in counts.items() if times == 1):
        raise VgsplusError(
            f"Words need at least two tokens each, these have one: {_some(lonely)}. "
            "Add recordings of them, leave them out, or choose the rule that fits the names."
        )
    words = tuple(sorted(counts))
    number = {word: index for index, word in enumerate(words)}
    seen: Counter[str] = Counter()
    fold = []
    for word in of:
        fold.append(seen[word])
        seen[word] += 1
    return Tokens(
        names=ordered,
        words=words,
        order=np.array(order, dtype=np.int64),
        word=np.array([number[word] for word in of], dtype=np.int64),
        fold=np.array(fold, dtype=np.int64),
    )


# ---- scoring ----------------------------------------------------------------------------------------------


def _score(
    mode: Literal["utterance", "frame"],
    tokens: Tokens,
    blocks: Iterator[tuple[int, NDArray[np.float64]]],
) -> Separability:
    """Score from blocks of rows (first token, (rows, n) distances), which come in order."""
    size = len(tokens.words)
    counts = np.bincount(tokens.word, minlength=size)
    wanted = counts[tokens.word] - 1
    hits = np.zeros(len(tokens.word), dtype=np.int64)
    confusion = np.zeros((size, size), dtype=np.int64)
    for start, block in blocks:
        for query, row in enumerate(block, start):
            found = tokens.word[_nearest(row, query, tokens, int(wanted[query]))]
            confusion[tokens.word[query]] += np.bincount(found, minlength=size)
            hits[query] = np.count_nonzero(found == tokens.word[query])
    shares = hits / wanted
    candidates = len(tokens.fold) - np.bincount(tokens.fold)[tokens.fold]
    return Separability(
        mode=mode,
        score=float(shares.mean()),
        chance=float((wanted / candidates).mean()),
        words=tokens.words,
        tokens=counts,
        word_scores=np.bincount(tokens.word, weights=shares) / counts,
        confusion=confusion,
    )


def _nearest(row: NDArray[np.float64], query: int, tokens: Tokens, count: int) -> NDArray[np.int64]:
    """The `count` tokens of other folds nearest to the query, other words first where distances tie."""
    candidates = np.flatnonzero(tokens.fold != tokens.fold[query])
    distances = row[candidates]
    near = distances <= np.partition(distances, count - 1)[count - 1]
    candidates, distances = candidates[near], distances[near]
    order = np.lexsort((tokens.word[candidates] == tokens.word[query], distances))
    nearest: NDArray[np.int64] = candidates[order[:count]]
    return nearest


def _cosine_distances(
    vectors: NDArray[np.floating], tokens: Tokens, progress: Callable[[int, int], object] | None
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Blocks of rows (first token, (rows, n)) of 1 − cosine between vectors (n, D)."""
    _require_finite([vectors[index : index + 1] for index in range(len(vectors))], tokens)
    # The largest value first: squares of what is left neither vanish nor overflow.
    largest = np.abs(vectors).max(axis=1, initial=0, keepdims=True).astype(np.float64)
    if len(zero := np.flatnonzero(largest[:, 0] == 0)):
        raise VgsplusError(
            f"A vector of zeros has no direction to compare: {_some([tokens.names[i] for i in zero])}. "
            "Leave these tokens out."
        )
    scaled = vectors / largest
    unit = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    for start, stop in spans(len(unit), BLOCK_COSINES // len(unit)):
        yield start, np.round(1 - unit[start:stop] @ unit.T, DECIMALS)
        if progress:
            progress(stop, len(unit))


# ---- input ------------------------------------------------------------------------------------------------


def _frames(embeddings: Sequence[ArrayLike | torch.Tensor], tokens: Tokens) -> list[NDArray[np.floating]]:
    """Frames (T, D) of each token, of one dtype and without those that hold NaN."""
    arrays = [_numbers(frames) for frames in embeddings]
    for name, array in zip(tokens.names, arrays, strict=True):
        if array.ndim != 2 or array.shape[1] != arrays[0].shape[1] or not array.shape[1]:
            raise VgsplusError(
                f"The embedding of '{name}' is {array.shape}, that of '{tokens.names[0]}' {arrays[0].shape}; "
                "each must be (T, D) with the same D, or all together one (n, D)."
            )
    kept = [array[~np.isnan(array).any(axis=1)] for array in arrays]
    if bare := [name for name, array in zip(tokens.names, kept, strict=True) if not len(array)]:
        raise VgsplusError(
            f"No frame without NaN: {_some(bare)}. Leave these tokens out or embed them again."
        )
    _require_finite(kept, tokens)
    dtype = np.result_type(*{array.dtype for array in kept})
    return [np.ascontiguousarray(array, dtype=dtype) for array in kept]


def _numbers(values: ArrayLike | torch.Tensor) -> NDArray[np.floating]:
    """As float32 or, where that would lose digits, float64."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise VgsplusError(f"Embeddings must be real numbers, not {array.dtype}.")
    return array.astype(np.float32 if array.dtype in (np.float16, np.float32) else np.float64, copy=False)


def _require_finite(arrays: Sequence[NDArray[np.floating]], tokens: Tokens) -> None:
    if broken := [n for n, array in zip(tokens.names, arrays, strict=True) if not np.isfinite(array).all()]:
        raise VgsplusError(
            f"Embeddings hold values that are not finite: {_some(broken)}. "
            "Leave these tokens out, or look for what made them."
        )


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_NAMES
    shown = ", ".join(f"'{name}'" for name in names[:SHOWN_NAMES])
    return shown + (f" and {more} more" if more > 0 else "")
