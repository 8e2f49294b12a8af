"""Load models: ours, published bundles, fairseq's and Hugging Face's."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vgsplus import config as settings
from vgsplus.errors import CheckpointError
from vgsplus.files import read_text
from vgsplus.interop import fairseq, fast_vgs, huggingface
from vgsplus.interop.mapping import LoadReport, StoredModel, name_rules
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.tensor_files import read_safetensors, read_torch
from vgsplus.training import checkpoint

MODEL_JSON = "model.json"
FORMAT = 1
_SAME_NAMES = name_rules({"**": "**"})
_log = logging.getLogger("vgsplus")


# ---- reading ----------------------------------------------------------------------------------------------


def load(path: str | Path) -> VGSPlus:
    """Load a model in evaluation mode on the CPU. No code in the file is executed.

    A table of the tensors that are not used or keep their initial values is logged as a warning.

    Args:
        path: one of
            - a run of ours (its newest checkpoint), a checkpoint, or a folder that `vgsplus convert` wrote;
            - a published bundle (`best_bundle.pth`, `bundle.pth`) or its folder; sizes are read from
              `args.pkl` next to it, or are those of the tensors;
            - a fairseq wav2vec 2.0 checkpoint of the base architecture;
            - a Hugging Face wav2vec 2.0 folder.
            Bundles get `published` padding; fairseq's and Hugging Face's models have no grounding side.

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
    return open_source(Path(path)).build()


def load_weights(model: VGSPlus, path: str) -> str:
    """Copy the weights of any model that `load` reads into this one, and return a table of them.

    On the meta device, only check that they fit. Tensors that the file lacks keep their values.

    Raises:
        VgsplusError: as `load`.
    """
    return str(open_source(Path(path)).fill(model))


def open_source(path: Path) -> StoredModel:
    """Recognise the kind of a model and read its sizes and names, but no tensors; raises as `load`."""
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder")
    if path.suffix == ".safetensors":
        return _open_folder(path.parent)
    return _open_pickled(path)


def _open_folder(folder: Path) -> StoredModel:
    if (folder / MODEL_JSON).is_file():
        return _own(folder, read_model_json(folder)["model"])
    if (folder / checkpoint.STATE_FILE).is_file() or checkpoint.latest_path(folder):
        found = checkpoint.resolve(folder)
        return _own(found, checkpoint.load_state(found).model)
    if (folder / huggingface.CONFIG).is_file():
        return huggingface.source(folder)
    for name in fast_vgs.BUNDLES:
        if (folder / name).is_file():
            return _open_pickled(folder / name)
    raise CheckpointError(
        f"{folder}: holds no model: neither {checkpoint.STATE_FILE} or {checkpoint.FOLDER}/ (a run or "
        f"checkpoint of ours), {MODEL_JSON} (a converted model), {huggingface.CONFIG} (Hugging Face), nor "
        f"{' or '.join(fast_vgs.BUNDLES)}"
    )


def _own(folder: Path, model: Mapping[str, Any]) -> StoredModel:
    return StoredModel(
        name=str(folder),
        stored=read_safetensors(folder / checkpoint.MODEL_FILE),
        rules=_SAME_NAMES,
        config=settings.parse_model(model),
        own=True,
    )


def _open_pickled(path: Path) -> StoredModel:
    if path.name == huggingface.PICKLED and (path.parent / huggingface.CONFIG).is_file():
        return huggingface.source(path.parent)
    found = read_torch(path)
    if isinstance(found, dict) and isinstance(found.get(fast_vgs.DUAL), dict):
        return fast_vgs.source(f"{path} (published bundle)", found, fast_vgs.read_args(path))
    if isinstance(found, dict) and isinstance(found.get("model"), dict) and {"args", "cfg"} & found.keys():
        return fairseq.source(f"{path} (fairseq)", found)
    held = (
        f"a dictionary of {', '.join(map(str, list(found)[:8]))}" if isinstance(found, dict) else repr(found)
    )
    raise CheckpointError(
        f"{path}: is not a known kind of checkpoint. It holds {held}; a published bundle holds "
        f"'{fast_vgs.DUAL}', a fairseq checkpoint 'model' with 'args' or 'cfg'"
    )


def read_model_json(folder: Path) -> dict[str, Any]:
    """Return the sizes and published arguments in the folder of a converted model.

    Raises:
        CheckpointError: the file is broken, or of an unknown format.
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
