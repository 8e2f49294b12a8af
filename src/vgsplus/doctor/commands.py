"""The commands that go on with what was begun."""

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from vgsplus import config as settings
from vgsplus.config import RunConfig, load_config, presets
from vgsplus.corpora.format import INFO_FILE
from vgsplus.errors import ConfigError
from vgsplus.experiments.reproduce import CORPUS, RUNS, SECONDS, variant_folder
from vgsplus.schedule import VARIANTS, AdditionalSpeech, Schedule, variant_title
from vgsplus.training.run_folder import CONFIG_FILE

type Begun = Mapping[str, RunConfig]
"""The settings of the variants of a reproduction's first seed, by key."""


def resume_command(run: Path) -> str:
    """The command that goes on with a run of `vgsplus train`."""
    return shlex.join(["vgsplus", "train", str(run / CONFIG_FILE), "--out", str(run), "--resume"])


def reproduction_of(run: Path) -> Path | None:
    """The folder of the reproduction to which a run belongs, None for a run of its own."""
    place = run.resolve()
    runs = place.parent.parent if re.fullmatch(r"seed-\d+", place.parent.name) else place.parent
    names = {variant_folder(Path(), key, 0).name for key in VARIANTS}
    if runs.name != RUNS or place.name not in names:
        return None
    # A run of `train` may lie in a folder "runs" under the name of a variant, too.
    made = any((runs.parent / name).exists() for name in (SECONDS, CORPUS))
    return runs.parent if made else None


def reproduce_command(out: Path, begun: Begun, *, seeds: int = 1, preset: str | None = None) -> str | None:
    """The command that goes on with a reproduction; None where no preset and settings lead to what was begun.

    The settings are found by comparing those of the runs with the presets', of which the nearest is taken,
    or with `preset` alone.

    Args:
        out: the reproduction's folder.
        begun: its variants; those that the command names.
        seeds: how many times every variant is trained.
        preset: the preset or file by which it was begun, where known.
    """
    chosen = [
        (name, overrides)
        for name in ([preset] if preset else presets())
        if (overrides := _overrides(name, begun)) is not None
    ]
    if not chosen:
        return None
    name, overrides = min(chosen, key=lambda pair: len(pair[1]))
    words = ["vgsplus", "reproduce", name, "--out", str(out)]
    if len(begun) < len(VARIANTS):
        for key in begun:
            words += ["--variants", variant_title(key)]
    if not (out / CORPUS / INFO_FILE).is_file():
        words += ["--corpus", next(iter(begun.values())).corpus]
    if seeds > 1:
        words += ["--seeds", str(seeds)]
    for override in overrides:
        words += ["--set", override]
    return shlex.join(words)


def _overrides(preset: str, begun: Begun) -> list[str] | None:
    """The --set of which a preset needs to give the settings of runs; None where none do."""
    # A variant of two phases tells the length of the first; one with VGS+ tells its α.
    key = max(begun, key=lambda key: (len(VARIANTS[key]), "vgs+" in VARIANTS[key]))
    try:
        base = load_config(preset, [f"schedule.variant={key}"])
        overrides = [*_plain_overrides(base, begun[key]), *_schedule_overrides(base, begun)]
        same = all(
            _comparable(load_config(preset, [*overrides, f"schedule.variant={name}"])) == _comparable(config)
            for name, config in begun.items()
        )
    except ConfigError:
        return None
    return overrides if same else None


def _comparable(config: RunConfig) -> RunConfig:
    """The settings without those that a run settles by itself."""
    return dataclasses.replace(config, corpus="", precision="auto")


def _plain_overrides(base: RunConfig, config: RunConfig) -> list[str]:
    old, new = settings.to_dict(base), settings.to_dict(config)
    skipped = {"corpus", "schedule", "model"}
    # "auto" becomes the precision of the runs that are there.
    if base.precision == "auto":
        skipped.add("precision")
    changed = [(name, value) for name, value in new.items() if name not in skipped and old[name] != value]
    changed += [
        (f"model.{name}", value) for name, value in new["model"].items() if old["model"][name] != value
    ]
    return [_override(name, value) for name, value in changed]


def _schedule_overrides(base: RunConfig, begun: Begun) -> list[str]:
    overrides = []
    key = max(begun, key=lambda key: len(VARIANTS[key]))
    schedule, optimizer = begun[key].schedule, begun[key].schedule.phases[0].optimizer
    epochs = round(schedule.epochs, 10)  # a sum of what a difference gave
    if epochs != round(base.schedule.epochs, 10):
        overrides.append(_override("schedule.epochs", epochs))
    first = schedule.phases[0].epochs
    if len(schedule.phases) > 1 and first != base.schedule.phases[0].epochs:
        overrides.append(_override("schedule.pretraining_epochs", first))
    alpha = _plus_alpha([config.schedule for config in begun.values()])
    if alpha is not None and alpha != (_plus_alpha([base.schedule]) or 0.5):
        overrides.append(_override("schedule.plus_alpha", alpha))
    speech = _additional_speech([config.schedule for config in begun.values()])
    if speech is not None and speech != _additional_speech([base.schedule]):
        overrides.append(_override("schedule.additional_speech", settings.to_dict(speech)))
    old = settings.to_dict(base.schedule.phases[0].optimizer)
    overrides += [
        _override(f"schedule.optimizer.{name}", value)
        for name, value in settings.to_dict(optimizer).items()
        if old[name] != value
    ]
    return overrides


def _plus_alpha(schedules: Sequence[Schedule]) -> float | None:
    """α of VGS+, None where no schedule has it."""
    phases = [phase for schedule in schedules for phase in schedule.phases if phase.name == "vgs+"]
    return phases[0].alpha.at(0.0) if phases else None


def _additional_speech(schedules: Sequence[Schedule]) -> AdditionalSpeech | None:
    """What is heard beside the captions, None where no phase hears any."""
    heard = (phase.additional_speech for schedule in schedules for phase in schedule.phases)
    return next(filter(None, heard), None)


def _override(name: str, value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return f"{name}={text.removesuffix('...\n').strip()}"
