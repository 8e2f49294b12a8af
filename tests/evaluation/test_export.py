import json
import math
import os
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import soundfile
import torch
import yaml

import vgsplus
from vgsplus.audio import load_any, normalise
from vgsplus.cli import main
from vgsplus.errors import AudioError, CorpusError, VgsplusError
from vgsplus.evaluation import export as exporting
from vgsplus.evaluation.export import export, find_sounds, metadata_of, open_store, pending
from vgsplus.evaluation.hidden_states import layers_of
from vgsplus.evaluation.zerospeech import Submission, find_phonetic
from vgsplus.progress import Progress

FAST = ((4, 10, 5), *[(8, 3, 2)] * 4, (8, 2, 2))
WIDE = ((4, 10, 5), *[(8, 3, 2)] * 4, (8, 4, 2), (8, 8, 2))  # hears 95 ms: whole frames ahead
FIELD = 400
"""Samples that one frame hears."""


def write_sound(path, seconds, *, rate=16_000, channels=1, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 0.1, (round(seconds * rate), channels))
    soundfile.write(path, noise, rate, format=path.suffix[1:].upper())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sounds of three formats, rates and depths."""
    root = tmp_path_factory.mktemp("sounds")
    write_sound(root / "b.wav", 0.5, seed=1)
    write_sound(root / "ann" / "a.FLAC", 0.3, rate=22_050, channels=2, seed=2)
    write_sound(root / "ann" / "deep" / "c.ogg", 0.7, rate=8_000, seed=3)
    (root / "ann" / "notes.txt").write_text("not a sound")
    return root


NAMES = ["ann/a", "ann/deep/c", "b"]


def alone(model, path):
    """What every layer gives for a sound by itself: (L, T, D)."""
    wave = torch.from_numpy(normalise(load_any(path)))[None]
    with torch.no_grad():
        layers, _ = model.speech_layers(wave, torch.tensor([wave.shape[1]]))
    return torch.stack(layers)[:, 0]


def written(form, out):
    """{name: features} of all that an export wrote."""
    if form == "hdf5":
        found = {}
        with h5py.File(out) as file:
            file.visititems(
                lambda name, it: found.update({name: it[()]} if isinstance(it, h5py.Dataset) else {})
            )
        return found
    read = np.load if form == "npy" else lambda path: torch.load(path, weights_only=True).numpy()
    return {
        path.relative_to(out).with_suffix("").as_posix(): read(path) for path in out.rglob(f"[!.]*.{form}")
    }


class StopAfterTwo(Progress):
    def update(self, _stage, done, *_):
        if done == 2:
            raise KeyboardInterrupt


def embed_all(model, sounds, out, form="npy", layers=(1, 2, 3), **options):
    """`pending` and `export`; the names of what was written."""
    store = open_store(form, out, metadata_of(model, out / "model", layers))
    missing = pending(store, sounds, model, layers)
    export(store, missing, model, layers, **options)
    return sorted(missing)


def everything_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# ---- one clip ---------------------------------------------------------------------------------------------


def test_a_clip_is_embedded_in_three_lines(run, folder, model):
    loaded = vgsplus.load(run)
    layers = loaded.layers(folder / "ann" / "a.FLAC")
    assert list(layers) == [1, 2, 3]
    assert all(frames.dtype == torch.float32 and not frames.requires_grad for frames in layers.values())
    torch.testing.assert_close(torch.stack(list(layers.values())), alone(model, folder / "ann" / "a.FLAC"))
    assert layers[1].shape == ((len(load_any(folder / "ann" / "a.FLAC")) - FIELD) // 320 + 1, 8)


def test_samples_are_embedded_as_their_file_is_at_any_scale(folder, model):
    expected = layers_of(model, str(folder / "b.wav"))
    samples = load_any(folder / "b.wav")
    pcm = (samples * 32_768).astype(np.int16)
    for given in (samples, samples.astype(np.float64), torch.from_numpy(samples), pcm, samples.tolist()):
        found = layers_of(model, given)
        for layer, frames in expected.items():
            torch.testing.assert_close(found[layer], frames, atol=1e-4, rtol=1e-4)


def test_embedding_leaves_modes_and_generator_alone(folder, make_model):
    model = make_model().train()
    model.image.eval()
    state = torch.random.get_rng_state()
    first, second = (layers_of(model, folder / "b.wav")[3] for _ in range(2))
    assert torch.equal(first, second)  # no dropout
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert not model.image.training


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((2, 16_000)), r"\(S,\) of one channel at 16 kHz, not float64 \(2, 16000\)"),
        (np.zeros(16_000, dtype=complex), "real numbers"),
        (torch.full((16_000,), torch.nan), "not finite"),
        (np.ones(FIELD - 1), "399 samples at 16 kHz; one frame needs 400"),
        (np.ones(0), "0 samples"),
        (np.ones(FIELD), "silent"),
        (np.linspace(-1e300, 1e300, FIELD), "not finite"),
    ],
)
def test_samples_that_cannot_be_used_are_refused(model, samples, message):
    with pytest.raises(AudioError, match=message):
        layers_of(model, samples)
    assert layers_of(model, np.arange(FIELD))[1].shape == (1, 8)


def test_a_diverged_model_is_reported(folder, make_model):
    broken = make_model()
    with torch.no_grad():
        broken.speech.layers[1].ffn_norm.bias.fill_(math.nan)
    with pytest.raises(VgsplusError, match=r"b\.wav, layer 2 are not finite"):
        layers_of(broken, folder / "b.wav")


# ---- folders and files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["npy", "pt", "hdf5"])
@pytest.mark.parametrize("layers", [(1, 2, 3), (2,), (3, 1)])
def test_every_sound_is_written_with_its_layers_in_the_order_asked(form, layers, folder, model, tmp_path):
    sounds, out = find_sounds(folder), tmp_path / "deep" / "out"
    assert embed_all(model, sounds, out, form, layers) == NAMES
    found = written(form, out)
    assert sorted(found) == NAMES
    for name, features in found.items():
        expected = alone(model, sounds[name])[[layer - 1 for layer in layers]]
        assert features.dtype == np.float32
        assert features.shape == (expected.shape if len(layers) > 1 else expected.shape[1:])
        np.testing.assert_allclose(features.reshape(expected.shape), expected, atol=1e-5, rtol=1e-4)


def test_a_bundles_features_do_not_depend_on_its_other_sounds(folder, tmp_path, make_model):
    model, sounds = make_model(padding="published"), find_sounds(folder)
    embed_all(model, sounds, tmp_path)
    for name, features in written("npy", tmp_path).items():
        np.testing.assert_allclose(features, alone(model, sounds[name]), atol=1e-5, rtol=1e-4)


def test_tensors_are_no_larger_than_their_sounds(folder, model, tmp_path):
    embed_all(model, find_sounds(folder), tmp_path / "out", "pt", (1,))
    for path in (tmp_path / "out").rglob("*.pt"):
        assert path.stat().st_size < torch.load(path, weights_only=True).numel() * 4 + 4096


def test_an_hdf5_file_holds_the_origin_of_its_features(folder, model, tmp_path):
    embed_all(model, find_sounds(folder), tmp_path / "out.h5", "hdf5", (3, 1))
    with h5py.File(tmp_path / "out.h5") as file:
        assert file.attrs["layers"].tolist() == [3, 1]
        assert file.attrs["frame_rate"] == 50
        assert file.attrs["model"] == str(tmp_path / "out.h5" / "model")
    assert everything_in(tmp_path) == ["out.h5"]


def test_one_pass_serves_all_layers_and_progress_ends_at_the_total(
    folder, monkeypatch, tmp_path, recorded_progress, make_model
):
    model, heard = make_model(), []
    run = model.speech_layers
    monkeypatch.setattr(
        model, "speech_layers", lambda waves, lengths: heard.extend(lengths.tolist()) or run(waves, lengths)
    )
    sounds = find_sounds(folder)
    embed_all(model, sounds, tmp_path / "out", progress=recorded_progress)
    assert sorted(heard) == sorted(len(load_any(path)) for path in sounds.values())
    assert recorded_progress.of("embedding") == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("form", ["npy", "pt", "hdf5"])
def test_an_interrupted_export_leaves_complete_files_and_resumes(form, folder, model, tmp_path):
    sounds, out = find_sounds(folder), tmp_path / "out"

    with pytest.raises(KeyboardInterrupt):
        embed_all(model, sounds, out, form, batch_seconds=0.1, progress=StopAfterTwo())
    if form == "hdf5":
        assert everything_in(tmp_path) == []
        assert embed_all(model, sounds, out, form) == NAMES
    else:
        assert sorted(written(form, out)) == ["ann/deep/c", "b"]  # the longest come first
        kept = (out / f"b.{form}").stat().st_mtime_ns
        assert embed_all(model, sounds, out, form) == ["ann/a"]
        assert (out / f"b.{form}").stat().st_mtime_ns == kept
        assert embed_all(model, sounds, out, form) == []
    assert sorted(written(form, out)) == NAMES
    assert not list(tmp_path.rglob(".*"))


def test_a_failed_write_is_reported_and_leaves_no_half_file(folder, model, tmp_path, monkeypatch):
    def fail(file, _features):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting.np, "save", fail)
    with pytest.raises(VgsplusError, match=r"c\.npy: cannot be written \(No space left on device\)"):
        embed_all(model, find_sounds(folder), tmp_path)
    assert everything_in(tmp_path) == ["ann", "ann/deep", "features.json"]


def test_a_folder_takes_features_of_one_origin(folder, model, tmp_path, make_model):
    sounds = find_sounds(folder)
    embed_all(model, {"b": sounds["b"]}, tmp_path, layers=(1, 2))
    about = json.loads((tmp_path / "features.json").read_text())
    assert (about["layers"], about["frame_rate"]) == ([1, 2], 50)
    for other, layers in ((model, (2, 1)), (model, (1,)), (make_model(seed=1), (1, 2))):
        with pytest.raises(
            VgsplusError, match=r"holds features of layers \[1, 2\] of .*Choose another folder"
        ):
            embed_all(other, sounds, tmp_path, layers=layers)
    assert embed_all(model, sounds, tmp_path, layers=(1, 2)) == NAMES[:2]
    (tmp_path / "features.json").unlink()
    with pytest.raises(VgsplusError, match=r"no features\.json"):
        embed_all(model, sounds, tmp_path, layers=(1, 2))
    (tmp_path / "features.json").write_text("[]")
    with pytest.raises(VgsplusError, match=r"features\.json: is broken"):
        embed_all(model, sounds, tmp_path, layers=(1, 2))


# ---- what is a sound --------------------------------------------------------------------------------------

FORMATS = {
    "a.mp3": ("MP3", None),
    "a.opus": ("OGG", "OPUS"),
    "a.sph": ("NIST", None),
    "a.AIFF": ("AIFF", None),
    "a.caf": ("CAF", None),
    "a.au": ("AU", None),
    "a.w64": ("W64", None),
}


@pytest.mark.parametrize("name", FORMATS)
def test_sounds_of_every_format_are_embedded(model, tmp_path, name):
    kind, subtype = FORMATS[name]
    noise = np.random.default_rng(0).normal(0, 0.1, 8000)
    (tmp_path / "s").mkdir()
    soundfile.write(tmp_path / "s" / name, noise, 16_000, format=kind, subtype=subtype)
    assert embed_all(model, find_sounds(tmp_path / "s"), tmp_path / "folder") == ["a"]
    np.testing.assert_allclose(
        np.load(tmp_path / "folder" / "a.npy"), alone(model, tmp_path / "s" / name), rtol=1e-4, atol=1e-5
    )
    assert embed_all(model, find_sounds(tmp_path / "s" / name), tmp_path / "file") == ["a"]


def test_one_file_is_a_sound_whatever_its_ending(model, tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 8000)
    soundfile.write(tmp_path / "a.wave", noise, 16_000, format="WAV")
    assert embed_all(model, find_sounds(tmp_path / "a.wave"), tmp_path / "out") == ["a"]


def test_what_a_mac_leaves_is_passed_over_and_no_link_is_followed_round(tmp_path):
    write_sound(tmp_path / "s" / "deep" / "x.wav", 0.1)
    (tmp_path / "s" / "deep" / "._x.wav").write_bytes(b"\0\5\x16\7 of a Mac")
    (tmp_path / "s" / "deep" / "round").symlink_to(tmp_path / "s")
    (tmp_path / "s" / "folder.wav").mkdir()
    assert find_sounds(tmp_path / "s") == {"deep/x": tmp_path / "s" / "deep" / "x.wav"}


def test_only_the_last_ending_of_a_name_is_cut(tmp_path):
    # As in a copy of TIMIT with sounds converted beside the published ones.
    names = ["SA1.WAV", "SA1.WAV.wav", "clip.v1.wav", "clip.v2.wav", "clip.wav", "clip/v1.wav"]
    for name in names:
        write_sound(tmp_path / name, 0.1)
    assert find_sounds(tmp_path) == {Path(name).with_suffix("").as_posix(): tmp_path / name for name in names}


@pytest.mark.parametrize(("given", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_places_are_found_under_another_unicode_form(tmp_path, given, stored):
    def place(form):
        return tmp_path / unicodedata.normalize(form, "phonetic/dev-clean/ü/é.wav")

    write_sound(place(stored), 0.1)
    name = unicodedata.normalize(stored, "é")
    assert find_sounds(place(given)) == {name: place(stored)}
    assert find_sounds(place(given).parent) == {name: place(stored)}


# ---- what is refused --------------------------------------------------------------------------------------


def test_sounds_of_one_name_are_reported_together(tmp_path):
    for name in ("a.wav", "a.flac", "x/b.ogg", "x/b.wav"):
        write_sound(tmp_path / name, 0.1)
    with pytest.raises(CorpusError) as caught:
        find_sounds(tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "a.flac and" in lines[0]
    assert "have one name, x/b" in lines[1]


def test_faults_of_sounds_are_reported_together_and_nothing_is_written(model, tmp_path):
    sounds = tmp_path / "sounds"
    write_sound(sounds / "good.wav", 0.2)
    (sounds / "text.wav").write_text("no sound")
    write_sound(sounds / "short.wav", (FIELD - 1) / 16_000)
    soundfile.write(sounds / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(sounds / "cut.flac", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    whole = (sounds / "cut.flac").read_bytes()
    (sounds / "cut.flac").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorpusError) as caught:
        embed_all(model, find_sounds(sounds), tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 4
    for message in (
        "text.wav: cannot be read",
        "short.wav: 399 samples",
        "silent.wav: is silent",
        "cut.flac",
    ):
        assert message in str(caught.value)
    assert everything_in(tmp_path) == [
        "sounds",
        *(f"sounds/{path.name}" for path in sorted(sounds.iterdir())),
    ]


def test_a_sound_cannot_be_a_dataset_and_a_group(model, tmp_path):
    write_sound(tmp_path / "a.wav", 0.1)
    write_sound(tmp_path / "a" / "b.wav", 0.1)
    with pytest.raises(VgsplusError, match="The sounds a and a/b cannot both be in an HDF5 file"):
        embed_all(model, find_sounds(tmp_path), tmp_path / "out.h5", "hdf5")
    assert embed_all(model, find_sounds(tmp_path), tmp_path / "out", "npy") == ["a", "a/b"]
    write_sound(tmp_path / "a.npy" / "b.wav", 0.1)
    with pytest.raises(
        VgsplusError, match=r"a and a\.npy/b cannot both be in a folder: a\.npy would have to hold"
    ):
        embed_all(model, find_sounds(tmp_path), tmp_path / "again", "npy")
    assert not (tmp_path / "again").exists()


def test_a_name_that_is_no_utf8_cannot_be_in_an_hdf5_file(model, tmp_path):
    write_sound(tmp_path / "a.wav", 0.1)
    (tmp_path / "a.wav").rename(tmp_path / os.fsdecode(b"caf\xe9.wav"))
    with pytest.raises(VgsplusError, match=r"'caf.*' is not UTF-8"):
        embed_all(model, find_sounds(tmp_path), tmp_path / "out.h5", "hdf5")
    assert embed_all(model, find_sounds(tmp_path), tmp_path / "out") == [os.fsdecode(b"caf\xe9")]


@pytest.mark.parametrize("form", ["npy", "hdf5"])
def test_places_that_cannot_be_written_are_refused(form, folder, model, tmp_path):
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "deep" / "out"):
        with pytest.raises(VgsplusError, match=r"cannot be written|exists already"):
            embed_all(model, find_sounds(folder), out, form)
    assert (tmp_path / "file").read_text() == "kept"
    assert everything_in(tmp_path) == ["file"]


def test_a_full_disk_is_reported_before_the_model_runs(folder, model, tmp_path, monkeypatch):
    sounds = find_sounds(folder)
    size = sum(alone(model, path).numel() for path in sounds.values()) * 4
    monkeypatch.setattr(exporting.shutil, "disk_usage", lambda _: SimpleNamespace(free=size - 1))
    with pytest.raises(VgsplusError, match=r"the features take 0\.0 GB, and 0\.0 GB are free"):
        embed_all(model, sounds, tmp_path / "out")
    assert everything_in(tmp_path) == []
    monkeypatch.setattr(exporting.shutil, "disk_usage", lambda _: SimpleNamespace(free=size))
    assert embed_all(model, sounds, tmp_path / "out") == NAMES


# ---- ZeroSpeech -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A dataset of the challenge without test-clean, with an empty test-other."""
    root = tmp_path_factory.mktemp("zerospeech")
    for number, name in enumerate(("dev-clean/beKZ", "dev-clean/aXyP", "dev-other/0a1B")):
        write_sound(root / "phonetic" / f"{name}.wav", 0.2 + 0.1 * number, seed=number)
    (root / "phonetic" / "dev-clean" / "dev-clean.item").write_text("#file onset offset\n")
    (root / "phonetic" / "test-other").mkdir()
    write_sound(root / "lexical" / "dev" / "word.wav", 0.2)
    (root / "phonetic" / "dev-clean" / "._beKZ.wav").write_bytes(b"\0\5\x16\7 of a Mac")
    return root


