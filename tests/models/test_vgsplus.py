import pytest
import torch

from vgsplus.models import feature_extractor
from vgsplus.models.segments import round_up
from vgsplus.models.vgsplus import ModelConfig, VGSPlus

SAMPLES = torch.tensor([9600, 6400, 8000, 4300])


@pytest.fixture
def make(make_model):
    """A function that builds a model with two codebooks of 8 codes and ResDAVEnet of two stages."""
    sizes = {"dim": 16, "ffn_dim": 32, "resdavenet_widths": (8, 16), "resdavenet_blocks": 2, "feature_dim": 6}
    return lambda **changes: make_model(**(sizes | changes))


def make_batch(padding=0):
    generator = torch.Generator().manual_seed(1)
    waveforms = torch.zeros(len(SAMPLES), int(SAMPLES.max()) + padding)
    for row, samples in zip(waveforms, SAMPLES, strict=True):
        row[:samples] = torch.randn(int(samples), generator=generator)
    return {
        "waveforms": waveforms,
        "num_samples": SAMPLES,
        "features": torch.randn(len(SAMPLES), 4, 6, generator=generator),
        "boxes": torch.rand(len(SAMPLES), 4, 4, generator=generator),
        "image_ids": torch.tensor([3, 5, 3, 9]),
    }


def test_an_utterance_is_embedded_the_same_alone_and_in_any_batch(make):
    model, batch = make().eval(), make_batch(padding=3000)
    together = model.embed_speech(batch["waveforms"], SAMPLES)
    layers, valid = model.speech_layers(batch["waveforms"], SAMPLES)
    for index, samples in enumerate(SAMPLES):
        wave, num = batch["waveforms"][index : index + 1, :samples], SAMPLES[index : index + 1]
        torch.testing.assert_close(model.embed_speech(wave, num)[0], together[index], rtol=1e-4, atol=1e-4)
        alone, _ = model.speech_layers(wave, num)
        for one, many in zip(alone, layers, strict=True):
            torch.testing.assert_close(one[0], many[index][valid[index]], rtol=1e-4, atol=1e-4)


def test_parts_without_gradients_change_nothing(make, monkeypatch):
    model, batch = make().eval(), make_batch()
    whole = model.embed_speech(batch["waveforms"], SAMPLES)
    monkeypatch.setattr(feature_extractor, "INFERENCE_SAMPLES", 15_000)
    calls = []
    extract = model.speech.waveform._extract
    monkeypatch.setattr(
        model.speech.waveform, "_extract", lambda w, n: (calls.append(n.tolist()), extract(w, n))[1]
    )
    with torch.no_grad():
        parts = model.embed_speech(batch["waveforms"], SAMPLES)
    assert calls == [[9600], [6400, 8000], [4300]]
    torch.testing.assert_close(parts, whole.detach(), rtol=1e-5, atol=1e-5)


def test_the_published_mode_depends_on_padding(make):
    model, batch = make(padding="published").eval(), make_batch(padding=3000)
    together = model.embed_speech(batch["waveforms"], SAMPLES)
    alone = model.embed_speech(batch["waveforms"][1:2, : SAMPLES[1]], SAMPLES[1:2])
    assert not torch.allclose(alone[0], together[1], atol=1e-4)


def test_padding_adds_nothing_to_any_statistic_in_training(make):
    results = []
    for padding in (0, 5000):
        model, batch = make(dropout=0.0).train(), make_batch(padding)
        losses = model(batch, 1.0)
        results.append((losses.total, losses.similarity, dict(model.named_buffers())))
    torch.testing.assert_close(results[0][:2], results[1][:2], rtol=1e-4, atol=1e-4)
    for name, buffer in results[0][2].items():
        torch.testing.assert_close(buffer, results[1][2][name], rtol=1e-4, atol=1e-5, msg=name)


def test_alpha_one_never_runs_what_only_self_supervision_uses(make):
    model, batch = make().train(), make_batch()
    for part in (model.quantizer, model.project_target, model.project_prediction, model.speech.layers[2]):
        part.forward = _must_not_run
    model(batch, 1.0).total.backward()
    ssl_only = ("quantizer.", "project_", "speech.layers.2.", "speech.mask_vector")
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(ssl_only), name


def test_the_speech_decoder_ends_with_masked_frames_alone(make):
    model, batch = make().eval(), make_batch()
    width = batch["waveforms"].shape[1]
    lengths, frames = model.speech.frame_lengths(SAMPLES, width), model.speech.num_frames(width)
    mask = (torch.arange(frames) % 3 == 1) & (torch.arange(frames) < lengths[:, None])
    given, hidden = [], []
    last = model.speech.layers[-1]
    handle = last.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    model.project_prediction.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    model(batch, 0.5, mask)
    handle.remove()
    x, segments, queries, _ = given[0]
    num_masked = int(mask.sum())
    assert queries.shape == hidden[0].shape == (round_up(num_masked), model.config.dim)
    outputs = last(x, segments)[: segments.num_rows]
    frames = [part[1:] for part in outputs.split(segments.lengths)]
    expected = [part[row[: len(part)]] for part, row in zip(frames, mask, strict=True)]
    torch.testing.assert_close(hidden[0][:num_masked], torch.cat(expected))


