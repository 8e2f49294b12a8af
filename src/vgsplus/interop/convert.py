"""Models written: into our format, and back into a published bundle.

DST/model.safetensors    the weights, under our names
DST/model.json           sizes, origin, published arguments
DST/carried.safetensors  what a bundle held that the model has no use for, so that it can be written back
"""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from vgsplus import config as settings
from vgsplus.errors import CheckpointError
from vgsplus.interop import fast_vgs
from vgsplus.interop.fast_vgs import Carried
from vgsplus.interop.loading import FORMAT, MODEL_JSON, open_source, read_model_json
from vgsplus.interop.tensors import LoadReport, Source
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.tensor_files import Inert
from vgsplus.training.checkpoint import MODEL_FILE

CARRIED_FILE = "carried.safetensors"
BUNDLE_SUFFIXES = (".pth", ".pt")


def convert(source: Path, target: Path, *, overwrite: bool = False) -> LoadReport:
    """Write any model that `load` reads into our format or, to a name that ends in .pth or .pt, as a bundle.

    A bundle has its arguments beside it, in `args.pkl`. Either is complete or not there.

    Raises:
        VgsplusError: the source cannot be read; the target is there already, is a folder that is no model of
            ours, or cannot be written; or (a bundle) has sizes that the published code cannot be given.
    """
    bundle = target.suffix in BUNDLE_SUFFIXES
    if target.suffix == ".safetensors":
        raise CheckpointError(f"{target}: a model of ours is a folder; name one, or a file that ends in .pth")
    taken = [
        path for path in (target, *([target.with_name(fast_vgs.ARGS)] if bundle else [])) if path.exists()
    ]
    if taken and not overwrite:
        raise CheckpointError(f"{taken[0]}: is there already; choose another name, or add --overwrite")
    if taken and not bundle and not _may_be_replaced(target):
        raise CheckpointError(f"{target}: is no model of ours (no {MODEL_JSON} in it), so it is left alone")
    opened = open_source(source)
    model, report = opened.build()
    carried = _carried(source, opened, report)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if bundle:
            fast_vgs.save_bundle(model, carried, target)
        else:
            _save_folder(model, carried, str(source), target)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written ({error})") from error
    return report


def _may_be_replaced(target: Path) -> bool:
    return target.is_dir() and ((target / MODEL_JSON).is_file() or not any(target.iterdir()))


def _carried(path: Path, source: Source, report: LoadReport) -> Carried:
    if path.name == MODEL_FILE:
        path = path.parent
    if (path / MODEL_JSON).is_file():
        file = path / CARRIED_FILE
        return Carried(load_file(file) if file.is_file() else {}, read_model_json(path)["published_args"])
    if source.rules is not fast_vgs.RULES:
        return Carried({})
    args = fast_vgs.read_args(path / fast_vgs.ARGS if path.is_dir() else path)
    plain = None if args is None else {k: v for k, v in args.items() if not isinstance(v, Inert)}
    return Carried({name: source.stored[name].read() for name in report.unused}, plain)


def _save_folder(model: VGSPlus, carried: Carried, origin: str, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, temporary / MODEL_FILE)
    if carried.tensors:
        save_file(dict(carried.tensors), temporary / CARRIED_FILE)
    about: dict[str, Any] = {
        "format": FORMAT,
        "origin": origin,
        "model": settings.to_dict(model.config),
        "published_args": carried.args,
    }
    (temporary / MODEL_JSON).write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")
    earlier = target.with_name(f".{target.name}.replaced")
    shutil.rmtree(earlier, ignore_errors=True)
    if target.exists():
        target.rename(earlier)
    temporary.replace(target)
    shutil.rmtree(earlier, ignore_errors=True)
