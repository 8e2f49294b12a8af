import re
import unicodedata
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import ABOUT, CAPTION, open_valid

from vgsplus.audio import SAMPLE_RATE, read
from vgsplus.cli import main
from vgsplus.corpora import Corpus, CorpusWriter
from vgsplus.corpora.sources.manifest import prepare_manifests, write_manifests
from vgsplus.errors import CorpusError


def sound(path: Path, samples: int = 8000, rate: int = SAMPLE_RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(0.1 * np.arange(samples)), rate)


def manifest(path: Path, root: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in (root, *rows)).encode())
    return path


@pytest.fixture
def speech(tmp_path):
    """A folder of five sounds, and the lines that name them."""
    rows = []
    for number in range(5):
        sound(tmp_path / f"speech/s{number % 2}/u {number}.flac", 8000 + number)
        rows.append(f"s{number % 2}/u {number}.flac\t{8000 + number}")
    return tmp_path / "speech", rows


@pytest.fixture
def pair(speech, tmp_path):
    root, rows = speech
    return manifest(tmp_path / "in/train.tsv", root, *rows[:3]), manifest(
        tmp_path / "in/valid.tsv", root, *rows[3:]
    )


def test_manifests_become_a_corpus_of_speech_alone(pair, speech, tmp_path):
    prepare_manifests([pair[0]], [pair[1]], tmp_path / "out")
    corpus = open_valid(tmp_path / "out")
    assert {split: len(corpus.captions(split)) for split in corpus.splits} == {"train": 3, "validation": 2}
    caption = corpus.captions("train")[1]
    assert (caption.id, caption.num_samples, caption.image, caption.text) == ("s1/u_1", 8001, None, None)
    assert (caption.speaker, caption.language) == ("unknown", "und")
    assert corpus.audio_path(caption) == speech[0] / "s1/u 1.flac"


def test_manifests_come_back_byte_by_byte(pair, tmp_path):
    prepare_manifests([pair[0]], [pair[1]], tmp_path / "out")
    written = write_manifests(Corpus.open(tmp_path / "out"), tmp_path / "back")
    assert written == {tmp_path / "back/train.tsv": 3, tmp_path / "back/valid.tsv": 2}
    for path in pair:
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


def test_a_corpus_comes_back_from_its_manifests(tiny_corpus, tmp_path):
    corpus = Corpus.open(tiny_corpus)
    write_manifests(corpus, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.tsv", "valid.tsv"]
    prepare_manifests([tmp_path / "train.tsv"], [tmp_path / "valid.tsv"], tmp_path / "out")
    again = Corpus.open(tmp_path / "out")
    assert again.splits == ("train", "validation")
    for split in again.splits:
        lengths = {corpus.audio_path(one).resolve(): one.num_samples for one in corpus.captions(split)}
        found = {again.audio_path(one).resolve(): one.num_samples for one in again.captions(split)}
        assert found == lengths


def test_roots_may_differ_and_ids_stay_apart(speech, tmp_path):
    root, rows = speech
    sound(tmp_path / "other/s0/u 0.flac", 9000)
    train = manifest(tmp_path / "train.tsv", root, *rows)
    valid = manifest(tmp_path / "valid.tsv", tmp_path / "other", "s0/u 0.flac\t9000")
    prepare_manifests([train], [valid], tmp_path / "out")
    corpus = Corpus.open(tmp_path / "out")
    (caption,) = corpus.captions("validation")
    assert corpus.audio_path(caption) == tmp_path / "other/s0/u 0.flac"
    assert caption.id not in {one.id for one in corpus.captions("train")}


def test_a_root_may_be_relative_to_the_working_directory(speech, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = manifest(tmp_path / "in/train.tsv", Path("speech"), *speech[1])
    prepare_manifests([train], [], tmp_path / "out")
    assert Corpus.open(tmp_path / "out").splits == ("train",)


def test_corpora_are_joined_by_their_manifests(pair, tmp_path, capsys):
    sound(tmp_path / "more/s0/u 0.wav", 8100)
    more = manifest(tmp_path / "in/more.tsv", tmp_path / "more", "s0/u 0.wav\t8100")
    with pytest.raises(SystemExit) as stop:
        main(["data", "manifest", str(tmp_path / "out"), *(f"--train={path}" for path in (*pair, more))])
    assert stop.value.code == 0, capsys.readouterr().err
    captions = open_valid(tmp_path / "out").captions("train")
    assert [caption.num_samples for caption in captions] == [8000, 8001, 8002, 8003, 8004, 8100]
    assert len({caption.id for caption in captions}) == 6
    with pytest.raises(CorpusError, match=f"{pair[0]}:2: repeats {pair[0]}:2"):
        prepare_manifests([pair[0], pair[0]], [], tmp_path / "twice")


def test_every_fault_is_reported_with_its_line(speech, tmp_path):
    root, rows = speech
    sound(root / "low.wav", rate=8000)
    sound(root / "short.wav", 100)
    (root / "broken.wav").write_bytes(b"RIFF but no sound")
    lines = [rows[0], "absent.flac\t9", "s1/u 1.flac\t8000", "low.wav\t8000", "broken.wav\t1", "u.wav 7"]
    train = manifest(tmp_path / "in/train.tsv", root, *lines, "short.wav\t100", "s0/u 2.flac\tmany")
    valid = manifest(tmp_path / "in/valid.tsv", root, "s0/../s0/u 0.flac\t8000")
    with pytest.raises(CorpusError) as error:
        prepare_manifests([train], [valid], tmp_path / "out")
    expected = {
        f"{train}:3": "there is no such sound file",
        f"{train}:4": "has 8001 samples, not 8000",
        f"{train}:5": "8000 Hz",
        f"{train}:6": "cannot be read as sound",
        f"{train}:7": "expected a path, a tab",
        f"{train}:9": "expected a path, a tab",
        f"{valid}:2": f"repeats {train}:2",
    }
    assert len(error.value.faults) == len(expected)
    for place, part in expected.items():
        assert any(fault.startswith(f"{place}: ") and part in fault for fault in error.value.faults), place
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "speech"]


def test_short_sounds_are_left_out_and_counted(speech, tmp_path):
    root, rows = speech
    sound(root / "short.wav", 100)
    train = manifest(tmp_path / "train.tsv", root, *rows, "short.wav\t100")
    summary = prepare_manifests([train], [], tmp_path / "out")
    assert summary.skipped == {"shorter than 0.25 s": 1}
    assert summary.kept["train"].captions == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"tsv:1: must be the folder of the sounds, is empty"),
        ("a.flac\t8000\n", r"tsv:1: must be the folder"),
        ("/no/such/folder\na.flac\t8000\n", r"tsv:1: must be the folder of the sounds, is '/no/such/folder'"),
        ("/\n\n", r"tsv: names no sound"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, text, message):
    (tmp_path / "train.tsv").write_text(text)
    with pytest.raises(CorpusError, match=message):
        prepare_manifests([tmp_path / "train.tsv"], [], tmp_path / "out")
    with pytest.raises(CorpusError, match=r"absent\.tsv: there is no such manifest"):
        prepare_manifests([tmp_path / "train.tsv"], [tmp_path / "absent.tsv"], tmp_path / "out")


