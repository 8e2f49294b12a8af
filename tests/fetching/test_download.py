import errno
import hashlib
import json
from io import FileIO
from pathlib import Path
from types import SimpleNamespace

import pytest

from vgsplus.errors import DownloadError
from vgsplus.fetching import download as downloads
from vgsplus.fetching.archives import Archive
from vgsplus.fetching.download import Download
from vgsplus.progress import SILENT, Progress

BODY = b"\x1f\x8b" + bytes(range(256)) * 40
SIZE = len(BODY)
MD5 = ("md5", hashlib.md5(BODY).hexdigest())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "speech.tar.gz"


@pytest.fixture
def fetch(path):
    """Fetch `path` from some addresses; whether the published digest is known is a keyword."""

    def run(*urls, digest=True, size=SIZE, progress=SILENT):
        archive = Archive("speech", "url", "speech", size=size, checksum=MD5 if digest else None)
        Download(archive, path, progress).run(urls)

    return run


def calling(function):
    progress = Progress()
    progress.update = lambda _stage, done, total: function(done, total)
    return progress


def left(path):
    """What lies beside a file: (bytes of its .part or None, whether it is there itself)."""
    part = path.with_name("speech.tar.gz.part")
    return (part.read_bytes() if part.exists() else None), path.exists()


def fails(fetch, *urls, **options):
    with pytest.raises(DownloadError) as error:
        fetch(*urls, **options)
    return str(error.value)


def test_a_file_arrives_whole_and_leaves_nothing_beside_it(server, fetch, path):
    server.serve("a", BODY)
    fetch(server.url("a"))
    assert path.read_bytes() == BODY
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("digest", [True, False])
def test_a_broken_connection_is_gone_on_with(server, fetch, path, digest):
    served = server.serve("a", BODY, server.breaks_off(1000), server.breaks_off(500))
    fetch(server.url("a"), digest=digest)
    assert path.read_bytes() == BODY
    assert [r.get("Range") for r in served.requests] == [None, "bytes=1000-", "bytes=1500-"]
    assert [r.get("If-Range") for r in served.requests] == [None, '"v1"', '"v1"']


def test_progress_counts_what_was_there(server, fetch):
    server.serve("a", BODY, server.breaks_off(1000))
    seen = []
    fetch(server.url("a"), progress=calling(lambda *amount: seen.append(amount)))
    assert seen[0] == (0, SIZE)
    assert (1000, SIZE) in seen
    assert seen[-1] == (SIZE, SIZE)


def test_what_an_earlier_command_received_is_used(server, fetch, path):
    served = server.serve("a", BODY, *[server.breaks_off(1000), *[server.breaks_off(0)] * 3])
    told = fails(fetch, server.url("a"))
    assert f"the connection was closed after 1000 of {SIZE} bytes (3 times in a row)" in told
    assert "1000 bytes are kept in" in told
    assert left(path) == (BODY[:1000], False)
    fetch(server.url("a"))
    assert path.read_bytes() == BODY
    assert served.requests[-1]["Range"] == "bytes=1000-"


def test_attempts_count_only_those_that_bring_nothing(server, fetch, path):
    server.serve("a", BODY, *[server.breaks_off(100)] * 20)
    fetch(server.url("a"))
    assert path.read_bytes() == BODY


def test_a_server_that_ignores_ranges_starts_again(server, fetch, path):
    served = server.serve("a", BODY, server.breaks_off(1000), ranges=False)
    fetch(server.url("a"))
    assert path.read_bytes() == BODY
    assert len(served.requests) == 2


def test_a_server_that_ignores_ranges_and_always_breaks_off_is_given_up(server, fetch, path):
    served = server.serve("a", BODY, *[server.breaks_off(1000)] * 50, ranges=False)
    assert "the connection was closed after 1000" in fails(fetch, server.url("a"))
    assert len(served.requests) == downloads.ATTEMPTS
    assert left(path) == (BODY[:1000], False)


def test_a_server_without_validators_that_always_breaks_off_is_given_up(server, fetch, path):
    served = server.serve("a", BODY, *[server.breaks_off(1000)] * 50, etag=None)
    assert "the connection was closed after 1000" in fails(fetch, server.url("a"), digest=False)
    assert len(served.requests) == downloads.ATTEMPTS
    assert left(path) == (BODY[:1000], False)


