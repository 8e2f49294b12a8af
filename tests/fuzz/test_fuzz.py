import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("fuzzing", Path(__file__).with_name("fuzzing.py"))
fuzzing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzzing)

CASES = 8
"""Of each reader; benchmarks/fuzz.py runs thousands."""


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("reader", fuzzing.READERS)
def test_a_mutated_input_is_read_or_refused(reader):
    tally = fuzzing.fuzz(reader, CASES, seed=0)
    assert tally.failures == []
    assert tally.outcomes.total() == CASES


@pytest.mark.parametrize("reader", fuzzing.READERS)
def test_the_input_that_is_mutated_is_read_as_it_is(reader, tmp_path):
    fuzzing.put(tmp_path, fuzzing.READERS[reader].make())
    fuzzing.READERS[reader].read(tmp_path)
