"""The lexical test: are the nearest neighbours of a spoken word tokens of the same word?

Tokens, in ASCII order of their names, are split into folds: the n-th token of every word is in fold n. In the
published sets (SPEECHCOG's CDI_lextest and COCO_lextest, of the papers on these models) a word has 20 tokens,
and a fold is one voice. Every token is a query once, and is compared with the tokens of all other folds, so
never with its own voice. A query has as many neighbours as its word has other tokens (19). Its score is the
share of neighbours that are tokens of its word; the score of a set is the mean over the queries.

Tokens with one vector each are compared by cosine, sequences of frames by dynamic time warping (see `dtw`).

Ties count against the model, as in retrieval: of equally near candidates those of other words come first, in
ASCII order of their names. Cosines that agree to 10 decimals are equal; otherwise rounding errors would
decide the order of a vector and a multiple of it.

Shape letters: n tokens, W words, D dimensions, T frames.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from vgsplus import audio
from vgsplus.errors import CorpusError, VgsplusError, some
from vgsplus.evaluation.hidden_states import check_audio, check_finite, hidden_states, map_files
from vgsplus.files import as_on_disk, files_below
from vgsplus.functional import gather_objects, own_share
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.progress import SILENT, Progress

type Array = NDArray[np.floating] | torch.Tensor
type WordOf = Callable[[str], str]
type Mode = Literal["utterance", "frame"]

DECIMALS = 10
"""Decimals to which cosines are rounded."""
BLOCK_COSINES = 1 << 22
"""Number of cosines computed at a time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokens:
    """Spoken words in ASCII order of their names.

    Attributes:
        names: names of the tokens.
        words: W words in ASCII order.
        order: (n,) int64, index of each token in the input.
        word: (n,) int64, index of each token's word in `words`.
        fold: (n,) int64, index of each token among those of its word.
    """

    names: tuple[str, ...]
    words: tuple[str, ...]
    order: NDArray[np.int64]
    word: NDArray[np.int64]
    fold: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Separability:
    """Scores of a set of spoken words.

    Attributes:
        mode: "utterance" for one vector per token, "frame" for sequences.
        score: mean over all queries, in [0, 1].
        chance: expected score of a random order of the candidates.
        words: W words in ASCII order.
        tokens: (W,) number of tokens of each word.
        word_scores: (W,) mean over the queries of each word.
        confusion: (W, W) number of neighbours; rows are words of queries, columns words of neighbours.
    """

    mode: Mode
    score: float
    chance: float
    words: tuple[str, ...]
    tokens: NDArray[np.int64]
    word_scores: NDArray[np.float64]
    confusion: NDArray[np.int64]


def coco_word(name: str) -> str:
    """Return the word of a name in COCO_lextest: the part before the first "_"."""
    return name.partition("_")[0]


def cdi_word(name: str) -> str:
    """Return the word of a name in CDI_lextest: lower case, without the last three characters and any "_"."""
    return name[:-3].lower().replace("_", "")


RULES = {"coco": coco_word, "cdi": cdi_word}
"""Functions from a name to its word, by published set."""


# ---- scores -----------------------------------------------------------------------------------------------


def separability(
    names: Sequence[str], embeddings: Array | Sequence[Array], word_of: WordOf | None = None
) -> float:
    """Return the score of a set of spoken words, in [0, 1]; arguments and errors as in `evaluate`."""
    return evaluate(names, embeddings, word_of).score


def evaluate(
    names: Sequence[str],
    embeddings: Array | Sequence[Array],
    word_of: WordOf | None = None,
    progress: Progress = SILENT,
) -> Separability:
    """Score a set of spoken words, overall and by word.

    Args:
        names: n distinct names, in any order; NFC and NFD are one name.
        embeddings: one array (n, D) with a vector per token, compared by cosine; or n arrays (T, D) of any
            lengths, compared by dynamic time warping without the frames that contain NaN. Arrays or tensors.
        word_of: maps a name to its word; by default `coco_word`.
        progress: receives the stage "comparing": pairs of tokens for frames, queries for vectors.

    Raises:
        VgsplusError: names and embeddings that differ in number, a name given twice, an empty word, fewer
            than two words, a word with a single token; embeddings of different D, values that are not finite,
            a vector of zeros, a token without a frame that is free of NaN.
    """
    tokens = assign_folds(names, word_of)
    if len(embeddings) != len(names):
        raise VgsplusError(
            f"There are {len(names)} names and {len(embeddings)} embeddings; each token needs one of both."
        )
    if isinstance(embeddings, np.ndarray | torch.Tensor) and embeddings.ndim == 2:
        vectors = _numbers(embeddings)[tokens.order]
        return _score("utterance", tokens, _cosine_distances(vectors, tokens, progress))
    sequences = _frames([embeddings[index] for index in tokens.order], tokens)
    from vgsplus.evaluation import dtw  # noqa: PLC0415 - numba takes a second to import

    distances = dtw.costs(sequences, tokens.fold, progress)
    return _score("frame", tokens, iter([(0, distances)]))


