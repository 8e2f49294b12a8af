"""Published bundles of FaST-VGS-Family and its VGS+ fork: their names and sizes, as ours.

The published network keeps query, key and value apart, convolves over time in two dimensions, and numbers
its codebook over all groups at once; nothing else differs but names.
"""

import ast
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vgsplus.errors import VgsplusError
from vgsplus.models.vgsplus import ModelConfig, VGSPlus

_SPEECH = "conv1_trm1_trm3."
_NAMES = (
    (rf"{_SPEECH}feature_extractor\.conv_layers\.0\.2\.", "speech.waveform.norm."),
    (rf"{_SPEECH}feature_extractor\.conv_layers\.(\d+)\.0\.", r"speech.waveform.convolutions.\1."),
    (rf"{_SPEECH}layer_norm\.", "speech.norm."),
    (rf"{_SPEECH}post_extract_proj\.", "speech.project."),
    (rf"{_SPEECH}mask_emb", "speech.mask_vector"),
    (rf"{_SPEECH}cls_token", "speech.cls"),
    (
        rf"{_SPEECH}encoder\.pos_conv\.0\.weight_g",
        "speech.positions.convolution.parametrizations.weight.original0",
    ),
    (
        rf"{_SPEECH}encoder\.pos_conv\.0\.weight_v",
        "speech.positions.convolution.parametrizations.weight.original1",
    ),
    (rf"{_SPEECH}encoder\.pos_conv\.0\.", "speech.positions.convolution."),
    (rf"{_SPEECH}encoder\.layer_norm\.", "speech.input_norm."),
    (rf"{_SPEECH}encoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"speech.layers.\1.attention_norm."),
    (rf"{_SPEECH}encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"speech.layers.\1.attention.out."),
    (rf"{_SPEECH}encoder\.layers\.(\d+)\.self_attn\.(\w)_proj\.", r"speech.layers.\1.attention.\2."),
    (rf"{_SPEECH}encoder\.layers\.(\d+)\.fc1\.", r"speech.layers.\1.expand."),
    (rf"{_SPEECH}encoder\.layers\.(\d+)\.fc2\.", r"speech.layers.\1.contract."),
    (rf"{_SPEECH}encoder\.layers\.(\d+)\.final_layer_norm\.", r"speech.layers.\1.ffn_norm."),
    (rf"{_SPEECH}quantizer\.vars", "quantizer.codebook"),
    (rf"{_SPEECH}quantizer\.weight_proj\.", "quantizer.logits."),
    (rf"{_SPEECH}project_q\.", "project_target."),
    (rf"{_SPEECH}final_proj\.", "project_prediction."),
    (r"conv2\.linear\.", "speech_head.resdavenet.project."),
    (r"conv2\.bn1\.", "speech_head.resdavenet.norm."),
    (r"audio_cls_token_proj_pre\.", "speech_head.cls."),
    (r"trm2_proj\.", "speech_head.project."),
    (r"trm2\.", "speech_head.layer."),
    (r"visual_cls_token_proj_coarse\.", "image.head."),
    (r"visual_cls_token$", "image.cls"),
    (r"visn_fc\.visn_fc\.", "image.features."),
    (r"visn_fc\.visn_layer_norm\.", "image.features_norm."),
    (r"visn_fc\.box_fc\.", "image.boxes."),
    (r"visn_fc\.box_layer_norm\.", "image.boxes_norm."),
    (r"trm\.(\d+)\.", r"image.layers.\1."),
)
_BERT = (
    ("attention.self.query.", "attention.q."),
    ("attention.self.key.", "attention.k."),
    ("attention.self.value.", "attention.v."),
    ("attention.output.dense.", "attention.out."),
    ("attention.output.LayerNorm.", "attention_norm."),
    ("intermediate.dense.", "expand."),
    ("output.dense.", "contract."),
    ("output.LayerNorm.", "ffn_norm."),
)
_UNUSED = "audio_cls_token_proj_coarse."


class BundleError(VgsplusError):
    """A published bundle whose tensors do not make up a model."""


def build(state_dict: Mapping[str, NDArray[Any] | Tensor], args: Mapping[str, Any]) -> VGSPlus:
    """A model in `published` padding mode from a published state dict and the arguments it was trained with.

    Args:
        state_dict: {name: array or tensor}, with or without DataParallel's "module." in front.
        args: the published arguments; only sizes are read.

    Raises:
        BundleError: a tensor is missing, unknown or of another shape; names it and both shapes.
    """
    tensors = {name.removeprefix("module."): torch.as_tensor(np.asarray(x)) for name, x in state_dict.items()}
    model = VGSPlus(_config(tensors, args))
    ours = _ours(tensors, model.config)
    wanted = model.state_dict()
    ours.setdefault("quantizer.updates", wanted["quantizer.updates"])
    for name, tensor in wanted.items():
        if name not in ours:
            raise BundleError(f"the bundle holds nothing for {name} {tuple(tensor.shape)}")
        if ours[name].shape != tensor.shape:
            raise BundleError(
                f"{name} is {tuple(ours[name].shape)} there, its arguments ask for {tuple(tensor.shape)}"
            )
    if unknown := sorted(set(ours) - set(wanted)):
        raise BundleError(
            f"the bundle holds tensors that no part of the model takes: {', '.join(unknown[:10])}"
        )
    model.load_state_dict(ours)
    return model.eval()


def _config(tensors: Mapping[str, Tensor], args: Mapping[str, Any]) -> ModelConfig:
    layers = ast.literal_eval(f"[{_listed(args['conv_feature_layers'])}]")
    codebook = tensors[f"{_SPEECH}quantizer.vars"]
    widths = tuple(
        tensors[f"conv2.layer{stage}.0.conv1.weight"].shape[0]
        for stage in range(1, _count(tensors, "conv2.layer", 1))
    )
    groups = int(args["latent_groups"])
    return ModelConfig(
        conv_layers=tuple(layer for entry in layers for layer in entry[0] * entry[1]),
        dim=int(args["encoder_embed_dim"]),
        heads=int(args["encoder_attention_heads"]),
        ffn_dim=int(args["encoder_ffn_embed_dim"]),
        shared_layers=int(args["layer_use"]) + 1,
        ssl_layers=int(args["encoder_layers"]) - int(args["layer_use"]) - 1,
        pos_conv_kernel=int(args["conv_pos"]),
        pos_conv_groups=int(args["conv_pos_groups"]),
        dropout=float(args["dropout"]),
        quantizer_groups=groups,
        quantizer_codes=int(args["latent_vars"]),
        quantizer_dim=codebook.shape[-1] * groups,
        ssl_dim=int(args["final_dim"]),
        mask_probability=float(args["mask_prob"]),
        mask_span=int(args["mask_length"]),
        num_negatives=int(args["num_negatives"]),
        diversity_weight=float(args["diversity_weight"]),
        resdavenet_widths=widths,
        resdavenet_blocks=_count(tensors, "conv2.layer1."),
        resdavenet_kernel=tensors["conv2.layer1.0.conv1.weight"].shape[-1],
        feature_dim=int(args["visual_feat_dim"]),
        image_layers=int(args["trm_layers"]),
        padding="published",
    )


def _listed(layers: str) -> str:
    """Write "[(512, 10, 5)] + [(512, 3, 2)] * 4" as [layers, repeats] pairs: pure data."""
    parts = [part.strip() for part in layers.split("+")]
    return ", ".join(
        f"[{part}, 1]" if "*" not in part else "[{}, {}]".format(*(side.strip() for side in part.split("*")))
        for part in parts
    )


def _count(tensors: Mapping[str, Tensor], prefix: str, first: int = 0) -> int:
    """The number after the last in PREFIX0…, PREFIX1…, from `first`."""
    index = first
    while any(re.match(re.escape(f"{prefix}{index}") + r"\.", name) for name in tensors):
        index += 1
    return index


def _ours(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    renamed = {_rename(name): x for name, x in tensors.items() if not name.startswith(_UNUSED)}
    ours: dict[str, Tensor] = {}
    for name, x in renamed.items():
        if match := re.fullmatch(r"(.*\.attention)\.([qkv])\.(weight|bias)", name):
            block, part, kind = match.groups()
            if part == "q":
                ours[f"{block}.qkv.{kind}"] = torch.cat([renamed[f"{block}.{p}.{kind}"] for p in "qkv"])
        elif name == "quantizer.codebook":
            ours[name] = x.reshape(config.quantizer_groups, config.quantizer_codes, -1)
        elif name.startswith("speech_head.resdavenet.stages") and x.dim() > 1:
            ours[name] = x.squeeze(2)
        else:
            ours[name] = x
    return ours


def _rename(name: str) -> str:
    if match := re.fullmatch(r"conv2\.layer(\d+)\.(\d+)\.(.*)", name):
        stage, block, rest = match.groups()
        for theirs, mine in (("downsample.0", "shortcut"), ("downsample.1", "shortcut_norm"), ("bn", "norm")):
            rest = rest.replace(theirs, mine)
        return f"speech_head.resdavenet.stages.{int(stage) - 1}.{block}.{rest}"
    for pattern, ours in _NAMES:
        renamed, matched = re.subn(f"^{pattern}", ours, name)
        if matched:
            for theirs, mine in _BERT:
                renamed = renamed.replace(theirs, mine) if theirs in renamed else renamed
            return renamed
    return name
