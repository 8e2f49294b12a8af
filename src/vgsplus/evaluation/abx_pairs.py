"""Distances between tokens of speech, and how often X is nearer to B than to A.

A pair of tokens is aligned once for all triples that it is part of, and triples are counted by sorting
distances. `TILE` bounds the memory of angles, and the caller that of distances.

Shape letters: N frames, D dimensions, n tokens of rows, m of columns, S and T frames of a token, R runs.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchdtw import dtw_batch

type Ints = NDArray[np.int64]
type Floats = NDArray[np.float64]
type Distances = NDArray[np.float32]

ANGLE_UNITS = 2.0**24
"""Angles are rounded to 1 / ANGLE_UNITS half-turns, so that their sums are exact."""
EQUAL_UNITS = 7.0
"""Frames are equal up to this angle: a cosine above 1 - 1e-12, from which rounding errors are far."""
ROUND = 1.5 * 2.0**52
"""Adding and subtracting it rounds a float64 to an integer, ties to even."""
LANES = 16
"""Number of columns that are aligned at a time, by vector instructions."""
TILE = (512, 2048)
"""Maximum number of frames, of rows and of columns, whose angles are in memory at a time: 8 MB."""
DEVICE_TILE = (4096, 8192)
"""The same on a GPU: 256 MB."""

# Python threads run kernels that release the GIL: see `dtw`.
# Division by zero is not checked, because loops with checks are not vectorised.
_compiled = numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})


# ---- distances --------------------------------------------------------------------------------------------


def token_distances(
    frames: Tensor,
    rows: Ints,
    columns: Ints | None = None,
    *,
    both: bool = True,
) -> tuple[Distances, Distances]:
    """Return the distances between tokens: the mean angle along the cheapest warping path, in half-turns.

    Angles are float64 and rounded, so that equal frames are at angle 0 and equal means of angles are equal:
    in float32, ties between tokens of different lengths are decided by rounding errors. A frame of zeros is
    at a right angle to everything. Where paths of one cost differ in length, the path advances in both tokens
    if it can, else in the second, as in torchdtw; the two directions of a pair may therefore differ.

    Args:
        frames: (N, D) of any dtype, on the device where angles are computed.
        rows: (n, 2) int64, the frames [start, end) of each token.
        columns: (m, 2), the same of other tokens; None for the tokens of `rows` again.
        both: whether the distances from columns to rows are needed.

    Returns:
        Distances (n, m) from rows to columns, and (m, n) from columns to rows, empty if not `both`.
    """
    others = rows if columns is None else columns
    there = np.empty((len(rows), len(others)), np.float32)
    back = there if columns is None else np.empty(there.shape[::-1] if both else (0, 0), np.float32)
    if frames.device.type == "cpu":
        _align_pairs(frames, rows, others, there, back)
    else:
        _align_on_device(frames, rows, others, there)
        if back is not there and back.size:
            _align_on_device(frames, others, rows, back)
    return there, back


def _align_pairs(
    frames: Tensor,
    rows: Ints,
    columns: Ints,
    there: Distances,
    back: Distances,
) -> None:
    """Fill the distances; of rows with themselves (`there` is `back`) each pair is aligned once."""
    row_tiles = list(_tiles(rows, TILE[0], 1))
    for first_column, chosen, widths in _tiles(columns, TILE[1], LANES):
        starts, ends = columns[np.append(chosen, chosen[-1:].repeat(-len(chosen) % LANES))].T
        # The columns of a group of tokens: their first frames, their second ones, …, to the longest token.
        steps = np.arange(widths.sum()) - np.repeat(np.cumsum(widths) - widths, widths)
        group = np.repeat(np.arange(len(widths)), widths)
        lanes, last = starts.reshape(-1, LANES), ends.reshape(-1, LANES) - 1
        y = _unit_frames(frames, np.minimum(lanes[group] + steps[:, None], last[group]).ravel())
        for first_row, selected, lengths in row_tiles:
            if there is back and first_column + len(chosen) <= first_row:
                continue
            spread = np.repeat(rows[selected, 0] - np.cumsum(lengths) + lengths, lengths)
            x = _unit_frames(frames, spread + np.arange(lengths.sum()))
            units = (x @ y.T).numpy()
            _to_units(units)
            tokens = selected, lengths, np.cumsum(lengths) - lengths, first_row
            others = chosen, ends - starts, widths, first_column
            _align(units, tokens, others, there, back, there is back)


def _tiles(tokens: Ints, frames: int, lanes: int) -> Iterator[tuple[int, Ints, Ints]]:
    """Yield tokens in the order of their lengths, at most about `frames` frames at a time.

    Yields:
        The position of the first token in this order, the tokens, and the maximum length of each `lanes`.
    """
    lengths = np.diff(tokens)[:, 0]
    order = np.argsort(lengths, kind="stable")
    first = 0
    while first < len(order):
        fitting = int(np.searchsorted(np.cumsum(lengths[order[first : first + frames]]), frames, "right"))
        chosen = order[first : first + max(fitting // lanes, 1) * lanes]
        longest = lengths[chosen[lanes - 1 :: lanes]]
        yield first, chosen, longest if len(chosen) % lanes == 0 else np.append(longest, lengths[chosen[-1]])
        first += len(chosen)


def _unit_frames(frames: Tensor, indices: Ints) -> Tensor:
    chosen = frames[torch.from_numpy(indices).to(frames.device)]
    return F.normalize(chosen.double(), dim=1)


@_compiled
def _align(  # noqa: C901 - a kernel is compiled as one
    units: Floats,
    rows: tuple[Ints, Ints, Ints, int],
    columns: tuple[Ints, Ints, Ints, int],
    there: Distances,
    back: Distances,
    same: bool,
) -> None:
    """Align the row tokens of a tile with its columns, `LANES` at a time.

    Of the cheapest path to each pair of frames it keeps the cost and the length in both directions, which
    differ in the step that is preferred where costs are equal.
    """
    tokens, lengths, offsets, first_row = rows
    others, other_lengths, widths, first_column = columns
    longest = widths.max() + 1
    cost, length = np.empty((longest, LANES)), np.empty((longest, LANES))
    backward = np.empty((longest, LANES))
    old, old_there, old_back = np.empty(LANES), np.empty(LANES), np.empty(LANES)
    for row in range(len(tokens)):
        begin = 0
        for group in range(len(widths)):
            width = widths[group]
            begin, offset = begin + width * LANES, begin
            if same and first_column + (group + 1) * LANES <= first_row + row:
                continue
            cost[:], length[:], backward[:] = np.inf, 0, 0
            cost[0] = 0
            for s in range(lengths[row]):
                line = units[offsets[row] + s]
                for lane in range(LANES):
                    old[lane], cost[0, lane] = cost[0, lane], np.inf
                    old_there[lane] = old_back[lane] = 0
                for t in range(width):
                    angles = line[offset + t * LANES : offset + (t + 1) * LANES]
                    for lane in range(LANES):
                        # All values are read first, because reads under a condition are not vectorised.
                        diagonal, of_diagonal, to_diagonal = old[lane], old_there[lane], old_back[lane]
                        left, of_left, to_left = cost[t, lane], length[t, lane], backward[t, lane]
                        up, of_up, to_up = cost[t + 1, lane], length[t + 1, lane], backward[t + 1, lane]
                        best = min(diagonal, min(left, up))  # noqa: PLW3301 - as in `dtw`
                        steps = of_left if left == best else of_up
                        steps = of_diagonal if diagonal == best else steps
                        back_steps = to_up if up == best else to_left
                        back_steps = to_diagonal if diagonal == best else back_steps
                        old[lane], old_there[lane], old_back[lane] = up, of_up, to_up
                        cost[t + 1, lane] = best + angles[lane]
                        length[t + 1, lane], backward[t + 1, lane] = steps + 1, back_steps + 1
            for lane in range(LANES):
                place = group * LANES + lane
                if place < len(others) and not (same and first_column + place < first_row + row):
                    end = other_lengths[place]
                    mean = cost[end, lane] / ANGLE_UNITS
                    there[tokens[row], others[place]] = mean / length[end, lane]
                    if back.size:
                        back[others[place], tokens[row]] = mean / backward[end, lane]


@_compiled
def _to_units(cosines: Floats) -> None:
    """Replace cosines by angles in units: the arc cosine of fdlibm, in vector instructions.

    It takes a tenth of the time of `torch.acos` in float64, and has the same values.
    """
    values = cosines.ravel()
    for i in range(len(values)):
        cosine = values[i]
        x = min(abs(cosine), 1.0)
        far = x > 0.5
        z = (1 - x) / 2 if far else x * x
        root = math.sqrt(z) if far else x
        p = 7.91534994289814532176e-04 + z * 3.47933107596021167570e-05
        p = 2.01212532134862925881e-01 + z * (-4.00555345006794114027e-02 + z * p)
        p = z * (1.66666666666666657415e-01 + z * (-3.25565818622400915405e-01 + z * p))
        q = -6.88283971605453293030e-01 + z * 7.70381505559019352791e-02
        q = 1 + z * (-2.40339491173441421878e00 + z * (2.02094576023350569471e00 + z * q))
        arcsine = root + root * (p / q)
        turns = 2 * arcsine if far else math.pi / 2 - arcsine
        units = (turns * (ANGLE_UNITS / math.pi) + ROUND) - ROUND
        units = 0.0 if units <= EQUAL_UNITS else units
        values[i] = units if cosine >= 0 else ANGLE_UNITS - units


def _align_on_device(frames: Tensor, rows: Ints, columns: Ints, out: Distances) -> None:
    """Fill the distances (n, m) from rows to columns, by torchdtw on the device of the frames."""
    for _, chosen, _ in _tiles(columns, DEVICE_TILE[1], 1):
        y, other_lengths = _padded(frames, columns[chosen])
        for _, selected, _ in _tiles(rows, DEVICE_TILE[0], 1):
            x, lengths = _padded(frames, rows[selected])
            cosines = x.flatten(0, 1) @ y.flatten(0, 1).T
            units = cosines.clamp_(-1, 1).acos_().mul_(ANGLE_UNITS / math.pi).round_()
            units.masked_fill_(units <= EQUAL_UNITS, 0)
            units.masked_fill_(units >= ANGLE_UNITS - EQUAL_UNITS, ANGLE_UNITS).div_(ANGLE_UNITS)
            lattice = units.view(*x.shape[:2], *y.shape[:2]).transpose(1, 2)
            found = dtw_batch(lattice, lengths, other_lengths, symmetric=False)
            out[np.ix_(selected, chosen)] = found.float().cpu().numpy()


def _padded(frames: Tensor, tokens: Ints) -> tuple[Tensor, Tensor]:
    """Return unit frames of tokens (n, T, D), padded with their last frame, and the lengths (n,)."""
    starts, ends = tokens.T
    indices = np.minimum(starts[:, None] + np.arange((ends - starts).max()), ends[:, None] - 1)
    unit = _unit_frames(frames, indices.ravel()).view(*indices.shape, -1)
    return unit, torch.from_numpy(ends - starts).to(frames.device)


# ---- triples ----------------------------------------------------------------------------------------------


class Runs(NamedTuple):
    """Runs of sorted tokens that share context, speaker and phone.

    Attributes:
        start: (R + 1,) tokens at which runs start, and the number of tokens.
        speaker: (R,).
        phone: (R,).
        spoken: (R,) number of the pair of speaker and phone.
    """

    start: Ints
    speaker: Ints
    phone: Ints
    spoken: Ints


@_compiled
def add_errors(  # noqa: C901, PLR0912
    distances: Distances,
    rows: tuple[int, int],
    columns: tuple[int, int],
    runs: Runs,
    within: Floats,
    across: Floats,
) -> None:
    """Add the errors of all cells in a block to those of `spoken` of A and the phone of B.

    A cell is X of one run, A and B of two runs of one speaker. If only some of its X are among the rows,
    their share of the error is added.

    Args:
        distances: (n, m) from X to A and B.
        rows: tokens [start, end) of X.
        columns: tokens [start, end) of A and B, all those of their speakers.
        runs: those of all tokens.
        within: (spoken, phones) sums of errors within speakers; empty if they are not needed.
        across: the same across speakers.
    """
    first_run, end_run = np.searchsorted(runs.start, columns[0]), np.searchsorted(runs.start, columns[1])
    near = np.empty(distances.shape[1], np.float32)
    wrong = np.empty(end_run - first_run, np.int64)
    for run in range(np.searchsorted(runs.start, rows[0], "right") - 1, np.searchsorted(runs.start, rows[1])):
        phone, size = runs.phone[run], runs.start[run + 1] - runs.start[run]
        end = first_run
        while end < end_run:
            begin, own, speaker = end, -1, runs.speaker[end]
            while end < end_run and runs.speaker[end] == speaker:
                if runs.phone[end] == phone:
                    own = int(end)
                end += 1
            same = bool(speaker == runs.speaker[run])
            errors = within if same else across
            nears = 0 if own < 0 else int(runs.start[own + 1] - runs.start[own]) - same
            if not nears or not errors.size:
                continue
            wrong[: end - begin] = 0
            for x in range(max(runs.start[run], rows[0]), min(runs.start[run + 1], rows[1])):
                found = distances[x - rows[0]]
                kept = 0
                for a in range(runs.start[own], runs.start[own + 1]):
                    if not (same and a == x):
                        near[kept] = found[a - columns[0]]
                        kept += 1
                _sort(near[:kept])
                for other in range(begin, end):
                    if other != own:
                        for b in range(runs.start[other], runs.start[other + 1]):
                            far = found[b - columns[0]]
                            below = _count_below(near[:kept], far, False)
                            tied = below < kept and near[below] == far
                            upto = _count_below(near[:kept], far, True) if tied else below
                            wrong[other - begin] += 2 * kept - below - upto
            for other in range(begin, end):
                if other != own:
                    triples = size * nears * (runs.start[other + 1] - runs.start[other])
                    errors[runs.spoken[own], runs.phone[other]] += wrong[other - begin] / (2.0 * triples)


@_compiled
def _sort(values: Distances) -> None:
    """Sort by Shell's method, which is compiled in a tenth of the time of `numpy.sort`."""
    gap = len(values)
    while gap > 1:
        gap = max(gap * 4 // 9, 1)
        for i in range(gap, len(values)):
            value, j = values[i], i
            while j >= gap and values[j - gap] > value:
                values[j] = values[j - gap]
                j -= gap
            values[j] = value


@_compiled
def _count_below(values: Distances, limit: float, equal: bool) -> int:
    """Return the number of sorted values below a limit, or also of those equal to it."""
    start, end = 0, len(values)
    while start < end:
        middle = (start + end) // 2
        if values[middle] < limit or (equal and values[middle] == limit):
            start = middle + 1
        else:
            end = middle
    return start


class Cells(NamedTuple):
    """Cells of chosen tokens, sorted by the first token of A.

    Attributes:
        place: (cells,) where their errors are added to the flattened sums (spoken, phones).
        a, b, x: the tokens of all cells.
        a_start, b_start, x_start: (cells + 1,) where those of a cell start.
    """

    place: Ints
    a: Ints
    b: Ints
    x: Ints
    a_start: Ints
    b_start: Ints
    x_start: Ints


@_compiled
def add_cell_errors(
    distances: Distances,
    rows: tuple[int, int],
    columns: tuple[int, int],
    cells: Cells,
    errors: Floats,
) -> None:
    """As `add_errors`, of cells of chosen tokens."""
    sums = errors.ravel()
    heads = cells.a[cells.a_start[:-1]]
    for cell in range(np.searchsorted(heads, columns[0]), np.searchsorted(heads, columns[1])):
        of_a = cells.a[cells.a_start[cell] : cells.a_start[cell + 1]]
        of_b = cells.b[cells.b_start[cell] : cells.b_start[cell + 1]]
        of_x = cells.x[cells.x_start[cell] : cells.x_start[cell + 1]]
        wrong, nears = 0, len(of_a) - (of_a[0] == of_x[0])
        for x in of_x:
            if rows[0] <= x < rows[1]:
                found = distances[x - rows[0]]
                for a in of_a:
                    if a != x:
                        near = found[a - columns[0]]
                        for b in of_b:
                            far = found[b - columns[0]]
                            wrong += (near > far) + (near >= far)
        sums[cells.place[cell]] += wrong / (2.0 * len(of_x) * nears * len(of_b))