def test_a_sound_of_two_captions_is_named_once(tmp_path):
    sound(tmp_path / "one.wav")
    caption = replace(CAPTION, audio=str(tmp_path / "one.wav"), num_samples=8000)
    with CorpusWriter(tmp_path / "out", **ABOUT, image_root=None) as writer:
        for name in "ab":
            writer.add_caption(replace(caption, id=name))
    write_manifests(Corpus.open(tmp_path / "out"), tmp_path / "back")
    assert (tmp_path / "back/train.tsv").read_text() == f"{tmp_path}\none.wav\t8000\n"
    assert not (tmp_path / "back/valid.tsv").exists()


def test_manifests_that_are_there_stay_unless_asked(pair, tmp_path):
    prepare_manifests([pair[0]], [pair[1]], tmp_path / "out")
    corpus = Corpus.open(tmp_path / "out")
    (tmp_path / "back").mkdir()
    (tmp_path / "back/valid.tsv").write_text("mine")
    with pytest.raises(CorpusError, match=re.escape("valid.tsv: exists")):
        write_manifests(corpus, tmp_path / "back")
    assert not (tmp_path / "back/train.tsv").exists()
    write_manifests(corpus, tmp_path / "back", overwrite=True)
    assert (tmp_path / "back/valid.tsv").read_bytes() == pair[1].read_bytes()


def test_the_commands_go_there_and_back(pair, tmp_path, capsys):
    train, valid = pair
    there = ["data", "manifest", tmp_path / "out", "--train", train, "--valid", valid]
    for arguments in (there, ["data", "to-manifest", tmp_path / "out", tmp_path / "back"]):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        assert stop.value.code == 0, capsys.readouterr().err
    assert (tmp_path / "back/train.tsv").read_bytes() == train.read_bytes()


