"""Faults injected one at a time, into a prepared corpus, a table that is to become one, and alignments.

Each must give its message and exit with 1; the tables in docs/faults.md are these lists.
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


TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1
tiers? <exists>
size = 1
item []:
    item [1]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 1
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.1
            text = "k"
        intervals [2]:
            xmin = 0.1
            xmax = 0.2
            text = "a"
        intervals [3]:
            xmin = 0.2
            xmax = 0.3
            text = "t"
"""


def file(name, text, encoding="utf-8", remove="a.TextGrid"):
    """Another alignment in place of the TextGrid."""

    def inject(root):
        (root / remove).unlink()
        (root / name).write_text(text, encoding=encoding)

    return inject


def textgrid(old, new, count=1, encoding="utf-8"):
    assert old in TEXTGRID
    return file("a.TextGrid", TEXTGRID.replace(old, new, count), encoding)


def late(root):
    samples, rate = soundfile.read(root / "a.wav")
    soundfile.write(root / "a.wav", samples[:4_000], rate)


ALIGNMENT_FAULTS = {
    "an absent folder of alignments": (shutil.rmtree, r"work: there is no such file or folder of alignments"),
    "a folder without alignments": (without("a.TextGrid"), r"work: holds no alignments"),
    "a TextGrid without the tier": (
        textgrid('"phones"', '"Ann - words"'),
        r"a\.TextGrid: has no tier 'phones'\. Its tiers are: Ann - words",
    ),
    "a tier twice": (
        file(
            "a.TextGrid",
            TEXTGRID.replace("size = 1", "size = 2", 1) + TEXTGRID[TEXTGRID.index("    item [1]") :],
        ),
        r"a\.TextGrid:29: tier 'phones' is in line 11 already",
    ),
    "a tier without labels": (
        file("a.TextGrid", re.sub('text = ".*"', 'text = ""', TEXTGRID)),
        r"a\.TextGrid:11: tier 'phones' is empty",
    ),
    "a tier without intervals": (
        textgrid(TEXTGRID[TEXTGRID.index("size = 3") :], "size = 0"),
        r"a\.TextGrid:11: tier 'phones' is empty",
    ),
    "points for intervals": (
        file(
            "a.TextGrid",
            re.sub(r" xmin.*\n +xmax(?=.*\n +text)", " number", TEXTGRID).replace("IntervalTier", "TextTier"),
        ),
        r"a\.TextGrid:11: tier 'phones' holds points, not intervals",
    ),
    "a TextGrid cut short": (
        textgrid(TEXTGRID[TEXTGRID.index('text = "a"') :], "text ="),
        r"a\.TextGrid:22: ends before the label of tier 'phones', interval 2: the file is cut short",
    ),
    "a quotation mark left open": (
        textgrid('"k"', '"k'),
        r"a\.TextGrid:22: expected the time of tier 'phones', interval 2, found",
    ),
    "a TextGrid in binary format": (
        file("a.TextGrid", "ooBinaryFile\x08TextGrid"),
        r"a\.TextGrid:1: is not a TextGrid in a text format of Praat",
    ),
    "another object of Praat": (textgrid('"TextGrid"', '"Pitch"'), r"a\.TextGrid:2: holds a Pitch of Praat"),
    "an alignment in another encoding": (
        textgrid('"a"', '"é"', encoding="latin-1"),
        r"a\.TextGrid:22: is neither UTF-8 nor UTF-16 text",
    ),
    "a decimal comma in a time": (
        textgrid("xmax = 0.2", "xmax = 0,2"),
        r"a\.TextGrid:21: the end of tier 'phones', interval 2 is '0,2', which is no number",
    ),
    "an interval that ends before it starts": (
        textgrid("xmax = 0.2", "xmax = 0.05"),
        r"a\.TextGrid:20: end 0\.05 must be after start 0\.1",
    ),
    "overlapping intervals": (
        textgrid("xmin = 0.2", "xmin = 0.15"),
        r"a\.TextGrid:24: starts at 0\.15 s and overlaps line 20, which ends at 0\.2 s",
    ),
    "a label with a blank": (textgrid('"a"', '"a e"'), r"a\.TextGrid:20: label 'a e' holds a blank"),
    "times beyond the sound": (late, r"a\.TextGrid:24: 0\.3 s is after the end of .*a\.wav, 0\.250 s"),
    "an alignment without a sound": (without("a.wav"), r"a\.TextGrid: there is no sound a below"),
    "an alignment of a sound that is no sound": (as_text("a.wav"), r"a\.wav: cannot be read as sound"),
    "an alignment that may be of two sounds": (
        lambda root: shutil.copyfile(root / "a.wav", root / "a.flac"),
        r"a\.TextGrid: may be the alignment of .*a\.flac or .*a\.wav",
    ),
    "two alignments for one sound": (
        lambda root: (root / "a.phn").write_text("0 1600 k\n"),
        r"a\.phn: is an alignment of .*a\.wav, and so is .*a\.TextGrid",
    ),
    "a sound with a blank in its name": (
        lambda root: [path.rename(path.with_stem("a b")) for path in list(root.iterdir())],
        r"a b\.wav: holds a blank",
    ),
    "a CTM line of too few columns": (
        file("x.ctm", "a 1 0 0.1 k\na 1 0.1 0.1\n"),
        r"x\.ctm:2: expected FILE CHANNEL START DURATION LABEL, has 4",
    ),
    "CTM times in no order": (
        file("x.ctm", "a 1 0.3 0.1 k\na 1 0.1 0.1 a\n"),
        r"x\.ctm:2: starts at 0\.1 s, before line 1, at 0\.3 s",
    ),
    "a negative time": (file("x.ctm", "a 1 -0.1 0.2 k\n"), r"x\.ctm:1: start -0\.1 is negative"),
    "a CTM time that is no number": (
        file("x.ctm", "a 1 0.1 nan k\n"),
        r"x\.ctm:1: duration nan must be a number, in seconds",
    ),
    "labels of xlabel without the end of a header": (
        file("a.lab", "0.1 125 k\n"),
        r'a\.lab: has no line "#"',
    ),
    "labels of xlabel in no order": (
        file("a.lab", "#\n0.2 125 k\n0.1 125 a\n"),
        r"a\.lab:3: end 0\.1 must be after start 0\.2",
    ),
    "labels of TIMIT in seconds": (
        file("a.PHN", "0.1 0.2 k\n"),
        r"a\.PHN:1: expected START END LABEL, with whole numbers of samples",
    ),
    "an empty file of labels": (file("a.PHN", ""), r"a\.PHN: is empty: it holds no labels"),
    "nothing but silence": (
        file("a.PHN", "0 1600 h#\n1600 3200 a\n3200 4800 h#\n"),
        r"work: no token is left \(2 silence or noise, 1 next to silence, a gap or the end\)",
    ),
}