def assign_folds(names: Sequence[str], word_of: WordOf | None = None) -> Tokens:
    """Sort tokens and assign words and folds; arguments and errors of names as in `evaluate`."""
    plain = [unicodedata.normalize("NFC", str(name)) for name in names]
    if twice := sorted(name for name, times in Counter(plain).items() if times > 1):
        raise VgsplusError(f"Names must be distinct; given more than once: {_some(twice)}.")
    order = sorted(range(len(plain)), key=plain.__getitem__)
    ordered = tuple(plain[index] for index in order)
    word_by_token = [(word_of or coco_word)(name) for name in ordered]
    if empty := [name for name, word in zip(ordered, word_by_token, strict=True) if not word]:
        raise VgsplusError(
            f"No word is left of {_some(empty)}. Rename, or choose the rule that fits the names."
        )
    counts = Counter(word_by_token)
    if len(counts) < 2:
        raise VgsplusError(
            f"There is nothing to compare: {len(plain)} token(s) of {len(counts)} word(s). "
            "At least two words are needed; choose the rule that fits the names."
        )
    if single := sorted(word for word, times in counts.items() if times == 1):
        raise VgsplusError(
            f"Words need at least two tokens each, these have one: {_some(single)}. "
            "Add recordings of them, remove them, or choose the rule that fits the names."
        )
    words = tuple(sorted(counts))
    number = {word: index for index, word in enumerate(words)}
    seen: Counter[str] = Counter()
    fold = []
    for word in word_by_token:
        fold.append(seen[word])
        seen[word] += 1
    return Tokens(
        names=ordered,
        words=words,
        order=np.array(order, dtype=np.int64),
        word=np.array([number[word] for word in word_by_token], dtype=np.int64),
        fold=np.array(fold, dtype=np.int64),
    )


def _score(mode: Mode, tokens: Tokens, blocks: Iterator[tuple[int, NDArray[np.float64]]]) -> Separability:
    """Score the queries of consecutive blocks (index of the first query, distances (rows, n))."""
    size = len(tokens.words)
    counts = np.bincount(tokens.word, minlength=size)
    num_neighbours = counts[tokens.word] - 1
    hits = np.zeros(len(tokens.word), dtype=np.int64)
    confusion = np.zeros((size, size), dtype=np.int64)
    for start, block in blocks:
        for query, row in enumerate(block, start):
            neighbours = tokens.word[_nearest(row, query, tokens, int(num_neighbours[query]))]
            confusion[tokens.word[query]] += np.bincount(neighbours, minlength=size)
            hits[query] = np.count_nonzero(neighbours == tokens.word[query])
    shares = hits / num_neighbours
    candidates = len(tokens.fold) - np.bincount(tokens.fold)[tokens.fold]
    return Separability(
        mode=mode,
        score=float(shares.mean()),
        chance=float((num_neighbours / candidates).mean()),
        words=tokens.words,
        tokens=counts,
        word_scores=np.bincount(tokens.word, weights=shares) / counts,
        confusion=confusion,
    )


def _nearest(row: NDArray[np.float64], query: int, tokens: Tokens, count: int) -> NDArray[np.int64]:
    """Return the `count` tokens of other folds nearest to the query, other words first among ties."""
    candidates = np.flatnonzero(tokens.fold != tokens.fold[query])
    distances = row[candidates]
    near = distances <= np.partition(distances, count - 1)[count - 1]
    candidates, distances = candidates[near], distances[near]
    order = np.lexsort((tokens.word[candidates] == tokens.word[query], distances))
    nearest: NDArray[np.int64] = candidates[order[:count]]
    return nearest


