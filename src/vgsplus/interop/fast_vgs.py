"""Published bundles of FaST-VGS-Family and its VGS+ fork: their names and sizes, as ours, and back.

The published network keeps query, key and value apart, convolves over time in two dimensions, and numbers
its codebook over all groups at once; nothing else differs but names.
"""

import argparse
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vgsplus.errors import CheckpointError
from vgsplus.interop import fairseq
from vgsplus.interop.tensors import Rule, Source, find_places
from vgsplus.models.vgsplus import ModelConfig, VGSPlus
from vgsplus.tensor_files import Shape, StoredTensor, attributes, named_tensors, read_pickle

ARGS = "args.pkl"
BUNDLES = ("best_bundle.pth", "bundle.pth")
DUAL, CROSS = "dual_encoder", "cross_encoder"
VG_HUBERT = "audio_encoder."
"""In front of the names of VG-HuBERT's speech encoder; the other tensors are of its picture side."""
SPEECH = "conv1_trm1_trm3."
DISCARDED = "audio_cls_token_proj_coarse."
"""A projection that the published network computes and throws away; it stands in every bundle."""
_WIDTHS, _BLOCKS, _KERNEL, _DIM = (128, 256, 512, 768), 2, 9, 768
"""Of the published ResDAVEnet, which no argument changes."""
_TAP = 7


def _over_time(shape: Shape, _: int) -> Shape:
    """A convolution over time is one over an image of height 1 there."""
    return (*shape[:2], 1, *shape[2:])


def _bert(ours: str, theirs: str) -> tuple[Rule, ...]:
    attention = tuple(rf"{theirs}attention.self.{part}." for part in ("query", "key", "value"))
    last = ours.count("(") + 1
    return (
        Rule(rf"{ours}attention\.qkv\.(\w+)", tuple(rf"{part}\{last}" for part in attention)),
        *(
            Rule(rf"{ours}{mine}\.(\w+)", (rf"{theirs}{name}.\{last}",))
            for mine, name in (
                (r"attention\.out", "attention.output.dense"),
                ("attention_norm", "attention.output.LayerNorm"),
                ("expand", "intermediate.dense"),
                ("contract", "output.dense"),
                ("ffn_norm", "output.LayerNorm"),
            )
        ),
    )


def _resdavenet() -> tuple[Rule, ...]:
    block = r"speech_head\.resdavenet\.stages\.{stage}\.(\d+)\."
    rules = []
    for stage in range(len(_WIDTHS)):
        ours, theirs = block.format(stage=stage), rf"conv2.layer{stage + 1}.\1."
        rules += [
            Rule(rf"{ours}conv(\d)\.weight", (rf"{theirs}conv\2.weight",), _over_time),
            Rule(rf"{ours}norm(\d)\.(\w+)", (rf"{theirs}bn\2.\3",)),
            Rule(rf"{ours}shortcut\.weight", (rf"{theirs}downsample.0.weight",), _over_time),
            Rule(rf"{ours}shortcut_norm\.(\w+)", (rf"{theirs}downsample.1.\2",)),
        ]
    return tuple(rules)


RULES = (
    *fairseq.rules(SPEECH),
    Rule(r"speech\.cls", (f"{SPEECH}cls_token",)),
    Rule(r"speech_head\.resdavenet\.project\.(\w+)", (r"conv2.linear.\1",)),
    Rule(r"speech_head\.resdavenet\.norm\.(\w+)", (r"conv2.bn1.\1",)),
    *_resdavenet(),
    Rule(r"speech_head\.cls\.(.+)", (r"audio_cls_token_proj_pre.\1",)),
    *_bert(r"speech_head\.layer\.", "trm2."),
    Rule(r"speech_head\.project\.(\w+)", (r"trm2_proj.\1",)),
    Rule(r"image\.cls", ("visual_cls_token",)),
    Rule(r"image\.features\.(\w+)", (r"visn_fc.visn_fc.\1",)),
    Rule(r"image\.features_norm\.(\w+)", (r"visn_fc.visn_layer_norm.\1",)),
    Rule(r"image\.boxes\.(\w+)", (r"visn_fc.box_fc.\1",)),
    Rule(r"image\.boxes_norm\.(\w+)", (r"visn_fc.box_layer_norm.\1",)),
    *_bert(r"image\.layers\.(\d+)\.", r"trm.\1."),
    Rule(r"image\.head\.(.+)", (r"visual_cls_token_proj_coarse.\1",)),
)


