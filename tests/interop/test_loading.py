"""Every kind of file that `vgsplus.load` reads, and those that it must refuse."""

import argparse
import logging
import os
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import TINY_MODEL
from torch import nn

import vgsplus
from vgsplus.errors import CheckpointError, VgsplusError
from vgsplus.interop.convert import convert
from vgsplus.interop.fairseq import convolutions
from vgsplus.interop.fast_vgs import read_args
from vgsplus.interop.loading import load_weights
from vgsplus.interop.pretrained import load_with_report
from vgsplus.models.published import build_model
from vgsplus.models.vgsplus import ModelConfig, VGSPlus


def same(a, b):
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


# ---- published bundles ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(published, tmp_path_factory):
    """A bundle as the published trainer saves one, wrapped by DataParallel, with a cross encoder."""
    state, meta, _ = published
    folder = tmp_path_factory.mktemp("bundle")
    torch.save(
        {
            "dual_encoder": OrderedDict((f"module.{k}", torch.from_numpy(x)) for k, x in state.items()),
            "cross_encoder": {"fc.0.weight": torch.arange(6.0).view(2, 3)},
            "optimizer": {"state": {0: {"step": 3}}, "param_groups": []},
            "indices": [1, 2, 3],
        },
        folder / "best_bundle.pth",
    )
    (folder / "args.pkl").write_bytes(pickle.dumps(argparse.Namespace(**meta["args"])))
    return folder


@pytest.mark.parametrize("name", ["best_bundle.pth", ""])
def test_a_bundle_loads_as_the_model_built_from_its_tensors(bundle, golden, name, caplog):
    model = vgsplus.load(bundle / name)
    assert same(model, golden[0])
    assert model.config == golden[0].config
    assert not model.training
    assert "cross_encoder.fc" in caplog.text
    assert "not used" in caplog.text


def test_a_bundle_without_arguments_says_what_it_assumes(bundle, tmp_path, golden, caplog):
    os.link(bundle / "best_bundle.pth", tmp_path / "bundle.pth")
    model = vgsplus.load(tmp_path)
    assert "heads = 12" in caplog.text
    assert "layer_use = 3" in caplog.text
    sizes = golden[0].config
    assert model.config.conv_layers == sizes.conv_layers
    assert (model.config.shared_layers, model.config.ssl_layers) == (4, 0)


@pytest.mark.parametrize("named", ["ours", "ours/model.safetensors"])
def test_a_bundle_goes_through_our_format_and_back_bit_for_bit(bundle, tmp_path, golden, named):
    convert(bundle, tmp_path / "ours")
    assert same(vgsplus.load(tmp_path / "ours"), golden[0])
    convert(tmp_path / named, tmp_path / "back" / "bundle.pth")
    before = torch.load(bundle / "best_bundle.pth", weights_only=True)
    after = torch.load(tmp_path / "back" / "bundle.pth", weights_only=True)
    for part in ("dual_encoder", "cross_encoder"):
        old = {name.removeprefix("module."): tensor for name, tensor in before[part].items()}
        assert old.keys() == after[part].keys()
        assert all(torch.equal(tensor, after[part][name]) for name, tensor in old.items())
    args = pickle.loads((tmp_path / "back" / "args.pkl").read_bytes())
    assert vars(args) == read_args(bundle / "best_bundle.pth")


