"""Settings of a run: typed, validated, read from YAML files or named presets, and written back as YAML."""

from collections.abc import Iterable, Mapping
from dataclasses import field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, PlainSerializer
from pydantic_core import to_jsonable_python

from vgsplus.errors import ConfigError, VgsplusError
from vgsplus.files import is_file, read_text, write_file
from vgsplus.models.vgsplus import ModelConfig
from vgsplus.schedule import Phase, Schedule
from vgsplus.validation import config_dataclass, validate


def _parse_schedule(raw: object) -> Schedule:
    match raw:
        case Schedule():
            return raw
        case str():
            return Schedule.variant(raw)
        case Mapping() if "variant" in raw:
            return validate(Schedule.variant, raw)
        case list():
            return Schedule(validate(tuple[Phase, ...], raw))
    raise ConfigError("must be a list of phases, the name of a variant, or a mapping with the key variant")


@config_dataclass
class RunConfig:
    """The settings of one training run.

    Attributes:
        corpus: folder of a prepared corpus, or URL of a packed one. fairseq `task.data`.
        schedule: the phases; in YAML a list of phases, the name of a variant, or a mapping with the arguments
            of `Schedule.variant`.
        model: sizes of the model. fairseq `model`, transformers `Wav2Vec2Config`.
        seed: of every random choice. fairseq `common.seed`, transformers `seed`.
        batch_size: captions in a batch. fairseq `dataset.batch_size`, transformers
            `per_device_train_batch_size`.
        batch_seconds: in phases with α = 0 throughout, a batch has this much speech on average instead of a
            number of captions, so that steps take equal time and memory; at least `max_seconds`. Grounding
            counts the other captions of a batch as negatives, so its batches keep their number. fairseq
            `dataset.max_tokens` (in samples).
        max_seconds: longer captions are cropped in training to this length at their start, speech without
            pictures at random positions; silent crops are moved. fairseq `task.max_sample_size` (in samples).
        validation_max_seconds: seconds to which captions are cropped in validation, at their start.
        precision: numeric precision of the computation; weights stay float32. "auto": bf16-mixed if the
            device supports it natively, else 32-true; a resumed run keeps its precision. fairseq
            `common.fp16`, `common.bf16`, transformers `fp16`, `bf16`.
        accelerator: device. fairseq `common.cpu`, transformers `use_cpu`.
        devices: processes on each node, each on a GPU of its own; they are started by the first. torchrun's
            number takes its place. The batch size is that of all processes together.
        num_nodes: computers on which as many processes are started.
        micro_batch_size: captions, and pictures, that pass through their encoders together in each process;
            None: all of the batch. With fewer, activations are computed again instead of stored, so that
            batches as large as grounding needs fit a small memory; losses and gradients stay the same.
            fairseq `optimization.update_freq` and transformers `gradient_accumulation_steps` change the
            losses.
        activation_checkpointing: compute activations of transformer layers again in the backward pass instead
            of storing them. fairseq `model.checkpoint_activations`, transformers `gradient_checkpointing`.
        compile: whether PyTorch compiles the transformer layers, which takes minutes at the start of a run.
            "auto": on CUDA devices. transformers `torch_compile`.
        workers: DataLoader worker processes; 0 loads in the main process. fairseq `dataset.num_workers`,
            transformers `dataloader_num_workers`.
        gradient_clip: maximum global gradient norm. fairseq `optimization.clip_norm`, transformers
            `max_grad_norm`.
        validate_every: interval between validations in epochs; one also runs at the end of each phase. None:
            no validation. fairseq `dataset.validate_interval`, transformers `eval_steps` (in updates).
        evaluate_every: interval between evaluations in epochs; one also runs at the end of each phase. None:
            only at the end of each phase.
        logger: where scalars are written besides log.jsonl. "wandb" needs the extra of this name; without a
            network: WANDB_MODE=offline. fairseq `common.wandb_project`, transformers `report_to`.
        checkpoint_minutes: interval between checkpoints in minutes; one is also written at the end of each
            phase. fairseq `checkpoint.save_interval_updates`, transformers `save_steps` (both in updates).
    """

    corpus: Annotated[str, Field(min_length=1)]
    schedule: Annotated[
        Schedule, BeforeValidator(_parse_schedule), PlainSerializer(lambda schedule: schedule.phases)
    ]
    model: ModelConfig = field(default_factory=ModelConfig)
    seed: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(ge=1)] = 64
    # Omitted if unset, so that files equal those of versions without this setting.
    batch_seconds: Annotated[float | None, Field(gt=0, exclude_if=lambda x: x is None)] = None
    max_seconds: Annotated[float, Field(gt=0)] = 8.0
    validation_max_seconds: Annotated[float, Field(gt=0)] = 10.0
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Annotated[int, Field(ge=1)] = 1
    num_nodes: Annotated[int, Field(ge=1)] = 1
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    activation_checkpointing: bool = False
    compile: Literal["auto"] | bool = "auto"
    workers: Annotated[int, Field(ge=0)] = 2
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    validate_every: Annotated[float, Field(gt=0)] | None = 1.0
    evaluate_every: Annotated[float, Field(gt=0)] | None = None
    logger: Literal["tensorboard", "wandb"] = "tensorboard"
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10.0