# ---- reading ----------------------------------------------------------------------------------------------


def build(state_dict: Mapping[str, NDArray[Any] | Tensor], args: Mapping[str, Any]) -> VGSPlus:
    """A model in `published` padding mode from a published state dict and the arguments it was trained with.

    Args:
        state_dict: {name: array or tensor}, with or without DataParallel's "module." in front.
        args: the published arguments; what they lack is read off the tensors.

    Raises:
        CheckpointError: a tensor of another shape than the arguments ask for; names it and both shapes. Or
            one is missing.
    """
    tensors = {name: torch.as_tensor(np.asarray(x)) for name, x in state_dict.items()}
    stored = {name: StoredTensor(tuple(x.shape), x.dtype, x.clone) for name, x in tensors.items()}
    model, report = source("the bundle", {DUAL: stored}, args).build()
    if report.initial:
        raise CheckpointError(f"the bundle lacks tensors of the model\n{report}")
    return model


def read_args(beside: Path) -> dict[str, Any] | None:
    """The arguments that lie beside a bundle; None where there are none.

    Raises:
        CheckpointError: the file is broken, or holds no arguments.
    """
    path = beside.parent / ARGS
    if not path.is_file():
        return None
    found = attributes(read_pickle(path))
    if not found:
        raise CheckpointError(f"{path}: holds no arguments by name")
    return found


def tensors_of(bundle: Mapping[str, Any], part: str) -> dict[str, StoredTensor]:
    """The tensors of the dual or the cross encoder, without DataParallel's "module." in front."""
    return {name.removeprefix("module."): x for name, x in named_tensors(bundle.get(part)).items()}


def source(name: str, bundle: Mapping[str, Any], args: Mapping[str, Any] | None) -> Source:
    """A bundle: its dual encoder is the model; a cross encoder is not used.

    Of VG-HuBERT (Peng & Harwath, Interspeech 2022), the speech encoder is, without its picture side.

    Raises:
        CheckpointError: its tensors are not those of the published network.
    """
    stored = tensors_of(bundle, DUAL)
    if any(key.startswith(VG_HUBERT) for key in stored):
        return _vg_hubert(name, stored, args or {})
    config, assumed = _config(name, stored, args)
    cross = {f"{CROSS}.{key}": tensor for key, tensor in tensors_of(bundle, CROSS).items()}
    return Source(
        name=name,
        stored=stored | cross,
        rules=RULES,
        config=config,
        assumed=assumed,
        parts=fairseq.parts(SPEECH),
    )


def _vg_hubert(name: str, stored: Mapping[str, StoredTensor], args: Mapping[str, Any]) -> Source:
    """HuBERT's layers up to the one that is grounded, with CLS; the positional convolution stands outside."""
    found = {
        f"encoder.{key}" if key.startswith("pos_conv.") else key: tensor
        for key, tensor in fairseq.without_prefix(name, stored, VG_HUBERT).items()
    }
    # The arguments may count the layers of the HuBERT that it began from.
    known = {key: value for key, value in args.items() if key != "encoder_layers"}
    return fairseq.speech_source(f"{name}: VG-HuBERT", found, known, cls="cls_token" in found)