def _cosine_distances(
    vectors: NDArray[np.floating], tokens: Tokens, progress: Progress
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield 1 − cosine between vectors (n, D) in blocks, as `_score` takes them."""
    _require_finite(list(vectors), tokens)
    # Divide by the largest value first, so that squares neither underflow nor overflow.
    largest = np.abs(vectors).max(axis=1, initial=0, keepdims=True).astype(np.float64)
    if len(zero := np.flatnonzero(largest[:, 0] == 0)):
        raise VgsplusError(
            f"A vector of zeros has no direction to compare: {_some([tokens.names[i] for i in zero])}. "
            "Remove these tokens."
        )
    scaled = vectors / largest
    unit = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    rows = max(1, BLOCK_COSINES // len(unit))
    for start in range(0, len(unit), rows):
        block = unit[start : start + rows]
        yield start, np.round(1 - block @ unit.T, DECIMALS)
        progress.update("comparing", start + len(block), len(unit))


def _frames(embeddings: Sequence[ArrayLike | torch.Tensor], tokens: Tokens) -> list[NDArray[np.floating]]:
    """Convert the frames (T, D) of all tokens to one dtype and remove those that contain NaN."""
    arrays = [_numbers(frames) for frames in embeddings]
    for name, array in zip(tokens.names, arrays, strict=True):
        if array.ndim != 2 or array.shape[1] != arrays[0].shape[1] or not array.shape[1]:
            raise VgsplusError(
                f"The embedding of '{name}' is {array.shape}, that of '{tokens.names[0]}' {arrays[0].shape}; "
                "each must be (T, D) with the same D, or all of them one (n, D)."
            )
    kept = [array[~np.isnan(array).any(axis=1)] for array in arrays]
    if empty := [name for name, array in zip(tokens.names, kept, strict=True) if not len(array)]:
        raise VgsplusError(f"No frame without NaN: {_some(empty)}. Remove these tokens or embed them again.")
    _require_finite(kept, tokens)
    dtype = np.result_type(*{array.dtype for array in kept})
    return [np.ascontiguousarray(array, dtype=dtype) for array in kept]


def _numbers(values: ArrayLike | torch.Tensor) -> NDArray[np.floating]:
    """Convert to float32 or, if that would lose digits, to float64."""
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
            "Remove these tokens, or check the model that computed them."
        )


def _some(names: Sequence[str]) -> str:
    return some([f"'{name}'" for name in names])


# ---- recordings -------------------------------------------------------------------------------------------


def find_words(folder: str | Path, model: VGSPlus, word_of: WordOf | None = None) -> dict[str, Path]:
    """Find the recordings directly in a folder, and check that the model can embed all of them.

    Files may have any rate and number of channels (see `audio.load_any`).

    Returns:
        {name without the last suffix: file}, in the order of the paths.

    Raises:
        VgsplusError: no such folder, or no sound files in it.
        CorpusError: files that cannot be read, are silent or too short for one frame, links to a file that is
            also listed, names that do not form a test (see `evaluate`); all of them are listed.
    """
    folder = as_on_disk(Path(folder))
    if not folder.is_dir():
        raise VgsplusError(f"{folder}: there is no such folder.")
    sounds = [path for path in files_below(folder) if path.suffix.lower() in audio.SUFFIXES]
    paths = [path for path in sounds if path.parent == folder]
    if sounds and not paths:
        raise VgsplusError(
            f"{folder}: its sound files are in subfolders, such as {sounds[0]}. Name one subfolder."
        )
    if not paths:
        raise VgsplusError(f"{folder}: holds no sound files ({', '.join(sorted(audio.SUFFIXES))}).")
    seen: dict[Path, Path] = {}
    faults = [
        f"{path}: is the same file as {first}, through a link. Remove one of them."
        for path in paths
        if (first := seen.setdefault(path.resolve(), path)) != path
    ]
    try:
        assign_folds([path.stem for path in paths], word_of)
    except VgsplusError as error:
        faults.append(f"{folder}: {error}")
    faults += check_audio(paths, model)[1]
    if faults:
        raise CorpusError(faults)
    return {path.stem: path for path in paths}


def check_layer(model: VGSPlus, layer: int | None, mode: Mode = "utterance") -> None:
    """Raise VgsplusError if the model lacks the layer (from 1), or the speech embedding if it is needed."""
    layers = len(model.speech.layers)
    if layer is None and mode == "utterance" and not model.config.grounded:
        raise VgsplusError(
            f"The model has no speech embedding, as it has no grounding modules: name a layer, 1 to {layers}."
        )
    if layer is not None and not 1 <= layer <= layers:
        raise VgsplusError(f"There is no layer {layer}: the model has layers 1 to {layers}.")


def embed_words(
    model: VGSPlus,
    words: Mapping[str, Path],
    mode: Mode,
    layer: int | None = None,
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    progress: Progress = SILENT,
) -> torch.Tensor | list[torch.Tensor]:
    """Embed complete recordings in evaluation mode and float32; the model's modes are restored.

    In mode "utterance", a recording becomes one vector: the mean of the frames of a transformer layer (from
    1), or for layer None the speech embedding. In mode "frame", it becomes the frames of the layer, or those
    from which the speech embedding is computed. Batches of `batch_size` recordings {name: file} are moved to
    `device`, where the model is. `progress` receives the stage "embedding". Several processes share the
    recordings, and must all call this.

    Returns:
        float32 on the CPU in the order of `words`: (n, D), or n tensors (T, D).

    Raises:
        VgsplusError: no such layer, or values that are not finite.
    """
    check_layer(model, layer, mode)

    def embed(waveforms: torch.Tensor, num_samples: torch.Tensor) -> Iterator[torch.Tensor]:
        if mode == "utterance" and layer is None:
            yield from model.embed_speech(waveforms, num_samples).float().cpu()
            return
        for (frames,) in hidden_states(model, [layer or model.config.shared_layers], waveforms, num_samples):
            yield frames.cpu() if mode == "frame" else frames.cpu().mean(dim=0)

    own = {name: words[name] for name in own_share(list(words))}
    by_name = {}
    embedded = map_files(model, embed, own, device=device, batch_size=batch_size)
    for done, (name, embedding) in enumerate(embedded, start=1):
        by_name[name] = check_finite(embedding, f"Embeddings of {words[name]}")
        progress.update("embedding", done, len(own))
    for others in gather_objects(by_name):
        by_name |= others
    embeddings = [by_name[name] for name in words]
    return embeddings if mode == "frame" else torch.stack(embeddings)
