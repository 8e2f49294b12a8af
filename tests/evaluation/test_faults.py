"""Faults injected one at a time into an ABX item file, alignments of words and a folder of sounds.

Each must give its message and exit with 1; the tables in docs/faults.md are these lists.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vgsplus.cli import main

DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"
HEADER = "#file onset offset #phone prev-phone next-phone speaker"
LINES = (
    "ann 0 0.1 a k t ann",
    "ann 0.1 0.2 e k t ann",
    "ann 0.2 0.3 a k t ann",
    "ben 0 0.1 a k t ben",
    "ben 0.1 0.2 e k t ben",
    "ben 0.2 0.3 a k t ben",
)
WORDS = (
    "ann 1 0.05 0.10 a",
    "ann 1 0.15 0.10 red",
    "ann 1 0.25 0.05 sil",
    "ann 1 0.30 0.15 star",
    "ben 1 0.00 0.20 a",
    "ben 1 0.20 0.20 moon",
)


@pytest.fixture(scope="module")
def run(make_model, save_run, tmp_path_factory):
    """The folder of a run whose weights are random."""
    return save_run(make_model(grounded=False), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def grounded(make_model, save_run, tmp_path_factory):
    """The folder of a run with grounding modules."""
    return save_run(make_model(), tmp_path_factory.mktemp("run"))


@pytest.fixture
def work(tmp_path):
    """A folder with an item file of two sounds, and these sounds in a folder."""
    (tmp_path / "sounds").mkdir()
    for seed, name in enumerate(("ann", "ben")):
        noise = np.random.default_rng(seed).normal(0, 0.1, 8000)
        soundfile.write(tmp_path / "sounds" / f"{name}.wav", noise, 16_000)
    write(*LINES)(tmp_path)
    return tmp_path


def write(*lines, header=HEADER):
    return lambda root: (root / "x.item").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


def words(*lines):
    return lambda root: (root / "x.ctm").write_text("\n".join(lines) + "\n")


def also(line):
    return write(*LINES, line)


def bare(root):
    """Drop the columns of contexts."""
    lines = [line.split() for line in (HEADER, *LINES)]
    write(
        *(" ".join([*cells[:4], cells[6]]) for cells in lines[1:]), header="file onset offset phone talker"
    )(root)


def linked(root):
    (root / "sounds" / "same.wav").symlink_to("ann.wav")
    also("same 0 0.1 a k t ann")(root)


def sound(name, change=lambda samples: samples, rate=16_000):
    def inject(root):
        samples, _ = soundfile.read(root / "sounds" / "ann.wav", dtype="float32")
        (root / "sounds" / name).parent.mkdir(exist_ok=True)
        soundfile.write(root / "sounds" / name, change(samples), rate)

    return inject


def without_sounds(root):
    for path in (root / "sounds").iterdir():
        path.rename(path.with_suffix(".m4a"))


ITEM_FAULTS = {
    "an absent item file": (lambda root: (root / "x.item").unlink(), r"x\.item: there is no such item file"),
    "an empty item file": (lambda root: (root / "x.item").write_text(""), r"x\.item: is empty"),
    "an item file in another encoding": (
        lambda root: (root / "x.item").write_text(f"{HEADER}\n{LINES[0]}\n", encoding="utf-16"),
        r"x\.item:1: is not UTF-8 text",
    ),
    "a header without a column": (
        write(*LINES, header=HEADER.replace("speaker", "voice")),
        r"x\.item:1: the header must name speaker once",
    ),
    "no contexts to compare within": (bare, r"x\.item: its header names no contexts"),
    "only a header": (write(), r"x\.item: holds no items, only a header"),
    "a line without a column": (also("ann 0.3 0.4 a k t"), r"x\.item:8: has 6 columns, the header names 7"),
    "a control character": (also("ann 0.3 0.4 a k\v t ann"), r"x\.item:8: holds the character U\+000B"),
    "a decimal comma": (
        also("ann 0,3 0,4 a k t ann"),
        r"x\.item:8: onset 0,3 and offset 0,4 must be numbers",
    ),
    "times in no order": (also("ann 0.4 0.3 a k t ann"), r"x\.item:8: offset 0\.3 must be after onset 0\.4"),
    "times in milliseconds": (
        also("ann 300 400 a k t ann"),
        r"x\.item:8: offset 400 is after the end of ann, 0\.500 s",
    ),
    "a token twice": (
        also("ann 0.100 0.20 e k t ann"),
        r"x\.item:8: ann from 0\.100 to 0\.20 s is in line 3 already and counts once",
    ),
    "a token twice, by two names of its sound": (
        also("sounds/ann.wav 0.1 0.2 e k t ann"),
        r"x\.item:8: sounds/ann\.wav from 0\.1 to 0\.2 s is in line 3 already",
    ),
    "a token twice, by a link to its sound": (
        linked,
        r"x\.item:8: same from 0 to 0\.1 s is in line 2 already",
    ),
    "two phones at one time": (
        also("ann 0.1 0.2 a k t ann"),
        r"x\.item:8: ann from 0\.1 to 0\.2 s is phone a in context k t by ann here and phone e .* in line 3",
    ),
    "a label in two Unicode forms": (
        write(*LINES, "ann 0.3 0.4 ã k t ann", "ann 0.4 0.5 a\u0303 k t ann"),
        r"x\.item:9: .* is written in another Unicode form than in line 8",
    ),
    "a file without a sound": (also("cid 0 0.1 a k t cid"), r"x\.item:8: there is no sound cid below"),
    "a file of two sounds": (sound("ann.flac"), r"x\.item:2: file ann may be .* and .*\. Name it by more"),
    "no folder of sounds": (
        lambda root: (root / "sounds").rename(root / "elsewhere"),
        r"sounds: there is no such folder of sounds",
    ),
    "one phone only": (write(LINES[0], LINES[3]), r"x\.item: holds one phone only, 'a'"),
    "one speaker only": (write(*LINES[:3]), r"x\.item: holds one speaker only, 'ann'"),
}
FOLDER_FAULTS = {
    "an absent folder": (
        lambda root: (root / "sounds").rename(root / "elsewhere"),
        r"sounds: there is no such file or folder",
    ),
    "no sound files": (without_sounds, r"sounds: holds no sound files \(\.aif, .*, \.wav\)"),
    "a sound that is no sound": (
        lambda root: (root / "sounds" / "cid.mp3").write_text("no such thing"),
        r"sounds/cid\.mp3: cannot be read as sound",
    ),
    "two sounds of one name": (sound("ann.flac"), r"sounds/ann\.wav have one name, ann"),
    "a silent sound": (sound("nil.wav", np.zeros_like), r"sounds/nil\.wav: is silent"),
    "a sound too short for a frame": (
        sound("nip.wav", lambda samples: samples[:399]),
        r"sounds/nip\.wav: 399 samples at 16 kHz are too short",
    ),
    "a folder named as the features of a sound": (
        sound("ann.npy/cid.wav"),
        r"ann and ann\.npy/cid cannot both be in a folder",
    ),
}


WORD_FAULTS = {
    "a word beyond the end of its sound": (
        words(*WORDS, "ben 1 0.6 0.3 sun"),
        r"x\.ctm:7: 0\.9 s is after the end of",
    ),
    "a word of no sound": (words(*WORDS, "cid 1 0 0.3 sun"), r"x\.ctm:7: there is no sound cid below"),
    "words that overlap": (
        words(*WORDS, "ben 1 0.3 0.2 sun"),
        r"x\.ctm:7: starts at 0\.3 s and overlaps line 6",
    ),
    "a sound without a word": (
        words(*WORDS[:4], "ben 1 0 0.5 sil"),
        r"x\.ctm: holds no word of ben, only silence or noise",
    ),
    "two channels of words": (
        words(*WORDS, "ben 2 0 0.3 oh"),
        r"x\.ctm: holds 2 tiers or channels of words of ben",
    ),
    "no words": (words(), r"x\.ctm: holds no words"),
    "a word a sound": (words("ann 1 0 0.5 red", "ben 1 0 0.5 a"), r"x\.ctm: every sound has one word"),
    "a folder of TextGrids that is in use": (
        lambda root: ((root / "grids").mkdir(), (root / "grids" / "a.TextGrid").touch(), words(*WORDS)(root)),
        r"grids: exists and is no empty folder",
    ),
    "a sound that is too short for the model": (
        lambda root: (
            sound("nip.wav", lambda samples: samples[:399])(root),
            words(*WORDS, "nip 1 0 0.02 oh")(root),
        ),
        r"sounds/nip\.wav: 399 samples at 16 kHz are too short",
    ),
}


def fails(arguments, capsys):
    """What a command that exits with 1 says."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert ended.value.code == 1, said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("fault", ITEM_FAULTS)
