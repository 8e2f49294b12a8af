import numpy as np
import pytest
import soundfile
from helpers import captions_of, open_valid

from vgsplus.cli import main
from vgsplus.corpora.items import parse_items
from vgsplus.corpora.sources.festvox import prepare_festvox
from vgsplus.errors import CorpusError, VgsplusError

SENTENCES = 10
LABELS = "separator ;\n#\n0.10 125 pau\n0.20 125 k\n0.30 125 {}\n0.40 125 t\n0.50 125 pau\n"


def voice(folder, rate=16_000, sentences=SENTENCES):
    """A voice as unpacked, of sentences half a second long."""
    for part in ("wav", "lab", "etc"):
        (folder / part).mkdir(parents=True)
    lines = []
    for number in range(sentences):
        name = f"arctic_a{number:04d}"
        noise = np.random.default_rng([number, len(folder.name)]).normal(0, 0.1, rate // 2)
        soundfile.write(folder / "wav" / f"{name}.wav", noise, rate)
        (folder / "lab" / f"{name}.lab").write_text(LABELS.format("ae"[number % 2]))
        lines.append(f'( {name} "The \\"sentence\\" {number}." )\n')
    (folder / "etc" / "txt.done.data").write_text("".join(lines))
    return folder


@pytest.fixture
def slt(tmp_path):
    return voice(tmp_path / "cmu_us_slt_arctic")


def test_a_voice_becomes_a_corpus_with_texts_and_items(slt, tmp_path):
    summary = prepare_festvox([slt], tmp_path / "out", held_out=0.2, language="en")
    assert captions_of(summary) == {"test": 2, "train": 6, "validation": 2}
    corpus = open_valid(tmp_path / "out")
    for split in ("validation", "test"):
        captions = corpus.captions(split)
        lines = [f"{c.id} 0.1 0.4 {'ae'[int(c.id[-1]) % 2]} k t cmu_us_slt_arctic" for c in captions]
        assert (corpus.root / f"{split}.item").read_text().splitlines()[1:] == lines
        assert {(c.speaker, c.language, c.text) for c in captions} == {
            ("cmu_us_slt_arctic", "en", f'The "sentence" {int(c.id[-1])}.') for c in captions
        }
        assert all(c.audio == str(slt / "wav" / f"{c.id}.wav") for c in captions)


def test_sentences_are_in_one_split_with_all_their_speakers(slt, tmp_path):
    bdl = voice(tmp_path / "cmu_us_bdl_arctic", rate=8_000)
    prepare_festvox([slt, bdl], tmp_path / "out", held_out=3)
    corpus = open_valid(tmp_path / "out")
    for split, number in (("validation", 3), ("test", 3), ("train", 4)):
        captions = corpus.captions(split)
        assert len(captions) == 2 * number
        assert len({caption.text for caption in captions}) == number
    items, _ = parse_items(tmp_path / "out" / "test.item")
    assert {token.speaker for token in items.tokens} == {slt.name, bdl.name}
    assert {token.file for token in items.tokens} == {caption.id for caption in corpus.captions("test")}


def test_splits_depend_on_the_seed_alone(slt, tmp_path):
    def test_split(name, seed):
        prepare_festvox([slt], tmp_path / name, held_out=3, seed=seed)
        return [caption.id for caption in open_valid(tmp_path / name).captions("test")]

    assert test_split("a", 0) == test_split("b", 0)
    assert len({tuple(test_split(f"c{seed}", seed)) for seed in range(3)}) > 1


def test_sounds_without_text_and_texts_without_sound_are_skipped(slt, tmp_path):
    lines = (slt / "etc/txt.done.data").read_text().splitlines()[1:]
    (slt / "etc/txt.done.data").write_text("\n".join([*lines, '( gone "A text." )']))
    summary = prepare_festvox([slt], tmp_path / "out")
    assert summary.skipped == {"no line in etc/txt.done.data": 1, "no sound": 1}
    assert sum(captions_of(summary).values()) == SENTENCES - 1


def test_a_voice_without_phone_times_has_no_items(slt, tmp_path):
    (slt / "lab").rename(slt / "other")
    prepare_festvox([slt], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.item"))


def test_all_faults_of_voices_are_told_together(slt, tmp_path):
    bdl = voice(tmp_path / "bdl")
    texts = bdl / "etc/txt.done.data"
    texts.write_text(texts.read_text() + '( arctic_a0001 "Again." )\narctic_a0002 A text\n')
    (slt / "lab" / "arctic_a0003.lab").write_text("#\n0.2 125 k\n0.1 125 a\n")
    (slt / "lab" / "arctic_a0004.lab").write_text("#\n0.2 125 k\n9 125 a\n")
    (bdl / "wav" / "arctic_a0005.flac").write_bytes((bdl / "wav" / "arctic_a0005.wav").read_bytes())
    (voice(tmp_path / "mute") / "wav").rename(tmp_path / "mute" / "sounds")
    (bdl / "lab" / "other.lab").write_text(LABELS.format("a"))
    with pytest.raises(CorpusError) as error:
        prepare_festvox([slt, bdl, tmp_path / "none", tmp_path / "mute"], tmp_path / "out")
    told = "\n".join(error.value.faults)
    for fault in (
        "txt.done.data:11: arctic_a0001 is in line 2 already",
        'txt.done.data:12: expected ( NAME "TEXT" )',
        "arctic_a0003.lab:3: end 0.1 must be after start 0.2",
        "arctic_a0004.lab:3: 9 s is after the end of",
        "other.lab: there is no sound other below",
        "arctic_a0005.wav: is the same sentence as",
        "mute/wav: there is no such folder of sounds",
        "none/etc/txt.done.data: there is no such file",
    ):
        assert fault in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("held_out", [0, 0.04, 0.5, 5, 20])
def test_splits_without_sentences_are_refused(slt, tmp_path, held_out):
    with pytest.raises(VgsplusError, match="of 10 sentences cannot be in validation"):
        prepare_festvox([slt], tmp_path / "out", held_out=held_out)


def test_voices_at_another_rate_are_converted(tmp_path):
    prepare_festvox([voice(tmp_path / "a", rate=8_000), voice(tmp_path / "b")], tmp_path / "out", held_out=2)
    corpus = open_valid(tmp_path / "out")
    for caption in corpus.captions("test"):
        assert caption.id.split("/")[:2] == [caption.speaker, "wav"]
        converted = tmp_path / "out/audio" / f"{caption.id}.wav"
        assert converted.is_file() == (caption.speaker == "a")
        assert caption.num_samples == 8_000


def test_a_folder_with_a_blank_in_its_name_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="my voice: has a blank in its name"):
        prepare_festvox([voice(tmp_path / "my voice")], tmp_path / "out")


def test_roots_of_one_name_are_refused(slt, tmp_path):
    other = voice(tmp_path / "copy" / slt.name)
    with pytest.raises(CorpusError, match="cmu_us_slt_arctic: 2 roots are named so"):
        prepare_festvox([slt, other], tmp_path / "out")


def test_the_command_takes_several_roots(slt, tmp_path, capsys):
    bdl = voice(tmp_path / "bdl")
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "data",
                "festvox",
                str(tmp_path / "out"),
                "--root",
                str(slt),
                "--root",
                str(bdl),
                "--held-out",
                "2",
            ]
        )
    assert ended.value.code == 0
    assert "cmu_us_slt_arctic-bdl in" in capsys.readouterr().out