TEXTS = ["phonetic/dev-clean/aXyP", "phonetic/dev-clean/beKZ", "phonetic/dev-other/0a1B"]


def submit(model, dataset, out, layers=(2,), **options):
    sounds, _ = find_phonetic(dataset)
    store = Submission(out, metadata_of(model, dataset / "runs" / "vgs+", layers), model)
    missing = pending(store, sounds, model, layers)
    export(store, missing, model, layers, **options)
    return sorted(missing)


def test_a_submission_holds_every_float_of_every_sound(dataset, model, tmp_path):
    assert submit(model, dataset, tmp_path / "out") == TEXTS
    embed_all(model, find_phonetic(dataset)[0], tmp_path / "npy", layers=(2,))
    folders = ["phonetic", "phonetic/dev-clean", "phonetic/dev-other"]
    assert everything_in(tmp_path / "out") == sorted(
        [*folders, "meta.yaml", *(f"{text}.txt" for text in TEXTS)]
    )
    for text in TEXTS:
        found = np.loadtxt(tmp_path / "out" / f"{text}.txt")
        assert (found.ndim, found.dtype) == (2, float)
        np.testing.assert_array_equal(found.astype(np.float32), np.load(tmp_path / "npy" / f"{text}.npy"))
    assert everything_in(tmp_path)[0] in {"npy", "out"}  # nothing hidden stays


