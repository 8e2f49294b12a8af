"""Faults injected one at a time, into a prepared corpus and into a table that is to become one.

Each must give its message and exit with 1; the table in docs/faults.md is this list.
"""

import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile

from vgsplus.cli import main
from vgsplus.corpora import CorpusWriter

DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"
SOUND, PICTURE = "audio/train-000-0.wav", "images/train/000.png"
DATA_SIZE, CHANNELS, RATE = 40, 22, 24
"""Where the header of a WAV file holds them, in bytes."""


def with_header(field, kind, value):
    def inject(corpus):
        data = bytearray((corpus / SOUND).read_bytes())
        struct.pack_into(kind, data, field, value)
        (corpus / SOUND).write_bytes(data)

    return inject


def cut(name):
    return lambda root: (root / name).write_bytes(
        (root / name).read_bytes()[: (root / name).stat().st_size // 2]
    )


def without(name):
    return lambda root: (root / name).unlink()


def as_text(name, text="no such thing"):
    return lambda root: (root / name).write_text(text)


def sound(change, subtype="PCM_16"):
    def inject(root):
        samples, rate = soundfile.read(root / SOUND, dtype="float32")
        soundfile.write(root / SOUND, change(samples), rate, subtype=subtype)

    return inject


def regions(change):
    def inject(corpus):
        with h5py.File(corpus / "regions.h5", "r+") as file:
            change(file)

    return inject


def cell(name, index, value):
    return regions(lambda file: file[name].__setitem__(index, value))


def replaced(name, data):
    def change(file):
        kept = file[name][:]
        del file[name]
        file[name] = data(kept)

    return regions(change)


def captions(change):
    """Change the list of caption records."""

    def inject(corpus):
        path = corpus / "captions.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(record) + "\n" for record in change(records)))

    return inject


def first_caption(**fields):
    return captions(lambda records: [records[0] | fields, *records[1:]])


def info(**fields):
    return lambda corpus: (corpus / "corpus.json").write_text(
        json.dumps(json.loads((corpus / "corpus.json").read_text()) | fields)
    )


def item(line):
    def inject(corpus):
        with (corpus / "test.item").open("a") as file:
            file.write(line + "\n")

    return inject


CORPUS_FAULTS = {
    "a sound cut short": (cut(SOUND), r"train-000-0\.wav: is shorter than its header states"),
    "a header that states too many samples": (
        with_header(DATA_SIZE, "<I", 10**6),
        r"train-000-0\.wav: is shorter than its header states",
    ),
    "a header that states too few samples": (
        with_header(DATA_SIZE, "<I", 1000),
        r"train-000-0\.wav has 500 samples, not \d+ as stated",
    ),
    "a header of two channels": (with_header(CHANNELS, "<H", 2), r"16000 Hz, 2 channel\(s\); expected"),
    "a header of another rate": (with_header(RATE, "<I", 8000), r"8000 Hz, 1 channel\(s\); expected"),
    "a sound without samples": (sound(lambda samples: samples[:0]), r"train-000-0\.wav: holds no samples"),
    "a sound that is no sound": (as_text(SOUND), r"train-000-0\.wav: cannot be read as sound"),
    "an absent sound": (without(SOUND), r"train-000-0\.wav: there is no such"),
    "a silent sound": (sound(np.zeros_like), r"train-000-0\.wav is silent from start to end"),
    "a sound that holds NaN": (
        sound(lambda samples: samples * np.nan, subtype="FLOAT"),
        r"train-000-0\.wav holds samples that are not finite",
    ),
    "an absent picture": (without(PICTURE), r"000\.png: the picture is missing"),
    "a picture that is none": (as_text(PICTURE), r"000\.png: cannot be read as a picture"),
    "a feature that is NaN": (
        cell("features", (0, 0, 0), np.nan),
        r"image train/000\.png: holds features that are not finite",
    ),
    "a feature that is infinite": (
        cell("features", (3, 1, 2), np.inf),
        r"image train/003\.png: holds features that are not finite",
    ),
    "a box outside the picture": (
        cell("boxes", (0, 0), [0, 0, 1.5, 1]),
        r"image train/000\.png: holds a box outside \[0, 1\]",
    ),
    "a box that ends before it starts": (
        cell("boxes", (0, 0), [0.9, 0, 0.1, 1]),
        r"image train/000\.png: holds a box whose end lies before its start",
    ),
    "images of 0 boxes": (
        replaced("features", lambda features: features[:, :0]),
        r"regions\.h5: has features \(16, 0, 12\), boxes \(16, 5, 4\) and image_ids",
    ),
    "fewer rows of features than images": (
        replaced("features", lambda features: features[1:]),
        r"regions\.h5: has features \(15, 5, 12\)",
    ),
    "features without boxes": (regions(lambda file: file.pop("boxes")), r"regions\.h5: lacks boxes"),
    "regions cut short": (cut("regions.h5"), r"regions\.h5: cannot be read as HDF5"),
    "absent regions": (without("regions.h5"), r"regions\.h5: is missing"),
    "an image twice": (
        cell("image_ids", 1, "train/000.png"),
        r"regions\.h5: 2 rows have the image id train/000\.png",
    ),
    "a caption's id twice": (
        captions(lambda records: [records[0], records[1] | {"id": records[0]["id"]}, *records[2:]]),
        r"captions\.jsonl: 2 captions have the id train-000-0 \(lines",
    ),
    "an image in two splits": (
        first_caption(image="test/000.png"),
        r"splits 'test' and 'train' share 1 images|splits 'train' and 'test' share 1 images",
    ),
    "a caption of an unknown image": (
        first_caption(image="train/999.png"),
        r"caption train-000-0 names the unknown image train/999\.png",
    ),
    "a wrong length": (first_caption(num_samples=1), r"has \d+ samples, not 1 as stated"),
    "a length that is no number": (
        first_caption(num_samples="long"),
        r"train-000-0: num_samples must be a whole number > 0, is 'long'",
    ),
    "a speaker with a blank": (first_caption(speaker="a b"), r"speaker must hold no blank, is 'a b'"),
    "a caption without a field": (
        captions(lambda records: [{"id": "x"}, *records[1:]]),
        r"captions\.jsonl:1: is not a caption \(missing",
    ),
    "a caption with a field too many": (first_caption(colour="red"), r"captions\.jsonl:1: is not a caption"),
    "an image that is a list": (
        first_caption(image=["a.png"]),
        r"captions\.jsonl:1: is not a caption \(unhashable",
    ),
    "a line that is no JSON": (
        lambda corpus: (corpus / "captions.jsonl").write_text("{\n"),
        r"captions\.jsonl:1: is not valid JSON",
    ),
    "captions cut short": (cut("captions.jsonl"), r"captions\.jsonl:\d+: is not valid JSON"),
    "no captions": (as_text("captions.jsonl", ""), r"captions\.jsonl: the corpus holds no captions"),
    "an absent list of captions": (without("captions.jsonl"), r"captions\.jsonl: is missing"),
    "a split without captions": (
        captions(lambda records: [record for record in records if record["split"] != "test"]),
        r"corpus\.json: the split 'test' is empty",
    ),
    "captions lost": (captions(lambda records: records[2:]), r"'train' should hold 16 captions, holds 14"),
    "no corpus.json": (without("corpus.json"), r"is not a corpus \(corpus\.json is missing\)"),
    "a corpus.json that is no JSON": (as_text("corpus.json", "{"), r"corpus\.json: is not valid JSON"),
    "a corpus of another format": (info(format="x/9"), r"corpus\.json: is not a corpus of format"),
    "an ABX item of no caption": (
        item("nobody 0.1 0.2 a k t ann"),
        r"test\.item:\d+: there is no caption nobody",
    ),
    "an ABX item beyond the end": (
        item("test-000-0 0.1 99 a k t ann"),
        r"test\.item:\d+: 0\.1 to 99 s exceeds caption test-000-0",
    ),
    "an ABX item of six columns": (
        item("test-000-0 0.1 0.2 a k t"),
        r"test\.item:\d+: has 6 columns, the header names 7",
    ),
    "an ABX item twice": (
        item("test-000-0 0.020 0.120 a k t ann"),
        r"test\.item:\d+: test-000-0 from 0\.020 to 0\.120 s is in line 2 already",
    ),
}


def write_table(root, rows):
    (root / "table.csv").write_text("\n".join(rows) + "\n")


def row(index, audio=None, image=None, split=None):
    splits = ("train", "train", "validation", "test")
    return f"{audio or f's{index}.wav'},{image or f'p{index}.png'},ann,{split or splits[index]}"


ROWS = ["audio,image,speaker,split", *(row(index) for index in range(4))]


def rows(*changed):
    """The table with other rows."""
    return lambda root: write_table(root, changed)


def first_row(**cells):
    return rows(ROWS[0], row(0, **cells), *ROWS[2:])


def first_sound(change, subtype="PCM_16"):
    def inject(root):
        samples, rate = soundfile.read(root / "s0.wav", dtype="float32")
        soundfile.write(root / "s0.wav", change(samples), rate, subtype=subtype)

    return inject


TABLE_FAULTS = {
    "an absent table": (without("table.csv"), r"table\.csv: there is no such"),
    "an empty table": (as_text("table.csv", ""), r"table\.csv:1: the table is empty"),
    "a table without a header": (rows(*ROWS[1:]), r"table\.csv:1: .*header"),
    "a column misspelt": (
        rows("audio,imagee,speaker,split", *ROWS[1:]),
        r"table\.csv:1: unknown column 'imagee'",
    ),
    "a row with a cell too many": (
        rows(*ROWS[:4], ROWS[4] + ",x"),
        r"table\.csv:5: has 5 cells, the header 4",
    ),
    "a row twice": (rows(*ROWS, ROWS[1]), r"table\.csv:6: repeats line 2"),
    "a row of an absent sound": (first_row(audio="gone.wav"), r"table\.csv:2: .*gone\.wav"),
    "a row of an absent picture": (first_row(image="gone.png"), r"table\.csv:2: .*gone\.png"),
    "a folder in place of a sound": (first_row(audio="folder"), r"table\.csv:2: .*folder"),
    "a row of no sound": (first_row(audio="table.csv"), r"table\.csv:2: .*cannot be read as sound"),
    "a row of no picture": (first_row(image="table.csv"), r"table\.csv:2: .*cannot be read as a picture"),
    "a sound of 0 samples": (first_sound(lambda samples: samples[:0]), r"table\.csv:2: .*holds no samples"),
    "a sound of silence": (first_sound(np.zeros_like), r"table\.csv:2: .*is silent"),
    "a sound of NaN": (first_sound(lambda samples: samples * np.nan, "FLOAT"), r"table\.csv:2: .*not finite"),
    "a sound too short": (first_sound(lambda samples: samples[:100]), r"table\.csv:2: .*0\.25 s"),
    "a picture in two splits": (first_row(image="p3.png"), r"table\.csv:5: image p3\.png is in 'test'"),
    "a copy of a picture in another split": (
        lambda root: shutil.copyfile(root / "p0.png", root / "p3.png"),
        r"table\.csv:5: p3\.png in 'test' is a copy of p0\.png in 'train'",
    ),
    "an unknown split": (first_row(split="trian"), r"table\.csv:2: .*'trian'"),
    "nothing to train on": (
        rows(ROWS[0], *(row(index, split="test") for index in range(4))),
        r"no row has the split 'train'",
    ),
}


@pytest.fixture
def corpus(tiny_corpus, tmp_path):
    return Path(shutil.copytree(tiny_corpus, tmp_path / "corpus"))


@pytest.fixture
def table(tiny_corpus, tmp_path):
    """The folder of a table of four sounds and pictures."""
    for index in range(4):
        shutil.copyfile(tiny_corpus / f"audio/train-00{index}-0.wav", tmp_path / f"s{index}.wav")
        shutil.copyfile(tiny_corpus / f"images/train/00{index}.png", tmp_path / f"p{index}.png")
    (tmp_path / "folder").mkdir()
    write_table(tmp_path, ROWS)
    return tmp_path


def fails(arguments, capsys):
    """What a command that exits with 1 says."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert ended.value.code == 1, said
    return said


def succeeds(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 0


def test_without_a_fault_nothing_is_found(corpus, table, capsys):
    succeeds("data", "check", corpus)
    succeeds("data", "table", table / "table.csv", table / "out" / "c")
    assert "no faults" in capsys.readouterr().out


@pytest.mark.parametrize("fault", CORPUS_FAULTS)
def test_a_fault_of_a_corpus_is_told(corpus, capsys, fault):
    inject, message = CORPUS_FAULTS[fault]
    inject(corpus)
    assert re.search(message, fails(["data", "check", corpus], capsys))


@pytest.mark.parametrize("fault", TABLE_FAULTS)
def test_a_fault_of_a_table_is_told_and_leaves_no_corpus(table, capsys, fault):
    inject, message = TABLE_FAULTS[fault]
    inject(table)
    assert re.search(message, fails(["data", "table", table / "table.csv", table / "out" / "c"], capsys))
    assert not (table / "out").exists() or not any((table / "out").iterdir())


# ---- what happens to the process ---------------------------------------------------------------------------

SMALL_DISK = """
import resource, sys
from vgsplus.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
main(sys.argv[1:])
"""
KILLED = """
import os, signal, sys
from vgsplus.corpora import CorpusWriter
from vgsplus.cli import main
CorpusWriter.finish = lambda self: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""


def run(program, *arguments):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_a_disk_that_takes_no_more_is_told_and_nothing_is_left(table):
    ended = run(SMALL_DISK, "data", "table", table / "table.csv", table / "out" / "c")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert re.search(r"out/c: File too large", ended.stderr), ended.stderr
    assert not any((table / "out").iterdir())


def test_a_folder_that_takes_no_files_is_told(table, capsys):
    said = fails(["data", "table", table / "table.csv", table / "table.csv" / "c"], capsys)
    assert re.search(r"table\.csv/\.c\.lock: Not a directory", said)


def test_a_second_preparation_is_refused(table, capsys):
    root = table / "out" / "c"
    with CorpusWriter(root, name="c", version="1", provenance="a test", licence="none") as writer:
        said = fails(["data", "table", table / "table.csv", root], capsys)
        assert writer.folder.is_dir()
        writer.finish = lambda: None
    assert re.search("process .* is preparing", said)


def test_what_a_killed_preparation_left_is_no_corpus_and_in_no_ones_way(table):
    root = table / "out" / "c"
    assert run(KILLED, "data", "table", table / "table.csv", root).returncode == -9
    assert not root.exists()
    succeeds("data", "table", table / "table.csv", root)
    succeeds("data", "check", root)
    assert [path.name for path in root.parent.iterdir()] == ["c"]


def readable(pattern):
    """A message as documented: numbers are n, what is left open is …."""
    plain = pattern.split("|")[0].replace(r"\d+", "n").replace(".*", "…")
    return re.sub(r"\\(.)", r"\1", plain).removeprefix("…")


def rows_of(faults):
    return [f"| {fault} | `{readable(message)}` |" for fault, (_, message) in faults.items()]


@pytest.mark.parametrize("faults", [CORPUS_FAULTS, TABLE_FAULTS], ids=["corpus", "table"])
def test_the_documented_faults_are_these(faults):
    documented = DOCUMENT.read_text()
    assert "\n".join(rows_of(faults)) in documented
