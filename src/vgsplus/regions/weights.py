"""Weights of models of pictures: read from files without running them, and told apart by a digest."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from vgsplus.errors import VgsplusError
from vgsplus.tensor_files import read_tensors

WRAPPERS = ("state_dict", "model")
"""Keys under which training programs keep a model's tensors beside other things."""
SHOWN = 5


def fill(model: nn.Module, path: Path) -> None:
    """Give a model the weights in `path`, safetensors or PyTorch's own; what else is there is passed over.

    Raises:
        VgsplusError: a tensor of the model is not in the file, or has another shape there.
        CheckpointError: the file cannot be read.
    """
    if not path.is_file():
        raise VgsplusError(f"{path}: there is no such file of weights.")
    stored = read_tensors(path, unwrap=WRAPPERS)
    faults = []
    for name, own in model.state_dict().items():
        if name not in stored:
            # Counted for training alone; files from before PyTorch 0.4.1 lack them.
            if not name.endswith("num_batches_tracked"):
                faults.append(f"{name} is absent")
        elif stored[name].shape != tuple(own.shape):
            faults.append(f"{name} has shape {stored[name].shape}, not {tuple(own.shape)}")
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise VgsplusError(
            f"{path}: is not of this model: {'; '.join(faults[:SHOWN])}{more}. Name the model it belongs to."
        )
    with torch.no_grad():
        for name, own in model.state_dict().items():
            if name in stored:
                own.copy_(stored[name].read())


def digest(model: nn.Module) -> str:
    """SHA-256, in hexadecimal, of the names, types, shapes and bytes of a model's tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(_bytes(tensor))
    return found.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
