import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vgsplus.audio import SAMPLE_RATE
from vgsplus.cli import main
from vgsplus.corpora.format import Caption, Corpus, CorpusError, CorpusWriter, validate
from vgsplus.corpora.manifest import prepare_manifests, write_manifests


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
    prepare_manifests(*pair, tmp_path / "out")
    assert validate(tmp_path / "out") == []
    corpus = Corpus.open(tmp_path / "out")
    assert {split: len(corpus.captions(split)) for split in corpus.splits} == {"train": 3, "validation": 2}
    caption = corpus.captions("train")[1]
    assert (caption.id, caption.num_samples, caption.image, caption.text) == ("s1/u_1", 8001, None, None)
    assert (caption.speaker, caption.language) == ("unknown", "und")
    assert corpus.audio_path(caption) == speech[0] / "s1/u 1.flac"


def test_manifests_come_back_byte_by_byte(pair, tmp_path):
    prepare_manifests(*pair, tmp_path / "out")
    written = write_manifests(Corpus.open(tmp_path / "out"), tmp_path / "back")
    assert written == {tmp_path / "back/train.tsv": 3, tmp_path / "back/valid.tsv": 2}
    for path in pair:
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


def test_a_corpus_comes_back_from_its_manifests(tiny_corpus, tmp_path):
    corpus = Corpus.open(tiny_corpus)
    write_manifests(corpus, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.tsv", "valid.tsv"]
    prepare_manifests(tmp_path / "train.tsv", tmp_path / "valid.tsv", tmp_path / "out")
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
    prepare_manifests(train, valid, tmp_path / "out")
    corpus = Corpus.open(tmp_path / "out")
    (caption,) = corpus.captions("validation")
    assert corpus.audio_path(caption) == tmp_path / "other/s0/u 0.flac"
    assert caption.id not in {one.id for one in corpus.captions("train")}


def test_a_root_may_be_relative_to_the_working_directory(speech, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare_manifests(manifest(tmp_path / "in/train.tsv", Path("speech"), *speech[1]), None, tmp_path / "out")
    assert Corpus.open(tmp_path / "out").splits == ("train",)


def test_every_fault_is_reported_with_its_line(speech, tmp_path):
    root, rows = speech
    sound(root / "low.wav", rate=8000)
    sound(root / "short.wav", 100)
    (root / "broken.wav").write_bytes(b"RIFF but no sound")
    lines = [rows[0], "absent.flac\t9", "s1/u 1.flac\t8000", "low.wav\t8000", "broken.wav\t1", "u.wav 7"]
    train = manifest(tmp_path / "in/train.tsv", root, *lines, "short.wav\t100", "s0/u 2.flac\tmany")
    valid = manifest(tmp_path / "in/valid.tsv", root, "s0/../s0/u 0.flac\t8000")
    with pytest.raises(CorpusError) as error:
        prepare_manifests(train, valid, tmp_path / "out")
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
    summary = prepare_manifests(
        manifest(tmp_path / "train.tsv", root, *rows, "short.wav\t100"), None, tmp_path / "out"
    )
    assert summary.skipped == {"shorter than 0.25 s": 1}
    assert summary.kept["train"].captions == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"tsv:1: must be the folder of the sounds, is ''"),
        ("a.flac\t8000\n", r"tsv:1: must be the folder"),
        ("/no/such/folder\na.flac\t8000\n", r"tsv:1: must be the folder of the sounds, is '/no/such/folder'"),
        ("/\n\n", r"tsv: names no sound"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, text, message):
    (tmp_path / "train.tsv").write_text(text)
    with pytest.raises(CorpusError, match=message):
        prepare_manifests(tmp_path / "train.tsv", None, tmp_path / "out")
    with pytest.raises(CorpusError, match=r"absent\.tsv: there is no such manifest"):
        prepare_manifests(tmp_path / "train.tsv", tmp_path / "absent.tsv", tmp_path / "out")


def test_a_sound_of_two_captions_is_named_once(tmp_path):
    sound(tmp_path / "one.wav")
    with CorpusWriter(
        tmp_path / "out", name="x", version="1", provenance="tests", licence="CC0-1.0", image_root=None
    ) as writer:
        for name in "ab":
            writer.add_caption(
                Caption(
                    id=name,
                    split="train",
                    audio=str(tmp_path / "one.wav"),
                    num_samples=8000,
                    speaker="s",
                    language="en",
                    image=None,
                    text=None,
                )
            )
    write_manifests(Corpus.open(tmp_path / "out"), tmp_path / "back")
    assert (tmp_path / "back/train.tsv").read_text() == f"{tmp_path}\none.wav\t8000\n"
    assert not (tmp_path / "back/valid.tsv").exists()


def test_manifests_that_are_there_stay_unless_asked(pair, tmp_path):
    prepare_manifests(*pair, tmp_path / "out")
    corpus = Corpus.open(tmp_path / "out")
    (tmp_path / "back").mkdir()
    (tmp_path / "back/valid.tsv").write_text("mine")
    with pytest.raises(CorpusError, match=re.escape("valid.tsv: is there already")):
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
