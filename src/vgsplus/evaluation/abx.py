"""ABX errors: how often a phone is nearer to another phone than to itself (the paper's Table II).

A and X are tokens of one phone, B of another; the error is the share of triples in which X is nearer to B,
ties counting half. Within speakers all three are by one speaker; across speakers X is by another speaker than
A and B. In context they also share the preceding and the following phone. Tokens are compared by dynamic time
warping over the angles between frames, divided by the length of the path. Averages are taken over contexts
and speakers of X, then over speakers (in any context, over both together), then over ordered pairs of phones,
as in the ZeroSpeech challenges and by fastabx.

Tokens of a context are aligned once for all triples (`abx_pairs`). fastabx samples the cells of the published
protocol, because these samples are part of its results, and is what tests compare with. Its environment
variable `FASTABX_WITH_LIBRILIGHT_BUG` has no effect: the frames of a token are sliced by `TokenFrames`, so
that both protocols can be computed in one process.

Shape letters: T frames of a file, D dimensions, N selected frames, n tokens.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from fastabx import Dataset, InMemoryAccessor, Subsampler, Task
from numpy.typing import NDArray
from torch import Tensor

from vgsplus.corpora.items import Items, Token
from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.evaluation.abx_items import TokenFrames, frame_spans, read_items
from vgsplus.evaluation.abx_pairs import (
    Cells,
    Distances,
    Floats,
    Ints,
    Runs,
    add_cell_errors,
    add_errors,
    token_distances,
)
from vgsplus.evaluation.hidden_states import check_finite
from vgsplus.files import nfc
from vgsplus.parallel import map_ahead

CONDITIONS = ("within", "across")
CONTEXTS = ("within", "any")
PUBLISHED_GROUP, PUBLISHED_SPEAKERS, PUBLISHED_SEED = 10, 5, 0
"""Libri-Light's limits (tokens of A, B or X in a cell; speakers of X for one pair), and fastabx's seed."""
PART = 1024
"""Number of tokens that speakers are put together to, so that threads have blocks to share."""
BLOCK = 4096**2
"""Maximum number of distances of a block: 64 MB in each direction."""


def score(
    features: Mapping[str, NDArray[np.floating] | Tensor],
    item: str | Path,
    frame_rate: float | Fraction = 50.0,
    conditions: Sequence[str] = CONDITIONS,
    *,
    context: str = "within",
    as_published: bool = False,
) -> dict[str, float]:
    """Return the ABX errors of features.

    Args:
        features: {file id: (T, D)}, frame t centred at (t + 1/2) / frame_rate seconds; compared in float32.
        item: an ABX item file (see `corpora.items`).
        frame_rate: frames per second.
        conditions: "within" speakers, "across" speakers, or both.
        context: "within" to require the same preceding and following phone (triphones), "any" to ignore them.
        as_published: whether to score as Libri-Light's program does: without the last frame of every token
            (tokens of one frame are skipped), with at most 10 tokens of A, B and X in a cell and 5 speakers
            of X.

    Returns:
        {condition: error in [0, 1]}; chance is 0.5.

    Raises:
        CorpusError: all faults of the item file, each with its line; items without contexts for
            context "within".
        VgsplusError: features that are not real numbers (T, D), not finite, of different widths or too short
            for the items; an unknown condition or context; items with nothing to compare.
    """
    items = read_items(item, conditions=_check_names(conditions, CONDITIONS))
    spans = frame_spans(items, frame_rate)
    scorer = AbxScorer(items, spans, conditions, context=context, as_published=as_published)
    tokens = TokenFrames(items, spans)
    # Item files and file systems may differ in the Unicode form of names.
    names = {nfc(name): name for name in features} | {name: name for name in features}
    names |= {file: names[nfc(file)] for file in tokens.files if file not in names and nfc(file) in names}
    if absent := [indices[0] for file, indices in items.by_file().items() if file not in names]:
        firsts = [items.tokens[index] for index in absent]
        raise CorpusError(
            [f"{items.where(token)}: there are no features of {token.file}." for token in firsts]
        )
    selected = []
    for file in tokens.files:
        frames = _as_frames(features[names[file]], file)
        selected.append(check_finite(frames[tokens.select(file, len(frames))], f"Features of {file}"))
    if len(widths := {frames.shape[1] for frames in selected}) > 1:
        raise VgsplusError(f"Features differ in width: {', '.join(map(str, sorted(widths)))} dimensions.")
    return scorer.errors(torch.cat(selected), tokens)


def _as_frames(values: NDArray[np.floating] | Tensor, file: str) -> Tensor:
    try:
        frames = values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise VgsplusError(f"Features of {file} must be real numbers ({error}).") from None
    if frames.is_complex():
        raise VgsplusError(f"Features of {file} must be real numbers, not complex ones.")
    if frames.ndim != 2 or not frames.shape[1]:
        raise VgsplusError(f"Features of {file} must be (T, D), not {tuple(frames.shape)}.")
    return frames.float()


def _check_names(names: Sequence[str], choices: Sequence[str]) -> Sequence[str]:
    if not names or (unknown := [name for name in names if name not in choices]):
        raise VgsplusError(
            f"Choose from {', '.join(choices)}; got {', '.join(unknown) if names else 'nothing'}."
        )
    return names


class AbxScorer:
    """The comparisons of an item file, made once and scored on any features of one frame rate.

    Arguments and errors as in `score`; `spans` are the items' `frame_spans`.

    Attributes:
        pairs: number of pairs of tokens whose distances `errors` computes, in both orders.
    """

    def __init__(
        self,
        items: Items,
        spans: Ints,
        conditions: Sequence[str] = CONDITIONS,
        *,
        context: str = "within",
        as_published: bool = False,
    ) -> None:
        _check_names(conditions, CONDITIONS)
        _check_names([context], CONTEXTS)
        if context == "within" and not items.has_contexts:
            raise CorpusError(
                f"{items.path}: its header names no contexts, which comparisons within contexts require. "
                "Add the columns prev-phone and next-phone, or context; or compare in any context "
                "(--context any)."
            )
        self.as_published, self._context = as_published, context
        # Libri-Light drops the last frame of every token, so nothing is left of tokens of a single frame.
        used = np.flatnonzero(spans[:, 1] - spans[:, 0] > as_published)
        if not len(used):
            raise VgsplusError(
                f"{items.path}: every token has a single frame, which the published protocol drops."
            )
        labels = _labels([items.tokens[index] for index in used])
        tokens, runs = _runs(labels, context)
        cells = {name: _cells(runs, name) for name in conditions}
        if empty := [name for name, found in cells.items() if found.is_empty()]:
            same = " between the same phones" if context == "within" else ""
            who = "one of them twice" if empty[0] == "within" else "one of which another speaker says too"
            raise VgsplusError(
                f"{items.path}: there is nothing to compare {empty[0]} speakers: no speaker says two "
                f"phones{same}, {who}. Add tokens, or choose another condition or context."
            )
        self._phone_of = runs.unique("spoken").sort("spoken")["phone"].to_numpy()
        shape = len(self._phone_of), 1 + int(self._phone_of.max())
        self._sampled: dict[str, Cells] = {}
        self._cells: dict[str, Ints] = {}
        if as_published:
            sampled = {name: _sample(labels, name, context) for name in conditions}
            chosen = [found[f"index_{part}"].explode() for found in sampled.values() for part in "abx"]
            tokens = tokens.filter(pl.col("token").is_in(pl.concat(chosen).unique().implode()))
            for name, found in sampled.items():
                self._sampled[name] = _as_arrays(found, tokens, shape[1])
                self._cells[name] = np.bincount(
                    self._sampled[name].place, minlength=math.prod(shape)
                ).reshape(shape)
        else:
            tokens = tokens.filter(pl.col("run").is_in(_needed(runs, cells).implode()))
            for name, found in cells.items():
                self._cells[name] = np.zeros(shape, np.int64)
                place = found["spoken"].to_numpy(), found["phone_b"].to_numpy()
                np.add.at(self._cells[name], place, found["cells"].to_numpy())
        self._tokens = used[tokens["token"]]
        starts = np.flatnonzero(np.diff(tokens["run"], prepend=-1))
        first = tokens[starts]
        self._runs = Runs(
            np.append(starts, len(tokens)),
            *(first[name].to_numpy() for name in ("speaker", "phone", "spoken")),
        )
        groups = ["context"] if "across" in conditions else ["context", "speaker"]
        self._blocks = list(
            plan_blocks(tokens.select(group=pl.struct(groups).rank("dense"), speaker="speaker"))
        )
        self.pairs = sum(block.pairs for block in self._blocks)

    def errors(
        self, frames: Tensor, tokens: TokenFrames, advance: Callable[[int], object] = lambda _: None
    ) -> dict[str, float]:
        """Return {condition: error} of the selected frames (N, D).

        Angles are computed on the device of the frames. `advance` is called with the number of pairs whenever
        some have been compared.
        """
        slices = tokens.slices[self._tokens]
        if self.as_published:
            # A token truncated at the end of its file has already lost its last frame; one truncated at the
            # start to a single frame keeps that.
            ends = slices[:, 1] - ~tokens.truncated[self._tokens]
            slices[:, 1] = np.maximum(ends, slices[:, 0] + 1)
        sums = {name: np.zeros(cells.shape) for name, cells in self._cells.items()}

        def compute(block: Block) -> tuple[Distances, Distances]:
            rows, columns = slices[slice(*block.rows)], slices[slice(*block.columns)]
            others = None if block.rows == block.columns else columns
            return token_distances(frames, rows, others, both=block.both)

        # The threads of PyTorch itself would wait for each other in each of thousands of small products.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            found = map_ahead(compute, self._blocks, threads if frames.device.type == "cpu" else 1)
            for block, (there, back) in zip(self._blocks, found, strict=True):
                self._count(sums, there, block.rows, block.columns)
                if block.both:
                    self._count(sums, back, block.columns, block.rows)
                advance(block.pairs)
        finally:
            torch.set_num_threads(threads)
        return {name: self._average(name, errors) for name, errors in sums.items()}

    def _count(
        self,
        sums: Mapping[str, Floats],
        distances: Distances,
        rows: tuple[int, int],
        columns: tuple[int, int],
    ) -> None:
        """Add the errors of triples, of which the distances from X (rows) to A and B (columns) are given."""
        if self.as_published:
            for name, cells in self._sampled.items():
                add_cell_errors(distances, rows, columns, cells, sums[name])
        else:
            within, across = (sums.get(name, np.zeros((0, 0))) for name in CONDITIONS)
            add_errors(distances, rows, columns, self._runs, within, across)

    def _average(self, condition: str, sums: Floats) -> float:
        """Average over cells of a speaker, then speakers (any context: together), then pairs of phones."""
        cells = self._cells[condition]
        if self._context == "within":
            sums, cells = sums / np.maximum(cells, 1), np.sign(cells)
        shape = sums.shape[1], sums.shape[1]
        errors, weights = np.zeros(shape), np.zeros(shape)
        np.add.at(errors, self._phone_of, sums)
        np.add.at(weights, self._phone_of, cells)
        return float((errors[weights > 0] / weights[weights > 0]).mean())


# ---- tables of tokens -------------------------------------------------------------------------------------


def _labels(tokens: Sequence[Token]) -> pl.DataFrame:
    columns = {"#phone": "phone", "prev-phone": "previous", "next-phone": "following", "speaker": "speaker"}
    return pl.DataFrame(
        {column: [getattr(token, name) for token in tokens] for column, name in columns.items()},
        schema=dict.fromkeys(columns, pl.String),
    )


def _runs(labels: pl.DataFrame, context: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Number the labels, and return the tokens, sorted by runs, and the runs (see `abx_pairs.Runs`).

    Runs have their number of tokens (size), and that of the speakers who say their phone in their context.
    """
    around = pl.struct("prev-phone", "next-phone") if context == "within" else pl.col("speaker").is_null()
    names = {"context": around, "speaker": pl.col("speaker"), "phone": pl.col("#phone")}
    names |= {
        "spoken": pl.struct("speaker", "#phone"),
        "run": pl.struct(around.alias("context"), "speaker", "#phone"),
    }
    ranks = [number.rank("dense").cast(pl.Int64).alias(name) - 1 for name, number in names.items()]
    tokens = labels.select(ranks).with_row_index("token").sort("run", "token")
    runs = tokens.group_by("run", "context", "speaker", "phone", "spoken", maintain_order=True).agg(
        size=pl.len().cast(pl.Int64)
    )
    return tokens, runs.with_columns(speakers=pl.len().over("context", "phone").cast(pl.Int64))


