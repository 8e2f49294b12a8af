import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from vgsplus.errors import DownloadError
from vgsplus.fetching.archives import Archive
from vgsplus.fetching.fetch import fetch
from vgsplus.files import lock_file

FILES = {"ABX_data/dev-clean.item": b"#file onset offset\n"}


@pytest.fixture
def served(server, tar_of):
    return server.serve("data/ABX_data.tgz", tar_of(FILES))


@pytest.fixture
def archive(server, served):
    return Archive(
        name="abx",
        url=server.url("data/ABX_data.tgz"),
        unpacks_to="ABX_data",
        licence=None,
        size=len(served.body),
        checksum=("sha256", hashlib.sha256(served.body).hexdigest()),
    )


def fails(archive: Archive, folder: Path, **options) -> str:
    with pytest.raises(DownloadError) as error:
        fetch(archive, folder, **options)
    assert not (folder / archive.unpacks_to).exists()
    return str(error.value)


def test_fetch_unpacks_once(archive, served, tmp_path):
    folder = tmp_path / "new/folder"
    found = fetch(archive, folder)
    assert (found / "dev-clean.item").read_bytes() == FILES["ABX_data/dev-clean.item"]
    assert sorted(p.name for p in folder.iterdir()) == ["ABX_data", "ABX_data.tgz"]
    (folder / "ABX_data.tgz").unlink()
    assert fetch(archive, folder) == found
    assert len(served.requests) == 1


def test_an_archive_that_is_there_is_checked_and_used(archive, served, tmp_path):
    (tmp_path / "ABX_data.tgz").write_bytes(served.body)
    assert fetch(archive, tmp_path).is_dir()
    assert not served.requests


def test_another_file_under_the_name_stays(archive, served, tmp_path):
    mine = tmp_path / "ABX_data.tgz"
    mine.write_bytes(bytes(len(served.body)))
    assert "ABX_data.tgz: has the sha256" in fails(archive, tmp_path)
    mine.write_bytes(b"mine")
    assert f"has 4 bytes, the published file {len(served.body)}" in fails(archive, tmp_path)
    assert mine.read_bytes() == b"mine"


def test_mirrors_come_first_in_order(archive, server, served, tmp_path):
    second = server.serve("second/ABX_data.tgz", served.body)
    fetch(archive, tmp_path, mirrors=(server.url("first/"), server.url("second")))
    assert len(second.requests) == 1
    assert not served.requests


def test_known_mirrors_come_last(archive, server, served, tmp_path):
    server.serve("known/ABX_data.tgz", served.body)
    served.faults.append(server.answers(404))
    assert fetch(replace(archive, mirrors=(server.url("known"),)), tmp_path).is_dir()


def test_every_address_is_told(archive, server, served, tmp_path):
    served.faults.append(server.answers(404))
    told = fails(archive, tmp_path, mirrors=(server.url("first"),))
    assert told.index(server.url("first/ABX_data.tgz")) < told.index(archive.url)


@pytest.mark.parametrize("mirror", ["file:///etc", "ftp://host/x", "host/x"])
def test_mirrors_are_web_addresses(archive, tmp_path, mirror):
    assert f"--mirror {mirror}: must begin with http" in fails(archive, tmp_path, mirrors=(mirror,))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_a_wrong_checksum_leaves_nothing(archive, tmp_path, kind):
    told = fails(replace(archive, checksum=(kind, "0" * 32)), tmp_path)
    assert f"has the {kind} " in told
    assert "the bytes received were deleted" in told
    assert not list(tmp_path.iterdir())


def test_a_page_instead_of_an_unchecked_archive_is_noticed(archive, served, tmp_path):
    served.body = b"<html>Please log in"
    told = fails(replace(archive, size=None, checksum=None), tmp_path)
    assert "is not a .tar.gz or .zip file" in told
    assert not list(tmp_path.iterdir())


def test_room_for_the_archive_and_what_it_holds_is_required(archive, served, tmp_path, monkeypatch):
    size = len(served.body)
    free = 2 * size - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    told = fails(archive, tmp_path)
    assert f"at least, {2 * size} bytes are needed, and {free} are free" in told
    assert not list(tmp_path.iterdir())
    free = 2 * size
    assert fetch(archive, tmp_path).is_dir()


def test_room_to_unpack_a_zip_is_required(archive, server, zip_of, tmp_path, monkeypatch):
    body = zip_of({"rows.tsv": bytes(100_000)})
    server.serve("obj36.zip", body)
    archive = Archive(name="obj36", url=server.url("obj36.zip"), unpacks_to="obj36", licence=None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=99_999))
    assert "obj36.zip: to unpack it, 100000 bytes are needed, and 99999 are free" in fails(archive, tmp_path)
    assert (tmp_path / "obj36.zip").read_bytes() == body


def test_a_second_fetch_of_a_file_is_refused(archive, served, tmp_path):
    with lock_file(tmp_path / ".ABX_data.tgz.lock"):
        assert "is downloading it. Wait for it to end" in fails(archive, tmp_path)
    assert not served.requests
    assert fetch(archive, tmp_path).is_dir()


def test_a_folder_that_cannot_be_is_told(archive, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert "cannot be written" in fails(archive, tmp_path / "file")
