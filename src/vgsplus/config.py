"""Every setting of a run: typed, validated, read from YAML files or named presets, written back as YAML."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from vgsplus.errors import ConfigError, VgsplusError
from vgsplus.files import atomic_file, is_file, read_text
from vgsplus.models.vgsplus import ModelConfig
from vgsplus.schedule import AdditionalSpeech, Alpha, OptimizerSettings, Phase, Schedule


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of one training run.

    Attributes:
        corpus: folder of a prepared corpus.
        schedule: the phases; in YAML a list of phases, the name of a variant, or a mapping of `variant`,
            `pretraining_epochs`, `epochs`, `plus_alpha`, `optimizer` and `additional_speech`.
        model: the model's sizes.
        seed: every random choice of the run is a function of it.
        batch_size: captions in a batch.
        max_seconds: training hears only the start of longer captions.
        validation_max_seconds: the same for validation.
        precision: of the arithmetic; weights stay in 32 bits. "auto" becomes bf16-mixed where the device has
            instructions for it, else 32-true, when a run starts; it goes on in what it started in.
        accelerator: where to train.
        workers: processes that read ahead; 0 reads in the training process.
        gradient_clip: the gradient's greatest global norm.
        validate_every: epochs between validations, which also end each phase; null for none at all.
        evaluate_every: epochs between evaluations, which also end each phase; null for only there.
        checkpoint_minutes: minutes between checkpoints, which also end each phase.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False)

    corpus: Annotated[str, Field(min_length=1)]
    schedule: Schedule
    model: ModelConfig = field(default_factory=ModelConfig)
    seed: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(ge=1)] = 64
    max_seconds: Annotated[float, Field(gt=0)] = 8.0
    validation_max_seconds: Annotated[float, Field(gt=0)] = 10.0
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    workers: Annotated[int, Field(ge=0)] = 2
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    validate_every: Annotated[float, Field(gt=0)] | None = 1.0
    evaluate_every: Annotated[float, Field(gt=0)] | None = None
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10.0


@dataclass(frozen=True, kw_only=True)
class _Variant:
    """The arguments of `Schedule.variant` as YAML gives them."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False)

    variant: str
    pretraining_epochs: float = 20.0
    epochs: float = 70.0
    plus_alpha: float = 0.5
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    additional_speech: AdditionalSpeech | None = None


# ---- reading ----------------------------------------------------------------------------------------------


def load_config(path_or_preset: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a YAML file, or the preset of that name, and apply overrides such as "schedule.epochs=2".

    An override's value is read as YAML; its path may lead through lists by number ("schedule.0.alpha=0.3").

    Raises:
        ConfigError: no such file or preset, bad YAML (file:line), an unknown key or impossible value.
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
        ConfigError: names the dotted path, the reason and, for an unknown key, the nearest valid one.
    """
    values = dict(raw)
    if "schedule" in values:
        values["schedule"] = _parse_schedule(values["schedule"])
    config: RunConfig = _validate(RunConfig, values)
    return config


def parse_model(raw: Mapping[str, Any]) -> ModelConfig:
    """Build a validated ModelConfig from plain values.

    Raises:
        ConfigError: as `from_dict`.
    """
    config: ModelConfig = _validate(ModelConfig, dict(raw), "model")
    return config


def presets() -> tuple[str, ...]:
    """The names of the configurations that come with the package."""
    folder = resources.files("vgsplus") / "presets"
    if not folder.is_dir():
        return ()
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


def _read(path_or_preset: str | Path) -> tuple[str, str]:
    """The text of a configuration and where it is from."""
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
    raise ConfigError(
        f"{name}: is neither a file nor a preset; the presets are {', '.join(presets()) or '(none)'}"
    )


def _parse_yaml(text: str, where: str) -> Any:  # noqa: ANN401 - any YAML value
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{where}{line}: is not valid YAML ({error.problem})") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{where}: is not valid YAML ({' '.join(str(error).split())})") from None


def _override(raw: dict[str, Any], override: str) -> None:
    """Put the value of "a.b=value" into its place; keys on the way are made where they are missing."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{override!r}: must read key=value or a.b=value")
    value = _parse_yaml(text, f"the value of {path}")
    place: Any = raw
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(place, list):
            if not (key.isdecimal() and int(key) < len(place)):
                raise ConfigError(
                    f"{path}: {'.'.join(keys[:depth])} is a list of {len(place)}, it has no {key!r}"
                )
            index: Any = int(key)
        elif isinstance(place, dict):
            index = key
        else:
            raise ConfigError(f"{path}: {'.'.join(keys[:depth])} is {place!r}, it has no {key!r}")
        if last:
            place[index] = value
        else:
            place = place.setdefault(index, {}) if isinstance(place, dict) else place[index]


