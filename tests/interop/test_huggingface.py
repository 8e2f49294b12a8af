"""transformers' wav2vec 2.0 as an independent peer: the same weights must give the same numbers."""

import json

import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2ForPreTraining, Wav2Vec2Model
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2GumbelVectorQuantizer

import vgsplus
from vgsplus.errors import CheckpointError
from vgsplus.interop.loading import load_weights
from vgsplus.interop.pretrained import load_with_report
from vgsplus.losses.ssl import diversity_loss
from vgsplus.models.vgsplus import ModelConfig, VGSPlus

TINY = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 16, 24),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "codevector_dim": 16,
    "proj_codevector_dim": 12,
    "num_codevectors_per_group": 10,
    "num_negatives": 8,
}
SIZES = {
    "base": {},
    "tiny": TINY,
    "large": TINY | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    "layer_norm_first": TINY | {"do_stable_layer_norm": True},
    "layer_norm": TINY | {"feat_extract_norm": "layer"},
    "conv_bias": TINY | {"conv_bias": True},
}


def shake(theirs):
    """Weights and biases that start at 0 and 1 drawn at random too, so that every one of them counts."""
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return theirs.eval()


@pytest.fixture(scope="module", params=SIZES)
def peers(request, tmp_path_factory):
    """Their model with random weights, ours loaded from what they saved, and a batch of one length."""
    torch.manual_seed(1)
    theirs = Wav2Vec2ForPreTraining(Wav2Vec2Config(**SIZES[request.param])).eval()
    if request.param != "base":
        shake(theirs)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    ours, report = load_with_report(folder)
    assert report.complete
    waveforms = torch.randn(2, 8000)
    num_frames = int(theirs._get_feat_extract_output_lengths(torch.tensor(8000)))
    mask = torch.zeros(2, num_frames, dtype=torch.bool)
    mask[0, 3:13] = mask[1, 5:15] = True
    negatives = torch.randint(0, 9, (2, 10, theirs.config.num_negatives))
    negatives += negatives >= torch.arange(10)[:, None]
    return theirs, ours, waveforms, mask, negatives


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@torch.no_grad()
def test_waveform_encoder_and_every_transformer_layer_agree(peers):
    theirs, ours, waveforms, _, _ = peers
    seen = theirs.wav2vec2(waveforms, output_hidden_states=True)
    lengths = torch.full((2,), waveforms.shape[1])
    expected = seen.extract_features.flatten(0, 1)
    close(ours.speech.extract_features(waveforms, lengths).features[: len(expected)], expected)
    layers, valid = ours.speech_layers(waveforms, lengths)
    assert bool(valid.all())
    # The first of theirs is what goes into the first layer.
    for layer, hidden in zip(layers, seen.hidden_states[1:], strict=True):
        close(layer, hidden)


def test_contrastive_and_diversity_losses_agree(peers):
    theirs, ours, waveforms, mask, negatives = peers
    flat = (negatives + 10 * torch.arange(2)[:, None, None]).flatten(1)
    with torch.no_grad():
        # Theirs index all frames of a batch, ours the masked ones.
        masked = [row.nonzero()[:, 0] for row in mask]
        indices = torch.zeros(2, mask.shape[1], negatives.shape[-1], dtype=torch.long)
        for row, places in enumerate(masked):
            indices[row, places] = places[negatives[row]] + row * mask.shape[1]
        found = theirs(waveforms, mask_time_indices=mask, sampled_negative_indices=indices)
        batch = {"waveforms": waveforms, "num_samples": torch.full((2,), waveforms.shape[1])}
        losses = ours.losses(batch, alpha=0.0, mask=mask, negatives=flat)
    num_masked, total = int(mask.sum()), ours.quantizer.codebook[..., 0].numel()
    close(losses.contrastive * num_masked, found.contrastive_loss)
    # In evaluation they take the perplexity of the codes chosen, where training takes that of the softmax.
    close((total - losses.code_perplexity) / total * num_masked, found.diversity_loss)