def test_conversion_replaces_nothing_unasked(bundle, tmp_path):
    (tmp_path / "ours").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        convert(bundle, tmp_path / "ours")
    for _ in range(2):
        convert(bundle, tmp_path / "ours", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not a model of ours"):
        convert(bundle, tmp_path / "mine", overwrite=True)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_a_phase_is_initialised_from_a_bundle_or_refused_with_what_does_not_fit(bundle, golden):
    sizes = golden[0].config
    model = build_model(sizes)
    assert "speech.layers" in load_weights(model, str(bundle))
    assert same(model, golden[0])
    narrower = ModelConfig(**{**vars(sizes), "ffn_dim": 1024, "image_layers": 1})
    with (
        torch.device("meta"),
        pytest.raises(CheckpointError, match=r"layers.0.fc1.weight is \(3072, 768\).*\(1024, 768\)"),
    ):
        load_weights(build_model(narrower), str(bundle))


# ---- fairseq ----------------------------------------------------------------------------------------------

TINY = replace(
    TINY_MODEL,
    conv_layers=((8, 10, 5), (8, 3, 2), (8, 2, 2)),
    dim=64,
    heads=1,
    ffn_dim=96,
    pos_conv_groups=4,
    grounded=False,
)
FAIRSEQ_ARGS = {
    "conv_feature_layers": "[(8, 10, 5)] + [(8, 3, 2)] + [(8, 2, 2)] * 1",
    "encoder_embed_dim": 64,
    "encoder_attention_heads": 1,
    "encoder_ffn_embed_dim": 96,
    "encoder_layers": 3,
    "layer_norm_first": False,
    "extractor_mode": "default",
    "latent_vars": 8,
    "latent_groups": 2,
    "final_dim": 8,
}


def fairseq_tensors(model):
    """What fairseq calls the tensors of a model; written apart from the rules that read them."""
    state = dict(model.state_dict())
    state.pop("quantizer.updates")
    renamed = {}
    for name, tensor in state.items():
        if ".qkv." in name:
            block, kind = name.removeprefix("speech.layers.").split(".attention.qkv.")
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"encoder.layers.{block}.self_attn.{part}_proj.{kind}"] = piece.clone()
        elif name == "quantizer.codebook":
            renamed["quantizer.vars"] = tensor.reshape(1, -1, tensor.shape[-1])
        else:
            renamed[fairseq_name(name)] = tensor
    return renamed


def fairseq_name(name):
    if name.startswith("speech.waveform.convolutions."):
        return "feature_extractor.conv_layers.{3}.0.{4}".format(*name.split("."))
    if name.startswith("speech.waveform.norms."):
        return "feature_extractor.conv_layers.{3}.2.1.{4}".format(*name.split("."))
    positions = "speech.positions.convolution"
    for ours, theirs in (
        ("speech.layers.", "encoder.layers."),
        (".attention.out.", ".self_attn.out_proj."),
        (".attention_norm.", ".self_attn_layer_norm."),
        (".expand.", ".fc1."),
        (".contract.", ".fc2."),
        (".ffn_norm.", ".final_layer_norm."),
        ("speech.input_norm.", "encoder.layer_norm."),
        ("speech.output_norm.", "encoder.layer_norm."),
        ("speech.waveform.norm.", "feature_extractor.conv_layers.0.2."),
        ("speech.norm.", "layer_norm."),
        ("speech.project.", "post_extract_proj."),
        ("speech.mask_vector", "mask_emb"),
        (f"{positions}.parametrizations.weight.original0", "encoder.pos_conv.0.weight_g"),
        (f"{positions}.parametrizations.weight.original1", "encoder.pos_conv.0.weight_v"),
        (f"{positions}.bias", "encoder.pos_conv.0.bias"),
        ("quantizer.logits.", "quantizer.weight_proj."),
        ("project_target.", "project_q."),
        ("project_prediction.", "final_proj."),
    ):
        name = name.replace(ours, theirs)
    return name


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return VGSPlus(TINY).eval()


class DictConfig:
    """Pickles as OmegaConf's containers do: its values are nodes within `_content`."""

    def __init__(self, values):
        self._metadata, self._content = None, {key: Node(value) for key, value in values.items()}


class Node:
    def __init__(self, value):
        self._val = value


ARGUMENTS = {
    "args": {"args": argparse.Namespace(**FAIRSEQ_ARGS), "cfg": None},
    "plain": {"args": None, "cfg": {"model": FAIRSEQ_ARGS}},
    "omegaconf": {"args": None, "cfg": DictConfig({"model": FAIRSEQ_ARGS})},
    "namespace": {"args": None, "cfg": {"model": argparse.Namespace(**FAIRSEQ_ARGS)}},
}


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("kind", ARGUMENTS)
def test_a_fairseq_checkpoint_is_wav2vec_2(tiny, tmp_path, new_format, kind):
    saved = {"model": fairseq_tensors(tiny), **ARGUMENTS[kind]}
    torch.save(saved, tmp_path / "w2v.pt", _use_new_zipfile_serialization=new_format)
    model, report = load_with_report(tmp_path / "w2v.pt")
    assert report.complete
    assert same(model, tiny)
    assert (model.config.heads, model.config.conv_layers) == (TINY.heads, TINY.conv_layers)
    with pytest.raises(ValueError, match=r"wav2vec 2\.0 alone"):
        model.embed_image(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))


