"""safetensors files, read one tensor at a time."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vgsplus.errors import CheckpointError
from vgsplus.interop.tensors import StoredTensor

_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, left on disk.

    Raises:
        CheckpointError: it is missing, cut off or broken, or holds a type that no model here has.
    """
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                part = file.get_slice(name)
                tensors[name] = StoredTensor(
                    tuple(part.get_shape()), _DTYPES[part.get_dtype()], _reader(path, name)
                )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is missing, cut off or broken ({error})") from None
    except KeyError as error:
        raise CheckpointError(f"{path}: holds a tensor of type {error}, which no model here has") from None
    return tensors


def _reader(path: Path, name: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        try:
            with safe_open(path, framework="pt") as file:
                # A copy, so that nothing stays mapped to a file that may change.
                tensor: Tensor = file.get_tensor(name).clone()
                return tensor
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: changed while it was read ({error})") from None

    return read
