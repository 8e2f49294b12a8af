"""Map a function over items with one thread per core."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import batched

from vgsplus.progress import SILENT, Progress

AT_ONCE = 1024
"""Default number of items per chunk, which bounds the number of results in memory."""


def parallel_map[T, R](
    function: Callable[[T], R],
    items: Sequence[T],
    progress: Progress = SILENT,
    stage: str = "",
    *,
    at_once: int = AT_ONCE,
) -> Iterator[R]:
    """Yield `function(item)` for each item, in order, computed by one thread per core.

    Args:
        function: should release the GIL.
        items: the arguments.
        progress: updated with the number of results.
        stage: name of the stage in `progress`.
        at_once: number of items per chunk; a chunk starts when all results of the previous one were consumed.
    """
    done = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for chunk in batched(items, at_once):
            for result in pool.map(function, chunk):
                done += 1
                progress.update(stage, done, len(items))
                yield result
