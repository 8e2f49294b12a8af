import io
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from helpers import ABOUT, BOXES, CAPTION, FEATURES, put_sound
from PIL import Image
from rich.console import Console

from vgsplus.corpora import Corpus, CorpusWriter, SplitCount, Summary, validate
from vgsplus.errors import CorpusError


def put_picture(writer, image_id):
    path = writer.folder / "images" / image_id
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def write_captions(root, *captions, **options):
    """A corpus without sound."""
    with CorpusWriter(root, **ABOUT, **options) as writer:
        for caption in captions:
            writer.add_caption(caption)


def write_regions(root, *images):
    with CorpusWriter(root, **ABOUT) as writer:
        for image_id, features, boxes in images:
            writer.add_regions(image_id, features, boxes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "id must be a non-empty text"),
        ({"id": "a b"}, "id must hold no blank"),
        ({"speaker": "Jane Doe"}, "speaker must hold no blank"),
        ({"num_samples": 0}, "num_samples must be a whole number > 0"),
        ({"text": ""}, "text must be a text or null"),
    ],
)
def test_a_faulty_caption_is_refused_at_once(tmp_path, change, message):
    with pytest.raises(CorpusError, match=message):
        write_captions(tmp_path / "c", replace(CAPTION, **change))


def test_a_caption_and_an_image_come_once(tmp_path):
    with pytest.raises(CorpusError, match="u0: is added twice"):
        write_captions(tmp_path / "c", CAPTION, CAPTION)
    with pytest.raises(CorpusError, match="a: is added twice"):
        write_regions(tmp_path / "c", ("a", FEATURES, BOXES), ("a", FEATURES, BOXES))


@pytest.mark.parametrize(
    ("image_id", "features", "boxes", "message"),
    [
        ("b", FEATURES * np.nan, BOXES, "image b: holds features that are not finite"),
        ("b", FEATURES, BOXES - 1, r"image b: holds a box outside \[0, 1\]"),
        ("b", FEATURES, BOXES[:, [2, 3, 0, 1]], "end lies before its start"),
        ("b", FEATURES, BOXES[:2], "image b: expected features"),
        ("b", FEATURES[:, :2], BOXES, "of earlier images"),
        ("../b", FEATURES, BOXES, "relative to image_root"),
        ("/b", FEATURES, BOXES, "relative to image_root"),
    ],
)
def test_faulty_regions_are_refused_at_once(tmp_path, image_id, features, boxes, message):
    with pytest.raises(CorpusError, match=message):
        write_regions(tmp_path / "c", ("a", FEATURES, BOXES), (image_id, features, boxes))


def test_a_faulty_corpus_is_not_published_and_leaves_nothing(tmp_path):
    with pytest.raises(CorpusError, match=r"u0\.wav: there is no such") as raised:
        write_captions(tmp_path / "c", CAPTION)
    assert ".writing" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def interrupt(root):
    with CorpusWriter(root, **ABOUT) as writer:
        put_sound(writer)
        raise KeyboardInterrupt


def test_an_interruption_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupt(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def write_small(root, **options):
    with CorpusWriter(root, **(ABOUT | options)) as writer:
        put_sound(writer)
        put_picture(writer, "a.png")
        writer.add_regions("a.png", FEATURES, BOXES)
        writer.add_caption(replace(CAPTION, image="a.png"))
        return writer.finish()


def test_finish_sums_up(tmp_path):
    summary = write_small(tmp_path / "deep" / "c")
    assert summary.kept["train"].captions == summary.kept["train"].images == 1
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["c"]
    assert not (tmp_path / "deep" / "c" / ".lock").exists()


def test_the_same_contents_give_the_same_bytes(tmp_path):
    write_small(tmp_path / "a")
    write_small(tmp_path / "b")
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_existing_corpus_is_replaced_only_when_asked(tmp_path):
    write_small(tmp_path / "c")
    with pytest.raises(CorpusError, match="is a corpus already"):
        write_small(tmp_path / "c")
    write_small(tmp_path / "c", version="3", overwrite=True)
    assert Corpus.open(tmp_path / "c").info["version"] == "3"
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_failed_overwrite_keeps_the_old_corpus(tmp_path):
    write_small(tmp_path / "c")
    with pytest.raises(CorpusError, match="there is no such sound file"):
        write_captions(tmp_path / "c", CAPTION, overwrite=True)
    assert validate(tmp_path / "c") == []


def test_a_link_leads_to_the_folder_that_is_written(tmp_path):
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    real.mkdir(parents=True)
    link.symlink_to(real)
    for _ in range(2):
        write_small(link, overwrite=True)
        assert link.is_symlink()
        assert validate(link) == []
        assert [path.name for path in real.parent.iterdir()] == ["real"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_a_folder_that_is_no_corpus_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("dear")
    with pytest.raises(CorpusError, match="is not a corpus, so it is not replaced"):
        write_small(tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "dear"


def test_a_second_writer_is_refused_while_the_first_works(tmp_path):
    with CorpusWriter(tmp_path / "c", **ABOUT) as writer:
        with pytest.raises(CorpusError, match=f"process {os.getpid()} on .* is preparing this corpus"):
            write_small(tmp_path / "c")
        put_sound(writer)
        writer.add_caption(CAPTION)
    assert validate(tmp_path / "c") == []


KILLED = """
import sys, time
from vgsplus.corpora import CorpusWriter
with CorpusWriter(sys.argv[1], name="c", version="1", provenance=None, licence="x") as writer:
    (writer.folder / "audio").mkdir()
    (writer.folder / "audio" / "left.wav").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_left_is_cleaned_by_the_next(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "c")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(CorpusError, match=f"process {process.pid} on"):
            write_small(tmp_path / "c")
        process.send_signal(signal.SIGKILL)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".c.lock", ".c.writing"]
    write_small(tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert not (tmp_path / "c" / "audio" / "left.wav").exists()


@pytest.mark.parametrize("width", [80, 110])
def test_the_summary_that_is_printed_says_what_was_kept_skipped_and_changed(tmp_path, width):
    kept = {"train": SplitCount(3, 2, 7200.0), "test": SplitCount(1, 1, 36.0)}
    summary = Summary(
        "c", tmp_path, kept, {"shorter than 0.25 s": 1, "picture [x] of no split": 12}, {"scaled": 2}
    )
    console = Console(width=width, file=io.StringIO())
    console.print(summary)
    rows = [line.split("│") for line in console.file.getvalue().splitlines() if "│" in line]
    assert [[cell.strip() for cell in row[1:-1]] for row in rows] == [
        ["train", "3", "2", "2.00", ""],
        ["test", "1", "1", "0.01", ""],
        ["skipped", "1", "", "", "shorter than 0.25 s"],
        ["skipped", "12", "", "", "picture [x] of no split"],
        ["changed", "2", "", "", "scaled"],
    ]
