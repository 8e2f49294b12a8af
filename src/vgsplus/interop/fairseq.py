"""fairseq's wav2vec 2.0 and HuBERT checkpoints: their names and sizes, as ours."""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch

from vgsplus.errors import CheckpointError
from vgsplus.interop.tensors import Rule, Source
from vgsplus.models.vgsplus import ModelConfig
from vgsplus.tensor_files import Shape, StoredTensor, attributes, named_tensors

FINE_TUNED = ("w2v_encoder.w2v_model.", "encoder.w2v_model.")
"""In front of the names of a model that was fine-tuned to recognise speech, by CTC or with a decoder."""
CLS_RULE = Rule(r"speech\.cls", ("cls_token",))
NOT_NORMALIZED = (
    "was trained on waveforms that are not normalised, and its features depend on their level; waveforms are "
    "normalised here"
)
HEAD_WIDTH = 64
"""Of an attention head, in every published size of these models."""


def codebook_shape(shape: Shape, _: int) -> Shape:
    """All groups in one row: (G, K, V) is (1, G·K, V) there."""
    return (1, shape[0] * shape[1], shape[2])


def rules(prefix: str = "") -> tuple[Rule, ...]:
    """Where the speech encoder, speech decoder and quantiser are kept; `prefix` stands before every name."""
    p = prefix
    attention = tuple(rf"{p}encoder.layers.\1.self_attn.{part}_proj.\2" for part in "qkv")
    positions = f"{p}encoder.pos_conv.0."
    return (
        Rule(r"speech\.waveform\.norm\.(\w+)", (rf"{p}feature_extractor.conv_layers.0.2.\1",)),
        Rule(r"speech\.waveform\.norms\.(\d+)\.(\w+)", (rf"{p}feature_extractor.conv_layers.\1.2.1.\2",)),
        Rule(
            r"speech\.waveform\.convolutions\.(\d+)\.(\w+)", (rf"{p}feature_extractor.conv_layers.\1.0.\2",)
        ),
        Rule(r"speech\.norm\.(\w+)", (rf"{p}layer_norm.\1",)),
        Rule(r"speech\.project\.(\w+)", (rf"{p}post_extract_proj.\1",)),
        Rule(r"speech\.mask_vector", (f"{p}mask_emb",)),
        Rule(
            r"speech\.positions\.convolution\.parametrizations\.weight\.original0", (f"{positions}weight_g",)
        ),
        Rule(
            r"speech\.positions\.convolution\.parametrizations\.weight\.original1", (f"{positions}weight_v",)
        ),
        Rule(r"speech\.positions\.convolution\.bias", (f"{positions}bias",)),
        Rule(r"speech\.(?:input|output)_norm\.(\w+)", (rf"{p}encoder.layer_norm.\1",)),
        Rule(r"speech\.layers\.(\d+)\.attention\.qkv\.(\w+)", attention),
        Rule(
            r"speech\.layers\.(\d+)\.attention\.out\.(\w+)", (rf"{p}encoder.layers.\1.self_attn.out_proj.\2",)
        ),
        Rule(
            r"speech\.layers\.(\d+)\.attention_norm\.(\w+)",
            (rf"{p}encoder.layers.\1.self_attn_layer_norm.\2",),
        ),
        Rule(r"speech\.layers\.(\d+)\.expand\.(\w+)", (rf"{p}encoder.layers.\1.fc1.\2",)),
        Rule(r"speech\.layers\.(\d+)\.contract\.(\w+)", (rf"{p}encoder.layers.\1.fc2.\2",)),
        Rule(r"speech\.layers\.(\d+)\.ffn_norm\.(\w+)", (rf"{p}encoder.layers.\1.final_layer_norm.\2",)),
        Rule(r"quantizer\.codebook", (f"{p}quantizer.vars",), codebook_shape),
        Rule(r"quantizer\.logits\.(\w+)", (rf"{p}quantizer.weight_proj.\1",)),
        Rule(r"project_target\.(\w+)", (rf"{p}project_q.\1",)),
        Rule(r"project_prediction\.(\w+)", (rf"{p}final_proj.\1",)),
    )