def test_meta_has_the_entries_that_the_challenge_wants(dataset, model, tmp_path):
    submit(model, dataset, tmp_path / "out")
    meta = yaml.safe_load((tmp_path / "out" / "meta.yaml").read_text())
    kinds = {key: type(value) for key, value in meta.items()}
    assert kinds == {
        "author": str,
        "affiliation": str,
        "description": str,
        "open_source": bool,
        "train_set": str,
        "visually_grounded": bool,
        "gpu_budget": int,
        "parameters": dict,
    }
    assert all(meta.get(key) for key in ("author", "affiliation", "train_set"))
    assert "Layer 2 of vgs+" in meta["description"]
    assert meta["visually_grounded"] is True
    assert meta["parameters"]["phonetic"] == {"metric": "cosine", "frame_shift": 0.02}
    assert meta["parameters"]["semantic"] == {"metric": "cosine", "pooling": "mean"}


def test_frame_shift_and_grounding_are_the_models(dataset, tmp_path, make_model):
    model = make_model(conv_layers=FAST, grounded=False)
    submit(model, dataset, tmp_path / "out")
    meta = yaml.safe_load((tmp_path / "out" / "meta.yaml").read_text())
    assert meta["parameters"]["phonetic"]["frame_shift"] == 0.01
    assert meta["visually_grounded"] is False


