"""The checkpoints of a run: which are whole, and how much disk they take."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.filesize import decimal

from vgsplus.doctor.findings import Finding
from vgsplus.errors import VgsplusError
from vgsplus.training.checkpoint import OPTIMIZER_FILE, checkpoints, load_model, load_tensors


def checkpoint_findings(run: Path) -> tuple[Path | None, list[Finding]]:
    """The newest whole checkpoint of a run, None without one, and what was found of all of them.

    Reads every tensor of every checkpoint.
    """
    paths = checkpoints(run)
    faults = {path: fault for path in paths if (fault := _fault(path)) is not None}
    whole = [path for path in paths if path not in faults]
    findings = [
        Finding("fault", "checkpoint", fault, _remedy(path, paths, whole)) for path, fault in faults.items()
    ]
    if whole:
        what = f"{len(whole)} of {len(paths)} whole, {decimal(_bytes(paths))}; newest: {whole[-1].name}"
        findings.append(Finding("ok", "checkpoints", what))
    return (whole[-1] if whole else None), findings


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint: files, names, shapes, numbers that are not finite."""
    try:
        model = load_model(checkpoint)
        load_tensors(checkpoint / OPTIMIZER_FILE)
    except VgsplusError as error:
        return str(error)
    bad = [name for name, parameter in model.named_parameters() if not torch.isfinite(parameter).all()]
    return f"{checkpoint}: weights are not finite, the first {bad[0]}" if bad else None


def _remedy(path: Path, paths: Sequence[Path], whole: Sequence[Path]) -> str:
    """What to do about a broken checkpoint: the run goes on from the newest one that is left."""
    if whole and paths.index(path) < paths.index(whole[-1]):
        return f"Remove {path}; a later one is whole."
    onward = f"goes on from {whole[-1].name}" if whole else "starts from the beginning"
    return f"Remove {path}; the run then {onward}."


def _bytes(paths: Sequence[Path]) -> int:
    """What the files take, those that hard links share counted once."""
    stats = [file.stat() for path in paths for file in path.iterdir()]
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in stats}.values())
