"""Read and write published bundles of FaST-VGS-Family and its VGS+ fork.

Apart from names, the tensors of the published network differ in three ways: query, key and value are
separate, convolutions over time are two-dimensional, and the codebook has one axis for all groups and codes.
"""

import argparse
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vgsplus.errors import CheckpointError
from vgsplus.files import atomic_file
from vgsplus.interop import fairseq
from vgsplus.interop.mapping import NameRule, StoredModel, match_tensors, name_rules
from vgsplus.models.published import build_model
from vgsplus.models.vgsplus import ModelConfig, VGSPlus
from vgsplus.tensor_files import Shape, StoredTensor, attributes, named_tensors, read_pickle

ARGS = "args.pkl"
BUNDLES = ("best_bundle.pth", "bundle.pth")
DUAL, CROSS = "dual_encoder", "cross_encoder"
VG_HUBERT = "audio_encoder."
"""Prefix of the names of VG-HuBERT's speech encoder; the other tensors belong to its image encoder."""
SPEECH = "conv1_trm1_trm3."
DISCARDED = "audio_cls_token_proj_coarse."
"""Prefix of a projection that every bundle has, although the published network does not use its output."""
_WIDTHS, _BLOCKS, _KERNEL, _DIM = (128, 256, 512, 768), 2, 9, 768
"""Fixed sizes of the published network."""
_GROUNDING_LAYER = 7


def _over_time(shape: Shape) -> Shape:
    """Return the published shape of a convolution over time: two-dimensional, of height 1."""
    return (*shape[:2], 1, *shape[2:])


def _bert(ours: str, theirs: str) -> dict[str, str | tuple[str, ...]]:
    """Return {our name: published name} of a BERT layer."""
    return {
        f"{ours}attention.qkv.*": tuple(f"{theirs}attention.self.{x}.*" for x in ("query", "key", "value")),
        f"{ours}attention.out.*": f"{theirs}attention.output.dense.*",
        f"{ours}attention_norm.*": f"{theirs}attention.output.LayerNorm.*",
        f"{ours}expand.*": f"{theirs}intermediate.dense.*",
        f"{ours}contract.*": f"{theirs}output.dense.*",
        f"{ours}ffn_norm.*": f"{theirs}output.LayerNorm.*",
    }


NAMES: Mapping[str, str | tuple[str, ...]] = {
    "speech_head.resdavenet.project.*": "conv2.linear.*",
    "speech_head.resdavenet.norm.*": "conv2.bn1.*",
    "speech_head.cls.**": "audio_cls_token_proj_pre.**",
    **_bert("speech_head.layer.", "trm2."),
    "speech_head.project.*": "trm2_proj.*",
    "image.cls": "visual_cls_token",
    "image.features.*": "visn_fc.visn_fc.*",
    "image.features_norm.*": "visn_fc.visn_layer_norm.*",
    "image.boxes.*": "visn_fc.box_fc.*",
    "image.boxes_norm.*": "visn_fc.box_layer_norm.*",
    **_bert("image.layers.#.", "trm.#."),
    "image.head.**": "visual_cls_token_proj_coarse.**",
}
"""{our name: published name}, except in the speech encoder and ResDAVEnet's stages; see `name_rules`."""


def _stage_rules(stage: int) -> tuple[NameRule, ...]:
    """Return the rules of a stage of ResDAVEnet, counted from 0 here and from 1 in the published code."""
    names = {"conv#.weight": "conv#.weight", "norm#.*": "bn#.*"}
    names |= {"shortcut.weight": "downsample.0.weight", "shortcut_norm.*": "downsample.1.*"}
    ours = f"speech_head.resdavenet.stages.{stage}.#."
    convolutions = (f"{ours}conv#.weight", f"{ours}shortcut.weight")
    return name_rules(
        {f"{ours}{name}": f"#.{published}" for name, published in names.items()},
        prefix=f"conv2.layer{stage + 1}.",
        shapes=dict.fromkeys(convolutions, _over_time),
    )


RULES = (
    *name_rules(fairseq.NAMES, SPEECH, {"quantizer.codebook": fairseq.codebook_shape}),
    *name_rules(NAMES),
    *(rule for stage in range(len(_WIDTHS)) for rule in _stage_rules(stage)),
)


