import errno
import fcntl
import os
import signal
import subprocess
import sys
import unicodedata

import pytest

from vgsplus.errors import VgsplusError
from vgsplus.files import as_on_disk, atomic_file, atomic_folder, files_below, lock_file, read_text


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_text_is_read_with_and_without_a_byte_order_mark(tmp_path, bom):
    path = tmp_path / "list"
    path.write_bytes(bom + "ä\n".encode())
    assert read_text(path) == "ä\n"


def test_text_in_another_encoding_is_refused_with_its_line(tmp_path):
    path = tmp_path / "list"
    path.write_bytes(b"a\nb\xe4\n")
    with pytest.raises(VgsplusError, match=r"list:2: is not UTF-8"):
        read_text(path)


@pytest.mark.parametrize(("stored", "asked"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_a_file_is_found_under_either_unicode_form(tmp_path, stored, asked):
    path = tmp_path / unicodedata.normalize(stored, "größe") / unicodedata.normalize(stored, "ä.wav")
    path.parent.mkdir()
    path.touch()
    wanted = tmp_path / unicodedata.normalize(asked, "größe") / unicodedata.normalize(asked, "ä.wav")
    assert as_on_disk(wanted) == path
    path.with_name(unicodedata.normalize(stored, "ö.wav")).touch()  # a listing that was kept does not hide it
    assert as_on_disk(wanted.with_name(unicodedata.normalize(asked, "ö.wav"))).is_file()


def test_of_two_unicode_forms_on_disk_the_exact_one_is_taken(tmp_path):
    paths = [tmp_path / unicodedata.normalize(form, "ä") for form in ("NFC", "NFD")]
    for path in paths:
        path.touch()
    assert [as_on_disk(path) for path in paths] == paths


def test_a_path_that_nothing_matches_stays(tmp_path):
    assert as_on_disk(tmp_path / "ä" / "b") == tmp_path / "ä" / "b"


def test_files_below_a_folder_are_listed_once_without_what_a_mac_adds(tmp_path):
    for name in ("b/x", "b/._x", "a", "__MACOSX/b/._x"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "itself").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to(tmp_path / "b")
    (tmp_path / "nothing").symlink_to(tmp_path / "gone")
    assert list(files_below(tmp_path)) == [tmp_path / "a", tmp_path / "b" / "x", tmp_path / "c" / "x"]


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "file"
    with atomic_file(path) as file:
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
        with atomic_file(path) as file:
            file.write(b"later")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_while_writing()
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    (tmp_path / ".file.writing").write_bytes(b"half of something longer")
    with atomic_file(tmp_path / "file") as file:
        file.write(b"whole")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"whole")]


def test_a_lock_is_held_by_one_and_names_its_holder(tmp_path):
    path = tmp_path / ".lock"
    with lock_file(path):
        with pytest.raises(BlockingIOError) as error, lock_file(path):
            pass
        assert error.value.strerror.startswith(f"process {os.getpid()} on ")
        path.unlink()
        with lock_file(path):
            pass
    with lock_file(path):
        pass
    assert not path.exists()


def test_a_lock_file_that_its_holder_removed_meanwhile_is_busy(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    monkeypatch.setattr(fcntl, "flock", lambda *_: path.unlink())
    with pytest.raises(BlockingIOError), lock_file(path):
        pass


def test_a_worker_that_outlives_its_process_holds_nothing(tmp_path):
    path = tmp_path / ".lock"
    script = (
        "import os, pathlib, sys, time\n"
        "from vgsplus.files import lock_file\n"
        "with lock_file(pathlib.Path(sys.argv[1])):\n"
        "    if os.fork() == 0:\n"
        "        print(os.getpid(), flush=True)\n"
        "        time.sleep(60)\n"
        "    os._exit(0)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True) as holder:
        worker = int(holder.stdout.readline())
        try:
            assert holder.wait() == 0
            with lock_file(path):
                pass
        finally:
            os.kill(worker, signal.SIGKILL)


def test_where_a_file_system_has_no_locks_nobody_is_kept_away(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_file(tmp_path / ".lock"), lock_file(tmp_path / ".lock"):
        pass


def test_a_folder_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "a" / "folder"
    (tmp_path / "a" / ".folder.writing").mkdir(parents=True)
    (tmp_path / "a" / ".folder.writing" / "old").touch()  # of a killed process
    with atomic_folder(path) as folder:
        (folder / "file").write_bytes(b"new")
        assert not path.exists()
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")} == {
        *("a", "a/folder", "a/folder/file"),
    }


def test_an_error_leaves_the_earlier_folder(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "file").write_bytes(b"earlier")

    def stop_while_writing():
        with atomic_folder(path, replace=True) as folder:
            (folder / "file").write_bytes(b"later")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_while_writing()
    assert (path / "file").read_bytes() == b"earlier"
    with pytest.raises(OSError, match="not empty"), atomic_folder(path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_folder_is_replaced_only_if_asked_to(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    with atomic_folder(path, replace=True) as folder:
        (folder / "new").touch()
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["folder", "folder/new"]