def _cells(runs: pl.DataFrame, condition: str) -> pl.DataFrame:
    """Return the pairs of runs of A and B, and the number of cells of each: of those of X."""
    number = (pl.col("size") > 1).cast(pl.Int64) if condition == "within" else pl.col("speakers") - 1
    pairs = runs.join(runs, on=["context", "speaker"], suffix="_b").filter(
        pl.col("phone") != pl.col("phone_b")
    )
    return pairs.with_columns(cells=number).filter(pl.col("cells") > 0)


def _needed(runs: pl.DataFrame, cells: Mapping[str, pl.DataFrame]) -> pl.Series:
    """Return the runs of A, B and X."""
    found = [pairs[name] for pairs in cells.values() for name in ("run", "run_b")]
    if "across" in cells:
        found.append(runs.join(cells["across"], on=["context", "phone"], how="semi")["run"])
    return pl.concat([part.rename("run") for part in found]).unique()


def _sample(labels: pl.DataFrame, condition: str, context: str) -> pl.DataFrame:
    """Return the cells of the published protocol, sampled by fastabx: lists index_a, index_b and index_x.

    The samples depend on the order of the cells, which polars leaves open when it joins tables in several
    threads: with more than five speakers fastabx alone gives other errors in each call. Cells are sorted in
    the order of a single thread.
    """
    around = ["prev-phone", "next-phone"] if context == "within" else []
    by, across = (around, ["speaker"]) if condition == "across" else ([*around, "speaker"], [])
    nothing = torch.zeros(len(labels), 1)  # cells are made from the labels alone
    accessor = InMemoryAccessor({n: (n, n + 1) for n in range(len(labels))}, nothing, nothing.device)
    cells = Task(Dataset(labels, accessor), on="#phone", by=by, across=across).cells.lazy()
    cells = cells.drop("header", "description").sort(pl.col(f"index_{part}").list.first() for part in "abx")
    sampler = Subsampler(PUBLISHED_GROUP, PUBLISHED_SPEAKERS, PUBLISHED_SEED)
    return sampler(cells, with_across=bool(across)).collect()


