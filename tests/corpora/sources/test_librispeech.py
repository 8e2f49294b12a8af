import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import captions_of, open_valid

from vgsplus.audio import SAMPLE_RATE
from vgsplus.cli import main
from vgsplus.corpora import Corpus
from vgsplus.corpora.sources.librispeech import prepare_librispeech
from vgsplus.errors import CorpusError
from vgsplus.evaluation.abx_items import read_items

TRAINING, VALIDATION = {"103": ["1240", "1241"], "1034": ["121119"]}, {"1272": ["128104"], "174": ["50561"]}
SPEAKERS = """;
; ID  |SEX| SUBSET           |MINUTES| NAME
;
60   | M | train-clean-100  | 20.18 | |CBW|Simon
103  | F | train-clean-100  | 25.10 | Karen Savage
1034 | M | train-clean-100  | 25.02 | Kevin O'Coin
1272 | M | dev-clean        | 8.02  | John Garvin
174  | M | dev-clean        | 8.04  | Peter Eastman
"""
ITEM_HEADER = "#file onset offset #phone prev-phone next-phone speaker"


def flac(path: Path, pitch: float = 300, seconds: float = 0.5, rate: int = SAMPLE_RATE):
    signal = 0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)
    soundfile.write(path, signal, rate)


def subset(top: Path, name: str, speakers: dict[str, list[str]]):
    """Chapters of three utterances, 0.5, 0.6 and 0.7 s long, as they are unpacked."""
    for speaker, chapters in speakers.items():
        for chapter in chapters:
            folder = top / name / speaker / chapter
            folder.mkdir(parents=True)
            lines = []
            for number in range(3):
                utterance = f"{speaker}-{chapter}-{number:04d}"
                flac(folder / f"{utterance}.flac", 200 + 50 * number, 0.5 + 0.1 * number)
                lines.append(f"{utterance} THAT'S UTTERANCE {number} OF {speaker}\n")
            (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))


@pytest.fixture
def unpacked(tmp_path):
    """The folder into which LibriSpeech was unpacked."""
    top = tmp_path / "unpacked/LibriSpeech"
    subset(top, "train-clean-100", TRAINING)
    subset(top, "dev-clean", VALIDATION)
    return top.parent