def test_frames_of_a_wide_encoder_come_where_they_hear(dataset, tmp_path, make_model):
    model = make_model(conv_layers=WIDE)
    submit(model, dataset, tmp_path / "out")
    path = dataset / "phonetic" / "dev-other" / "0a1B.wav"
    expected = alone(model, path)[1].numpy()
    found = np.loadtxt(tmp_path / "out" / f"{TEXTS[2]}.txt")
    np.testing.assert_allclose(found[2:], expected, atol=1e-5)
    np.testing.assert_array_equal(found[:2], found[[2, 2]])


def test_an_interrupted_submission_leaves_no_folder_and_resumes(dataset, model, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        submit(model, dataset, tmp_path / "out", batch_seconds=0.1, progress=StopAfterTwo())
    assert not (tmp_path / "out").exists()
    with pytest.raises(VgsplusError, match=r"holds features of layers \[2\]"):
        submit(model, dataset, tmp_path / "out", layers=(1,))
    assert submit(model, dataset, tmp_path / "out") == [TEXTS[1]]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "features.json").exists()
    with pytest.raises(VgsplusError, match="exists already"):
        submit(model, dataset, tmp_path / "out")


def test_a_sound_of_one_frame_is_no_matrix(model, tmp_path):
    write_sound(tmp_path / "phonetic" / "dev-clean" / "a.flac", FIELD / 16_000)
    with pytest.raises(CorpusError, match=r"a\.flac: 400 samples at 16 kHz are too short for 2 frames"):
        submit(model, tmp_path, tmp_path / "out")


