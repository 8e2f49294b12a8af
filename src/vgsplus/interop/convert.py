"""Convert models to the format of vgsplus, or to a published bundle.

DST/model.safetensors    the weights, under the names of vgsplus
DST/config.json          sizes, origin, published arguments
DST/carried.safetensors  tensors of a bundle that the model does not use, so that they can be written back
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from vgsplus.errors import CheckpointError
from vgsplus.files import atomic_folder
from vgsplus.interop import fast_vgs
from vgsplus.interop.fast_vgs import UnusedTensors
from vgsplus.interop.loading import open_model, read_about, write_model
from vgsplus.interop.mapping import LoadReport, StoredModel
from vgsplus.models.published import build_model
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.tensor_files import Placeholder
from vgsplus.training.checkpoint import MODEL_FILE, save_tensors

UNUSED_FILE = "carried.safetensors"
BUNDLE_SUFFIXES = (".pth", ".pt")


def convert(source: Path, target: Path, *, overwrite: bool = False) -> LoadReport:
    """Convert any model that `load` reads.

    The result is a folder of vgsplus or, if the target ends in .pth or .pt, a published bundle. The arguments
    of a bundle are written next to it, to `args.pkl`. The target is written atomically.

    Raises:
        VgsplusError: the source cannot be read; the target exists, or is a folder that is not a model of
            vgsplus; or the published code does not support the sizes (of a bundle).
        OSError: the target cannot be written.
    """
    bundle = target.suffix in BUNDLE_SUFFIXES
    if target.suffix == ".safetensors":
        raise CheckpointError(f"{target}: a model of ours is a folder; name one, or a file that ends in .pth")
    written = [target, target.with_name(fast_vgs.ARGS)] if bundle else [target]
    existing = [path for path in written if path.exists()]
    if existing and not overwrite:
        raise CheckpointError(f"{existing[0]}: exists already; choose another name, or add --overwrite")
    if existing and not bundle and not _may_be_replaced(target):
        raise CheckpointError(
            f"{target}: is not a model of ours (no config.json of ours in it), so it is not replaced"
        )
    stored = open_model(source)
    model, report = stored.build(build_model)
    unused = _unused_tensors(source, stored, report)
    if bundle:
        target.parent.mkdir(parents=True, exist_ok=True)
        fast_vgs.save_bundle(model, unused, target)
    else:
        _save_folder(model, unused, {**stored.about, "origin": str(source)}, target)
    return report


def _may_be_replaced(target: Path) -> bool:
    return target.is_dir() and (read_about(target) is not None or not any(target.iterdir()))


def _unused_tensors(path: Path, model: StoredModel, report: LoadReport) -> UnusedTensors:
    if path.name == MODEL_FILE:
        path = path.parent
    if about := read_about(path):
        file = path / UNUSED_FILE
        return UnusedTensors(load_file(file) if file.is_file() else {}, about.get("published_args"))
    if model.rules is not fast_vgs.RULES:
        return UnusedTensors({})
    args = fast_vgs.read_args(path / fast_vgs.ARGS if path.is_dir() else path)
    plain = None if args is None else {k: v for k, v in args.items() if not isinstance(v, Placeholder)}
    return UnusedTensors({name: model.stored[name].read() for name in report.unused}, plain)


def _save_folder(model: VGSPlus, unused: UnusedTensors, about: Mapping[str, Any], target: Path) -> None:
    with atomic_folder(target, replace=True) as folder:
        write_model(model, folder, {**about, "published_args": unused.args})
        if unused.tensors:
            save_tensors(folder / UNUSED_FILE, unused.tensors)