def items(folder: Path, *lines: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dev-clean.item").write_text("\n".join([ITEM_HEADER, *lines]) + "\n")
    return folder


def test_utterances_become_captions_without_pictures(unpacked, tmp_path, recorded_progress):
    summary = prepare_librispeech(unpacked, tmp_path / "out", progress=recorded_progress)
    corpus = open_valid(tmp_path / "out")
    assert corpus.splits == ("train", "validation")
    assert [len(corpus.captions(split)) for split in corpus.splits] == [9, 6]
    caption = corpus.captions("validation")[1]
    assert (caption.id, caption.speaker, caption.language) == ("1272-128104-0001", "1272", "en")
    assert (caption.text, caption.image) == ("THAT'S UTTERANCE 1 OF 1272", None)
    assert caption.num_samples == round(0.6 * SAMPLE_RATE)
    assert corpus.feature_dim == corpus.num_regions == 0
    assert not summary.skipped
    assert recorded_progress.of("chapters") == [(n, 5) for n in range(1, 6)]
    assert recorded_progress.of("checking")[-1] == (15, 15)


def test_the_sounds_stay_where_they_are(unpacked, tmp_path):
    prepare_librispeech(unpacked / "LibriSpeech", tmp_path / "out")
    corpus = Corpus.open(tmp_path / "out")
    caption = corpus.captions("train")[-1]
    assert corpus.audio_path(caption) == (
        unpacked / "LibriSpeech/train-clean-100/1034/121119/1034-121119-0002.flac"
    )
    assert not list((tmp_path / "out").rglob("*.flac"))
    assert corpus.info["provenance"]["subsets"] == {"train-clean-100": "train", "dev-clean": "validation"}


def test_what_cannot_be_used_is_left_out_and_counted(unpacked, tmp_path):
    chapter = unpacked / "LibriSpeech/train-clean-100/103/1240"
    transcript = chapter / "103-1240.trans.txt"
    flac(chapter / "103-1240-0003.flac", rate=8000)
    flac(chapter / "103-1240-0004.flac", seconds=0.1)
    (chapter / "103-1240-0005.flac").write_bytes(b"fLaC and then nothing of the kind")
    flac(chapter / "103-1240-0006.flac")
    flac(chapter / "103-1240-0007.flac")
    flac(chapter / "103-1240-0008.flac")
    streamed = bytearray((chapter / "103-1240-0008.flac").read_bytes())
    streamed[21] &= 0xF0  # STREAMINFO's count of samples: 36 bits, 0 where the length was unknown
    streamed[22:26] = bytes(4)
    (chapter / "103-1240-0008.flac").write_bytes(streamed)
    lines = [f"103-1240-{number:04d} A LINE" for number in (3, 4, 5, 8, 9)]
    transcript.write_text("\n".join([transcript.read_text().strip(), *lines, "103-1240-0007", ""]))
    (unpacked / "LibriSpeech/dev-clean/174/50561/174-50561.trans.txt").unlink()
    (unpacked / "LibriSpeech" / "SPEAKERS.TXT").write_text(SPEAKERS)

    summary = prepare_librispeech(unpacked, tmp_path / "out")
    assert summary.skipped == {
        "8000 Hz, 1 channel(s); expected 16000 Hz mono": 1,
        "shorter than 0.25 s": 1,
        "cannot be read as sound": 1,
        "its header does not state its length": 1,
        "no line in the transcript": 2 + 3,
        "no sound": 1,
        "speaker of SPEAKERS.TXT without a folder": 1,
    }
    lines = (tmp_path / "out/skipped.jsonl").read_text().splitlines()
    what = {record["what"]: record["reason"] for record in map(json.loads, lines)}
    assert what["train-clean-100/103/1240/103-1240-0003.flac"].startswith("8000 Hz")
    assert what["train-clean-100/103/1240/103-1240.trans.txt: 103-1240-0009"] == "no sound"
    assert what["train-clean-100/60"].startswith("speaker")
    corpus = Corpus.open(tmp_path / "out")
    assert {caption.speaker for caption in corpus.captions("validation")} == {"1272"}
    assert len(corpus.captions("train")) == 9
    assert corpus.info["sex_of_speakers"] == {"103": "F", "1034": "M", "1272": "M"}


def test_items_go_into_the_corpus_byte_by_byte_and_can_be_scored(unpacked, tmp_path):
    # The last ends 5 ms behind its sound, as rounded alignments do.
    folder = items(
        tmp_path / "ABX_data",
        "1272-128104-0000 0.10 0.20 AH1 T K 1272",
        "1272-128104-0000 0.20 0.30 IY0 T K 1272",
        "174-50561-0000 0.1000 0.5050 AH1 T K 174",
    )
    prepare_librispeech(unpacked, tmp_path / "out", items=folder.parent)
    copy = tmp_path / "out/dev-clean.item"
    assert copy.read_bytes() == (folder / "dev-clean.item").read_bytes()
    corpus = Corpus.open(tmp_path / "out")
    found = read_items(copy, audio_root=corpus.audio_root / "dev-clean")
    assert [token.speaker for token in found.tokens] == ["1272", "1272", "174"]
    for caption in corpus.captions("validation"):
        assert found.audio.get(caption.id) in {None, corpus.audio_path(caption)}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1272-128104-0009 0.1 0.2 AH T K 1272", r"item:2: there is no sound 1272-128104-0009 in dev-clean"),
        ("103-1240-0000 0.1 0.2 AH T K 103", r"item:2: there is no sound 103-1240-0000 in dev-clean"),
        ("1272-128104-0000 0.1 0.6 AH T K 1272", "0.1 to 0.6 s exceeds"),
        ("1272-128104-0000 0.1 0.2 AH T K", "has 6 columns, the header names 7"),
    ],
)
def test_items_that_do_not_fit_the_subset_are_refused(unpacked, tmp_path, line, message):
    with pytest.raises(CorpusError, match=message):
        prepare_librispeech(unpacked, tmp_path / "out", items=items(tmp_path / "items", line))
    assert not (tmp_path / "out").exists()


