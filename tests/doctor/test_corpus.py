import dataclasses
import json

import numpy as np
import pytest
from helpers import ABOUT, CAPTION

from vgsplus.audio import SAMPLE_RATE, write_wav
from vgsplus.corpora import Corpus, CorpusWriter
from vgsplus.doctor import examine


def captions(*lengths):
    return [dataclasses.replace(CAPTION, num_samples=length) for length in lengths]


def test_a_sound_corpus_is_ok_and_counted(tiny_corpus, found):
    diagnosis = examine(tiny_corpus)
    assert diagnosis.ok
    reported = dict(found(diagnosis, "ok"))
    assert "16 captions of 8 pictures, 3 speakers, 1 language" in reported["train"]
    seconds = [caption.num_samples / SAMPLE_RATE for caption in Corpus.open(tiny_corpus).captions("test")]
    assert f"{min(seconds):.2f} to {max(seconds):.2f}" in reported["test"]
    assert "16 pictures of 5 regions with 12 features, float32" in reported["regions"]
    assert "32 tokens of 2 phones in 8 sounds" in reported["ABX items"]


def test_a_truncated_sound_is_a_fault_with_its_name(corpus, found):
    sound = min((corpus / "audio").glob("train-*.wav"))
    sound.write_bytes(sound.read_bytes()[:3000])
    faults = found(examine(corpus), "fault")
    assert len(faults) == 1
    assert sound.stem in faults[0][1]


def test_missing_regions_are_a_fault(corpus, found):
    (corpus / "regions.h5").unlink()
    diagnosis = examine(corpus)
    assert not diagnosis.ok
    assert "regions.h5: is missing" in found(diagnosis, "fault")[0][1]


def test_truncated_regions_are_a_fault(corpus, found):
    regions = corpus / "regions.h5"
    regions.write_bytes(regions.read_bytes()[:-500])
    assert "regions.h5" in found(examine(corpus), "fault")[0][1]


def test_a_corpus_without_its_description_is_still_taken_for_one(corpus, found):
    (corpus / "corpus.json").unlink()
    assert "corpus.json is missing" in found(examine(corpus), "fault")[0][1]


def test_twenty_faults_are_shown_and_the_others_counted(corpus, found):
    for sound in (corpus / "audio").glob("*.wav"):
        sound.unlink()
    shown = [text for about, text in found(examine(corpus), "fault") if about == "contents"]
    assert len(shown) == 20
    assert "… and 12 more faults" in shown[-1]
    assert "vgsplus data" in shown[-1]
    assert len(set(shown)) == 20


def test_items_of_a_sound_that_is_gone_are_a_fault(corpus, found):
    with (corpus / "test.item").open("a") as items:
        items.write("nobody 0.1 0.2 a k t ann\n")
    reported = [text for about, text in found(examine(corpus), "fault") if about == "ABX items"]
    assert len(reported) == 1
    assert "nobody" in reported[0]


def test_what_a_killed_process_left_is_a_hint(corpus, found):
    (corpus.parent / f".{corpus.name}.preparing").mkdir()
    (corpus.parent / ".another.preparing").mkdir()
    (hint,) = [text for about, text in found(examine(corpus), "hint") if about == "leftovers"]
    assert f".{corpus.name}.preparing" in hint
    assert "another" not in hint


def test_a_corpus_of_one_voice_and_one_caption_a_picture_gets_hints(tmp_path, found):
    root = tmp_path / "small"
    with CorpusWriter(root, **ABOUT, image_root=None) as writer:
        (writer.folder / "audio").mkdir()
        samples = np.random.default_rng(0).normal(0, 0.1, 9 * SAMPLE_RATE).astype(np.float32)
        write_wav(writer.folder / "audio" / "a.wav", samples)
        writer.add_regions("a.png", np.ones((2, 3), np.float32), np.tile(np.float32([0, 0, 1, 1]), (2, 1)))
        (caption,) = captions(len(samples))
        writer.add_caption(dataclasses.replace(caption, audio="a.wav", image="a.png"))
    diagnosis = examine(root)
    assert diagnosis.ok
    hints = found(diagnosis, "hint")
    reported = dict(hints)
    assert "one only, s" in reported["speakers"]
    assert "1 of 1 picture have one caption only" in reported["pictures"]
    assert "toy 1 after 2.5 s" in reported["cropping"]
    assert "paper 1 after 8 s" in reported["cropping"]
    splits = [text for name, text in hints if name == "splits"]
    assert any("no split validation" in text for text in splits)
    assert any("no test split" in text for text in splits)
    assert reported["ABX items"].startswith("none")


@pytest.mark.parametrize(("field", "value"), [("num_samples", "many"), ("audio", None), ("split", 3)])
def test_a_caption_with_a_field_of_another_kind_is_a_fault_and_no_crash(corpus, found, field, value):
    path = corpus / "captions.jsonl"
    *others, last = path.read_text().splitlines()
    assert json.loads(last)["split"] == "test"  # one that the items name
    broken = json.dumps(json.loads(last) | {field: value})
    path.write_text("\n".join([*others, broken]) + "\n")
    assert any(field in text for _, text in found(examine(corpus), "fault"))