@torch.no_grad()
def test_the_quantiser_and_its_diversity_agree(peers):
    theirs, ours, waveforms, mask, _ = peers
    features = ours.speech.extract_features(waveforms, torch.full((2,), waveforms.shape[1])).features
    features = features[: mask.numel()]
    quantized = ours.quantizer(features)
    features = features.unflatten(0, (2, -1))
    codevectors, _ = theirs.quantizer(features, mask_time_indices=mask)
    close(quantized.vectors.view(codevectors.shape), codevectors)
    masked = ours.quantizer(features[mask])
    groups = theirs.config.num_codevector_groups
    soft = theirs.quantizer.weight_proj(features).view(features.shape[0] * features.shape[1], groups, -1)
    perplexity = Wav2Vec2GumbelVectorQuantizer._compute_perplexity(soft.softmax(-1), mask)
    total = masked.mean_probabilities.numel()
    close(diversity_loss(masked.mean_probabilities), (total - perplexity) / total)


def test_a_padded_utterance_is_what_it_is_alone(peers):
    _, ours, waveforms, _, _ = peers
    lengths = torch.tensor([8000, 5000])
    padded = waveforms * (torch.arange(8000) < lengths[:, None])
    with torch.no_grad():
        together, valid = ours.speech_layers(padded, lengths)
        alone, _ = ours.speech_layers(waveforms[1:, :5000], lengths[1:])
    num = int(valid[1].sum())
    close(together[-1][1, :num], alone[-1][0, :num])


@pytest.fixture(scope="module")
def tiny_config():
    return Wav2Vec2Config(**SIZES["tiny"])


@pytest.mark.parametrize("pickled", [False, True])
def test_an_encoder_alone_leaves_the_rest_at_its_initial_values(tiny_config, tmp_path, pickled):
    theirs = Wav2Vec2Model(tiny_config)
    theirs.save_pretrained(tmp_path)
    if pickled:
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    model, report = load_with_report(tmp_path)
    assert {name.split(".")[0] for name in report.initial} == {
        "quantizer",
        "project_target",
        "project_prediction",
    }
    assert torch.equal(model.speech.project.weight, theirs.feature_projection.projection.weight)
    assert "at its initial value" in str(report)


def test_a_grounded_model_is_initialised_from_it(tiny_config, tmp_path):
    Wav2Vec2ForPreTraining(tiny_config).save_pretrained(tmp_path)
    sizes = vars(vgsplus.load(tmp_path).config)
    model = VGSPlus(ModelConfig(**sizes | {"grounded": True, "resdavenet_widths": (8, 48), "feature_dim": 6}))
    before = model.speech_head.project.weight.clone()
    table = load_weights(model, str(tmp_path))
    assert torch.equal(model.speech_head.project.weight, before)
    assert torch.equal(model.speech.mask_vector, vgsplus.load(tmp_path).speech.mask_vector)
    assert any(line.startswith("at its initial value") and "image" in line for line in table.splitlines())


@pytest.mark.parametrize(
    ("setting", "value", "match"),
    [
        ("model_type", "wavlm", "'wavlm'"),
        ("model_type", None, "type None"),
        ("feat_extract_norm", "layer", r"lacks tensors of the speech encoder.*norms\.1"),
        ("feat_extract_norm", "batch", "feat_extract_norm = 'batch'"),
        ("conv_bias", True, r"lacks tensors of the speech encoder.*convolutions\.0\.bias"),
        ("adapter_attn_dim", 16, "adapter_attn_dim"),
        ("num_hidden_layers", 2, r"another network.*encoder\.layers\.2"),
        ("hidden_act", "relu", "hidden_act"),
        ("hidden_size", None, "hidden_size|impossible"),
    ],
)
def test_other_models_are_refused(tiny_config, tmp_path, setting, value, match):
    Wav2Vec2Model(tiny_config).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {setting: value}))
    with pytest.raises(CheckpointError, match=match):
        vgsplus.load(tmp_path)


