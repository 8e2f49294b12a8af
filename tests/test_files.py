import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from vgsplus.files import HeldError, hold, whole_file


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "file"
    with whole_file(path) as file:
        file.write(b"some")
        file.flush()
        assert not path.exists()
        file.write(b" more")
    assert path.read_bytes() == b"some more"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"earlier")

    def stop_while_writing():
        with whole_file(path) as file:
            file.write(b"later")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_while_writing()
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    (tmp_path / ".file.writing").write_bytes(b"half of something longer")
    with whole_file(tmp_path / "file") as file:
        file.write(b"whole")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"whole")]


def test_a_lock_is_held_by_one_and_names_its_holder(tmp_path):
    path = tmp_path / ".lock"
    with hold(path):
        with pytest.raises(HeldError, match=f"^process {os.getpid()} on "):
            hold(path)
        path.unlink()
        hold(path).close()
    hold(path).close()


def test_a_worker_that_outlives_its_process_holds_nothing(tmp_path):
    path = tmp_path / ".lock"
    script = (
        "import os, pathlib, sys, time\n"
        "from vgsplus.files import hold\n"
        "lock = hold(pathlib.Path(sys.argv[1]))\n"
        "if os.fork() == 0:\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True) as holder:
        worker = int(holder.stdout.readline())
        try:
            assert holder.wait() == 0
            hold(path).close()
        finally:
            os.kill(worker, signal.SIGKILL)


def test_where_a_file_system_has_no_locks_nobody_is_kept_away(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold(tmp_path / ".lock"), hold(tmp_path / ".lock"):
        pass