def parts(prefix: str = "") -> tuple[str, ...]:
    """What the names of the tensors of the parts that `rules` speak of begin with."""
    names = ("feature_extractor.", "layer_norm.", "post_extract_proj.", "mask_emb", "encoder.", "quantizer.")
    return tuple(f"{prefix}{name}" for name in (*names, "project_q.", "input_quantizer.", "project_inp."))


def speech_sizes(
    name: str, stored: Mapping[str, StoredTensor], args: Mapping[str, Any], prefix: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Sizes of everything but grounding, as `ModelConfig` takes them, and what had to be assumed.

    What the arguments do not tell is read off the tensors; heads, strides and the order of normalisation,
    which no tensor shows, are assumed as in the published base models.

    Raises:
        CheckpointError: tensors of the network are missing, or it is of another architecture.
    """
    require_supported(name, args)

    def shape(of: str) -> Shape | None:
        found = stored.get(f"{prefix}{of}")
        return None if found is None else found.shape

    project = shape("post_extract_proj.weight")  # (D, C)
    positions = shape("encoder.pos_conv.0.weight_v")
    expand = shape("encoder.layers.0.fc1.weight")
    first = shape("feature_extractor.conv_layers.0.0.weight")
    needed = {
        "feature_extractor.conv_layers.0.0.weight": first,
        "post_extract_proj.weight": project,
        "encoder.pos_conv.0.weight_v": positions,
        "encoder.layers.0.fc1.weight": expand,
    }
    absent = [f"{prefix}{of}" for of, found in needed.items() if found is None]
    if project is None or positions is None or expand is None or first is None:
        if len(absent) == len(needed):
            raise CheckpointError(
                f"{name}: holds none of the tensors of wav2vec 2.0 under {prefix}feature_extractor… and "
                f"{prefix}encoder…, so it is a checkpoint of another model"
            )
        raise CheckpointError(
            f"{name}: lacks {', '.join(absent)}, without which the network is not wav2vec 2.0"
        )
    mode, assumed = _extractor_mode(
        name, args, layer_norm=shape("feature_extractor.conv_layers.1.2.1.weight") is not None
    )
    dim = int(args.get("encoder_embed_dim", project[0]))
    layers = int(args.get("encoder_layers", count(stored, f"{prefix}encoder.layers.")))
    codebook, logits, final = (
        shape("quantizer.vars"),
        shape("quantizer.weight_proj.weight"),
        shape("final_proj.weight"),
    )
    sizes: dict[str, Any] = {
        "extractor_mode": mode,
        "conv_bias": shape("feature_extractor.conv_layers.0.0.bias") is not None,
        "layer_norm_first": bool(args.get("layer_norm_first", False)),
        "dim": dim,
        "ffn_dim": int(args.get("encoder_ffn_embed_dim", expand[0])),
        "pos_conv_kernel": int(args.get("conv_pos", positions[2])),
        "pos_conv_groups": int(args.get("conv_pos_groups", dim // positions[1])),
        "dropout": float(args.get("dropout", 0.1)),
        "mask_probability": float(args.get("mask_prob", 0.65)),
        "mask_span": int(args.get("mask_length", 10)),
        "num_negatives": int(args.get("num_negatives", 100)),
    }
    if codebook is not None and logits is not None and final is not None:
        # The width of project_q's input is that of all groups together.
        joined = (shape("project_q.weight") or (0, codebook[2]))[1]
        groups = int(args.get("latent_groups", joined // codebook[2]))
        sizes |= {
            "quantizer_groups": groups,
            "quantizer_codes": int(args.get("latent_vars", logits[0] // groups)),
            "quantizer_dim": codebook[2] * groups,
            "ssl_dim": int(args.get("final_dim", final[0]) or final[0]),
        }
    if "encoder_attention_heads" in args:
        sizes["heads"] = int(args["encoder_attention_heads"])
    else:
        sizes["heads"] = max(1, dim // HEAD_WIDTH)
        assumed.append(f"heads = {sizes['heads']}")
    if args.get("conv_feature_layers"):
        sizes["conv_layers"] = convolutions(name, str(args["conv_feature_layers"]))
    else:
        sizes["conv_layers"] = _seen_convolutions(stored, f"{prefix}feature_extractor.conv_layers.")
        assumed.append(f"strides = {', '.join(str(stride) for *_, stride in sizes['conv_layers'])}")
    return sizes | {"shared_layers": layers, "ssl_layers": 0}, assumed


_ONLY: Mapping[str, tuple[object, ...]] = {
    "extractor_mode": ("default", "layer_norm"),
    "activation_fn": ("gelu",),
    "target_glu": (False,),
    "quantize_input": (False,),
    "relative_position_embedding": (False,),
    "gru_rel_pos": (False,),
    "layer_type": ("transformer",),
    "pos_conv_depth": (1,),
    "pos_enc_type": ("abs",),
    "attn_type": ("",),
    "conv_pos_batch_norm": (False,),
    "rotary": (False,),
    "_name": ("wav2vec2", "hubert", "wav2vec_ctc", "hubert_ctc", "wav2vec_seq2seq", "hubert_seq2seq"),
}
"""Settings of fairseq's and unilm's models that name an architecture, and their values for ours."""


def require_supported(name: str, args: Mapping[str, Any]) -> None:
    """Refuse what the network cannot compute.

    Raises:
        CheckpointError: the arguments ask for another architecture than those of wav2vec 2.0 and HuBERT.
    """
    for setting, values in _ONLY.items():
        if (value := args.get(setting)) is not None and value not in values:
            only = " or ".join(map(repr, values))
            raise CheckpointError(f"{name}: has {setting} = {value!r}; only {only} is supported")


def convolutions(name: str, text: str) -> tuple[tuple[int, int, int], ...]:
    """Read "[(512, 10, 5)] + [(512, 3, 2)] * 4" as (channels, kernel, stride) of each layer; runs nothing.

    Raises:
        CheckpointError: it is written in another way.
    """
    layers: list[tuple[int, int, int]] = []
    try:
        for part in text.split("+"):
            listed, _, times = part.partition("*")
            for channels, kernel, stride in ast.literal_eval(listed.strip()) * int(times or 1):
                layers.append((int(channels), int(kernel), int(stride)))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise CheckpointError(f"{name}: its convolutions {text[:80]!r} cannot be read") from None
    return tuple(layers)


def count(stored: Mapping[str, StoredTensor], prefix: str, first: int = 0) -> int:
    """How many numbers from `first` on follow `prefix` without a gap."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in stored if name.startswith(prefix)}
    index = first
    while str(index) in numbers:
        index += 1
    return index - first


def _seen_convolutions(stored: Mapping[str, StoredTensor], prefix: str) -> tuple[tuple[int, int, int], ...]:
    shapes = [stored[f"{prefix}{index}.0.weight"].shape for index in range(count(stored, prefix))]
    # In every published size the first stride halves its kernel, and the others are 2.
    return tuple((s[0], s[2], s[2] // 2 if index == 0 else 2) for index, s in enumerate(shapes))


def arguments(name: str, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The model's arguments: 'args' (argparse), 'cfg' (OmegaConf or plain, flat in unilm's files) or neither.

    A fine-tuned model holds those of the network that it began from as `w2v_args`, which win.

    Raises:
        CheckpointError: any of them asks for another architecture.
    """
    found: dict[str, Any] = {}
    for settings in _configurations(checkpoint):
        require_supported(name, settings)
        # What waveforms the model takes is a setting of the task.
        task = attributes(settings.get("task")) or {}
        found |= {key: value for key, value in task.items() if key == "normalize"}
        found |= {key: value for key, value in settings.items() if value is not None}
    return found


def _configurations(values: Mapping[str, Any], depth: int = 8) -> Iterator[dict[str, Any]]:
    """Every set of a model's arguments inside others, the outer ones first."""
    for key in ("args", "cfg", "model", "w2v_args") if depth else ():
        inner = attributes(values.get(key))
        if inner and not any(isinstance(value, StoredTensor) for value in inner.values()):
            yield inner
            yield from _configurations(inner, depth - 1)


def source(name: str, checkpoint: Mapping[str, Any]) -> Source:
    """A checkpoint with 'model' and 'args' or 'cfg', as read: its speech encoder, without grounding.

    Raises:
        CheckpointError: it is neither wav2vec 2.0 nor HuBERT.
    """
    stored = named_tensors(checkpoint["model"])
    args = arguments(name, checkpoint)
    for prefix in FINE_TUNED:
        if any(key.startswith(prefix) for key in stored):
            # What stands outside, such as encoder.proj of a decoder's model, is no part of the network.
            stored = {
                f"outside.{key}" if key.startswith(parts()) and not key.startswith(prefix) else key: tensor
                for key, tensor in stored.items()
            }
            stored = without_prefix(name, stored, prefix)
    return speech_source(name, stored, args)


def without_prefix(name: str, stored: Mapping[str, StoredTensor], prefix: str) -> dict[str, StoredTensor]:
    """The tensors, without a prefix that some of their names have.

    Raises:
        CheckpointError: two names become one.
    """
    found: dict[str, StoredTensor] = {}
    for key, tensor in stored.items():
        own = key.removeprefix(prefix)
        if own in found:
            raise CheckpointError(f"{name}: holds the tensor {own} twice, as {own} and as {prefix}{own}")
        found[own] = tensor
    return found


def _extractor_mode(
    name: str, args: Mapping[str, Any], *, layer_norm: bool
) -> tuple[Literal["default", "layer_norm"], list[str]]:
    """Where the feature extractor normalises, by its tensors, and what had to be assumed.

    Raises:
        CheckpointError: the arguments say otherwise, or leave open what no tensor shows.
    """
    mode: Literal["default", "layer_norm"] = "layer_norm" if layer_norm else "default"
    if args.get("extractor_mode", mode) != mode:
        raise CheckpointError(
            f"{name}: says extractor_mode = {args['extractor_mode']!r}, but its tensors are those of {mode!r}"
        )
    if layer_norm and args.get("normalize") is False:
        raise CheckpointError(f"{name}: {NOT_NORMALIZED}")
    if "layer_norm_first" in args:
        return mode, []
    if layer_norm:
        raise CheckpointError(
            f"{name}: does not state layer_norm_first (whether layers normalise their inputs), and its "
            "tensors are the same either way. Use a checkpoint that holds its arguments"
        )
    return mode, ["layer_norm_first = False"]


def _with_projection(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors, with an identity for the projection that fairseq leaves out where widths are equal."""
    norms = [stored.get(f"{part}layer_norm.weight") for part in ("", "encoder.")]
    weight, bias = "post_extract_proj.weight", "post_extract_proj.bias"
    features, width = (None if norm is None else norm.shape for norm in norms)
    if weight in stored or features is None or features != width or len(features) != 1:
        return dict(stored)
    (dim,) = features
    return dict(stored) | {
        weight: StoredTensor((dim, dim), torch.float32, lambda: torch.eye(dim)),
        bias: StoredTensor((dim,), torch.float32, lambda: torch.zeros(dim)),
    }


def speech_source(
    name: str,
    stored: Mapping[str, StoredTensor],
    args: Mapping[str, Any],
    *,
    cls: bool = False,
) -> Source:
    """The tensors of a speech encoder under fairseq's names; `cls`: with a CLS vector after the positions.

    Raises:
        CheckpointError: as `source`.
    """
    stored = _with_projection(stored)
    # HuBERT's final_proj predicts clusters: it is a head of another task.
    own = "speech|quantizer|project" if "quantizer.vars" in stored else "speech"
    taken = [rule for rule in (*rules(), CLS_RULE) if re.match(own, rule.ours)]
    try:
        sizes, assumed = speech_sizes(name, stored, args)
        config = ModelConfig(**split_layers(sizes), grounded=False, cls_after_positions=cls)
    except (ValueError, TypeError, OverflowError, ZeroDivisionError, IndexError) as error:
        raise CheckpointError(f"{name}: its settings and tensors do not make up a model ({error})") from None
    return Source(name=name, stored=stored, rules=taken, config=config, assumed=tuple(assumed), parts=parts())


def split_layers(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Tap the layers of a model that has no tap at two thirds, as the paper does (8 of 12)."""
    layers = sizes["shared_layers"]
    shared = max(1, round(layers * 2 / 3))
    return {**sizes, "shared_layers": shared, "ssl_layers": layers - shared}
