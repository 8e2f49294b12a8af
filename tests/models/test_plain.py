"""The model agrees with a plain one: utterance by utterance, by PyTorch's own functions, in float64."""

import pytest
import torch
import torch.nn.functional as F

from vgsplus.losses.grounding import grounding_loss
from vgsplus.losses.ssl import diversity_loss
from vgsplus.models import segments

SAMPLES = torch.tensor([9600, 400, 6400, 8000, 719, 4300, 4300, 12_000])
IMAGE_IDS = torch.tensor([3, 5, 3, 9, 1, 2, 4, 6])


def attend(layer, x):
    """A transformer layer on one sequence (T, D), by PyTorch's own multi-head attention."""
    attention = layer.attention
    dim = x.shape[1]

    def attention_of(y):
        return F.multi_head_attention_forward(
            *[y[:, None]] * 3,
            dim,
            attention.heads,
            attention.qkv.weight,
            attention.qkv.bias,
            None,
            None,
            False,
            0.0,
            attention.out.weight,
            attention.out.bias,
            need_weights=False,
        )[0][:, 0]

    def feed_forward(y):
        return layer.contract(F.gelu(layer.expand(y)))

    if layer.layer_norm_first:
        x = x + attention_of(layer.attention_norm(x))
        return x + feed_forward(layer.ffn_norm(x))
    x = layer.attention_norm(x + attention_of(x))
    return layer.ffn_norm(x + feed_forward(x))


def extract(encoder, waveform):
    """The frames (T, C) of one waveform (S,)."""
    x = waveform[None, None]
    for index, convolution in enumerate(encoder.convolutions):
        x = F.conv1d(x, convolution.weight, convolution.bias, convolution.stride)
        if encoder.norm is None:
            norm = encoder.norms[index]
            x = F.layer_norm(x.mT, norm.normalized_shape, norm.weight, norm.bias).mT
        elif index == 0:
            mean, variance = x.mean(2, keepdim=True), x.var(2, correction=0, keepdim=True)
            x = (x - mean) / (variance + encoder.norm.eps).sqrt()
            x = x * encoder.norm.weight[:, None] + encoder.norm.bias[:, None]
        x = F.gelu(x)
    return x[0].T


def downsample(net, utterances):
    """ResDAVEnet on a list of (T, D), each convolved by itself, with BatchNorm over all of them."""

    def normalise(norm, parts):
        y = F.batch_norm(torch.cat(parts), None, None, norm.weight, norm.bias, True)
        return list(y.split([len(part) for part in parts]))

    def convolve(convolution, parts):
        args = None, convolution.stride, convolution.padding
        return [F.conv1d(part.T[None], convolution.weight, *args)[0].T for part in parts]

    x = [part.relu() for part in normalise(net.norm, [net.project(part) for part in utterances])]
    for stage in net.stages:
        for block in stage:
            y = [part.relu() for part in normalise(block.norm1, convolve(block.conv1, x))]
            y = normalise(block.norm2, convolve(block.conv2, y))
            if block.shortcut is not None:
                x = normalise(block.shortcut_norm, convolve(block.shortcut, x))
            x = [(a + b).relu() for a, b in zip(x, y, strict=True)]
    return x


def encode(model, features, mask):
    """The outputs (1 + T, D) of the last shared and of the last layer for features (T, C)."""
    speech = model.speech
    x = torch.where(mask[: len(features), None], speech.mask_vector, speech.project(features))
    if model.config.cls_after_positions:
        x = torch.cat([speech.cls[0], x + positions(speech.positions, x)])
    else:
        x = torch.cat([speech.cls[0], x])
        x = x + positions(speech.positions, x)
    x = x if speech.input_norm is None else speech.input_norm(x)
    outputs = []
    for layer in speech.layers:
        x = attend(layer, x)
        outputs.append(x)
    last = x if speech.output_norm is None else speech.output_norm(x)
    return outputs[model.config.shared_layers - 1], last


def grounding(model, batch, shared):
    """The grounding loss from hidden states (1 + T, D) of each utterance."""
    head, image = model.speech_head, model.image
    down = downsample(head.resdavenet, [x[1:] for x in shared])
    tokens = [torch.cat([head.cls(x[:1]), frames]) for x, frames in zip(shared, down, strict=True)]
    utterances = torch.stack([head.project(attend(head.layer, x)[0]) for x in tokens])
    images = []
    for regions, boxes in zip(batch["features"], batch["boxes"], strict=True):
        x = (image.features_norm(image.features(regions)) + image.boxes_norm(image.boxes(boxes))) / 2
        x = torch.cat([image.cls[0], x])
        for layer in image.layers:
            x = attend(layer, x)
        images.append(image.head(x[0]))
    return grounding_loss(torch.stack(images) @ utterances.T, IMAGE_IDS)