def test_a_fault_of_an_item_file_is_reported_and_nothing_is_written(run, work, capsys, fault):
    inject, message = ITEM_FAULTS[fault]
    inject(work)
    arguments = ["evaluate", "abx", run, work / "x.item", work / "sounds", "--out", work / "out"]
    assert re.search(message, fails(arguments, capsys))
    assert not (work / "out" / "abx.csv").exists()


@pytest.mark.parametrize("fault", WORD_FAULTS)
def test_a_fault_of_words_is_reported_and_nothing_is_written(grounded, work, capsys, fault):
    inject, message = WORD_FAULTS[fault]
    inject(work)
    to = ["--out", work / "out", "--textgrids", work / "grids"]
    assert re.search(message, fails(["evaluate", "segmentation", grounded, work / "x.ctm", *to], capsys))
    assert not (work / "out").exists()


def test_items_of_phones_and_models_without_a_cls_token_have_no_words(run, grounded, work, capsys):
    said = fails(["evaluate", "segmentation", grounded, work / "x.item"], capsys)
    assert "x.item: holds phones in context, not words" in said
    said = fails(["evaluate", "segmentation", run, work / "x.item"], capsys)
    assert "has no CLS token, as it has no grounding modules" in said


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_a_fault_of_a_folder_of_sounds_is_reported_and_nothing_is_written(run, work, capsys, fault):
    inject, message = FOLDER_FAULTS[fault]
    inject(work)
    assert re.search(message, fails(["embed", run, work / "sounds", work / "out"], capsys))
    assert not (work / "out").exists()


def test_without_a_fault_all_is_scored_and_embedded(run, work):
    for arguments in (
        ["evaluate", "abx", run, work / "x.item", work / "sounds", "--out", work / "out"],
        ["embed", run, work / "sounds", work / "features"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert ended.value.code == 0
    assert sorted(path.name for path in (work / "features").iterdir()) == [
        "ann.npy",
        "ben.npy",
        "features.json",
    ]


def rows_of(faults):
    """The messages as documented: what is left open is …."""
    messages = {fault: message.split("|")[0].replace(".*", "…") for fault, (_, message) in faults.items()}
    return [f"| {fault} | `{re.sub(r'\\(.)', r'\1', message)}` |" for fault, message in messages.items()]


@pytest.mark.parametrize(
    "faults", [ITEM_FAULTS, WORD_FAULTS, FOLDER_FAULTS], ids=["items", "words", "folder"]
)
def test_the_documented_faults_are_these(faults):
    assert "\n".join(rows_of(faults)) in DOCUMENT.read_text()
