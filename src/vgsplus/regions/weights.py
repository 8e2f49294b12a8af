"""Optional libraries of image models, and weights, which are read without executing code."""

import hashlib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vgsplus.errors import VgsplusError
from vgsplus.tensor_files import read_tensors

EXTRA = "uv pip install -e '.[vision]' in the checkout (vgsplus[vision]; docs/regions.md)"
WRAPPERS = ("state_dict", "model")
"""Keys under which checkpoints may nest the state dict of the model."""
SHOWN = 5
"""Maximum number of faults in an error message."""


def optional_module(name: str) -> Any:  # noqa: ANN401 - a module
    """Import a module of an optional library.

    Raises:
        VgsplusError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise VgsplusError(f"the package {error.name} is not installed. Install it: {EXTRA}") from None


@contextmanager
def downloading(model: str) -> Iterator[None]:
    """Raise all errors of a library that loads or downloads the weights of `model` as VgsplusError.

    Raises:
        VgsplusError: the error of the library, and how to provide the weights.
    """
    try:
        yield
    # The libraries raise the exceptions of their network clients, which have no common base class.
    except Exception as error:  # noqa: BLE001
        what = (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(".")
        raise VgsplusError(
            f"{model}: its weights are not available: {what}. Check the name. Without a network, name a file "
            "(--weights FILE; else --model transformers:FOLDER), copy the cache of a machine that has them, "
            "or use efficientnet-lite0, whose weights come with its package."
        ) from None


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the weights of a model from a safetensors or PyTorch file; further tensors are ignored.

    Raises:
        VgsplusError: a tensor of the model is missing or has another shape.
        CheckpointError: the file cannot be read.
    """
    if not path.is_file():
        raise VgsplusError(f"{path}: there is no such file of weights.")
    stored = read_tensors(path, unwrap=WRAPPERS)
    faults = []
    for name, own in model.state_dict().items():
        if name not in stored:
            # Only used in training, and missing in files of PyTorch before 0.4.1.
            if not name.endswith("num_batches_tracked"):
                faults.append(f"{name} is absent")
        elif stored[name].shape != tuple(own.shape):
            faults.append(f"{name} has shape {stored[name].shape}, not {tuple(own.shape)}")
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise VgsplusError(
            f"{path}: is not of this model: {'; '.join(faults[:SHOWN])}{more}. Name the model it belongs to."
        )
    tensors = {name: stored[name].read() for name in model.state_dict() if name in stored}
    model.load_state_dict(tensors, strict=False)


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of the names, types, shapes and bytes of the tensors of a model, in hexadecimal."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(data.numpy().tobytes())
    return found.hexdigest()


def provenance_of_weights(model: str, network: nn.Module, path: Path | None, library: str) -> dict[str, Any]:
    """Return the provenance of a model: name, weights (`path` None: those of the library), library."""
    return {
        "model": model,
        "weights": "the library's own" if path is None else path.name,
        "weights_sha256": weights_digest(network),
        "library": f"{library} {version(library)}",
    }
