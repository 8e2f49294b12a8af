"""fairseq's wav2vec 2.0 checkpoints: their names and sizes, as ours (wav2vec 2.0, base architecture)."""

import ast
from collections.abc import Mapping
from typing import Any

from vgsplus.interop.tensors import LoadError, Rule, Shape, Source, StoredTensor
from vgsplus.interop.torch_files import attributes
from vgsplus.models.vgsplus import ModelConfig

FINE_TUNED = "w2v_encoder.w2v_model."
"""In front of every name of a model that was fine-tuned to recognise speech."""
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
        Rule(r"speech\.input_norm\.(\w+)", (rf"{p}encoder.layer_norm.\1",)),
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


def speech_sizes(
    name: str, stored: Mapping[str, StoredTensor], args: Mapping[str, Any], prefix: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Sizes of everything but grounding, as `ModelConfig` takes them, and what had to be assumed.

    What the arguments do not tell is read off the tensors; heads and strides, which no tensor shows, are
    assumed as published.

    Raises:
        LoadError: the tensors are not those of wav2vec 2.0, or of an architecture that ours does not have.
    """
    require_supported(name, args)

    def shape(of: str) -> Shape | None:
        found = stored.get(f"{prefix}{of}")
        return None if found is None else found.shape

    project = shape("post_extract_proj.weight")
    positions = shape("encoder.pos_conv.0.weight_v")
    expand = shape("encoder.layers.0.fc1.weight")
    first = shape("feature_extractor.conv_layers.0.0.weight")
    if project is None or positions is None or expand is None or first is None:
        raise LoadError(
            f"{name}: holds none of the tensors of wav2vec 2.0 under {prefix}feature_extractor… and "
            f"{prefix}encoder…, so it is a checkpoint of another model"
        )
    if shape("feature_extractor.conv_layers.1.2.1.weight") is not None:
        raise LoadError(f"{name}: {LARGE}")
    dim = int(args.get("encoder_embed_dim", project[0]))
    layers = int(args.get("encoder_layers", count(stored, f"{prefix}encoder.layers.")))
    codebook, logits, final = (
        shape("quantizer.vars"),
        shape("quantizer.weight_proj.weight"),
        shape("final_proj.weight"),
    )
    sizes: dict[str, Any] = {
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
    assumed = []
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


LARGE = (
    "is of the large architecture (layer normalisation in every convolution, or before attention); "
    "base models are read"
)


def require_supported(name: str, args: Mapping[str, Any]) -> None:
    """Refuse what the network cannot compute.

    Raises:
        LoadError: the arguments ask for another architecture than wav2vec 2.0 base.
    """
    if args.get("layer_norm_first") or args.get("extractor_mode", "default") == "layer_norm":
        raise LoadError(f"{name}: {LARGE}")
    for setting, only in (("conv_bias", False), ("activation_fn", "gelu"), ("target_glu", False)):
        if args.get(setting, only) != only:
            raise LoadError(f"{name}: has {setting} = {args[setting]!r}; only {only!r} is supported")


def convolutions(name: str, text: str) -> tuple[tuple[int, int, int], ...]:
    """Read "[(512, 10, 5)] + [(512, 3, 2)] * 4" as (channels, kernel, stride) of each layer; runs nothing.

    Raises:
        LoadError: it is written in another way.
    """
    layers: list[tuple[int, int, int]] = []
    try:
        for part in text.split("+"):
            listed, _, times = part.partition("*")
            for channels, kernel, stride in ast.literal_eval(listed.strip()) * int(times or 1):
                layers.append((int(channels), int(kernel), int(stride)))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise LoadError(f"{name}: its convolutions {text[:80]!r} cannot be read") from None
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


def arguments(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The model's arguments from 'args' (argparse) or 'cfg' (OmegaConf, or plain); empty without either."""
    for value in (checkpoint.get("args"), (attributes(checkpoint.get("cfg")) or {}).get("model")):
        found = attributes(value)
        if found:
            return found
    return {}


def source(name: str, checkpoint: Mapping[str, Any]) -> Source:
    """A checkpoint with 'model' and 'args' or 'cfg', as read: wav2vec 2.0 without grounding.

    Raises:
        LoadError: it is no wav2vec 2.0 of the base architecture.
    """
    tensors = checkpoint["model"]
    stored = {str(k): v for k, v in tensors.items() if isinstance(v, StoredTensor)}
    args = arguments(checkpoint)
    if any(key.startswith(FINE_TUNED) for key in stored):
        stored = {key.removeprefix(FINE_TUNED): tensor for key, tensor in stored.items()}
        # A fine-tuned model's arguments hold those of the model that it began from elsewhere.
        args = {}
    sizes, assumed = speech_sizes(name, stored, args)
    return Source(
        name=name,
        stored=stored,
        rules=rules(),
        config=ModelConfig(**split_layers(sizes), grounded=False),
        assumed=tuple(assumed),
    )


def split_layers(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Tap the layers of a model that has no tap at two thirds, as the paper does (8 of 12)."""
    layers = sizes["shared_layers"]
    shared = max(1, round(layers * 2 / 3))
    return {**sizes, "shared_layers": shared, "ssl_layers": layers - shared}