def test_a_fine_tuned_fairseq_checkpoint_says_what_it_lacks(tiny, tmp_path):
    tensors = {f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in fairseq_tensors(tiny).items()}
    tensors = {name: tensor for name, tensor in tensors.items() if "project_q" not in name}
    tensors["w2v_encoder.proj.weight"] = torch.zeros(5, 64)
    torch.save({"model": tensors, "args": None, "cfg": {}}, tmp_path / "ctc.pt")
    model, report = load_with_report(tmp_path / "ctc.pt")
    assert set(report.initial) == {"project_target.weight", "project_target.bias"}
    assert set(report.unused) == {"w2v_encoder.proj.weight"}
    assert torch.equal(model.speech.project.weight, tiny.speech.project.weight)


LARGE = {"extractor_mode": "layer_norm", "conv_bias": True, "layer_norm_first": True}


@pytest.mark.parametrize("changes", [LARGE, {"layer_norm_first": True}, {"conv_bias": True}])
def test_a_large_fairseq_checkpoint_is_read(tmp_path, changes):
    model = VGSPlus(replace(TINY, **changes))
    args = argparse.Namespace(**FAIRSEQ_ARGS | changes)
    torch.save({"model": fairseq_tensors(model), "args": args}, tmp_path / "large.pt")
    loaded, report = load_with_report(tmp_path / "large.pt")
    assert report.complete
    assert same(loaded, model)
    assert {name: getattr(loaded.config, name) for name in changes} == changes


def fine_tuned(model, arguments, tmp_path):
    """A checkpoint of a model fine-tuned to recognise speech, with the arguments of what it began from."""
    tensors = {f"w2v_encoder.w2v_model.{name}": x for name, x in fairseq_tensors(model).items()}
    torch.save({"model": tensors, "args": None, "cfg": {"model": arguments}}, tmp_path / "ctc.pt")
    return tmp_path / "ctc.pt"


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda args: {"_name": "wav2vec_ctc", "dropout": 0.0, "w2v_args": argparse.Namespace(**args)},
        lambda args: {"_name": "wav2vec_ctc", "w2v_args": {"model": args, "task": {}}},
        lambda args: {"w2v_args": {"args": None, "cfg": {"model": argparse.Namespace(**args)}}},
        lambda args: DictConfig({"_name": "wav2vec_ctc", "w2v_args": DictConfig({"model": args})}),
    ],
)
def test_the_arguments_inside_those_of_a_fine_tuned_model_count(tmp_path, wrapped):
    model = VGSPlus(replace(TINY, layer_norm_first=True, heads=4))
    args = FAIRSEQ_ARGS | {"layer_norm_first": True, "encoder_attention_heads": 4}
    loaded = vgsplus.load(fine_tuned(model, wrapped(args), tmp_path))
    assert (loaded.config.layer_norm_first, loaded.config.heads) == (True, 4)
    assert same(loaded, model)
    with pytest.raises(CheckpointError, match="relative_position_embedding = True"):
        vgsplus.load(fine_tuned(model, wrapped(args | {"relative_position_embedding": True}), tmp_path))


FOREIGN_SETTINGS = [
    ("relative_position_embedding", True),
    ("layer_type", "conformer"),
    ("pos_conv_depth", 5),
    ("pos_enc_type", "rope"),
    ("_name", "data2vec_audio"),
    ("quantize_input", True),
    ("activation_fn", "relu"),
    ("extractor_mode", "layer_norm"),
]


@pytest.mark.parametrize(("setting", "value"), FOREIGN_SETTINGS)
@pytest.mark.parametrize("place", ["args", "cfg", "flat"])
def test_settings_of_another_network_are_refused_wherever_they_stand(tiny, tmp_path, setting, value, place):
    args = FAIRSEQ_ARGS | {setting: value}
    caught = {
        "args": {"args": argparse.Namespace(**args)},
        "cfg": {"cfg": {"model": args}},
        "flat": {"cfg": args},
    }
    torch.save({"model": fairseq_tensors(tiny)} | caught[place], tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=f"{setting} = {value!r}"):
        vgsplus.load(tmp_path / "other.pt")