@pytest.mark.parametrize("obeys", [True, False])
def test_a_file_that_changes_meanwhile_is_fetched_anew(server, fetch, path, obeys, monkeypatch):
    server.serve("a", b"old" * 5000, server.breaks_off(1000), etag='"v0"')
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "ATTEMPTS", 1)
        fails(fetch, server.url("a"), digest=False, size=None)
    served = server.serve("a", BODY)
    if not obeys:  # a server that looks at Range but not at If-Range
        served.faults.append(lambda handler, it: (handler.headers.__delitem__("If-Range"), handler.give(it)))
    fetch(server.url("a"), digest=False, size=None)
    assert path.read_bytes() == BODY


def test_without_validator_and_digest_bytes_are_never_mixed(server, fetch, path):
    served = server.serve("a", BODY, server.breaks_off(1000), etag=None)
    fetch(server.url("a"), digest=False)
    assert path.read_bytes() == BODY
    assert [r.get("Range") for r in served.requests] == [None, None]


def test_another_address_goes_on_where_a_digest_vouches(server, fetch, path):
    server.serve("a", BODY, server.breaks_off(1000), *[server.breaks_off(0)] * 3)
    other = server.serve("b", BODY, etag='"else"')
    fetch(server.url("a"), server.url("b"))
    assert path.read_bytes() == BODY
    assert other.requests[0]["Range"] == "bytes=1000-"
    assert "If-Range" not in other.requests[0]


def test_another_address_that_is_dead_costs_nothing_of_what_is_here(server, fetch, path):
    server.serve("a", BODY, server.breaks_off(1000), *[server.breaks_off(0)] * 3)
    busy = server.serve("busy", BODY, *[server.answers(503)] * 9)
    told = fails(fetch, server.url("a"), server.url("absent"), server.url("busy"), digest=False)
    assert "responded 404" in told
    assert "responded 503" in told
    assert len(busy.requests) == downloads.ATTEMPTS
    assert left(path) == (BODY[:1000], False)


def test_another_address_begins_anew_where_nothing_vouches(server, fetch, path):
    server.serve("a", BODY, server.breaks_off(5000), *[server.breaks_off(0)] * 3)
    other = server.serve("b", BODY, *[server.breaks_off(900)] * 5)
    fetch(server.url("a"), server.url("b"), digest=False)
    assert path.read_bytes() == BODY
    assert [r.get("Range") for r in other.requests[:2]] == [None, "bytes=900-"]


def test_a_wrong_file_is_removed_and_the_next_address_tried(server, fetch, path):
    server.serve("a", bytes(SIZE))
    server.serve("b", BODY)
    fetch(server.url("a"), server.url("b"))
    assert path.read_bytes() == BODY


def test_wrong_files_everywhere_leave_nothing(server, fetch, path):
    server.serve("a", bytes(SIZE))
    server.serve("b", bytes(SIZE))
    told = fails(fetch, server.url("a"), server.url("b"))
    assert told.count("has the md5") == 2
    assert f"{server.url('b')}: has the md5" in told
    assert left(path) == (None, False)


def test_bytes_left_wrong_by_someone_else_do_not_condemn_an_address(server, fetch, path):
    path.with_name("speech.tar.gz.part").write_bytes(bytes(2000))
    served = server.serve("a", BODY)
    fetch(server.url("a"))
    assert path.read_bytes() == BODY
    assert [r.get("Range") for r in served.requests] == ["bytes=2000-", None]


def test_a_complete_part_needs_no_server(server, fetch, path):
    path.with_name("speech.tar.gz.part").write_bytes(BODY)
    fetch(server.url("absent"))
    assert path.read_bytes() == BODY


def test_a_part_that_is_too_long_is_begun_anew(server, fetch, path):
    path.with_name("speech.tar.gz.part").write_bytes(BODY + b"more")
    server.serve("a", BODY)
    fetch(server.url("a"))
    assert path.read_bytes() == BODY


# ---- lengths that lie -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [SIZE - 100, SIZE + 100])
def test_a_length_that_is_not_the_published_one_is_refused_at_once(server, fetch, path, length):
    server.serve("a", BODY, server.claims(length))
    told = fails(fetch, server.url("a"))
    assert f"its file has {length} bytes, the published one {SIZE}" in told
    assert left(path) == (None, False)


def test_too_long_a_length_is_a_broken_connection_that_ends_well(server, fetch, path):
    # Asked for the rest, the server says that there is none.
    server.serve("a", BODY, server.claims(SIZE + 100))
    fetch(server.url("a"), size=None)
    assert path.read_bytes() == BODY


def test_too_long_a_length_for_ever_is_told(server, fetch, path):
    server.serve("a", BODY, *[server.claims(SIZE + 100)] * 9, ranges=False)
    assert f"the connection was closed after {SIZE} of {SIZE + 100} bytes" in fails(
        fetch, server.url("a"), size=None
    )
    assert left(path) == (BODY, False)