@pytest.fixture
def alignments(tmp_path):
    """A folder of a sound of one second and its TextGrid."""
    folder = tmp_path / "work"
    folder.mkdir()
    soundfile.write(folder / "a.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    (folder / "a.TextGrid").write_text(TEXTGRID)
    return folder


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


def test_alignments_without_a_fault_become_items(alignments):
    succeeds("data", "items", alignments, "--out", alignments.parent / "x.item")
    assert (alignments.parent / "x.item").is_file()


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


@pytest.mark.parametrize("fault", ALIGNMENT_FAULTS)
def test_a_fault_of_an_alignment_is_told_and_leaves_no_items(alignments, capsys, fault):
    inject, message = ALIGNMENT_FAULTS[fault]
    inject(alignments)
    out = alignments.parent / "x.item"
    assert re.search(message, fails(["data", "items", alignments, "--out", out], capsys))
    assert not out.exists()


def test_all_faults_of_alignments_are_told_together(alignments, capsys):
    textgrid("xmax = 0.2", "xmax = 0.05")(alignments)
    (alignments / "b.lab").write_text("0.1 125 k\n")
    (alignments / "x.ctm").write_text("c 1 0 x k\nc 1 0.1 x k\nd 1 0 0.1 k\n")
    said = fails(["data", "items", alignments, "--out", alignments / "x.item"], capsys)
    for place in (r"a\.TextGrid:20", r"b\.lab:", r"x\.ctm:1", r"x\.ctm:2", r"x\.ctm:3"):
        assert re.search(place, said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strip", "("], r"--strip \(: is not a regular expression"),
        (["--audio", "nowhere"], r"nowhere: there is no such folder of sounds"),
        (["--tier", "phone"], r"has no tier 'phone'\. Its tiers are: phones"),
        (["--size", "0"], None),
    ],
)
def test_an_option_that_cannot_be_is_told(alignments, capsys, options, message):
    arguments = ["data", "items", str(alignments), "--out", str(alignments / "x.item"), *options]
    if message is None:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    else:
        assert re.search(message, fails(arguments, capsys))


def test_a_speaker_that_the_table_lacks_is_told(alignments, capsys):
    (alignments / "utt2spk").write_text("b ben\n")
    arguments = ["data", "items", alignments, "--out", alignments / "x.item"]
    said = fails([*arguments, "--speakers", alignments / "utt2spk"], capsys)
    assert re.search(r"a\.TextGrid: .*utt2spk names no speaker of a\. Add a line a SPEAKER", said)


def test_items_that_exist_are_replaced_only_if_told_to(alignments, capsys):
    out = alignments / "x.item"
    out.write_text("kept")
    assert re.search(r"x\.item: exists already", fails(["data", "items", alignments, "--out", out], capsys))
    assert out.read_text() == "kept"
    succeeds("data", "items", alignments, "--out", out, "--overwrite")


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


@pytest.mark.parametrize(
    "faults", [CORPUS_FAULTS, TABLE_FAULTS, ALIGNMENT_FAULTS], ids=["corpus", "table", "alignments"]
)
def test_the_documented_faults_are_these(faults):
    documented = DOCUMENT.read_text()
    assert "\n".join(rows_of(faults)) in documented