def _config(
    name: str, stored: Mapping[str, StoredTensor], args: Mapping[str, Any] | None
) -> tuple[ModelConfig, tuple[str, ...]]:
    known = dict(args or {})
    try:
        sizes, assumed = fairseq.speech_sizes(name, stored, known, SPEECH)
        layers = sizes["shared_layers"]
        if "layer_use" not in known:
            known["layer_use"] = min(_TAP, layers - 1)
            assumed.append(f"layer_use = {known['layer_use']}")
        shared = int(known["layer_use"]) + 1
        first = float(str(known.get("latent_temp", 2)).strip("()[] ").split(",")[0])
        config = ModelConfig(
            **sizes
            | {
                "shared_layers": shared,
                "ssl_layers": layers - shared,
                "diversity_weight": float(known.get("diversity_weight", 0.1)),
                # The published code sets the first temperature and never calls what would lower it.
                "temperature": (first, first, 1.0),
                "resdavenet_widths": tuple(
                    stored[f"conv2.layer{stage + 1}.0.conv1.weight"].shape[0]
                    for stage in range(fairseq.count(_stages(stored), "", 1))
                ),
                "resdavenet_blocks": fairseq.count(stored, "conv2.layer1."),
                "resdavenet_kernel": stored["conv2.layer1.0.conv1.weight"].shape[-1],
                "feature_dim": int(known.get("visual_feat_dim", stored["visn_fc.visn_fc.weight"].shape[1])),
                "image_layers": int(known.get("trm_layers", fairseq.count(stored, "trm."))),
                "padding": "published",
            }
        )
    except KeyError as error:
        raise CheckpointError(f"{name}: holds no {error}, which every published bundle has") from None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{name}: its arguments do not make up a model ({error})") from None
    return config, tuple(assumed)