def test_too_short_a_length_fails_the_digest(server, fetch, path):
    server.serve("a", BODY, server.claims(SIZE - 100))
    assert "has the md5" in fails(fetch, server.url("a"), size=None)
    assert left(path) == (None, False)


def test_more_than_the_published_bytes_are_refused(server, fetch, path):
    server.serve("a", BODY + b"more", server.streams)
    assert f"sent more than the {SIZE} bytes" in fails(fetch, server.url("a"))
    assert left(path) == (None, False)


# ---- refusals ---------------------------------------------------------------------------------------------


def test_faults_of_the_server_pass(server, fetch, path):
    server.serve("a", BODY, server.answers(500), server.answers(429))
    fetch(server.url("a"))
    assert path.read_bytes() == BODY


def test_pauses_grow(server, fetch, monkeypatch):
    pauses = []
    monkeypatch.setattr(downloads.time, "sleep", pauses.append)
    monkeypatch.setattr(downloads, "ATTEMPTS", 5)
    monkeypatch.setattr(downloads, "PAUSE", 1.0)
    server.serve("a", BODY, *[server.answers(503)] * 9)
    assert "responded 503" in fails(fetch, server.url("a"))
    assert pauses == [1, 2, 4, 8]


@pytest.mark.parametrize("status", [404, 403])
def test_an_absent_file_is_asked_for_once(server, fetch, path, status):
    served = server.serve("a", BODY, *[server.answers(status)] * 9)
    told = fails(fetch, server.url("a"))
    assert f"{server.url('a')}: responded {status}" in told
    assert "--mirror" in told
    assert len(served.requests) == 1
    assert left(path) == (None, False)


def test_a_server_that_hangs_is_left(server, fetch, path, monkeypatch):
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    monkeypatch.setattr(downloads, "TIMEOUT", 0.1)
    server.serve("a", BODY, *[server.hangs(0.5)] * 2)
    told = fails(fetch, server.url("a"))
    assert "did not respond in time (2 times in a row)" in told
    assert left(path) == (None, False)


def test_a_server_that_is_not_there_is_told(fetch, path):
    assert "refused" in fails(fetch, "http://127.0.0.1:9/a").lower()
    assert left(path) == (None, False)


def test_redirects_are_followed_with_the_range(server, fetch, path):
    to = server.redirects(server.url("b"))
    server.serve("a", BODY, *[to] * 9)
    other = server.serve("b", BODY, server.breaks_off(1000))
    fetch(server.url("a"))
    assert path.read_bytes() == BODY
    assert other.requests[1]["Range"] == "bytes=1000-"


def test_redirects_in_a_circle_end(server, fetch, path):
    server.serve("a", BODY, *[server.redirects(server.url("a"))] * 50)
    assert "302" in fails(fetch, server.url("a"))
    assert left(path) == (None, False)


# ---- here -------------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_and_costs_nothing(server, fetch, path, monkeypatch):
    served = server.serve("a", BODY, server.breaks_off(1000))
    real = Path.open

    class Full(FileIO):
        def write(self, block):
            if self.tell() + len(block) > 1000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(block)

    def opened(self, mode="r", **options):
        return Full(self, mode) if self.suffix == ".part" and mode == "ab" else real(self, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        told = fails(fetch, server.url("a"))
    assert "No space left on device" in told
    assert "1000 bytes are kept: free disk space, and run the same command" in told
    assert left(path) == (BODY[:1000], False)
    fetch(server.url("a"))
    assert path.read_bytes() == BODY
    assert served.requests[-1]["Range"] == "bytes=1000-"


def test_disk_space_is_required_before_anything_is_written(server, fetch, path, monkeypatch):
    server.serve("a", BODY)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * SIZE - 1))
    told = fails(fetch, server.url("a"))
    assert f"at least, {2 * SIZE} bytes are needed, and {2 * SIZE - 1} are free" in told
    assert left(path) == (None, False)


def test_an_interruption_keeps_the_part(server, fetch, path):
    served = server.serve("a", BODY, server.breaks_off(1000))

    def interrupt(done, _total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server.url("a"), progress=calling(interrupt))
    kept, whole = left(path)
    assert kept
    assert not whole
    assert BODY.startswith(kept)
    note = json.loads(path.with_name("speech.tar.gz.part.json").read_text())
    assert note == {"url": server.url("a"), "validator": '"v1"'}
    fetch(server.url("a"))
    assert path.read_bytes() == BODY
    assert served.requests[-1]["Range"] == f"bytes={len(kept)}-"
