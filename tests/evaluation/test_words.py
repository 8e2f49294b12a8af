import math

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from vgsplus.audio import load_any, normalise, write_wav
from vgsplus.cli import main
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.lexical import cdi_word, embed_words, evaluate, find_words
from vgsplus.models.vgsplus import VGSPlus

FRAME = 400
"""Samples of the shortest recording that has a frame."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Words as tones, three takes each of 0.1 to 0.4 s, in three formats and two rates."""
    root = tmp_path_factory.mktemp("words")
    rng = np.random.default_rng(1)
    for word, pitch in (("cat", 200), ("dog", 500), ("bird", 1100)):
        for take, (suffix, rate) in enumerate((("wav", 16_000), ("flac", 22_050), ("OGG", 16_000)), 1):
            seconds = np.arange(int(rng.uniform(0.1, 0.4) * rate)) / rate
            tone = 0.3 * np.sin(2 * np.pi * pitch * seconds) + rng.normal(0, 0.01, len(seconds))
            soundfile.write(root / f"{word}_{take}.{suffix}", tone, rate, format=suffix.upper())
    (root / "notes.txt").write_text("not a sound")
    (root / "cat_4.wav.part").mkdir()
    return root


def alone(path):
    """A recording by itself: waveform (1, S) and its length (1,)."""
    wave = torch.from_numpy(normalise(load_any(path)))
    return wave[None], torch.tensor([len(wave)])


