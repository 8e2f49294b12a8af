import errno
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from vgsplus.errors import DownloadError
from vgsplus.fetching.unpack import unpack, unpacked_size
from vgsplus.progress import SILENT, Progress

FILES = {
    "LibriSpeech/README.TXT": b"new",
    "LibriSpeech/dev-clean/1/2/1-2-0000.flac": b"sound" * 1000,
    "LibriSpeech/dev-clean/1/2/1-2.trans.txt": b"A WORD",
}


@pytest.fixture
def make(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def unpacked(path, result="LibriSpeech/dev-clean"):
    seen, progress = [], Progress()
    progress.update = lambda _stage, done, total: seen.append((done, total))
    unpack(path, path.parent, result, progress)
    assert seen[-1][0] == seen[-1][1]
    found = tree(path.parent)
    del found[path.name]
    return found


def refused(path, said):
    before = tree(path.parent)
    with pytest.raises(DownloadError, match=said):
        unpack(path, path.parent, "LibriSpeech/dev-clean", SILENT)
    assert tree(path.parent) == before
    assert not [p for p in path.parent.iterdir() if p.is_dir()]


def test_tar_and_zip_unpack_to_the_same(make, tar_of, zip_of, tmp_path):
    assert unpacked(make("a.tar.gz", tar_of(FILES))) == FILES
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.zip").write_bytes(zip_of(FILES))
    assert unpacked(other / "a.zip") == FILES


def test_what_other_archives_unpacked_stays(make, tar_of, tmp_path):
    kept = tmp_path / "LibriSpeech/dev-other/kept.flac"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"kept")
    (tmp_path / "LibriSpeech/README.TXT").write_bytes(b"old")
    found = unpacked(make("a.tar.gz", tar_of(FILES)))
    assert found == FILES | {"LibriSpeech/dev-other/kept.flac": b"kept"}


def test_an_unexpected_layout_becomes_the_folder(make, zip_of):
    path = make("val.zip", zip_of({"imgfeat/val.tsv": b"rows"}))
    assert unpacked(path, "val2014") == {"val2014/imgfeat/val.tsv": b"rows"}


def test_the_rest_of_a_killed_run_is_no_part_of_it(make, tar_of, tmp_path):
    left = tmp_path / ".a.tar.gz.writing/LibriSpeech/dev-clean/left.flac"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    assert unpacked(make("a.tar.gz", tar_of(FILES))) == FILES


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "LibriSpeech/../../outside"])
def test_members_outside_the_folder_are_refused(make, tar_of, zip_of, name):
    refused(make("a.tar.gz", tar_of({name: b"bad"})), "lies outside of the folder")
    refused(make("a.zip", zip_of({name: b"bad"})), "lies outside of the folder")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(make, tar_of, kind):
    member = tarfile.TarInfo("LibriSpeech/way")
    member.type, member.linkname = kind, "../../.."
    refused(make("a.tar.gz", tar_of(FILES, member)), "'LibriSpeech/way', which is neither")


def test_links_in_a_zip_are_refused(make, zip_of):
    member = zipfile.ZipInfo("LibriSpeech/way")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(make("a.zip", zip_of({member: b"../.."})), "'LibriSpeech/way', which is neither")


@pytest.mark.parametrize("lost", [1, 5, 200])
def test_an_archive_that_was_cut_is_broken(make, tar_of, zip_of, lost):
    refused(make("a.tar.gz", tar_of(FILES)[:-lost]), "is a broken archive .*Delete it")
    refused(make("a.zip", zip_of(FILES)[:-lost]), "is a broken archive .*Delete it")


def test_a_wrong_byte_at_the_end_of_a_tar_is_noticed(make, tar_of):
    content = bytearray(tar_of(FILES))
    content[-6] ^= 1  # in gzip's checksum
    refused(make("a.tar.gz", bytes(content)), "is a broken archive")


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_a_full_disk_leaves_the_archive_alone(make, tar_of, zip_of, kind, monkeypatch):
    path = make(f"a.{kind}", (zip_of if kind == "zip" else tar_of)(FILES))

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "makefile", full)
    monkeypatch.setattr(zipfile.ZipExtFile, "read", full)
    refused(path, "No space left on device.*free disk space, and run the same command")


def test_the_room_of_a_zip_is_known_exactly(make, tar_of, zip_of):
    assert unpacked_size(make("a.zip", zip_of(FILES))) == sum(map(len, FILES.values()))
    tar = make("a.tar.gz", tar_of(FILES))
    assert unpacked_size(tar) == tar.stat().st_size
