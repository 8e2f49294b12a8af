"""Map a function over many items with threads on all cores."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import batched

from vgsplus.progress import SILENT, Progress

AT_ONCE = 1024
"""Default number of items given to the threads at a time, which bounds the results waiting in memory."""


def parallel_map[T, R](
    function: Callable[[T], R],
    items: Sequence[T],
    progress: Progress = SILENT,
    stage: str = "",
    *,
    at_once: int = AT_ONCE,
) -> Iterator[R]:
    """Yield `function(item)` for each item in order, computed by threads.

    Args:
        function: should release the GIL.
        items: the items.
        progress: receives the number of results.
        stage: name of the work, for `progress`.
        at_once: maximum number of results that wait in memory.
    """
    done = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for part in batched(items, at_once):
            for result in pool.map(function, part):
                done += 1
                progress.update(stage, done, len(items))
                yield result
