import numpy as np
import pytest
import soundfile
from helpers import captions_of, open_valid

from vgsplus.audio import SAMPLE_RATE, read
from vgsplus.corpora.sources.kaldi import prepare_kaldi
from vgsplus.errors import CorpusError


@pytest.fixture
def kaldi(tmp_path):
    """Two data folders: pieces of a long recording to train on, whole recordings to validate on."""
    noise = np.random.default_rng(0).normal(0, 0.1, 64_000)
    soundfile.write(tmp_path / "long.wav", noise, SAMPLE_RATE)
    soundfile.write(tmp_path / "call.sph", noise[:16_000], 8000, format="NIST")
    write(
        tmp_path / "train",
        {
            "wav.scp": "rec1 long.wav\n",
            "segments": "anna-1 rec1 0.5 1.25\nanna-2 rec1 2.0 -1\n",
            "utt2spk": "anna-1 anna\nanna-2 anna\n",
            "text": "anna-1 guten Tag\nanna-2\n",
        },
    )
    write(
        tmp_path / "dev",
        {"wav.scp": f"call {tmp_path}/call.sph\n", "utt2spk": "call berta\n", "utt2lang": "call de\n"},
    )
    return tmp_path


def write(folder, files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def prepare(root, **others):
    return prepare_kaldi({"train": root / "train"} | others, root / "out")


def faults(root, **others):
    with pytest.raises(CorpusError) as error:
        prepare(root, **others)
    assert not list(root.glob(".*")) + list(root.glob("out"))
    return [fault.removeprefix(f"{root}/train/") for fault in error.value.faults]


def test_data_folders_become_a_corpus(kaldi, monkeypatch):
    monkeypatch.chdir(kaldi)
    summary = prepare(kaldi, validation=kaldi / "dev")
    assert captions_of(summary) == {"train": 2, "validation": 1}
    corpus = open_valid(kaldi / "out")
    one, two = corpus.captions("train")
    assert [(c.id, c.speaker, c.text, c.num_samples) for c in (one, two)] == [
        ("anna-1", "anna", "guten Tag", 12_000),
        ("anna-2", "anna", None, 32_000),
    ]
    np.testing.assert_array_equal(read(corpus.audio_path(one)), read(kaldi / "long.wav")[8000:20_000])
    (call,) = corpus.captions("validation")
    assert (call.id, call.speaker, call.language, call.num_samples) == ("call", "berta", "de", 32_000)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("wav.scp", "rec1 sph2pipe -f wav x.sph |\n", "wav.scp:1: rec1 is the output of a command"),
        ("wav.scp", "rec1\n", "wav.scp:1: nothing follows rec1"),
        ("wav.scp", "rec1 long.wav\nrec1 long.wav\n", "wav.scp:2: rec1 is in line 1 already"),
        ("wav.scp", "rec1 gone.wav\n", "gone.wav: there is no such sound file"),
        ("segments", "anna-1 rec2 0 1\n", "segments:1: there is no recording rec2"),
        ("segments", "anna-1 rec1 0\n", "segments:1: expected utterance, recording, start and end"),
        ("segments", "anna-1 rec1 x 1\n", "segments:1: start x and end 1 must be seconds"),
        ("segments", "anna-1 rec1 2 1\n", "segments:1: end 1 must be after start 2"),
        ("segments", "anna-1 rec1 0 9\n", "9 s is after its end, 4.000 s"),
        ("segments", "anna-1 rec1 0 1\nanna-2 rec1 0.0 1.0\n", "segments:2: repeats line 1"),
        ("segments", "anna-1 rec1 0 1\nanna-1 rec1 1 2\n", "segments:2: anna-1 is in line 1 already"),
        ("segments", "../x rec1 0 1\n", "has no speaker"),
        ("utt2spk", "anna-1 anna\n", "segments:2: utterance anna-2 has no speaker in utt2spk"),
        ("utt2spk", "anna-1 anna\nanna-2 anna\nanna-2 anna\n", "utt2spk:3: anna-2 is in line 2 already"),
        ("text", "anna-1 x\nanna-1 y\n", "text:2: anna-1 is in line 1 already"),
    ],
)
def test_a_fault_is_told_with_its_file_and_line(kaldi, monkeypatch, file, text, message):
    monkeypatch.chdir(kaldi)
    write(kaldi / "train", {file: text})
    assert any(message in fault for fault in faults(kaldi))


def test_an_utterance_of_two_folders_and_an_absent_file_are_faults(kaldi, monkeypatch):
    monkeypatch.chdir(kaldi)
    assert any("is in" in fault and "already" in fault for fault in faults(kaldi, test=kaldi / "train"))
    (kaldi / "train/utt2spk").unlink()
    assert faults(kaldi)[0].startswith("utt2spk: there is no such file")


def test_an_id_that_leads_out_of_the_corpus_is_a_fault(kaldi):
    write(kaldi / "train", {"segments": "../x rec1 0 1\n", "utt2spk": "../x anna\n"})
    assert "segments:1: ../x cannot name a file of the corpus. Rename it." in faults(kaldi)


def test_text_that_is_not_utf8_is_a_fault_of_its_line(kaldi):
    (kaldi / "train/text").write_bytes(b"anna-1 Tag\nanna-2 \xe4\n")
    assert faults(kaldi)[0] == "text:2: is not UTF-8 text. Save it as UTF-8."