def test_recordings_come_in_the_order_of_their_names(model, folder):
    found = find_words(folder, model)
    assert list(found) == [f"{word}_{take}" for word in ("bird", "cat", "dog") for take in (1, 2, 3)]
    assert {name: path.stem for name, path in found.items()} == {name: name for name in found}


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_embeddings_are_what_the_model_gives_each_recording_alone(model, folder, batch_size):
    recordings = find_words(folder, model)
    vectors = embed_words(model, recordings, "utterance", batch_size=batch_size)
    means = embed_words(model, recordings, "utterance", 3, batch_size=batch_size)
    frames = embed_words(model, recordings, "frame", 1, batch_size=batch_size)
    tapped = embed_words(model, recordings, "frame", batch_size=batch_size)
    assert (vectors.shape, means.shape, len(frames), len(tapped)) == ((9, 8), (9, 8), 9, 9)
    with torch.no_grad():
        for index, path in enumerate(recordings.values()):
            inputs = alone(path)
            layers, _ = model.speech_layers(*inputs)
            torch.testing.assert_close(vectors[index], model.embed_speech(*inputs)[0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(means[index], layers[2][0].mean(0), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(frames[index], layers[0][0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(tapped[index], layers[1][0], atol=1e-5, rtol=1e-4)


def test_in_published_mode_too_a_recording_is_embedded_alone(folder, make_model):
    published = make_model(padding="published")
    recordings = find_words(folder, published)
    vectors = embed_words(published, recordings, "utterance")
    with torch.no_grad():
        for index, path in enumerate(recordings.values()):
            torch.testing.assert_close(vectors[index], published.embed_speech(*alone(path))[0])


def test_a_model_without_grounding_needs_a_layer(folder, make_model):
    ungrounded = make_model(grounded=False)
    with pytest.raises(VgsplusError, match=r"no speech embedding.*layer, 1 to 3"):
        embed_words(ungrounded, find_words(folder, ungrounded), "utterance")


def test_modes_come_back_and_progress_ends_at_the_total(model, folder, recorded_progress):
    model.train()
    embed_words(model, find_words(folder, model), "frame", batch_size=4, progress=recorded_progress)
    assert recorded_progress.of("embedding") == [(done, 9) for done in range(1, 10)]
    assert model.training
    model.eval()


def test_a_model_that_diverged_is_reported(folder, make_model):
    broken = make_model()
    with torch.no_grad():
        broken.speech.cls.fill_(math.nan)
    with pytest.raises(VgsplusError, match=r"[a-z]+_\d\.\w+ are not finite"):
        embed_words(broken, find_words(folder, broken), "frame")


@pytest.mark.parametrize("layer", [0, 4])
def test_a_layer_that_the_model_lacks_is_refused(model, folder, layer):
    with pytest.raises(VgsplusError, match=f"no layer {layer}: the model has layers 1 to 3"):
        embed_words(model, find_words(folder, model), "frame", layer)


def test_every_fault_of_a_folder_is_reported_at_once(model, tmp_path):
    rng = np.random.default_rng(2)
    for name, samples in (("a_1", FRAME), ("a_2", FRAME - 1), ("b_1", 800)):
        write_wav(tmp_path / f"{name}.wav", rng.normal(0, 0.1, samples).astype(np.float32))
    write_wav(tmp_path / "b_2.wav", np.zeros(800, dtype=np.float32))
    (tmp_path / "c_1.wav").write_text("no sound")
    with pytest.raises(VgsplusError) as error:
        find_words(tmp_path, model)
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    for line, message in zip(
        lines, ("have one: 'c'", "a_2.wav: 399 samples", "silent", "c_1.wav"), strict=True
    ):
        assert message in line
        assert str(tmp_path) in line


def test_a_long_list_of_faults_is_cut(model, tmp_path):
    for index in range(30):
        (tmp_path / f"{'ab'[index % 2]}_{index}.wav").write_text("")
    with pytest.raises(VgsplusError, match="and 10 more faults"):
        find_words(tmp_path, model)


def test_folders_without_sounds_are_refused(model, tmp_path):
    with pytest.raises(VgsplusError, match="no such folder"):
        find_words(tmp_path / "absent", model)
    with pytest.raises(VgsplusError, match=r"holds no sound files \(.*\.mp3.*\.wav\)"):
        find_words(tmp_path, model)
    (tmp_path / "ann").mkdir()
    write_wav(tmp_path / "ann" / "a_1.wav", np.sin(np.arange(800)).astype(np.float32))
    with pytest.raises(VgsplusError, match=r"are in subfolders, such as .*ann/a_1\.wav"):
        find_words(tmp_path, model)


def test_words_of_every_format_are_taken_and_nothing_else(model, tmp_path):
    tone = np.sin(np.arange(8000)).astype(np.float32)
    for name, kind in (("a_1.mp3", "MP3"), ("a_2.sph", "NIST"), ("b_1.aiff", "AIFF"), ("b_2.WAV", "WAV")):
        soundfile.write(tmp_path / name, tone, 16_000, format=kind)
    (tmp_path / "._a_1.mp3").write_bytes(b"\0\5\x16\7 of a Mac")
    (tmp_path / "a_3.wav").mkdir()
    assert list(find_words(tmp_path, model)) == ["a_1", "a_2", "b_1", "b_2"]


def test_a_link_to_a_word_does_not_count_as_another(model, tmp_path):
    rng = np.random.default_rng(5)
    for name in ("a_1", "a_2", "b_1", "b_2"):
        write_wav(tmp_path / f"{name}.wav", rng.normal(0, 0.1, 800).astype(np.float32))
    (tmp_path / "a_3.wav").symlink_to("a_1.wav")
    with pytest.raises(VgsplusError) as error:
        find_words(tmp_path, model)
    assert str(error.value) == (
        f"{tmp_path}/a_3.wav: is the same file as {tmp_path}/a_1.wav, through a link. Remove one of them."
    )


def test_a_name_in_two_formats_is_refused(model, tmp_path):
    tone = np.sin(np.arange(800)).astype(np.float32)
    for name in ("a_1.wav", "a_1.flac", "b_1.wav", "b_2.wav"):
        soundfile.write(tmp_path / name, tone, 16_000)
    with pytest.raises(VgsplusError, match="more than once: 'a_1'"):
        find_words(tmp_path, model)


# ---- the command ------------------------------------------------------------------------------------------


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "lexical", *map(str, arguments)])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.mark.parametrize(
    ("mode", "layer"), [("utterance", None), ("utterance", 2), ("frame", None), ("frame", 3)]
)
def test_the_command_writes_what_the_library_finds(model, run, folder, tmp_path, capsys, mode, layer):
    arguments = [run, folder, "--mode", mode, "--out", tmp_path / "out"]
    code, out, err = command(capsys, *arguments, *(["--layer", layer] if layer else []))
    assert code == 0, err
    recordings = find_words(folder, model)
    result = evaluate(list(recordings), embed_words(model, recordings, mode, layer))
    assert f"{result.score:.3f}" in out
    assert "0.333 by chance (9 tokens of 3 words)" in out
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert scores.columns.tolist() == ["word", "tokens", "score"]
    assert scores.score.tolist() == pytest.approx(result.word_scores)
    confusion = pd.read_csv(tmp_path / "out" / "confusion.csv", index_col="word")
    assert confusion.to_numpy().tolist() == result.confusion.tolist()
    assert (tmp_path / "out" / "confusion.png").is_file()


def test_the_command_knows_the_rule_of_cdi(model, run, tmp_path, capsys):
    rng = np.random.default_rng(3)
    for name in ("all_gone_Aq", "all_gone_As", "all_by_Aq", "all_by_As"):
        write_wav(tmp_path / f"{name}.wav", rng.normal(0, 0.1, 2000).astype(np.float32))
    assert next(iter(find_words(tmp_path, model, cdi_word))) == "all_by_Aq"
    out = tmp_path / "out"
    assert command(capsys, run, tmp_path, "--out", out)[0] == 1
    code, message, err = command(capsys, run, tmp_path, "--out", out, "--rule", "cdi")
    assert code == 0, err
    assert "4 tokens of 2 words" in message
    assert pd.read_csv(out / "scores.csv").word.tolist() == ["allby", "allgone"]


def test_the_command_reports_what_is_wrong_before_the_model_runs(run, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(VGSPlus, "speech_layers", None)
    monkeypatch.setattr(VGSPlus, "embed_speech", None)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    for arguments, message in (
        ([tmp_path / "empty", folder, "--out", out], "holds no model"),
        ([run, folder, "--out", out, "--layer", 4], "no layer 4"),
        ([run, tmp_path / "empty", "--out", out], "holds no sound files"),
        ([run, folder, "--out", tmp_path / "file"], "file: File exists"),
    ):
        code, _, err = command(capsys, *arguments)
        assert code == 1
        assert message in err
        assert "Traceback" not in err
    assert command(capsys, run, folder, "--out", out, "--mode", "word")[0] == 2