def _as_arrays(cells: pl.DataFrame, tokens: pl.DataFrame, phones: int) -> Cells:
    """Return the arrays of cells whose tokens are numbered as in labels; `tokens` are those that are kept."""
    place = np.zeros(int(tokens["token"].max()) + 1, np.int64)  # type: ignore[arg-type]
    place[tokens["token"]] = np.arange(len(tokens))
    heads = [pl.Series(part, place[cells[f"index_{part}"].list.first()]) for part in "abx"]
    cells = cells.with_columns(heads).sort("a", "b", "x")
    lists = [cells[f"index_{part}"] for part in "abx"]
    flat = [place[tokens_of.explode()] for tokens_of in lists]
    starts = [np.append(0, np.cumsum(tokens_of.list.len(), dtype=np.int64)) for tokens_of in lists]
    a, b = (tokens[part[start[:-1]]] for part, start in zip(flat[:2], starts, strict=False))
    return Cells((a["spoken"] * phones + b["phone"]).to_numpy(), *flat, *starts)


class Block(NamedTuple):
    """Sorted tokens [start, end) whose distances are in memory at a time; `both`: X may be on either side."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    both: bool

    @property
    def pairs(self) -> int:
        """The number of distances."""
        return (1 + self.both) * (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0])


def plan_blocks(tokens: pl.DataFrame) -> Iterator[Block]:
    """Yield blocks of about `BLOCK` distances at most, in which every X meets all A and B of a speaker.

    Args:
        tokens: the group of each token, in which it is compared, and its speaker; sorted by both.
    """
    for bounds in _speaker_bounds(tokens):
        edges = bounds[:1]
        for start, end in pairwise(bounds):
            if end - edges[-1] > PART and start > edges[-1]:
                edges.append(start)
        parts = list(pairwise([*edges, bounds[-1]]))
        for number, columns in enumerate(parts):
            for rows in parts[: number + 1]:
                if (rows[1] - rows[0]) * (columns[1] - columns[0]) <= BLOCK:
                    yield Block(rows, columns, both=rows != columns)
                    continue
                # The tokens of one speaker are too many for all X together.
                for of_x, others in dict.fromkeys([(rows, columns), (columns, rows)]):
                    step = max(BLOCK // (others[1] - others[0]), 1)
                    for start in range(*of_x, step):
                        yield Block((start, min(start + step, of_x[1])), others, both=False)


def _speaker_bounds(tokens: pl.DataFrame) -> Iterator[list[int]]:
    """Yield, for each group, the tokens at which its speakers start, and that at its end."""
    group, speaker = tokens["group"].to_numpy(), tokens["speaker"].to_numpy()
    bounds = np.flatnonzero((np.diff(group, prepend=-1) != 0) | (np.diff(speaker, prepend=-1) != 0))
    edges = np.flatnonzero(np.diff(group[bounds], prepend=-1))
    bounds = np.append(bounds, len(tokens))
    for start, end in pairwise([*edges.tolist(), len(bounds) - 1]):
        yield bounds[start : end + 1].tolist()