@pytest.mark.parametrize(
    "name",
    [
        "encoder.layers.0.self_attn.relative_attention_bias.weight",
        "encoder.layers.1.self_attn.grep_a",
        "encoder.layers.3.fc1.weight",
        "encoder.pos_conv.1.weight_g",
        "feature_extractor.conv_layers.2.2.1.weight",
        "quantizer.weight_proj.1.weight",
        "layer_norm.running_mean",
    ],
)
def test_a_tensor_that_has_no_place_inside_the_network_is_refused(tiny, tmp_path, name):
    tensors = fairseq_tensors(tiny) | {name: torch.ones(3)}
    torch.save({"model": tensors, "args": argparse.Namespace(**FAIRSEQ_ARGS)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=f"another network.*{name}"):
        vgsplus.load(tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=f"another network.*{name}"):
        load_weights(VGSPlus(TINY), str(tmp_path / "other.pt"))


@pytest.mark.parametrize(
    "name",
    ["encoder.layers.1.fc1.bias", "encoder.layer_norm.weight", "layer_norm.bias", "encoder.pos_conv.0.bias"],
)
def test_a_speech_encoder_that_lacks_a_tensor_is_refused(tiny, tmp_path, name):
    tensors = fairseq_tensors(tiny)
    del tensors[name]
    torch.save({"model": tensors, "args": argparse.Namespace(**FAIRSEQ_ARGS)}, tmp_path / "w2v.pt")
    with pytest.raises(CheckpointError, match="lacks tensors of the speech encoder"):
        vgsplus.load(tmp_path / "w2v.pt")


def test_a_checkpoint_that_lacks_one_kind_of_tensor_is_refused_with_its_name(tiny, tmp_path):
    tensors = fairseq_tensors(tiny)
    tensors = {name: x for name, x in tensors.items() if not name.startswith("post_extract_proj")}
    torch.save({"model": tensors, "args": argparse.Namespace(**FAIRSEQ_ARGS)}, tmp_path / "w2v.pt")
    with pytest.raises(CheckpointError, match=r"lacks post_extract_proj\.weight, without which"):
        vgsplus.load(tmp_path / "w2v.pt")


def test_the_projection_that_fairseq_leaves_out_where_widths_are_equal_is_the_identity(tmp_path):
    model = VGSPlus(replace(TINY, conv_layers=((8, 10, 5), (8, 3, 2), (64, 2, 2)))).eval()
    with torch.no_grad():
        model.speech.project.weight.copy_(torch.eye(64))
        model.speech.project.bias.zero_()
    tensors = fairseq_tensors(model)
    del tensors["post_extract_proj.weight"], tensors["post_extract_proj.bias"]
    args = FAIRSEQ_ARGS | {"conv_feature_layers": "[(8, 10, 5)] + [(8, 3, 2)] + [(64, 2, 2)]"}
    torch.save({"model": tensors, "args": argparse.Namespace(**args)}, tmp_path / "w2v.pt")
    assert same(vgsplus.load(tmp_path / "w2v.pt"), model)


def test_large_tensors_that_do_not_tell_where_layers_normalise_are_refused(tmp_path):
    torch.save({"model": fairseq_tensors(VGSPlus(replace(TINY, **LARGE))), "args": None}, tmp_path / "w2v.pt")
    with pytest.raises(CheckpointError, match="does not state layer_norm_first"):
        vgsplus.load(tmp_path / "w2v.pt")


@pytest.mark.parametrize("value", ["many", [], {}, -1, 0, 10**30, float("nan")])
@pytest.mark.parametrize(
    "setting", ["encoder_embed_dim", "encoder_layers", "encoder_attention_heads", "conv_pos_groups"]
)
def test_impossible_settings_are_an_error(tiny, tmp_path, setting, value):
    args = FAIRSEQ_ARGS | {setting: value}
    torch.save({"model": fairseq_tensors(tiny), "cfg": {"model": args}}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError):
        vgsplus.load(tmp_path / "odd.pt")


def test_a_large_model_of_waveforms_that_are_not_normalised_is_refused(tmp_path):
    saved = {"model": fairseq_tensors(VGSPlus(replace(TINY, **LARGE)))}
    saved["cfg"] = {"model": FAIRSEQ_ARGS | LARGE, "task": {"normalize": False}}
    torch.save(saved, tmp_path / "large.pt")
    with pytest.raises(CheckpointError, match="trained on waveforms that are not normalised"):
        vgsplus.load(tmp_path / "large.pt")


def test_a_tensor_with_and_without_its_prefix_is_refused(tiny, tmp_path):
    tensors = {f"audio_encoder.{name}": tensor for name, tensor in fairseq_tensors(tiny).items()}
    tensors["layer_norm.weight"] = tensors["audio_encoder.layer_norm.weight"]
    torch.save({"dual_encoder": tensors}, tmp_path / "bundle.pth")
    with pytest.raises(CheckpointError, match=r"holds the tensor layer_norm\.weight twice"):
        vgsplus.load(tmp_path / "bundle.pth")


def test_a_model_with_a_decoder_is_read_without_it(tiny, tmp_path):
    tensors = {f"encoder.w2v_model.{name}": tensor for name, tensor in fairseq_tensors(tiny).items()}
    others = {"encoder.proj.weight": torch.ones(5, 64), "decoder.embed_tokens.weight": torch.ones(5, 64)}
    arguments = {"_name": "wav2vec_seq2seq", "w2v_args": {"model": FAIRSEQ_ARGS}}
    torch.save({"model": tensors | others, "cfg": {"model": arguments}}, tmp_path / "seq2seq.pt")
    model, report = load_with_report(tmp_path / "seq2seq.pt")
    assert len(report.unused) == len(others)
    assert same(model, tiny)


def test_hubert_is_read_without_its_heads(tiny, tmp_path):
    heads = {"label_embs_concat": torch.ones(5, 8), "final_proj.weight": torch.ones(8, 64)}
    tensors = {name: x for name, x in fairseq_tensors(tiny).items() if fairseq_part(name) == "encoder"}
    args = {key: value for key, value in FAIRSEQ_ARGS.items() if not key.startswith("latent")}
    saved = {"model": tensors | heads, "args": None, "cfg": {"model": args | {"_name": "hubert"}}}
    torch.save(saved, tmp_path / "hubert.pt")
    model, report = load_with_report(tmp_path / "hubert.pt")
    assert report.unused.keys() == heads.keys()
    assert not any(name.startswith("speech.") for name in report.initial)
    assert same_speech(model, tiny)


def fairseq_part(name):
    return "head" if name.split(".")[0] in ("quantizer", "project_q", "final_proj") else "encoder"


def same_speech(one, other):
    ours, theirs = one.speech.state_dict(), other.speech.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("positions", ["audio_encoder.pos_conv.", "audio_encoder.encoder.pos_conv."])
def test_the_speech_side_of_a_vg_hubert_bundle_is_read(tiny, tmp_path, positions):
    """CLS comes before the frames after the positional convolution (Peng & Harwath, Interspeech 2022)."""
    tensors = {
        f"audio_encoder.{name}".replace("audio_encoder.encoder.pos_conv.", positions): tensor
        for name, tensor in fairseq_tensors(tiny).items()
        if fairseq_part(name) == "encoder"
    }
    cls = torch.randn(1, 1, 64)
    pictures = {
        "trm.blocks.0.attn.qkv.weight": torch.ones(4, 4),
        "audio_cls_token_proj.0.weight": torch.ones(3),
    }
    bundle = tensors | pictures | {"audio_encoder.cls_token": cls}
    torch.save({"dual_encoder": bundle}, tmp_path / "best_bundle.pth")
    args = argparse.Namespace(**FAIRSEQ_ARGS | {"encoder_layers": 12, "layer_use": 2})
    (tmp_path / "args.pkl").write_bytes(pickle.dumps(args))
    model, report = load_with_report(tmp_path)
    assert report.unused.keys() == pictures.keys()
    waveforms, lengths = torch.randn(1, 4000), torch.tensor([4000])
    with torch.no_grad():
        layers, _ = model.speech_layers(waveforms, lengths)
        speech = tiny.speech
        extracted = speech.extract_features(waveforms, lengths)
        x, segments = speech.project(extracted.features), extracted.segments
        x = speech.input_norm(segments.prepend(cls[0], x + speech.positions(x, segments)))
        for layer, found in zip(speech.layers, layers, strict=True):
            x = layer(x, segments.with_token)
            frames = segments.split_token(x)[1][: segments.num_rows]
            torch.testing.assert_close(found[0], frames, rtol=1e-5, atol=1e-5)


def test_the_text_of_convolutions_is_read_and_never_run():
    assert convolutions("x", "[(512, 10, 5)] + [(512,3,2)] * 2") == ((512, 10, 5), (512, 3, 2), (512, 3, 2))
    with pytest.raises(CheckpointError, match="cannot be read"):
        convolutions("x", "__import__('os').system('true')")


def test_our_own_folder_must_be_complete(tiny, tmp_path):
    torch.save({"model": fairseq_tensors(tiny), "args": None}, tmp_path / "w2v.pt")
    convert(tmp_path / "w2v.pt", tmp_path / "ours")
    assert same(vgsplus.load(tmp_path / "ours" / "model.safetensors"), tiny)
    data = (tmp_path / "ours" / "model.safetensors").read_bytes()
    (tmp_path / "ours" / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        vgsplus.load(tmp_path / "ours")


# ---- what must not be run ---------------------------------------------------------------------------------


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.reduced = (function, args)

    def __reduce__(self):
        return self.reduced


def hostile(marker):
    """Objects whose unpickling leaves `marker` behind."""
    array = np.empty(1, dtype=object)
    array[0] = Call(os.system, f"touch {marker}")
    return {
        "os.system": Call(os.system, f"touch {marker}"),
        "eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "exec": Call(exec, f"open({str(marker)!r}, 'w')"),
        "open": Call(open, str(marker), "w"),
        "nested": Call(getattr, Call(__import__, "os"), "system"),
        "array": array,
        "key": {Call(os.system, f"touch {marker}"): 1},
        "ordered": OrderedDict(a=Call(os.system, f"touch {marker}")),
    }


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "was-run"
    yield path
    assert not path.exists(), "code from the file was run"


HOSTILE = sorted(hostile(""))


@pytest.mark.parametrize("name", HOSTILE)
def test_the_hostile_objects_do_run_when_unpickled(name, tmp_path):
    marker = tmp_path / "was-run"
    pickle.loads(pickle.dumps(hostile(marker)[name]))
    assert marker.exists() or name == "nested"


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_in_a_checkpoint_is_run(tiny, tmp_path, marker, name, new_format):
    tensors = fairseq_tensors(tiny)
    for where in ("model", "args", "beside"):
        evil = hostile(marker)[name]
        saved = {"model": dict(tensors), "args": argparse.Namespace(**FAIRSEQ_ARGS)}
        if where == "model":
            saved["model"]["evil"] = evil
        elif where == "args":
            saved["args"].evil = evil
        else:
            saved["optimizer"] = [evil]
        path = tmp_path / f"{where}.pt"
        torch.save(saved, path, _use_new_zipfile_serialization=new_format)
        assert same(vgsplus.load(path), tiny)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_in_the_arguments_of_a_bundle_is_run(tmp_path, marker, name, protocol):
    args = argparse.Namespace(layer_use=3, evil=hostile(marker)[name])
    (tmp_path / "args.pkl").write_bytes(pickle.dumps(args, protocol))
    assert read_args(tmp_path / "bundle.pth")["layer_use"] == 3


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_of_code_is_refused(tmp_path, marker, name):
    torch.save(hostile(marker)[name], tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="is not a known kind of checkpoint"):
        vgsplus.load(tmp_path / "evil.pth")
    torch.save(hostile(marker)[name], tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2"}')
    with pytest.raises(CheckpointError):
        vgsplus.load(tmp_path)


# ---- what is broken ---------------------------------------------------------------------------------------


def test_files_that_are_not_checkpoints_are_distinguished(tmp_path):
    def refused(path, match):
        with pytest.raises(VgsplusError, match=match) as error:
            vgsplus.load(path)
        assert str(path) in str(error.value)

    refused(tmp_path / "none.pth", "there is no such file")
    (tmp_path / "empty.pth").write_bytes(b"")
    refused(tmp_path / "empty.pth", "is empty")
    (tmp_path / "text.pth").write_text("hello")
    refused(tmp_path / "text.pth", "is not a file that PyTorch writes")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "holds no model")
    with zipfile.ZipFile(tmp_path / "some.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "some.pth", "is a zip archive, but not a checkpoint")
    torch.save({"epoch": 3, "weights": torch.zeros(2)}, tmp_path / "other.pth")
    refused(tmp_path / "other.pth", "holds a dictionary of epoch, weights")
    torch.save({"model": nn.Linear(2, 2).state_dict(), "args": None}, tmp_path / "linear.pt")
    refused(tmp_path / "linear.pt", "checkpoint of another model")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps([1, 2]))
    refused(tmp_path / "plain.pth", "not a PyTorch checkpoint")


@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_cut_off_anywhere_is_refused(tiny, tmp_path, new_format):
    path = tmp_path / "w2v.pt"
    saved = {"model": fairseq_tensors(tiny), "args": None}
    torch.save(saved, path, _use_new_zipfile_serialization=new_format)
    data = path.read_bytes()
    for share in (0.001, 0.05, 0.3, 0.6, 0.9, 0.999):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(CheckpointError):
            vgsplus.load(path)


@pytest.fixture(autouse=True)
def _warnings_are_seen(caplog):
    caplog.set_level(logging.WARNING, "vgsplus")
