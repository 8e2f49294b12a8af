"""Models in a cache of the Hugging Face hub that the tests make; nothing is fetched."""

import json
import sys
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import vgsplus
from vgsplus.cli import app
from vgsplus.errors import CheckpointError, DownloadError, VgsplusError
from vgsplus.interop.pretrained import PretrainedModel

SHA = "0" * 39


@pytest.fixture
def saved(trained, tmp_path):
    """A cache with the model of a run as me/mine, and the folder of its files."""
    folder = tmp_path / "cache" / "models--me--mine" / "snapshots" / f"{SHA}1"
    vgsplus.load(trained).save_pretrained(folder)
    refs = folder.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(folder.name)
    (refs / "v1").write_text(folder.name)
    return folder


@pytest.fixture(autouse=True)
def _cached_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def same(a, b):
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_model_in_the_cache_is_that_of_the_run(saved, trained, tmp_path):
    expected = vgsplus.load(trained)
    options = {"cache_dir": tmp_path / "cache", "local_files_only": True, "revision": "v1"}
    for model in (
        vgsplus.load("hf:me/mine"),
        vgsplus.load(Path("hf:me/mine"), device="cpu"),
        PretrainedModel.from_pretrained("me/mine"),
        PretrainedModel.from_pretrained("me/mine", **options),
    ):
        assert same(model, expected)
        assert model.about["regions"] == expected.about["regions"]
        assert model.about["training"]["evaluation"] == {"updates": 2, "recall@10": 0.25}
        assert model.config == expected.config
    PretrainedModel.from_pretrained("me/mine").save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (saved / "config.json").read_text()


@pytest.mark.usefixtures("saved")
def test_the_command_line_takes_names_of_the_hub(trained, tmp_path):
    sounds = trained.parent / "corpus" / "audio"
    found = CliRunner().invoke(
        app, ["embed", "hf:me/mine", str(sounds), str(tmp_path / "out"), "--layers", "1"]
    )
    assert found.exit_code == 0, found.output
    hidden = vgsplus.load(trained).layers(sounds / "0.wav")[1]
    np.testing.assert_allclose(np.load(tmp_path / "out" / "0.npy"), hidden, atol=1e-5)


@pytest.mark.usefixtures("saved")
def test_what_is_neither_cached_nor_a_name_is_told():
    for name in ("hf:me/other", "hf:me/mine/more", "hf:"):
        with pytest.raises(DownloadError, match=f"{name}: cannot be fetched"):
            vgsplus.load(name)
    with pytest.raises(DownloadError, match="hf:no/folder: cannot be fetched"):
        PretrainedModel.from_pretrained("no/folder")


def test_a_repository_of_pickles_alone_is_refused(saved):
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    torch.save(tensors, saved / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"hf:me/mine: holds no model\.safetensors, and pickles"):
        vgsplus.load("hf:me/mine")


def test_another_architecture_is_refused(saved):
    about = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="of a model of type 'bert'"):
        vgsplus.load("hf:me/mine")
    (saved / "config.json").write_text(json.dumps(about | {"format": 2}))
    with pytest.raises(CheckpointError, match="has format 2"):
        vgsplus.load("hf:me/mine")
    (saved / "config.json").write_text(json.dumps(about | {"model": about["model"] | {"dim": 16}}))
    with pytest.raises(VgsplusError, match="resdavenet_widths"):
        vgsplus.load("hf:me/mine")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"model_type": "vgsplus"}', '{"model_type": "vgsplus", "format": 1}']
)
def test_a_broken_configuration_is_refused(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: is broken"):
        vgsplus.load("hf:me/mine")


def test_missing_and_foreign_tensors_are_refused(saved):
    tensors = load_file(saved / "model.safetensors")
    without = {name: tensor for name, tensor in tensors.items() if name != "speech.project.weight"}
    more = tensors | {"more": torch.zeros(1)}
    for changed, odd in ((without, "it lacks speech.project.weight"), (more, "the model has no more")):
        save_file(changed, saved / "model.safetensors")
        with pytest.raises(CheckpointError, match=rf"its tensors are not those of the model \({odd}\)"):
            vgsplus.load("hf:me/mine")
    name, tensor = next((name, tensor) for name, tensor in tensors.items() if tensor.ndim == 2)
    save_file(tensors | {name: tensor[1:]}, saved / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=rf"model\.safetensors: has tensors of other shapes.*\n- {name}"
    ):
        vgsplus.load("hf:me/mine")


WEIGHTS, POINTER = "model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    ("removed", "written", "said"),
    [
        (WEIGHTS, {}, r"model\.safetensors: there is no such file\. Fetch or copy it again"),
        (WEIGHTS, {"pytorch_model.bin": b"\x80"}, r"pytorch_model\.bin: is a pickle, and models of vgsplus"),
        (None, {WEIGHTS: POINTER}, r"model\.safetensors: is a pointer of Git LFS.* git lfs pull"),
        (
            None,
            {WEIGHTS: b"<html>"},
            r"model\.safetensors: is truncated or broken .*\. Fetch or copy it again",
        ),
        ("config.json", {}, r"holds model\.safetensors, but no config\.json"),
        (
            None,
            {"config.json": b'{"model_type": "vgsplus", "format": 1, "model": {"dim": "x"}}'},
            r"config\.json: model\.dim",
        ),
    ],
)
def test_a_folder_with_a_fault_is_refused_with_its_file_and_what_to_do(saved, removed, written, said):
    if removed:
        (saved / removed).unlink()
    for name, content in written.items():
        (saved / name).write_bytes(content)
    for path in (saved, *(saved / name for name in written if name == "pytorch_model.bin")):
        with pytest.raises(CheckpointError, match=said) as told:
            vgsplus.load(path)
        assert str(saved) in str(told.value)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", ""])
def test_a_device_that_cannot_be_used_is_refused_before_the_model_is_read(device):
    with pytest.raises(VgsplusError, match=f"The device '{device}' cannot be used"):
        vgsplus.load("absent", device=device)


def test_an_upload_is_what_is_saved(trained, monkeypatch):
    found = {}

    class Hub:
        def __init__(self, token):
            found["token"] = token

        def create_repo(self, repo_id, **options):
            found["created"] = options
            return huggingface_hub.RepoUrl(f"https://hub.test/{repo_id}", endpoint="https://hub.test")

        def upload_folder(self, repo_id, folder_path, commit_message):
            found["files"] = sorted(path.name for path in folder_path.iterdir())
            found["card"] = (folder_path / "README.md").read_text()
            return f"{repo_id}: {commit_message}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    model = vgsplus.load(trained)
    url = model.push_to_hub("me/mine", licence="mit", private=True, token="t", commit_message="first")
    assert url == "me/mine: first"
    assert (found["token"], found["created"]) == ("t", {"private": True, "exist_ok": True})
    assert found["files"] == ["README.md", "config.json", "model.safetensors"]
    assert "license: mit" in found["card"]
    assert "hf:me/mine" in found["card"]


def test_an_upload_that_the_hub_refuses_and_a_missing_package_are_told(trained, monkeypatch):
    model = vgsplus.load(trained)
    with pytest.raises(DownloadError, match="hf:me/mine: cannot be uploaded"):
        model.push_to_hub("me/mine")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(VgsplusError, match=r"extra 'hub'"):
        vgsplus.load("hf:me/mine")
