"""fairseq's wav2vec 2.0 and HuBERT checkpoints: names of tensors, and sizes."""

import ast
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch

from vgsplus.errors import CheckpointError
from vgsplus.interop.mapping import StoredModel, name_rules
from vgsplus.models.vgsplus import ModelConfig
from vgsplus.tensor_files import Shape, StoredTensor, attributes, named_tensors

FINE_TUNED = ("w2v_encoder.w2v_model.", "encoder.w2v_model.")
"""Prefixes of the names in a model that was fine-tuned for speech recognition, with CTC or with a decoder."""
NOT_NORMALIZED = (
    "was trained on waveforms that are not normalised, and its features depend on their level; waveforms are "
    "normalised here"
)
HEAD_WIDTH = 64
"""Width of an attention head in all published sizes of these models."""
NAMES: Mapping[str, str | tuple[str, ...]] = {
    "speech.waveform.norm.*": "feature_extractor.conv_layers.0.2.*",
    "speech.waveform.norms.#.*": "feature_extractor.conv_layers.#.2.1.*",
    "speech.waveform.convolutions.#.*": "feature_extractor.conv_layers.#.0.*",
    "speech.norm.*": "layer_norm.*",
    "speech.project.*": "post_extract_proj.*",
    "speech.mask_vector": "mask_emb",
    "speech.positions.convolution.parametrizations.weight.original0": "encoder.pos_conv.0.weight_g",
    "speech.positions.convolution.parametrizations.weight.original1": "encoder.pos_conv.0.weight_v",
    "speech.positions.convolution.bias": "encoder.pos_conv.0.bias",
    "speech.input_norm.*": "encoder.layer_norm.*",
    "speech.output_norm.*": "encoder.layer_norm.*",
    "speech.layers.#.attention.qkv.*": tuple(f"encoder.layers.#.self_attn.{x}_proj.*" for x in "qkv"),
    "speech.layers.#.attention.out.*": "encoder.layers.#.self_attn.out_proj.*",
    "speech.layers.#.attention_norm.*": "encoder.layers.#.self_attn_layer_norm.*",
    "speech.layers.#.expand.*": "encoder.layers.#.fc1.*",
    "speech.layers.#.contract.*": "encoder.layers.#.fc2.*",
    "speech.layers.#.ffn_norm.*": "encoder.layers.#.final_layer_norm.*",
    "quantizer.codebook": "quantizer.vars",
    "quantizer.logits.*": "quantizer.weight_proj.*",
    "project_target.*": "project_q.*",
    "project_prediction.*": "final_proj.*",
    "speech.cls": "cls_token",
}
"""{our name: fairseq's}; see `name_rules`. The CLS token is an addition of the FaST-VGS family."""
PARTS = (
    *("feature_extractor.", "layer_norm.", "post_extract_proj.", "mask_emb", "encoder.", "quantizer."),
    *("project_q.", "input_quantizer.", "project_inp."),
)
"""Prefixes of tensors in the parts of the network that `NAMES` covers."""


def codebook_shape(shape: Shape) -> Shape:
    """Return fairseq's shape of a codebook (G, K, V): (1, G·K, V)."""
    return (1, shape[0] * shape[1], shape[2])