def _parse_schedule(raw: object) -> Schedule:
    match raw:
        case Schedule():
            return raw
        case str():
            return _parse_variant({"variant": raw})
        case Mapping() if "variant" in raw:
            return _parse_variant(raw)
        case list():
            phases = [_with_alpha(index, phase) for index, phase in enumerate(raw)]
            return _schedule_of(_validate(tuple[Phase, ...], phases, "schedule"))
    raise ConfigError(
        "schedule: must be a list of phases, the name of a variant, or a mapping with the key variant"
    )


def _parse_variant(raw: Mapping[str, Any]) -> Schedule:
    settings: _Variant = _validate(_Variant, dict(raw), "schedule")
    options = {item.name: getattr(settings, item.name) for item in dataclasses.fields(settings)}
    try:
        return Schedule.variant(options.pop("variant"), **options)
    except ConfigError as error:
        raise ConfigError(f"schedule: {error}") from None


def _schedule_of(phases: Sequence[Phase]) -> Schedule:
    try:
        return Schedule(tuple(phases))
    except ConfigError as error:
        raise ConfigError(f"schedule: {error}") from None


def _with_alpha(index: int, phase: object) -> object:
    if not isinstance(phase, dict) or "alpha" not in phase:
        return phase
    try:
        return phase | {"alpha": Alpha.parse(phase["alpha"])}
    except ConfigError as error:
        raise ConfigError(f"schedule.{index}.alpha: {error}") from None


# ---- validation -------------------------------------------------------------------------------------------


def _validate(kind: Any, values: object, prefix: str = "") -> Any:  # noqa: ANN401 - whatever `kind` builds
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        faults = [_fault(kind, fault, prefix) for fault in error.errors(include_url=False)]
        raise ConfigError("\n".join(faults)) from None


def _fault(kind: Any, fault: Any, prefix: str) -> str:  # noqa: ANN401 - a type; pydantic's ErrorDetails
    place: tuple[str | int, ...] = fault["loc"]
    path = ".".join(str(part) for part in ([prefix] if prefix else []) + list(place))
    if fault["type"] == "unexpected_keyword_argument":
        known = _keys_at(kind, place[:-1])
        nearest = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.0)
        return f"{path}: there is no such key; the nearest is {nearest[0]!r} (of {', '.join(known)})"
    if fault["type"] in ("missing", "missing_keyword_only_argument", "missing_argument"):
        return f"{path}: is missing"
    reason = fault["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(fault["input"], dict) else f", not {fault['input']!r}"
    return f"{path or 'configuration'}: {reason[:1].lower()}{reason[1:]}{shown}"


def _keys_at(kind: Any, place: Sequence[str | int]) -> list[str]:  # noqa: ANN401 - a type
    """The keys of the dataclass that lies at `place` within `kind`."""
    for part in place:
        kind = typing.get_args(kind)[0] if isinstance(part, int) else typing.get_type_hints(kind)[part]
        if isinstance(kind, types.UnionType):  # of a dataclass and None
            kind = next(filter(dataclasses.is_dataclass, typing.get_args(kind)), kind)
    return [item.name for item in dataclasses.fields(kind) if item.init]


# ---- writing and comparing --------------------------------------------------------------------------------


def to_dict(config: object) -> dict[str, Any]:
    """Write a configuration dataclass as plain values; `from_dict` reads a RunConfig back."""
    assert dataclasses.is_dataclass(config)
    return {item.name: _plain(getattr(config, item.name)) for item in dataclasses.fields(config)}


def _plain(value: object) -> Any:  # noqa: ANN401 - any JSON value
    match value:
        case Alpha():
            return value.plain()
        case Schedule():
            return _plain(value.phases)
        case Phase(additional_speech=None):
            # Left out where it is not given: such runs are written as before there was such a setting.
            return {key: item for key, item in to_dict(value).items() if key != "additional_speech"}
        case tuple() | list():
            return [_plain(item) for item in value]
        case dict():
            return {key: _plain(item) for key, item in value.items()}
    return to_dict(value) if dataclasses.is_dataclass(value) else value


def save(config: RunConfig, path: Path) -> None:
    """Write a configuration as YAML that `load_config` reads back; the file is never half-written."""
    text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    with atomic_file(path) as file:
        file.write(text.encode())


def differences(old: object, new: object, path: str = "") -> list[str]:
    """What differs between two plain configurations, as "path: old → new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        pairs = [(str(key), old.get(key), new.get(key)) for key in keys]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(index), a, b) for index, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [f"{path}: {old!r} → {new!r}"]
    return [line for key, a, b in pairs for line in differences(a, b, f"{path}.{key}" if path else key)]
