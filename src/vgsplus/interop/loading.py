"""Open a checkpoint of vgsplus, FaST-VGS (a bundle), fairseq or Hugging Face.

A folder of vgsplus that is no run holds
    model.safetensors   the weights, under the names of vgsplus
    config.json         model_type "vgsplus", format, model: the sizes, and what is recorded of the training
                        (see `PretrainedModel.about`); model.json in older converted models
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vgsplus.errors import CheckpointError, ConfigError
from vgsplus.files import read_text
from vgsplus.interop import fairseq, fast_vgs, hub, huggingface
from vgsplus.interop.mapping import StoredModel, name_rules
from vgsplus.models.vgsplus import ModelConfig, VGSPlus
from vgsplus.tensor_files import HINT_AGAIN, read_safetensors, read_torch
from vgsplus.training import checkpoint
from vgsplus.validation import validate

CONFIG_FILES = (huggingface.CONFIG, "model.json")
MODEL_TYPE = "vgsplus"
FORMAT = 1
TOY = "toy"
"""Name of the model in the package."""
_TOY_FOLDER = Path(__file__).parents[1] / "presets" / TOY
_SAME_NAMES = name_rules({"**": "**"})


# ---- reading ----------------------------------------------------------------------------------------------


def load_weights(model: VGSPlus, path: str) -> str:
    """Copy the weights of any model that `open_model` reads into `model`, and return a table of them.

    On the meta device, only checks that they fit. Tensors that the file lacks keep their values.

    Raises:
        VgsplusError: as `load`.
    """
    return str(open_model(Path(path)).fill(model))


def open_model(path: Path) -> StoredModel:
    """Detect the format of a model and read its sizes and the names of its tensors; raises as `load`."""
    if (name := str(path)).startswith(hub.PREFIX):
        path = hub.fetch(name.removeprefix(hub.PREFIX))
    elif name == TOY and not path.exists():
        path = _TOY_FOLDER
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise CheckpointError(
            f"{path}: there is no such file or folder. Name a run, a checkpoint or a saved model, "
            f'"{hub.PREFIX}organisation/name" on the Hugging Face hub, or "{TOY}", the model in the package.'
        )
    if path.suffix == ".safetensors":
        return _open_folder(path.parent)
    return _open_pickled(path)


def _open_folder(folder: Path) -> StoredModel:
    if about := read_about(folder):
        settings = next(folder / name for name in CONFIG_FILES if (folder / name).is_file())
        return _open_own(settings, about.pop("model"), about)
    if (folder / checkpoint.STATE_FILE).is_file() or checkpoint.latest_path(folder):
        found = checkpoint.resolve(folder)
        state = checkpoint.load_state(found)
        return _open_own(found / checkpoint.STATE_FILE, state.model, _about_run(found, state))
    if (folder / huggingface.CONFIG).is_file():
        return huggingface.open_model(folder)
    for name in fast_vgs.BUNDLES:
        if (folder / name).is_file():
            return _open_pickled(folder / name)
    for name in (huggingface.SAFETENSORS, huggingface.PICKLED):
        if (folder / name).is_file():
            raise CheckpointError(
                f"{folder}: holds {name}, but no {huggingface.CONFIG}, which states the sizes of the model. "
                "Fetch or copy it as well."
            )
    hidden = f" It hides the model in the package, {TOY}: choose another current directory."
    raise CheckpointError(
        f"{folder}: holds no model. A run has {checkpoint.FOLDER}/, a saved model {huggingface.CONFIG} and "
        f"{huggingface.SAFETENSORS}, and a published bundle is named {' or '.join(fast_vgs.BUNDLES)}."
        f"{hidden if str(folder) == TOY else ''}"
    )


def _open_own(settings: Path, model: Mapping[str, Any], about: Mapping[str, Any]) -> StoredModel:
    """Open the weights next to the file of settings that states the sizes of their model."""
    weights = settings.with_name(checkpoint.MODEL_FILE)
    if not weights.is_file() and weights.with_name(huggingface.PICKLED).is_file():
        raise CheckpointError(
            f"{weights.with_name(huggingface.PICKLED)}: is a pickle, and models of vgsplus are read from "
            f"{weights.name} alone. Fetch that file, or save the model again."
        )
    try:
        config = validate(ModelConfig, model, "model")
    except ConfigError as error:
        raise CheckpointError(f"{settings}: {error}") from None
    return StoredModel(
        name=str(weights),
        stored=read_safetensors(weights),
        rules=_SAME_NAMES,
        config=config,
        own=True,
        about=about,
    )


def _about_run(found: Path, state: checkpoint.TrainingState) -> dict[str, Any]:
    return {
        "checkpoint": found,
        "regions": state.corpus.get("described_by"),
        "training": {
            "schedule": state.run.get("schedule", []),
            "phase": state.phase_name,
            "updates": state.global_step,
            "epochs": state.epoch,
            "seed": state.seed,
            "corpus": {key: state.corpus.get(key) for key in ("name", "version")}
            | {"licence": state.licence},
            "versions": state.versions,
        },
    }


def _open_pickled(path: Path) -> StoredModel:
    if path.name == huggingface.PICKLED and (path.parent / huggingface.CONFIG).is_file():
        return _open_folder(path.parent)
    found = read_torch(path)
    if isinstance(found, dict) and isinstance(found.get(fast_vgs.DUAL), dict):
        return fast_vgs.open_model(f"{path} (published bundle)", found, fast_vgs.read_args(path))
    if isinstance(found, dict) and isinstance(found.get("model"), dict) and {"args", "cfg"} & found.keys():
        return fairseq.open_model(f"{path} (fairseq)", found)
    held = repr(found)
    if isinstance(found, dict):
        held = f"a dictionary of {', '.join(map(str, list(found)[:8]))}"
    raise CheckpointError(
        f"{path}: is not a known kind of checkpoint. It holds {held}; a published bundle holds "
        f"'{fast_vgs.DUAL}', a fairseq checkpoint 'model' with 'args' or 'cfg'"
    )


def read_about(folder: Path) -> dict[str, Any] | None:
    """Return the sizes ("model") and the record of the training of a saved model of vgsplus.

    None if the folder holds no such model.

    Raises:
        CheckpointError: the file is broken, or of an unknown format.
    """
    for path in (folder / name for name in CONFIG_FILES):
        if not path.is_file():
            continue
        try:
            about = json.loads(read_text(path))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: is broken: is not JSON ({error}). {HINT_AGAIN}") from None
        if not isinstance(about, dict):
            raise CheckpointError(f"{path}: is broken: holds no JSON object. {HINT_AGAIN}")
        if path.name == huggingface.CONFIG and about.get("model_type") != MODEL_TYPE:
            continue
        if missing := [key for key in ("format", "model") if key not in about]:
            raise CheckpointError(f"{path}: is broken: lacks {' and '.join(missing)}. {HINT_AGAIN}")
        if about["format"] != FORMAT:
            raise CheckpointError(
                f"{path}: has format {about['format']!r}, this version of vgsplus reads {FORMAT}. Install "
                "the version that wrote it."
            )
        return {key: value for key, value in about.items() if key not in ("model_type", "format")}
    return None


# ---- writing ----------------------------------------------------------------------------------------------


def write_model(model: VGSPlus, folder: Path, about: Mapping[str, Any]) -> None:
    """Write model.safetensors and config.json to an existing folder, with all but the checkpoint of `about`.

    Raises:
        OSError: they cannot be written.
    """
    from vgsplus.config import to_dict  # noqa: PLC0415 - takes 0.1 s, which reading does without

    checkpoint.save_tensors(folder / checkpoint.MODEL_FILE, model.state_dict())
    recorded = {key: value for key, value in about.items() if key != "checkpoint"}
    sizes = to_dict(model.config)
    if (image := sizes["image"]) and image["weights"]:
        image["weights"] = Path(image["weights"]).name  # its folder is of this machine
    stated = {"model_type": MODEL_TYPE, "format": FORMAT, "model": sizes, **recorded}
    text = json.dumps(stated, indent=1, ensure_ascii=False)
    (folder / huggingface.CONFIG).write_text(text, encoding="utf-8")