def test_weights_of_another_size_than_the_settings_are_named(tiny_config, tmp_path):
    Wav2Vec2Model(tiny_config).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 65}))
    with pytest.raises(CheckpointError, match=r"intermediate_dense.weight is \(64, 48\).*needs \(65, 48\)"):
        vgsplus.load(tmp_path)


def test_random_numbers_are_untouched_by_loading(tiny_config, tmp_path):
    Wav2Vec2ForPreTraining(tiny_config).save_pretrained(tmp_path)
    before = torch.get_rng_state()
    vgsplus.load(tmp_path)
    assert np.array_equal(torch.get_rng_state().numpy(), before.numpy())


@torch.no_grad()
@pytest.mark.parametrize("large", [False, True])
def test_hubert_agrees_in_every_layer(tmp_path, large):
    torch.manual_seed(0)
    names = ("codevector_dim", "proj_codevector_dim", "num_codevectors_per_group", "num_negatives")
    sizes = {name: value for name, value in SIZES["large" if large else "tiny"].items() if name not in names}
    theirs = shake(HubertModel(HubertConfig(**sizes)))
    theirs.save_pretrained(tmp_path)
    waveforms, lengths = torch.randn(1, 8000), torch.tensor([8000])
    layers, _ = vgsplus.load(tmp_path).speech_layers(waveforms, lengths)
    seen = theirs(waveforms, output_hidden_states=True)
    for layer, hidden in zip(layers, seen.hidden_states[1:], strict=True):
        close(layer, hidden)


@pytest.fixture
def sharded(tiny_config, tmp_path):
    theirs = Wav2Vec2ForPreTraining(tiny_config)
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    return theirs, tmp_path


def test_weights_in_several_files_are_read(sharded, tmp_path):
    theirs, folder = sharded
    theirs.save_pretrained(tmp_path / "whole")
    ours, whole = vgsplus.load(folder).state_dict(), vgsplus.load(tmp_path / "whole").state_dict()
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda places: places | {"masked_spec_embed": "../model-00001.safetensors"}, "names the file"),
        (lambda places: places | {"masked_spec_embed": "model-9.safetensors"}, "names the file"),
        (lambda places: dict(list(places.items())[1:]), "does not agree with"),
        (lambda places: places | {"extra": next(iter(places.values()))}, "does not agree with .* extra"),
        (lambda _: ["a list"], "cannot be read as an index"),
    ],
)
def test_an_index_of_weights_that_is_wrong_is_refused(sharded, change, match):
    _, folder = sharded
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"weight_map": change(content["weight_map"])}))
    with pytest.raises(CheckpointError, match=match):
        vgsplus.load(folder)


def test_a_tensor_under_its_old_and_new_name_is_refused(tiny_config, tmp_path):
    theirs = Wav2Vec2Model(tiny_config)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = theirs.state_dict()
    state["encoder.pos_conv_embed.conv.weight_g"] = torch.ones(1, 1, 16)
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="under two names"):
        vgsplus.load(tmp_path)


def test_a_large_model_trains(tmp_path):
    torch.manual_seed(0)
    shake(Wav2Vec2ForPreTraining(Wav2Vec2Config(**SIZES["large"]))).save_pretrained(tmp_path)
    sizes = vars(vgsplus.load(tmp_path).config)
    model = VGSPlus(ModelConfig(**sizes | {"grounded": True, "resdavenet_widths": (8, 48), "feature_dim": 6}))
    load_weights(model, str(tmp_path))
    batch = {
        "waveforms": torch.randn(2, 8000),
        "num_samples": torch.tensor([8000, 6000]),
        "features": torch.randn(2, 3, 6),
        "boxes": torch.rand(2, 3, 4),
        "image_ids": torch.arange(2),
    }
    losses = model.train().losses(batch, alpha=0.5)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert not [name for name, x in model.named_parameters() if x.grad is None]