def _stages(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    start = "conv2.layer"
    return {name.removeprefix(start): x for name, x in stored.items() if name.startswith(start)}


# ---- writing ----------------------------------------------------------------------------------------------

DEFAULT_ARGS: Mapping[str, Any] = MappingProxyType(
    {
        "extractor_mode": "default",
        "activation_fn": "gelu",
        "activation_dropout": 0.0,
        "layer_norm_first": False,
        "encoder_layerdrop": 0.0,
        "logit_temp": 0.1,
        "quantize_targets": True,
        "quantize_input": False,
        "same_quantizer": False,
        "feature_grad_mult": 1.0,
        "mask_selection": "static",
        "mask_other": 0,
        "no_mask_overlap": False,
        "mask_min_space": 1,
        "mask_channel_length": 0.0,
        "mask_channel_prob": 0.0,
        "mask_channel_selection": "static",
        "mask_channel_other": 0,
        "no_mask_channel_overlap": False,
        "mask_channel_min_space": 1,
        "negatives_from_everywhere": False,
        "cross_sample_negatives": 0,
        "codebook_negatives": 0,
        "target_glu": False,
        "conv_bias": False,
        "return_code_index": False,
        "trim_mask": True,
        "hidden_act": "gelu",
        "max_position_embeddings": 512,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "xtrm_layers": 1,
        "visual_pos_dim": 4,
        "return_attention_weight": False,
        "fine_matching_weight": 0.0,
        "coarse_matching_weight": 1.0,
        "caption_w2v2_weight": 1.0,
        "libri_w2v2_weight": 0.0,
        "coarse_to_fine_retrieve": False,
        "fb_w2v2_weights_fn": None,
        "margin": 1.0,
        "topk": 100,
    }
)
"""The published arguments that no size of ours decides."""


@dataclass(frozen=True)
class Carried:
    """What a bundle held that the model has no use for: kept so that it can be written back.

    Attributes:
        tensors: under their names in the bundle; those of the cross encoder begin with "cross_encoder.".
        args: the published arguments.
    """

    tensors: Mapping[str, Tensor]
    args: Mapping[str, Any] | None = None


def export(model: VGSPlus, carried: Carried) -> tuple[OrderedDict[str, Tensor], dict[str, Any]]:
    """The published state dict of a model and the arguments under which the published code builds it.

    Raises:
        CheckpointError: a size that the published code cannot be given.
    """
    c = model.config
    fixed = {
        "dim": _DIM,
        "resdavenet_widths": _WIDTHS,
        "resdavenet_blocks": _BLOCKS,
        "resdavenet_kernel": _KERNEL,
        "grounded": True,
    }
    wrong = [
        f"{name} = {getattr(c, name)} (there {only})"
        for name, only in fixed.items()
        if getattr(c, name) != only
    ]
    if wrong:
        raise CheckpointError(f"the published code has sizes that no argument changes: {', '.join(wrong)}")
    state = model.state_dict()
    places = find_places({name: tuple(tensor.shape) for name, tensor in state.items()}, RULES)
    tensors: dict[str, Tensor] = {}
    for name, place in places.items():
        tensors |= place.scatter(state[name].detach().cpu())
    left = {name: x for name, x in carried.tensors.items() if not name.startswith(f"{CROSS}.")}
    return OrderedDict(tensors | (left or _discarded(c.dim))), dict(carried.args or _args(c))


def save_bundle(model: VGSPlus, carried: Carried, path: Path) -> None:
    """Write a bundle and its arguments, which the published code's loaders accept.

    Raises:
        CheckpointError: as `export`.
        OSError: a file cannot be written.
    """
    tensors, args = export(model, carried)
    start = f"{CROSS}."
    # The published loader asks for a cross encoder too and is content with an empty one.
    cross = {name.removeprefix(start): x for name, x in carried.tensors.items() if name.startswith(start)}
    temporary = path.with_name(f".{path.name}.writing")
    torch.save({DUAL: tensors, CROSS: OrderedDict(cross)}, temporary)
    arguments = path.with_name(ARGS)
    written = arguments.with_name(f".{ARGS}.writing")
    written.write_bytes(pickle.dumps(argparse.Namespace(**args)))
    written.replace(arguments)
    temporary.replace(path)


def _discarded(dim: int) -> dict[str, Tensor]:
    """The projection that nothing reads, at its published initial values."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (2 * dim, dim), "0.bias": (2 * dim,), "2.weight": (dim, 2 * dim), "2.bias": (dim,)}
    return {
        f"{DISCARDED}{name}": torch.zeros(shape)
        if name.endswith("bias")
        else torch.normal(0.0, 0.02, shape, generator=generator)
        for name, shape in shapes.items()
    }


def _args(c: ModelConfig) -> dict[str, Any]:
    dropouts = ("dropout", "attention_dropout", "dropout_input", "dropout_features")
    return {
        **DEFAULT_ARGS,
        **dict.fromkeys((*dropouts, "hidden_dropout_prob", "attention_probs_dropout_prob"), c.dropout),
        "encoder_layers": c.shared_layers + c.ssl_layers,
        "encoder_embed_dim": c.dim,
        "encoder_ffn_embed_dim": c.ffn_dim,
        "encoder_attention_heads": c.heads,
        "num_attention_heads": c.heads,
        "intermediate_size": c.ffn_dim,
        "hidden_size": c.dim,
        "final_dim": c.ssl_dim,
        "conv_feature_layers": " + ".join(f"[{layer}]" for layer in c.conv_layers),
        "latent_vars": c.quantizer_codes,
        "latent_groups": c.quantizer_groups,
        "latent_dim": c.quantizer_dim,
        "latent_temp": str(c.temperature),
        "mask_length": c.mask_span,
        "mask_prob": c.mask_probability,
        "num_negatives": c.num_negatives,
        "conv_pos": c.pos_conv_kernel,
        "conv_pos_groups": c.pos_conv_groups,
        "layer_use": c.shared_layers - 1,
        "diversity_weight": c.diversity_weight,
        "trm_layers": c.image_layers,
        "visual_feat_dim": c.feature_dim,
    }
