"""Hugging Face's wav2vec 2.0 and HuBERT folders (config.json and weights): names of tensors, and sizes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vgsplus.errors import CheckpointError
from vgsplus.files import read_text
from vgsplus.interop.fairseq import NOT_NORMALIZED, codebook_shape, split_layers
from vgsplus.interop.mapping import StoredModel, name_rules
from vgsplus.models.vgsplus import ModelConfig
from vgsplus.tensor_files import StoredTensor, read_tensors

PREPROCESSOR = "preprocessor_config.json"
CONFIG, SAFETENSORS, PICKLED = "config.json", "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
"""Suffix of the index of sharded weights, which names the file of each tensor."""
MODEL_TYPES = ("wav2vec2", "hubert")
_TASKS = ("wav2vec2.", "hubert.")
"""Prefixes of the names of the encoder in a model with a task head."""
_POSITIONS = "encoder.pos_conv_embed.conv."
_NEW_WEIGHT_NORM = {
    f"{_POSITIONS}parametrizations.weight.original0": f"{_POSITIONS}weight_g",
    f"{_POSITIONS}parametrizations.weight.original1": f"{_POSITIONS}weight_v",
}
_REQUIRED: Mapping[str, object] = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "adapter_attn_dim": None,
    "conv_pos_batch_norm": False,
    "feat_proj_layer_norm": True,
}
_PARTS = (
    "feature_extractor.",
    "feature_projection.",
    "masked_spec_embed",
    "encoder.",
    "quantizer.",
    "project_q.",
)

NAMES: Mapping[str, str | tuple[str, ...]] = {
    "speech.waveform.norm.*": "feature_extractor.conv_layers.0.layer_norm.*",
    "speech.waveform.norms.#.*": "feature_extractor.conv_layers.#.layer_norm.*",
    "speech.waveform.convolutions.#.*": "feature_extractor.conv_layers.#.conv.*",
    "speech.norm.*": "feature_projection.layer_norm.*",
    "speech.project.*": "feature_projection.projection.*",
    "speech.mask_vector": "masked_spec_embed",
    "speech.positions.convolution.parametrizations.weight.original0": f"{_POSITIONS}weight_g",
    "speech.positions.convolution.parametrizations.weight.original1": f"{_POSITIONS}weight_v",
    "speech.positions.convolution.bias": f"{_POSITIONS}bias",
    "speech.input_norm.*": "encoder.layer_norm.*",
    "speech.output_norm.*": "encoder.layer_norm.*",
    "speech.layers.#.attention.qkv.*": tuple(f"encoder.layers.#.attention.{x}_proj.*" for x in "qkv"),
    "speech.layers.#.attention.out.*": "encoder.layers.#.attention.out_proj.*",
    "speech.layers.#.attention_norm.*": "encoder.layers.#.layer_norm.*",
    "speech.layers.#.expand.*": "encoder.layers.#.feed_forward.intermediate_dense.*",
    "speech.layers.#.contract.*": "encoder.layers.#.feed_forward.output_dense.*",
    "speech.layers.#.ffn_norm.*": "encoder.layers.#.final_layer_norm.*",
    "quantizer.codebook": "quantizer.codevectors",
    "quantizer.logits.*": "quantizer.weight_proj.*",
    "project_target.*": "project_q.*",
    "project_prediction.*": "project_hid.*",
}
"""{our name: Hugging Face's}; see `name_rules`."""


def open_model(folder: Path) -> StoredModel:
    """Return the wav2vec 2.0 or HuBERT model in a folder that `save_pretrained` wrote.

    Raises:
        CheckpointError: a file is missing or broken, or the model is neither wav2vec 2.0 nor HuBERT.
    """
    config = _read_config(folder / CONFIG)
    sizes = _sizes(folder / CONFIG, config)
    if sizes.extractor_mode == "layer_norm" and _takes_raw_waveforms(folder / PREPROCESSOR):
        raise CheckpointError(f"{folder / PREPROCESSOR}: {NOT_NORMALIZED}")
    stored: dict[str, StoredTensor] = {}
    for name, tensor in _read_weights(folder).items():
        if (short := _renamed(name)) in stored:
            raise CheckpointError(f"{folder}: holds the tensor {short} under two names, one of them {name}")
        stored[short] = tensor
    return StoredModel(
        name=f"{folder} (Hugging Face {config['model_type']})",
        stored=stored,
        rules=name_rules(NAMES, shapes={"quantizer.codebook": codebook_shape}),
        config=sizes,
        parts=_PARTS,
    )


def _takes_raw_waveforms(path: Path) -> bool:
    """Return whether a model's preprocessor does not normalise waveforms."""
    found = _read_json(path) if path.is_file() else None
    return isinstance(found, dict) and found.get("do_normalize") is False


def _read_json(path: Path) -> Any:  # noqa: ANN401 - any value
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def _renamed(name: str) -> str:
    for task in _TASKS:
        name = name.removeprefix(task)
    for new, old in _NEW_WEIGHT_NORM.items():
        name = name.replace(new, old)
    return name


def _read_config(path: Path) -> dict[str, Any]:
    config = _read_json(path)
    if not isinstance(config, dict) or config.get("model_type") not in MODEL_TYPES:
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise CheckpointError(
            f"{path}: is of a model of type {kind!r}; only vgsplus, {' and '.join(MODEL_TYPES)} are supported"
        )
    return config


def _sizes(path: Path, config: Mapping[str, Any]) -> ModelConfig:
    modes = {"group": "default", "layer": "layer_norm"}
    if (norm := config.get("feat_extract_norm", "group")) not in modes:
        raise CheckpointError(
            f"{path}: has feat_extract_norm = {norm!r}; only 'group' and 'layer' are supported"
        )
    for setting, only in _REQUIRED.items():
        if config.get(setting, only) != only:
            raise CheckpointError(f"{path}: has {setting} = {config[setting]!r}; only {only!r} is supported")
    try:
        layers = zip(config["conv_dim"], config["conv_kernel"], config["conv_stride"], strict=True)
        sizes = {
            "extractor_mode": modes[norm],
            "conv_bias": bool(config.get("conv_bias", False)),
            "layer_norm_first": bool(config.get("do_stable_layer_norm", False)),
            "conv_layers": tuple((int(c), int(k), int(s)) for c, k, s in layers),
            "dim": int(config["hidden_size"]),
            "heads": int(config["num_attention_heads"]),
            "ffn_dim": int(config["intermediate_size"]),
            "shared_layers": int(config["num_hidden_layers"]),
            "pos_conv_kernel": int(config["num_conv_pos_embeddings"]),
            "pos_conv_groups": int(config["num_conv_pos_embedding_groups"]),
            "dropout": float(config.get("hidden_dropout", 0.1)),
            "quantizer_groups": int(config.get("num_codevector_groups", 2)),
            "quantizer_codes": int(config.get("num_codevectors_per_group", 320)),
            "quantizer_dim": int(config.get("codevector_dim", 256)),
            "ssl_dim": int(config.get("proj_codevector_dim", 256)),
            "mask_probability": float(config.get("mask_time_prob", 0.65)),
            "mask_span": int(config.get("mask_time_length", 10)),
            "num_negatives": int(config.get("num_negatives", 100)),
            "diversity_weight": float(config.get("diversity_loss_weight", 0.1)),
        }
        return ModelConfig(**split_layers(sizes), grounded=False)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: lacks a size of the model, or holds an impossible one ({error!r})"
        ) from None


def _read_weights(folder: Path) -> dict[str, StoredTensor]:
    for name in (SAFETENSORS, PICKLED):
        if (folder / name).is_file():
            return read_tensors(folder / name)
        if (folder / f"{name}{INDEX}").is_file():
            return _read_shards(folder / f"{name}{INDEX}")
    raise CheckpointError(
        f"{folder}: holds neither {SAFETENSORS} nor {PICKLED}, complete or in parts ({SAFETENSORS}{INDEX})"
    )


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    """Return the tensors of sharded weights, each from the file that the index names."""
    try:
        parts = {name: str(part) for name, part in _read_json(index)["weight_map"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: cannot be read as an index of weights ({error!r})") from None
    stored: dict[str, StoredTensor] = {}
    for part in sorted(set(parts.values())):
        if Path(part).name != part or not (index.parent / part).is_file():
            raise CheckpointError(f"{index}: names the file {part!r}, which is not next to it")
        found = read_tensors(index.parent / part)
        listed = {name for name, other in parts.items() if other == part}
        if odd := sorted(listed ^ found.keys()):
            raise CheckpointError(
                f"{index}: does not agree with {part} on the tensor {odd[0]}; fetch both again"
            )
        stored |= found
    return stored
