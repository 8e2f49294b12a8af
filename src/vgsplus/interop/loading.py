"""Load a model from a checkpoint of vgsplus, FaST-VGS (a bundle), fairseq or Hugging Face."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vgsplus.errors import CheckpointError
from vgsplus.files import read_text
from vgsplus.interop import fairseq, fast_vgs, huggingface
from vgsplus.interop.mapping import LoadReport, StoredModel, name_rules
from vgsplus.models.vgsplus import ModelConfig, VGSPlus
from vgsplus.tensor_files import read_safetensors, read_torch
from vgsplus.training import checkpoint
from vgsplus.validation import validate

MODEL_JSON = "model.json"
FORMAT = 1
_SAME_NAMES = name_rules({"**": "**"})
_log = logging.getLogger("vgsplus")


# ---- reading ----------------------------------------------------------------------------------------------


def load(path: str | Path) -> VGSPlus:
    """Load a model in evaluation mode on the CPU. No code in the file is executed.

    Logs a warning with a table if tensors of the file are not used, or tensors of the model keep their
    initial values.

    Args:
        path: one of
            - a run of vgsplus (its newest checkpoint), a checkpoint, or a folder that `vgsplus convert`
            wrote; - a published bundle (`best_bundle.pth`, `bundle.pth`) or its folder; sizes are read from
              `args.pkl` next to it, or from the tensors;
            - a fairseq wav2vec 2.0 or HuBERT checkpoint;
            - a Hugging Face wav2vec 2.0 or HuBERT folder.
            Bundles get `published` padding. The models of fairseq and Hugging Face are not grounded.

    Raises:
        VgsplusError: the path is missing, broken or of an unknown kind, or a tensor has a wrong shape.
    """
    model, report = load_with_report(path)
    ours = {name for name in report.unused if not name.startswith(fast_vgs.DISCARDED)}
    if report.initial or ours or report.assumed:
        _log.warning("%s", report)
    return model


def load_with_report(path: str | Path) -> tuple[VGSPlus, LoadReport]:
    """As `load`, and return which tensors were matched."""
    return open_model(Path(path)).build()


def load_weights(model: VGSPlus, path: str) -> str:
    """Copy the weights of any model that `load` reads into `model`, and return a table of them.

    On the meta device, only checks that they fit. Tensors that the file lacks keep their values.

    Raises:
        VgsplusError: as `load`.
    """
    return str(open_model(Path(path)).fill(model))


def open_model(path: Path) -> StoredModel:
    """Detect the format of a model and read its sizes and the names of its tensors; raises as `load`."""
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder")
    if path.suffix == ".safetensors":
        return _open_folder(path.parent)
    return _open_pickled(path)


def _open_folder(folder: Path) -> StoredModel:
    if (folder / MODEL_JSON).is_file():
        return _open_own(folder, read_model_json(folder)["model"])
    if (folder / checkpoint.STATE_FILE).is_file() or checkpoint.latest_path(folder):
        found = checkpoint.resolve(folder)
        return _open_own(found, checkpoint.load_state(found).model)
    if (folder / huggingface.CONFIG).is_file():
        return huggingface.open_model(folder)
    for name in fast_vgs.BUNDLES:
        if (folder / name).is_file():
            return _open_pickled(folder / name)
    raise CheckpointError(
        f"{folder}: holds no model: neither {checkpoint.STATE_FILE} or {checkpoint.FOLDER}/ (a run or "
        f"checkpoint of ours), {MODEL_JSON} (a converted model), {huggingface.CONFIG} (Hugging Face), nor "
        f"{' or '.join(fast_vgs.BUNDLES)}"
    )


def _open_own(folder: Path, model: Mapping[str, Any]) -> StoredModel:
    return StoredModel(
        name=str(folder),
        stored=read_safetensors(folder / checkpoint.MODEL_FILE),
        rules=_SAME_NAMES,
        config=validate(ModelConfig, model, "model"),
        own=True,
    )


def _open_pickled(path: Path) -> StoredModel:
    if path.name == huggingface.PICKLED and (path.parent / huggingface.CONFIG).is_file():
        return huggingface.open_model(path.parent)
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


def read_model_json(folder: Path) -> dict[str, Any]:
    """Return the sizes ("model") and published arguments ("published_args") of a converted model.

    Raises:
        CheckpointError: model.json is broken, or of an unknown format.
    """
    path = folder / MODEL_JSON
    try:
        about = json.loads(read_text(path))
        if about["format"] != FORMAT:
            raise CheckpointError(
                f"{path}: has format {about['format']}, this version of vgsplus reads {FORMAT}"
            )
        return {"model": about["model"], "published_args": about.get("published_args")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: is broken ({error!r})") from None