def test_subsets_are_looked_for(dataset, tmp_path):
    assert find_phonetic(dataset)[1] == ("test-clean", "test-other")
    with pytest.raises(CorpusError, match=r"phonetic: holds no sounds in any of dev-clean, dev-other"):
        find_phonetic(tmp_path)


# ---- the command ------------------------------------------------------------------------------------------


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["embed", *map(str, arguments)])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_the_command_embeds_all_layers_and_skips_what_is_there(run, folder, model, tmp_path, capsys):
    code, out, err = command(capsys, run, folder, tmp_path / "out")
    assert code == 0, err
    assert f"3 sounds embedded, 0 existed; {tmp_path / 'out'}" in out
    found = written("npy", tmp_path / "out")
    assert {name: len(features) for name, features in found.items()} == dict.fromkeys(NAMES, 3)
    np.testing.assert_allclose(found["b"], alone(model, folder / "b.wav"), atol=1e-5)
    code, out, _ = command(capsys, run, folder, tmp_path / "out")
    assert (code, "0 sounds embedded, 3 existed" in out) == (0, True)


@pytest.mark.parametrize("form", ["npy", "pt", "hdf5"])
def test_the_command_takes_one_sound(form, run, folder, model, tmp_path, capsys):
    code, _, err = command(
        capsys, run, folder / "b.wav", tmp_path / "out", "--layers", "3,1", "--format", form
    )
    assert code == 0, err
    found = written(form, tmp_path / "out")
    np.testing.assert_allclose(found["b"], alone(model, folder / "b.wav")[[2, 0]], atol=1e-5)