# ---- reading ----------------------------------------------------------------------------------------------


def build(state_dict: Mapping[str, NDArray[Any] | Tensor], args: Mapping[str, Any]) -> VGSPlus:
    """Build a model in `published` padding mode from a published state dict and its training arguments.

    Args:
        state_dict: {name: array or tensor}, with or without DataParallel's prefix "module.".
        args: the published arguments; sizes that they lack are read from the tensors.

    Raises:
        CheckpointError: a tensor is missing, or its shape is not the one that the arguments state.
    """
    tensors = {name: torch.as_tensor(np.asarray(x)) for name, x in state_dict.items()}
    stored = {name: StoredTensor(tuple(x.shape), x.dtype, x.clone) for name, x in tensors.items()}
    model, report = open_model("the bundle", {DUAL: stored}, args).build(build_model)
    if report.initial:
        raise CheckpointError(f"the bundle lacks tensors of the model\n{report}")
    return model


def read_args(bundle: Path) -> dict[str, Any] | None:
    """Return the arguments in the `args.pkl` next to a bundle, or None if it does not exist.

    Raises:
        CheckpointError: the file is broken, or holds no arguments.
    """
    path = bundle.parent / ARGS
    if not path.is_file():
        return None
    found = attributes(read_pickle(path))
    if not found:
        raise CheckpointError(f"{path}: holds no arguments by name")
    return found


def open_model(name: str, bundle: Mapping[str, Any], args: Mapping[str, Any] | None) -> StoredModel:
    """Return the dual encoder of a bundle; its cross encoder is not used.

    Of a bundle of VG-HuBERT (Peng & Harwath, Interspeech 2022), return the speech encoder.

    Raises:
        CheckpointError: the tensors are not those of the published network.
    """
    stored, cross = (
        {key.removeprefix("module."): x for key, x in named_tensors(bundle.get(part)).items()}
        for part in (DUAL, CROSS)
    )
    if any(key.startswith(VG_HUBERT) for key in stored):
        return _vg_hubert(name, stored, args or {})
    config, assumed = _config(name, stored, args)
    return StoredModel(
        name=name,
        stored=stored | {f"{CROSS}.{key}": tensor for key, tensor in cross.items()},
        rules=RULES,
        config=config,
        assumed=assumed,
        parts=tuple(f"{SPEECH}{part}" for part in fairseq.PARTS),
    )


def _vg_hubert(name: str, stored: Mapping[str, StoredTensor], args: Mapping[str, Any]) -> StoredModel:
    """Return HuBERT's layers up to the grounded one, and its CLS token, under fairseq's names."""
    found = {
        f"encoder.{key}" if key.startswith("pos_conv.") else key: tensor
        for key, tensor in fairseq.without_prefix(name, stored, VG_HUBERT).items()
    }
    # The arguments may state the number of layers of the HuBERT that it was initialised from.
    known = {key: value for key, value in args.items() if key != "encoder_layers"}
    return fairseq.open_speech_encoder(f"{name}: VG-HuBERT", found, known, cls="cls_token" in found)


