"""Dynamic time warping over Euclidean frame distances, for all pairs of many sequences.

The cost of a pair is the smallest sum of frame distances along a path from the first two frames to the last
two, whose steps advance in one sequence, in the other, or in both, with equal weight. It is not divided by
the length of the path. It is symmetric, so each pair is aligned once.

Differences and sums are float64 for frames of any dtype, and distances are summed directly: |a|² + |b|² − 2ab
would be faster, but inexact for frames that are near each other.

Shape letters: N sequences, T and U frames, D dimensions.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from vgsplus.progress import SILENT, Progress

type Floats = NDArray[np.floating]
type Ints = NDArray[np.int64]

# Python threads run kernels that release the GIL, because numba's own threads abort the process after a fork
# or if two callers use them concurrently. Compiled code is not cached on disk, because the import would fail
# where the cache cannot be written. Sums over D may be reordered; otherwise they would not be vectorised.
_compiled = numba.njit(nogil=True, fastmath={"reassoc", "contract"})


def costs(sequences: Sequence[Floats], groups: Ints, progress: Progress = SILENT) -> NDArray[np.float64]:
    """Return the costs (N, N) of aligning sequences (T, D) of different groups; inf within a group.

    Runs in as many threads as PyTorch uses. Memory is a copy of the sequences and the result: 8 · N² bytes,
    20 MB for 1,600 sequences.

    Args:
        sequences: N arrays of one D and one dtype, all finite and with at least one frame.
        groups: (N,) non-negative integers.
        progress: receives the stage "comparing", in pairs.
    """
    count = len(sequences)
    starts = np.cumsum([0, *(len(sequence) for sequence in sequences)])
    longest = int(np.diff(starts).max())
    frames = np.concatenate(sequences)
    found = np.full((count, count), np.inf)
    total = (count**2 - int((np.bincount(groups) ** 2).sum())) // 2
    done = 0
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        # After an error the rows that have not started are cancelled.
        for pairs in pool.map(lambda row: _row(row, frames, starts, groups, longest, found), range(count)):
            done += pairs
            progress.update("comparing", done, total)
    return found


@_compiled
def _row(
    row: int, frames: Floats, starts: Ints, groups: Ints, longest: int, found: NDArray[np.float64]
) -> int:
    """Align sequence `row` with all later ones, write both halves of `found` and count the pairs."""
    own = frames[starts[row] : starts[row + 1]]
    distances, sums = np.empty(longest), np.empty(longest + 1)
    pairs = 0
    for other in range(row + 1, len(groups)):
        if groups[other] != groups[row]:
            value = _cost(own, frames[starts[other] : starts[other + 1]], distances, sums)
            found[row, other] = found[other, row] = value
            pairs += 1
    return pairs


@_compiled
def _cost(a: Floats, b: Floats, distances: NDArray[np.float64], sums: NDArray[np.float64]) -> float:
    """Return the cost of a pair; `distances` (U,) and `sums` (U + 1,) are work space.

    sums[u] is the cost of the best path that ends before frame u of b; paths start at sums[0].
    """
    sums[0] = 0.0
    for u in range(len(b)):
        sums[u + 1] = np.inf
    for t in range(len(a)):
        _distances(a[t], b, distances)
        diagonal, left, sums[0] = sums[0], np.inf, np.inf
        for u in range(len(b)):
            above = sums[u + 1]
            left = distances[u] + min(left, min(above, diagonal))  # noqa: PLW3301 - with three arguments it is slower
            sums[u + 1] = left
            diagonal = above
    return float(sums[len(b)])


@_compiled
def _distances(frame: Floats, others: Floats, out: NDArray[np.float64]) -> None:
    """Write the Euclidean distances from a frame (D,) to others (U, D) into out (U,).

    Four at a time, so that each value of the frame is read once for all of them; the last four are completed
    by repeating the last frame. Square roots have a loop of their own, which is vectorised.
    """
    last = len(others) - 1
    for u in range(0, len(others), 4):
        u1, u2, u3 = min(u + 1, last), min(u + 2, last), min(u + 3, last)
        sum0 = sum1 = sum2 = sum3 = 0.0
        for d in range(len(frame)):
            value = np.float64(frame[d])
            difference0, difference1 = value - others[u, d], value - others[u1, d]
            difference2, difference3 = value - others[u2, d], value - others[u3, d]
            sum0 += difference0 * difference0
            sum1 += difference1 * difference1
            sum2 += difference2 * difference2
            sum3 += difference3 * difference3
        out[u], out[u1], out[u2], out[u3] = sum0, sum1, sum2, sum3
    for u in range(len(others)):
        out[u] = np.sqrt(out[u])