def test_the_command_writes_a_submission_and_says_what_is_absent(run, dataset, tmp_path, capsys):
    arguments = [run, dataset, tmp_path / "out", "--format", "zerospeech", "--layers", "3"]
    code, out, err = command(capsys, *arguments)
    assert code == 0, err
    assert "3 sounds embedded" in out
    assert ": test-clean, test-other" in out
    assert f'Fill in the values "fill in" of {tmp_path}' in out
    assert len(list((tmp_path / "out" / "phonetic").rglob("*.txt"))) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "{empty}", "{out}"], "holds no sound files (.aif, "),
        (["{run}", "{empty}/none", "{out}"], "there is no such file or folder"),
        (["{run}", "{folder}/ann/notes.txt", "{out}"], "notes.txt: cannot be read as sound"),
        (["{empty}/no-run", "{folder}", "{out}"], "no-run"),
        (["{run}", "{folder}", "{out}", "--layers", "4"], "There is no layer '4'"),
        (["{run}", "{folder}", "{taken}", "--format", "hdf5"], "exists already"),
        (["{run}", "{folder}", "{taken}"], "cannot be written (Not a directory)"),
        (["{run}", "{folder}", "{out}", "--format", "zerospeech", "--layers", "1"], "holds no sounds in any"),
        (["{run}", "{dataset}", "{out}", "--format", "zerospeech"], "one layer, not 3"),
        (["{run}", "{dataset}", "{taken}", "--format", "zerospeech", "--layers", "1"], "exists already"),
    ],
)
def test_the_command_reports_what_is_wrong_and_writes_nothing(
    run, folder, dataset, tmp_path, capsys, arguments, message
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").write_text("kept")
    places = {"run": run, "folder": folder, "dataset": dataset}
    places |= {name: tmp_path / name for name in ("empty", "out", "taken")}
    code, _, err = command(capsys, *(argument.format(**places) for argument in arguments))
    assert code == 1
    assert message in err
    assert "Traceback" not in err
    assert everything_in(tmp_path) == ["empty", "taken"]
    assert (tmp_path / "taken").read_text() == "kept"
