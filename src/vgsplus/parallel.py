"""Map a function over many items on all cores."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import batched

AT_ONCE = 1024
"""Items handed to the threads at a time: results that wait take memory too."""

type Tick = Callable[[int, int], None]
"""Called with (done, total) after every item, as `partial(progress.update, "sounds")`."""


def in_parallel[T, R](function: Callable[[T], R], items: Sequence[T], tick: Tick | None = None) -> list[R]:
    """Return `[function(item) for item in items]`, computed by threads; `function` should release the GIL."""
    return list(stream_in_parallel(function, items, tick))


def stream_in_parallel[T, R](
    function: Callable[[T], R],
    items: Sequence[T],
    tick: Tick | None = None,
    *,
    at_once: int = AT_ONCE,
) -> Iterator[R]:
    """Yield the results of `in_parallel` in order, of which at most `at_once` wait in memory."""
    done = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for part in batched(items, at_once):
            for result in pool.map(function, part):
                done += 1
                if tick is not None:
                    tick(done, len(items))
                yield result
