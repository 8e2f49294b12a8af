import pytest

from vgsplus.parallel import map_ahead, parallel_map, process_count, process_rank
from vgsplus.progress import Progress


def test_results_come_in_order_and_are_counted():
    seen, progress = [], Progress()
    progress.update = lambda *amount: seen.append(amount)
    assert list(parallel_map(lambda x: x * x, range(5), progress, "squares", at_once=2)) == [0, 1, 4, 9, 16]
    assert seen == [("squares", done, 5) for done in range(1, 6)]


def test_no_more_results_than_asked_wait():
    started = []
    results = parallel_map(started.append, range(100), at_once=10)
    next(results)
    assert len(started) <= 10


def test_threads_compute_ahead_in_order_and_not_too_far():
    started = []

    def square(x):
        started.append(x)
        if x == 50:
            raise ValueError(x)
        return x * x

    results = map_ahead(square, range(100), 3)
    assert [next(results) for _ in range(10)] == [x * x for x in range(10)]
    assert len(started) <= 10 + 2 * 3
    with pytest.raises(ValueError, match="50"):
        list(results)
    assert len(started) <= 51 + 2 * 3


@pytest.mark.parametrize(
    ("variables", "rank", "count"),
    [
        ({}, 0, 1),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, 3, 4),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, 3, 4),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, 0, 1),
    ],
    ids=["alone", "torchrun", "srun", "a batch script of several tasks"],
)
def test_the_environment_numbers_the_processes(monkeypatch, variables, rank, count):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (process_rank(), process_count()) == (rank, count)