def speech_sizes(
    name: str, stored: Mapping[str, StoredTensor], args: Mapping[str, Any], prefix: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of `ModelConfig` for speech encoder and quantizer, and the settings assumed.

    Sizes that are not in the arguments are read from the tensors. The number of heads, the strides and the
    order of normalisation, which the tensors do not determine, are assumed to be those of the published base
    models. `name` is used in messages, and `prefix` begins the names of the tensors.

    Raises:
        CheckpointError: tensors of the network are missing, or the architecture is another one.
    """
    require_supported(name, args)

    def shape(of: str) -> Shape | None:
        found = stored.get(f"{prefix}{of}")
        return None if found is None else found.shape

    first_name, project_name = "feature_extractor.conv_layers.0.0.weight", "post_extract_proj.weight"
    positions_name, expand_name = "encoder.pos_conv.0.weight_v", "encoder.layers.0.fc1.weight"
    first, project, positions, expand = map(shape, (first_name, project_name, positions_name, expand_name))
    if project is None or positions is None or expand is None or first is None:
        needed = (first_name, project_name, positions_name, expand_name)
        absent = [f"{prefix}{of}" for of in needed if shape(of) is None]
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
    quantizer = ("quantizer.vars", "quantizer.weight_proj.weight", "final_proj.weight")
    codebook, logits, final = map(shape, quantizer)
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
        # The input of project_q is the concatenation of all groups.
        input_dim = (shape("project_q.weight") or (0, codebook[2]))[1]
        groups = int(args.get("latent_groups", input_dim // codebook[2]))
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
        sizes["conv_layers"] = _stored_convolutions(stored, f"{prefix}feature_extractor.conv_layers.")
        assumed.append(f"strides = {', '.join(str(stride) for *_, stride in sizes['conv_layers'])}")
    return sizes | {"shared_layers": layers, "ssl_layers": 0}, assumed


_SUPPORTED: Mapping[str, tuple[object, ...]] = {
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
"""Settings of fairseq and unilm that select an architecture, and their supported values."""


def require_supported(name: str, args: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the arguments select an architecture other than wav2vec 2.0 and HuBERT."""
    for setting, values in _SUPPORTED.items():
        if (value := args.get(setting)) is not None and value not in values:
            only = " or ".join(map(repr, values))
            raise CheckpointError(f"{name}: has {setting} = {value!r}; only {only} is supported")


def convolutions(name: str, text: str) -> tuple[tuple[int, int, int], ...]:
    """Parse "[(512, 10, 5)] + [(512, 3, 2)] * 4" into (channels, kernel, stride) of each layer; no eval.

    Raises:
        CheckpointError: the text has another form.
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
    """Count the consecutive numbers, from `first`, that follow `prefix` in the names."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in stored if name.startswith(prefix)}
    index = first
    while str(index) in numbers:
        index += 1
    return index - first


def _stored_convolutions(stored: Mapping[str, StoredTensor], prefix: str) -> tuple[tuple[int, int, int], ...]:
    shapes = [stored[f"{prefix}{index}.0.weight"].shape for index in range(count(stored, prefix))]
    # In all published sizes the first stride is half of the kernel size, and the others are 2.
    return tuple((s[0], s[2], s[2] // 2 if index == 0 else 2) for index, s in enumerate(shapes))


def arguments(name: str, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's arguments: 'args' (argparse) or 'cfg' (OmegaConf or plain; flat in unilm's files).

    The arguments `w2v_args` of the network that was fine-tuned, if there are any, take precedence.

    Raises:
        CheckpointError: they select another architecture.
    """
    found: dict[str, Any] = {}
    for settings in _configurations(checkpoint):
        require_supported(name, settings)
        # fairseq has the normalisation of waveforms among the settings of the task.
        task = attributes(settings.get("task")) or {}
        found |= {key: value for key, value in task.items() if key == "normalize"}
        found |= {key: value for key, value in settings.items() if value is not None}
    return found


def _configurations(values: Mapping[str, Any], depth: int = 8) -> Iterator[dict[str, Any]]:
    """Yield all nested sets of model arguments, outer ones first."""
    for key in ("args", "cfg", "model", "w2v_args") if depth else ():
        inner = attributes(values.get(key))
        if inner and not any(isinstance(value, StoredTensor) for value in inner.values()):
            yield inner
            yield from _configurations(inner, depth - 1)


def open_model(name: str, checkpoint: Mapping[str, Any]) -> StoredModel:
    """Return the speech encoder of a checkpoint with 'model' and 'args' or 'cfg'.

    Raises:
        CheckpointError: it is neither wav2vec 2.0 nor HuBERT.
    """
    stored = named_tensors(checkpoint["model"])
    args = arguments(name, checkpoint)
    for prefix in FINE_TUNED:
        if any(key.startswith(prefix) for key in stored):
            # Tensors without the prefix, such as encoder.proj of a decoder, are not part of the network.
            stored = {
                f"outside.{key}" if key.startswith(PARTS) and not key.startswith(prefix) else key: tensor
                for key, tensor in stored.items()
            }
            stored = without_prefix(name, stored, prefix)
    return open_speech_encoder(name, stored, args)


def without_prefix(name: str, stored: Mapping[str, StoredTensor], prefix: str) -> dict[str, StoredTensor]:
    """Remove a prefix from the names that have it.

    Raises:
        CheckpointError: two names become equal.
    """
    found: dict[str, StoredTensor] = {}
    for key, tensor in stored.items():
        short = key.removeprefix(prefix)
        if short in found:
            raise CheckpointError(
                f"{name}: holds the tensor {short} twice, as {short} and as {prefix}{short}"
            )
        found[short] = tensor
    return found


def _extractor_mode(
    name: str, args: Mapping[str, Any], *, layer_norm: bool
) -> tuple[Literal["default", "layer_norm"], list[str]]:
    """Return the normalisation of the feature extractor, and the settings that are assumed."""
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
    """Add an identity for the projection, which fairseq omits if both widths are equal."""
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


def open_speech_encoder(
    name: str, stored: Mapping[str, StoredTensor], args: Mapping[str, Any], *, cls: bool = False
) -> StoredModel:
    """Return the speech encoder in tensors with fairseq's names, of a model with these arguments.

    `name` is used in messages. With `cls`, a CLS token follows the positional convolution.

    Raises:
        CheckpointError: as `open_model`.
    """
    stored = _with_projection(stored)
    # HuBERT has no quantizer, and its final_proj predicts clusters.
    ours = ("speech", "quantizer", "project") if "quantizer.vars" in stored else ("speech",)
    names = {key: theirs for key, theirs in NAMES.items() if key.startswith(ours)}
    try:
        sizes, assumed = speech_sizes(name, stored, args)
        config = ModelConfig(**split_layers(sizes), grounded=False, cls_after_positions=cls)
    except (ValueError, TypeError, OverflowError, ZeroDivisionError, IndexError) as error:
        raise CheckpointError(f"{name}: its settings and tensors do not make up a model ({error})") from None
    rules = name_rules(names, shapes={"quantizer.codebook": codebook_shape})
    return StoredModel(
        name=name, stored=stored, rules=rules, config=config, assumed=tuple(assumed), parts=PARTS
    )


def split_layers(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Split the layers of a speech-only model at two thirds, where the paper grounds it (8 of 12)."""
    layers = sizes["shared_layers"]
    shared = max(1, round(layers * 2 / 3))
    return {**sizes, "shared_layers": shared, "ssl_layers": layers - shared}
