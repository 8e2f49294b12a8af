"""Threads that map a function over items, and the number of a process among several."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import batched

from vgsplus.progress import SILENT, Progress


def process_rank() -> int:
    """Return the number of this process among those that work together, as its environment tells it."""
    if _srun_tasks() > 1:
        return int(os.environ["SLURM_PROCID"])
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def process_count() -> int:
    """Return the number of processes that torchrun or srun started together."""
    return max(int(os.environ.get("WORLD_SIZE", "1")), _srun_tasks())


def _srun_tasks() -> int:
    """Return the number of tasks that srun started. SLURM_NTASKS is set in a batch script, too."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


def parallel_map[T, R](
    function: Callable[[T], R],
    items: Sequence[T],
    progress: Progress = SILENT,
    stage: str = "",
    *,
    at_once: int = 1024,
) -> Iterator[R]:
    """Yield `function(item)` for each item, in order, computed by one thread per core.

    The function should release the GIL. The `stage` of `progress` is the number of results. Each `at_once`
    items are a chunk, which starts when all results of the previous one were consumed; this bounds the
    results in memory.
    """
    done = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for chunk in batched(items, at_once):
            for result in pool.map(function, chunk):
                done += 1
                progress.update(stage, done, len(items))
                yield result


def map_ahead[T, R](function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Yield `function(item)` for each item, in order, while threads compute up to two values each ahead."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