# ---- reading ----------------------------------------------------------------------------------------------


def load_config(path_or_preset: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a YAML file or a preset, and apply overrides such as "schedule.epochs=2".

    Args:
        path_or_preset: path of the file, or name of the preset.
        overrides: "key=value", where the value is YAML and list elements are addressed by index. Phases are
            "schedule.0.alpha=0.3" or "schedule.phases.0.alpha=0.3", those of a variant too, which becomes a
            list by that.

    Raises:
        ConfigError: no such file or preset, invalid YAML (file:line), an unknown key or impossible value.
    """
    text, where = _read(path_or_preset)
    raw = _parse_yaml(text, where)
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: must hold keys and values, not {type(raw).__name__}")
    for override in overrides:
        if isinstance(raw.get("schedule"), str):
            raw["schedule"] = {"variant": raw["schedule"]}
        _override(raw, override)
    try:
        return from_dict(raw)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def from_dict(raw: Mapping[str, Any]) -> RunConfig:
    """Build a validated RunConfig from plain values.

    Raises:
        ConfigError: names the dotted path and reason of every problem, and the nearest key to an unknown one.
    """
    return validate(RunConfig, dict(raw))


def presets() -> tuple[str, ...]:
    """Return the names of the configurations that are part of the package."""
    names = [file.name for file in (resources.files("vgsplus") / "presets").iterdir()]
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def _read(path_or_preset: str | Path) -> tuple[str, str]:
    """Return the text of a configuration and its name in messages."""
    name = str(path_or_preset)
    try:
        if is_file(Path(name)):
            return read_text(Path(name)), name
        if name in presets():
            preset = resources.files("vgsplus") / "presets" / f"{name}.yaml"
            return preset.read_text(encoding="utf-8"), f"preset {name}"
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read ({error})") from None
    except VgsplusError as error:
        raise ConfigError(str(error)) from None
    raise ConfigError(f"{name}: is neither a file nor a preset; the presets are {', '.join(presets())}")


def _parse_yaml(text: str, where: str) -> Any:  # noqa: ANN401 - any YAML value
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{where}{line}: is not valid YAML ({error.problem})") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{where}: is not valid YAML ({' '.join(str(error).split())})") from None


def _override(raw: dict[str, Any], override: str) -> None:
    """Set the value of "a.b=value"; missing keys are created."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{override!r}: must read key=value or a.b=value")
    value = _parse_yaml(text, f"the value of {path}")
    if keys[0] == "schedule" and len(keys) > 2:
        keys = [key for key in keys if key != "phases"]
        if keys[1].isdecimal() and isinstance(raw.get("schedule"), dict):
            raw["schedule"] = to_dict(_parse_schedule(raw["schedule"]).phases)
    place: Any = raw
    for depth, name in enumerate(keys):
        key: Any = name
        above = ".".join(keys[:depth])
        if isinstance(place, list):
            if not (name.isdecimal() and int(name) < len(place)):
                raise ConfigError(f"{path}: {above} is a list of {len(place)}, it has no {name!r}")
            key = int(name)
        elif not isinstance(place, dict):
            raise ConfigError(f"{path}: {above} is {place!r}, it has no {name!r}")
        if depth == len(keys) - 1:
            place[key] = value
        else:
            place = place.setdefault(key, {}) if isinstance(place, dict) else place[key]


# ---- writing and comparing --------------------------------------------------------------------------------


def to_dict(config: object) -> dict[str, Any]:
    """Convert a configuration dataclass to plain values; `from_dict` reads those of a RunConfig back."""
    plain: dict[str, Any] = to_jsonable_python(config)
    return plain


def save_config(config: RunConfig, path: Path) -> None:
    """Write a configuration as YAML that `load_config` reads back."""
    write_file(path, yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def differences(old: object, new: object, path: str = "") -> list[str]:
    """Return the differences between two plain configurations, as "path: old → new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        pairs = [(str(key), old.get(key), new.get(key)) for key in keys]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(index), a, b) for index, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [f"{path}: {old!r} → {new!r}"]
    return [line for key, a, b in pairs for line in differences(a, b, f"{path}.{key}" if path else key)]