def _config(
    name: str, stored: Mapping[str, StoredTensor], args: Mapping[str, Any] | None
) -> tuple[ModelConfig, tuple[str, ...]]:
    known = dict(args or {})
    try:
        sizes, assumed = fairseq.speech_sizes(name, stored, known, SPEECH)
        layers = sizes["shared_layers"]
        if "layer_use" not in known:
            known["layer_use"] = min(_GROUNDING_LAYER, layers - 1)
            assumed.append(f"layer_use = {known['layer_use']}")
        shared = int(known["layer_use"]) + 1
        first = float(str(known.get("latent_temp", 2)).strip("()[] ").split(",")[0])
        config = ModelConfig(
            **sizes
            | {
                "shared_layers": shared,
                "ssl_layers": layers - shared,
                "diversity_weight": float(known.get("diversity_weight", 0.1)),
                # The published code never anneals the temperature.
                "temperature": (first, first, 1.0),
                "resdavenet_widths": tuple(
                    stored[f"conv2.layer{stage}.0.conv1.weight"].shape[0]
                    for stage in range(1, 1 + fairseq.count(stored, "conv2.layer", 1))
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


# ---- writing ----------------------------------------------------------------------------------------------

DEFAULT_ARGS: Mapping[str, Any] = {
    "extractor_mode": "default",
    **dict.fromkeys(("activation_fn", "hidden_act"), "gelu"),
    **dict.fromkeys(("mask_selection", "mask_channel_selection"), "static"),
    **dict.fromkeys(("layer_norm_first", "conv_bias", "target_glu"), False),
    **dict.fromkeys(("quantize_input", "same_quantizer", "return_code_index"), False),
    **dict.fromkeys(("no_mask_overlap", "no_mask_channel_overlap", "negatives_from_everywhere"), False),
    **dict.fromkeys(("return_attention_weight", "coarse_to_fine_retrieve"), False),
    **dict.fromkeys(("quantize_targets", "trim_mask"), True),
    **dict.fromkeys(("activation_dropout", "encoder_layerdrop"), 0.0),
    **dict.fromkeys(("mask_channel_length", "mask_channel_prob"), 0.0),
    **dict.fromkeys(("fine_matching_weight", "libri_w2v2_weight"), 0.0),
    **dict.fromkeys(("coarse_matching_weight", "caption_w2v2_weight"), 1.0),
    **dict.fromkeys(("feature_grad_mult", "margin"), 1.0),
    **dict.fromkeys(("mask_other", "mask_channel_other"), 0),
    **dict.fromkeys(("cross_sample_negatives", "codebook_negatives"), 0),
    **dict.fromkeys(("mask_min_space", "mask_channel_min_space", "xtrm_layers"), 1),
    "logit_temp": 0.1,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "max_position_embeddings": 512,
    "visual_pos_dim": 4,
    "topk": 100,
    "fb_w2v2_weights_fn": None,
}
"""The published arguments that do not depend on the sizes of the model."""


@dataclass(frozen=True)
class UnusedTensors:
    """The tensors of a bundle that the model does not use, stored so that they can be written back.

    Attributes:
        tensors: by name in the bundle; those of the cross encoder begin with "cross_encoder.".
        args: the published arguments.
    """

    tensors: Mapping[str, Tensor]
    args: Mapping[str, Any] | None = None


def export(model: VGSPlus, unused: UnusedTensors) -> tuple[OrderedDict[str, Tensor], dict[str, Any]]:
    """Return the published state dict of a model, and the arguments with which the published code builds it.

    Raises:
        CheckpointError: the model has a size that the published code does not support.
    """
    c = model.config
    fixed = {
        "dim": _DIM,
        "resdavenet_widths": _WIDTHS,
        "resdavenet_blocks": _BLOCKS,
        "resdavenet_kernel": _KERNEL,
        "grounded": True,
        "image": None,
    }
    wrong = [f"{k} = {getattr(c, k)} (there {only})" for k, only in fixed.items() if getattr(c, k) != only]
    if wrong:
        raise CheckpointError(f"the published code has sizes that no argument changes: {', '.join(wrong)}")
    state = model.state_dict()
    mappings = match_tensors({name: tuple(tensor.shape) for name, tensor in state.items()}, RULES)
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in mappings:
            tensors |= mappings[name].scatter(tensor.detach().cpu())
    others = {name: x for name, x in unused.tensors.items() if not name.startswith(f"{CROSS}.")}
    return OrderedDict(tensors | (others or _discarded(c.dim))), dict(unused.args or _args(c))


def save_bundle(model: VGSPlus, unused: UnusedTensors, path: Path) -> None:
    """Write a bundle, and its arguments in `args.pkl`, in the form that the published code loads.

    Raises:
        CheckpointError: as `export`.
        OSError: a file cannot be written.
    """
    tensors, args = export(model, unused)
    start = f"{CROSS}."
    # The published code requires a cross encoder, which may be empty.
    cross = {name.removeprefix(start): x for name, x in unused.tensors.items() if name.startswith(start)}
    with atomic_file(path) as file:
        torch.save({DUAL: tensors, CROSS: OrderedDict(cross)}, file)
        with atomic_file(path.with_name(ARGS)) as args_file:
            args_file.write(pickle.dumps(argparse.Namespace(**args)))


def _discarded(dim: int) -> dict[str, Tensor]:
    """Return the projection `DISCARDED` with initial values as in the published code."""
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
