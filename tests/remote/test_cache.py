"""The cache keeps what was used last, within its limit, and nothing that is not complete."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from vgsplus.errors import ConfigError, VgsplusError
from vgsplus.remote import cache

SHARE = int(2e9) // cache.SETS


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """All ranges in one set, of 1.95 MB."""
    monkeypatch.setenv("VGSPLUS_CACHE_GB", "2")
    monkeypatch.setattr(
        cache, "_path", lambda name: cache.folder() / "000" / hashlib.sha256(name.encode()).hexdigest()
    )


def kept_bytes(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_it_returns_what_was_saved_or_a_part_of_it():
    assert cache.load("a", 5) is None
    cache.save("a", b"abcde")
    assert cache.load("a", 5) == b"abcde"
    assert cache.load("a", 5, 1, 3) == b"bcd"


def test_it_keeps_what_was_used_last_within_its_limit(own_cache):
    size = SHARE // 4
    for name in "abcd":
        cache.save(name, bytes(size))
        time.sleep(0.01)
    cache.load("a", size)
    for name in "ef":
        cache.save(name, bytes(size))
    assert kept_bytes(own_cache) <= SHARE
    assert [name for name in "abcdef" if cache.load(name, size)] == list("adef")


def test_what_is_larger_than_a_set_is_not_kept():
    cache.save("a", bytes(SHARE // 2))
    cache.save("b", bytes(SHARE + 1))
    assert cache.load("a", SHARE // 2)
    assert cache.load("b", SHARE + 1) is None


def test_a_range_of_another_size_is_not_read(own_cache):
    cache.save("a", b"abcde")
    (file,) = (file for file in own_cache.rglob("*") if file.is_file())
    os.truncate(file, 3)
    assert cache.load("a", 5) is None
    cache.save("a", b"abcde")
    assert cache.load("a", 5) == b"abcde"


SAVE_FOREVER = """
import hashlib, random, sys
from vgsplus.remote import cache
cache._path = lambda name: cache.folder() / "000" / hashlib.sha256(name.encode()).hexdigest()
rng = random.Random(int(sys.argv[1]))
while True:
    size = rng.randrange(1, 300_000)
    cache.save(str(size), size.to_bytes(4, "big") * (size // 4 + 1))
    print(flush=True)
"""


def test_processes_that_are_killed_leave_complete_ranges_within_the_limit(own_cache):
    rng = random.Random(0)
    for turn in range(4):
        command = [sys.executable, "-c", SAVE_FOREVER]
        started = [
            subprocess.Popen([*command, str(2 * turn + one)], stdout=subprocess.PIPE) for one in range(2)
        ]
        for process in started:
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.1))
        for process in started:
            process.kill()
            assert process.wait() == -signal.SIGKILL
            process.stdout.close()
        for file in (own_cache / "000").iterdir():
            if not file.name.startswith("."):
                content = file.read_bytes()
                assert content == content[:4] * (len(content) // 4)
    cache.save("one more", bytes(1000))
    assert kept_bytes(own_cache) <= SHARE


def test_a_full_disk_is_no_error_and_a_folder_that_cannot_be_written_is(own_cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_bytes", full)
        cache.save("a", b"abc")
    assert cache.load("a", 3) is None
    own_cache.joinpath("000").rmdir()
    own_cache.joinpath("000").write_text("a file")
    with pytest.raises(VgsplusError, match=r"000: cannot be written .*VGSPLUS_CACHE"):
        cache.save("a", b"abc")


@pytest.mark.parametrize("limit", ["1", "much", "nan", "inf"])
def test_a_wrong_limit_is_an_error(monkeypatch, limit):
    monkeypatch.setenv("VGSPLUS_CACHE_GB", limit)
    with pytest.raises(ConfigError, match="VGSPLUS_CACHE_GB"):
        cache.share()