@pytest.mark.parametrize("ssl_layers", [0, 1])
def test_self_supervision_is_the_same_beside_grounding_and_alone(make, ssl_layers):
    model, batch = make(ssl_layers=ssl_layers).eval(), make_batch()
    found = []
    for alpha in (0.0, 0.5):
        torch.manual_seed(6)
        found.append(model(batch, alpha).ssl)
    torch.testing.assert_close(*found)


def test_alpha_zero_never_looks_at_a_picture(make):
    model, batch = make().train(), make_batch()
    for part in (model.image, model.speech_head):
        part.forward = _must_not_run
    model({name: batch[name] for name in ("waveforms", "num_samples")}, 0.0).total.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(("image.", "speech_head.")), name


def _must_not_run(*_):
    raise AssertionError


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_gradients_agree_with_finite_differences(make, alpha):
    model, batch = make(dropout=0.0).double().eval(), make_batch()
    batch = {k: x.double() if x.is_floating_point() else x for k, x in batch.items()}

    def loss():
        torch.manual_seed(5)
        return model(batch, alpha).total

    loss().backward()
    checked = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        direction = torch.randn(
            parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
        )
        step = 1e-6 / direction.norm()
        with torch.no_grad():
            parameter.add_(step * direction)
            above = loss()
            parameter.sub_(2 * step * direction)
            below = loss()
            parameter.add_(step * direction)
        numeric = (above - below) / (2 * step)
        analytic = (parameter.grad * direction).sum()
        assert float(analytic) == pytest.approx(float(numeric), rel=1e-4, abs=1e-6), name
        checked += 1
    assert checked > 20


def test_the_total_weighs_both_losses(make):
    model, batch = make().eval(), make_batch()
    losses = model(batch, 0.3)
    assert losses.total.item() == pytest.approx((0.3 * losses.grounding + 0.7 * losses.ssl).item(), rel=1e-5)


def test_string_image_ids_serve_as_well_as_numbers(make):
    model, batch = make().eval(), make_batch()
    named = batch | {"image_ids": ["a", "b", "a", "c"]}
    assert model(batch, 1.0).total == model(named, 1.0).total


def test_the_paper_size_has_185_million_parameters():
    with torch.device("meta"):
        model = VGSPlus(ModelConfig())
    # The published count includes an MLP whose output is never used (768 → 1536 → 768).
    unused = 2 * 768 * 1536 + 1536 + 768
    assert round((sum(p.numel() for p in model.parameters()) + unused) / 1e6, 1) == 185.0


def test_impossible_sizes_and_short_utterances_are_refused(make):
    with pytest.raises(ValueError, match="multiple of heads"):
        ModelConfig(heads=5)
    with pytest.raises(ValueError, match="resdavenet_widths"):
        ModelConfig(dim=384, heads=6)
    with pytest.raises(ValueError, match="resdavenet_kernel must be odd, not 8"):
        ModelConfig(resdavenet_kernel=8)
    with pytest.raises(ValueError, match="pos_conv_groups must be at least 1"):
        ModelConfig(pos_conv_groups=0)
    with pytest.raises(ValueError, match="image_layers must be at least 1"):
        ModelConfig(image_layers=0)
    with pytest.raises(ValueError, match="at least one frame"):
        make().embed_speech(torch.zeros(1, 300), torch.tensor([300]))
    with pytest.raises(ValueError, match="alpha"):
        make()(make_batch(), 1.5)


def test_a_padding_mode_is_not_taken_for_the_other():
    with pytest.raises(ValueError, match="build_model"):
        VGSPlus(ModelConfig(padding="published"))


def test_terms_are_attributes_and_none_where_alpha_leaves_them_out(make):
    losses = make().eval()(make_batch(), 1.0)
    assert losses.ssl is None
    assert losses.grounding is losses.terms["grounding"]
    with pytest.raises(AttributeError):
        losses.groundling  # noqa: B018 - the access is what is tested


def test_metrics_tell_temperature_masks_and_how_far_embeddings_differ(make):
    model, batch = make(temperature=(2.0, 0.5, 0.9)), make_batch()
    first, second = model.train()(batch, 0.5).terms, model(batch, 0.5).terms
    assert (float(first["temperature"]), float(second["temperature"])) == pytest.approx((2.0, 1.8))
    assert 0 < float(first["masked_share"]) < 1
    assert float(first["speech_embedding_std"]) > 0
    same = batch | {name: batch[name][:1].expand_as(batch[name]) for name in ("features", "boxes")}
    collapsed = model.eval()(same, 0.5).terms
    assert float(collapsed["image_embedding_std"]) == pytest.approx(0, abs=1e-4)
    assert "temperature" not in collapsed