def self_supervision(model, features, last, masks, noise_keys, negatives):
    """Contrastive and diversity loss, each masked frame by itself."""
    features = [x[row[: len(x)]] for x, row in zip(features, masks, strict=True)]
    sizes = [len(x) for x in features]
    quantized = model.quantizer(torch.cat(features), noise_keys)
    targets, codes = model.project_target(quantized.vectors).split(sizes), quantized.codes.split(sizes)
    terms = []
    for x, row, target, code, chosen in zip(last, masks, targets, codes, negatives, strict=True):
        frames = x[1:][row[: len(x) - 1]]
        for index, prediction in enumerate(model.project_prediction(frames)):
            others = chosen[index]
            candidates = torch.cat([target[index : index + 1], target[others]])
            same = (code[others] == code[index]).all(-1)
            kept = torch.cat([torch.tensor([True]), ~same])
            terms.append(-(F.cosine_similarity(prediction, candidates)[kept] / 0.1).log_softmax(0)[0])
    diversity = diversity_loss(quantized.mean_probabilities)
    return torch.stack(terms).mean() + model.config.diversity_weight * diversity


def plain_loss(model, batch, alpha, mask, *drawn):
    """The total loss at α, without padding, groups or selected rows."""
    waves = [row[:num] for row, num in zip(batch["waveforms"], batch["num_samples"], strict=True)]
    raw = [extract(model.speech.waveform, wave) for wave in waves]
    features = [model.speech.norm(frames) for frames in raw]
    shared, last = zip(*[encode(model, x, row) for x, row in zip(features, mask, strict=True)], strict=True)
    total = alpha * grounding(model, batch, shared) if alpha > 0 else 0.0
    if alpha < 1:
        penalty = model.config.feature_penalty_weight * torch.cat(raw).square().mean()
        total = total + (1 - alpha) * (self_supervision(model, features, last, mask, *drawn) + penalty)
    return total


def positions(module, x):
    convolution = module.convolution
    y = F.conv1d(
        x.T[None], convolution.weight, convolution.bias, 1, convolution.padding, 1, convolution.groups
    )
    return F.gelu(y[0, :, : len(x)].T)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"extractor_mode": "layer_norm", "conv_bias": True, "layer_norm_first": True, "pos_conv_kernel": 15},
        {
            "cls_after_positions": True,
            "conv_layers": ((8, 10, 5), (8, 3, 2), (8, 5, 2), (8, 2, 4), (12, 4, 4)),
            "feature_penalty_weight": 0.3,
        },
    ],
    ids=["base", "large", "other convolutions"],
)
@pytest.mark.parametrize("group_rows", [1, 100, 100_000])
def test_losses_and_gradients_are_those_of_the_plain_model(
    make_model, monkeypatch, alpha, changes, group_rows
):
    monkeypatch.setitem(segments.GROUP_ROWS, "cpu", group_rows)
    monkeypatch.setattr(segments, "MAX_PADDING", 0.6)
    sizes = {"dim": 16, "heads": 2, "ffn_dim": 32, "resdavenet_widths": (8, 16), "resdavenet_blocks": 2}
    model = make_model(dropout=0.0, feature_dim=6, **sizes, **changes).double().train()
    generator = torch.Generator().manual_seed(1)
    waveforms = torch.randn(len(SAMPLES), 12_300, generator=generator, dtype=torch.float64)
    waveforms[torch.arange(12_300) >= SAMPLES[:, None]] = 0
    batch = {
        "waveforms": waveforms,
        "num_samples": SAMPLES,
        "features": torch.randn(len(SAMPLES), 4, 6, generator=generator, dtype=torch.float64),
        "boxes": torch.rand(len(SAMPLES), 4, 4, generator=generator, dtype=torch.float64),
        "image_ids": IMAGE_IDS,
    }
    lengths, frames = model.speech.waveform.num_frames(SAMPLES), model.speech.num_frames(12_300)
    assert 1 in lengths.tolist()
    mask = (torch.arange(frames) % 3 == 0) & (torch.arange(frames) < lengths[:, None])
    drawn = []

    def draw_negatives(counts, num_masked, num, _keys):
        drawn.append(torch.randint(0, 10**6, (len(counts), num_masked, num)) % counts[:, None, None])
        return drawn[-1]

    monkeypatch.setattr("vgsplus.models.vgsplus.draw_negatives", draw_negatives)
    model.quantizer.register_forward_pre_hook(lambda _, inputs: None if drawn else drawn.append(inputs[1]))
    found, gradients = [], []
    for loss in (
        lambda: model(batch, alpha, mask).total,
        lambda: plain_loss(model, batch, alpha, mask, *drawn),
    ):
        torch.manual_seed(3)
        model.zero_grad()
        if alpha < 1:
            model.quantizer.updates.zero_()
        total = loss()
        total.backward()
        found.append(total.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)
    unused = gradients[1].keys() - gradients[0].keys()
    assert not any(float(gradients[1][name].abs().max()) for name in unused)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-10, atol=1e-10, msg=name)
