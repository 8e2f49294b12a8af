from vgsplus.parallel import parallel_map
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
