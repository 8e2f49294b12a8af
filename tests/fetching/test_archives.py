import re
from pathlib import Path

import pytest

from vgsplus.corpora.sources.librispeech import TRAINING_SUBSETS, VALIDATION_SUBSETS
from vgsplus.errors import DownloadError
from vgsplus.fetching.archives import ARCHIVES, find_archive

PAGE = Path(__file__).parents[2] / "docs/fetching.md"
DIGITS = {"md5": 32, "sha256": 64}


def rows_of_the_page():
    """The cells of the page's table of archives."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_holds_the_table():
    expected = [
        [
            archive.name,
            archive.url,
            f"{archive.size:,}"
            if archive.size
            else f"about {archive.rough_size}"
            if archive.rough_size
            else "?",
            " ".join(archive.checksum) if archive.checksum else "none published",
            archive.licence or "not found",
            f"{archive.unpacks_to}/",
        ]
        for archive in ARCHIVES
    ]
    assert rows_of_the_page() == expected
    assert all(mirror in PAGE.read_text() for archive in ARCHIVES for mirror in archive.mirrors)


def test_every_archive_is_one_of_a_kind_and_can_be_fetched():
    for what in ("name", "url", "file", "unpacks_to"):
        assert len({getattr(archive, what) for archive in ARCHIVES}) == len(ARCHIVES)
    for archive in ARCHIVES:
        assert archive.url.startswith("https://")
        assert re.search(r"\.(tar\.gz|tgz|zip)$", archive.file)
        assert not Path(archive.unpacks_to).is_absolute()
        if archive.checksum:
            kind, digest = archive.checksum
            assert re.fullmatch(f"[0-9a-f]{{{DIGITS[kind]}}}", digest)


def test_every_subset_of_librispeech_has_an_archive():
    for subset in (*TRAINING_SUBSETS, *VALIDATION_SUBSETS):
        assert find_archive(f"librispeech-{subset}").unpacks_to == f"LibriSpeech/{subset}"


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(DownloadError, match="the nearest is 'spokencoco'"):
        find_archive("spoken-coco")