def test_items_without_a_header_or_in_two_places_or_absent_are_refused(unpacked, tmp_path):
    folder = items(tmp_path / "items/one")
    (folder / "dev-clean.item").write_text("1272-128104-0000 0.1 0.2 AH T K 1272\n")
    with pytest.raises(CorpusError, match="item:1: must begin with #file"):
        prepare_librispeech(unpacked, tmp_path / "out", items=folder)
    items(tmp_path / "items/two")
    with pytest.raises(CorpusError, match=r"there is also .*two"):
        prepare_librispeech(unpacked, tmp_path / "out", items=folder.parent)
    with pytest.raises(CorpusError, match=r"holds none of train-clean-100\.item, dev-clean\.item"):
        prepare_librispeech(unpacked, tmp_path / "out", items=unpacked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"train": ["train-clean-360"]}, "train-clean-360: there is no such subset"),
        ({"train": ["dev-clean"]}, "dev-clean: is named twice"),
        ({"validation": ["dev-other", "test-clean"]}, "dev-other.*\n.*test-clean"),
    ],
)
def test_subsets_that_cannot_be_had_are_refused(unpacked, tmp_path, asked, message):
    with pytest.raises(CorpusError, match=message):
        prepare_librispeech(unpacked, tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_a_subset_without_anything_usable_is_refused(unpacked, tmp_path):
    for sound in (unpacked / "LibriSpeech/dev-clean").rglob("*.flac"):
        sound.unlink()
    with pytest.raises(CorpusError, match="dev-clean: no utterance of its 2 chapters can be used"):
        prepare_librispeech(unpacked, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sound_that_breaks_off_is_named(unpacked, tmp_path):
    sound = unpacked / "LibriSpeech/dev-clean/174/50561/174-50561-0001.flac"
    sound.write_bytes(sound.read_bytes()[: sound.stat().st_size // 2])
    with pytest.raises(CorpusError, match=r"174-50561-0001\.flac"):
        prepare_librispeech(unpacked, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_folders_and_other_speaker_lists_are_refused(unpacked, tmp_path):
    with pytest.raises(CorpusError, match="holds none of train-clean-100, train-clean-360, train-other-500"):
        prepare_librispeech(tmp_path, tmp_path / "out")
    (unpacked / "LibriSpeech/SPEAKERS.TXT").write_text("; ID\n103 | F | train-clean-100\n")
    with pytest.raises(CorpusError, match=r"SPEAKERS\.TXT:2: expected ID"):
        prepare_librispeech(unpacked, tmp_path / "out")


def test_the_command_takes_several_subsets(unpacked, tmp_path, capsys):
    subset(unpacked / "LibriSpeech", "train-other-500", {"20": ["205"]})
    subset(unpacked / "LibriSpeech", "dev-other", {"116": ["288045"]})
    arguments = ["data", "librispeech", tmp_path / "out", "--root", unpacked]
    arguments += ["--validation", "dev-clean", "--validation", "dev-other"]
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 0, capsys.readouterr().err
    corpus = Corpus.open(tmp_path / "out")
    assert {caption.speaker for caption in corpus.captions("train")} == {"103", "1034", "20"}
    assert {caption.speaker for caption in corpus.captions("validation")} == {"1272", "174", "116"}


# ---- as people have it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["wav", "WAV", "opus"])
def test_sounds_may_have_been_converted(unpacked, tmp_path, ending):
    for path in unpacked.rglob("*.flac"):
        samples, rate = soundfile.read(path)
        kind = {"format": "OGG", "subtype": "OPUS"} if ending == "opus" else {}
        soundfile.write(path.with_suffix(f".{ending}"), samples, rate, **kind)
        path.unlink()
    summary = prepare_librispeech(unpacked, tmp_path / "out")
    assert not summary.skipped
    assert captions_of(summary) == {"train": 9, "validation": 6}
    assert Corpus.open(tmp_path / "out").captions("train")[0].audio.endswith(f".{ending}")


def test_what_a_mac_adds_is_passed_over(unpacked, tmp_path):
    chapter = unpacked / "LibriSpeech/train-clean-100/103/1240"
    (chapter / "._103-1240-0000.flac").write_bytes(b"\0\5\x16\7Mac OS X")
    (chapter.parent / ".DS_Store").write_bytes(b"x")
    (unpacked / "LibriSpeech/train-clean-100/__MACOSX/x").mkdir(parents=True)
    assert not prepare_librispeech(unpacked, tmp_path / "out").skipped


def test_sounds_of_another_rate_are_told_as_what_they_are(unpacked, tmp_path):
    for path in (unpacked / "LibriSpeech/dev-clean").rglob("*.flac"):
        flac(path, rate=22_050)
    with pytest.raises(
        CorpusError, match=r"can be used: 6 of 6 are skipped for this reason: 22050 Hz, 1 channel"
    ):
        prepare_librispeech(unpacked, tmp_path / "out")


def test_an_utterance_with_two_lines_or_two_sounds_is_a_fault(unpacked, tmp_path):
    chapter = unpacked / "LibriSpeech/train-clean-100/103/1240"
    with (chapter / "103-1240.trans.txt").open("a") as file:
        file.write("103-1240-0001 SOMETHING ELSE\n")
    flac(chapter / "103-1240-0002.wav")
    with pytest.raises(CorpusError) as error:
        prepare_librispeech(unpacked, tmp_path / "out")
    line, other = error.value.faults
    assert line == f"{chapter}/103-1240.trans.txt:4: 103-1240-0001 is in line 2 already. Remove one."
    assert other.startswith(
        f"{chapter}/103-1240-0002.wav: is the same utterance as {chapter}/103-1240-0002.flac"
    )


def test_a_speaker_listed_twice_is_a_fault(unpacked, tmp_path):
    lines = SPEAKERS + "103  | M | train-clean-100  | 25.10 | Somebody Else\n"
    (unpacked / "LibriSpeech/SPEAKERS.TXT").write_text("\ufeff" + lines, encoding="utf-8")
    with pytest.raises(CorpusError, match=r"SPEAKERS.TXT:9: 103 is in line 5 already"):
        prepare_librispeech(unpacked, tmp_path / "out")


def test_libri_light_is_a_corpus_without_texts(tmp_path):
    for name, speaker in (("emma/one", "100"), ("emma/two", "100"), ("war and peace/one", "7")):
        path = tmp_path / "light/small" / speaker / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        flac(path)
        path.with_suffix(".json").write_text("{}")
    summary = prepare_librispeech(tmp_path / "light", tmp_path / "out")
    assert not summary.skipped
    captions = Corpus.open(tmp_path / "out").captions("train")
    assert [(c.id, c.speaker, c.text) for c in captions] == [
        ("100/emma/one", "100", None),
        ("100/emma/two", "100", None),
        ("7/war_and_peace/one", "7", None),
    ]
    subset(tmp_path / "light", "dev-clean", VALIDATION)
    summary = prepare_librispeech(tmp_path / "light", tmp_path / "both")
    assert captions_of(summary) == {"train": 3, "validation": 6}