# ---- as people have them ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "/\n", 1),
        lambda text: re.sub(r"(\t\d+)", r"\1.0", text),
    ],
    ids=["bom", "crlf", "slash", "decimal point"],
)
def test_manifests_as_other_programs_write_them_are_the_same(pair, tmp_path, change):
    train, _ = pair
    train.write_bytes(change(train.read_text()).encode())
    prepare_manifests([train], [], tmp_path / "out")
    assert [c.num_samples for c in Corpus.open(tmp_path / "out").captions("train")] == [8000, 8001, 8002]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{root}\nx.wav 8000\n", "tsv:2: expected .*there is no tab"),
        ("{root}\nx.wav\t8000\t0\n", "tsv:2: expected .*there are 3 columns"),
        ("{root}\nx.wav\t8000.5\n", "tsv:2: expected a path, a tab and a number"),
        ("{root}\nx.wav\t²\n", "tsv:2: expected a path, a tab and a number"),
        ('{{"audio_filepath": "x.wav"}}\n', "tsv:1: is JSON"),
        ("id\taudio\tn_frames\n", "tsv:1: names columns, not the folder.*data table"),
        ("{root}\nx\0.wav\t8\n", "tsv:2: .*there is no such sound file"),
        ("{root}\n.\t8\n", "tsv:2: .*is a folder"),
        (f"{{root}}\n{'a' * 5000}.wav\t8\n", "tsv:2: .*there is no such sound file"),
        (f"{'a' * 5000}\nx.wav\t8\n", "tsv:1: must be the folder"),
    ],
)
def test_what_is_meant_otherwise_is_told(speech, tmp_path, text, message):
    (tmp_path / "train.tsv").write_text(text.format(root=speech[0]), encoding="utf-8")
    with pytest.raises(CorpusError, match=message):
        prepare_manifests([tmp_path / "train.tsv"], [], tmp_path / "out")


def test_text_that_is_not_utf8_is_told_with_its_line(speech, tmp_path):
    (tmp_path / "train.tsv").write_bytes(f"{speech[0]}\ncaf".encode() + b"\xe9.wav\t8000\n")
    with pytest.raises(CorpusError, match=r"train.tsv:2: is not UTF-8 text"):
        prepare_manifests([tmp_path / "train.tsv"], [], tmp_path / "out")


@pytest.fixture
def parts(tmp_path):
    """A manifest of two members of a zip archive and two ranges of a file."""
    sound(tmp_path / "in/a.flac", 8000)
    sound(tmp_path / "in/long.wav", 32_000)
    with zipfile.ZipFile(tmp_path / "in/all.zip", "w") as archive:
        for name in ("one.flac", "two.flac"):
            archive.write(tmp_path / "in/a.flac", name)
    content, size = (tmp_path / "in/all.zip").read_bytes(), (tmp_path / "in/a.flac").stat().st_size
    first = content.index(b"fLaC")
    second = content.index(b"fLaC", first + size)
    rows = [f"all.zip:{start}:{size}\t8000" for start in (first, second)]
    rows += ["long.wav:0:16000\t16000", "long.wav:8000:16000\t16000"]
    return manifest(tmp_path / "in/train.tsv", tmp_path / "in", *rows)


def test_parts_of_files_are_sounds_of_their_own_and_come_back(parts, tmp_path):
    prepare_manifests([parts], [], tmp_path / "out")
    corpus = open_valid(tmp_path / "out")
    captions = list(corpus.captions("train"))
    assert [caption.id for caption in captions][2:] == ["long-0-16000", "long-8000-16000"]
    assert len({caption.id for caption in captions}) == 4
    np.testing.assert_array_equal(
        read(corpus.audio_path(captions[3])), read(tmp_path / "in/long.wav")[8000:24_000]
    )
    np.testing.assert_array_equal(read(corpus.audio_path(captions[1])), read(tmp_path / "in/a.flac"))
    write_manifests(corpus, tmp_path / "back")
    assert (tmp_path / "back/train.tsv").read_bytes() == parts.read_bytes()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("long.wav:20000:16000\t16000", "the file has 32000 samples, fewer than 20000"),
        ("long.wav:0:16000\t8000", "has 16000 samples, not 8000"),
        ("long.wav:00:16000\t16000", "repeats"),
        ("a.flac\t8000\na.flac:0:8000\t8000", "repeats .*:6"),
        ("gone.zip:0:100\t8000", "there is no such sound file"),
        ("all.zip:0:99999999\t8000", "the archive has"),
    ],
)
def test_parts_that_cannot_be_had_are_faults(parts, tmp_path, row, message):
    with parts.open("a") as file:
        file.write(f"{row}\n")
    with pytest.raises(CorpusError, match=rf"train.tsv:[67]: .*{message}"):
        prepare_manifests([parts], [], tmp_path / "out")


@pytest.mark.parametrize("other", ["link.flac", "s0/../s0/u 0.flac", "./s0/u 0.flac"])
def test_a_sound_under_two_names_is_a_fault(speech, tmp_path, other):
    root, rows = speech
    (root / "link.flac").symlink_to(root / "s0/u 0.flac")
    train = manifest(tmp_path / "train.tsv", root, rows[0], f"{other}\t8000")
    with pytest.raises(CorpusError, match=r"train.tsv:3: repeats .*train.tsv:2"):
        prepare_manifests([train], [], tmp_path / "out")


@pytest.mark.parametrize(("stored", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_sounds_are_found_under_either_unicode_form(tmp_path, stored, asked):
    sound(tmp_path / "in" / unicodedata.normalize(stored, "größe.wav"))
    row = unicodedata.normalize(asked, "größe.wav")
    train = manifest(tmp_path / "train.tsv", tmp_path / "in", f"{row}\t8000", f"{row}:0:4000\t4000")
    assert prepare_manifests([train], [], tmp_path / "out").kept["train"].captions == 2
