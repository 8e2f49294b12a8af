"""Read tensors from untrusted safetensors files, PyTorch checkpoints and pickles without executing code.

A pickle is a program that may call any function by name. Here only the few names of which tensors and plain
containers consist are resolved; every other name becomes a subclass of `Placeholder`, so no other function is
called. Tensors stay on disk until they are read, one by one.
"""

import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vgsplus.errors import CheckpointError
from vgsplus.files import is_pointer

type Shape = tuple[int, ...]

ZIP_MAGIC, PICKLE_MAGIC = b"PK\x03\x04", b"\x80"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
HINT_AGAIN = "Fetch or copy it again."
POINTER = "is a pointer of Git LFS, not the weights. Fetch them by git lfs pull."
_LOCAL_HEADER = 30
"""Bytes of a zip entry's local header before its name; the last 4 are the lengths of name and extra field."""
_TYPES = (
    # in safetensors, in PyTorch
    ("F64", "DoubleStorage", torch.float64),
    ("F32", "FloatStorage", torch.float32),
    ("F16", "HalfStorage", torch.float16),
    ("BF16", "BFloat16Storage", torch.bfloat16),
    ("I64", "LongStorage", torch.int64),
    ("I32", "IntStorage", torch.int32),
    ("I16", "ShortStorage", torch.int16),
    ("I8", "CharStorage", torch.int8),
    ("U8", "ByteStorage", torch.uint8),
    ("BOOL", "BoolStorage", torch.bool),
)
_SAFETENSORS_TYPES = {name: dtype for name, _, dtype in _TYPES}
_STORAGE_TYPES = {name: dtype for _, name, dtype in _TYPES}
_BROKEN = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError),
    *(ValueError, TypeError, KeyError, NotImplementedError, RuntimeError, OverflowError, MemoryError),
)
"""Raised by the standard library for broken archives and pickles."""


class StoredTensor(NamedTuple):
    """A tensor in a file; `read()` loads it."""

    shape: Shape
    dtype: torch.dtype
    read: Callable[[], Tensor]


def read_tensors(path: Path, unwrap: tuple[str, ...] = ()) -> dict[str, StoredTensor]:
    """Open the tensors of a state dict in a file NAME.safetensors or a PyTorch checkpoint.

    A checkpoint may nest the state dict under the keys `unwrap`, from the outermost on.

    Raises:
        CheckpointError: the file is missing, truncated, broken, or holds no tensors by name.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    found = read_torch(path)
    for key in unwrap:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not (tensors := named_tensors(found)):
        raise CheckpointError(f"{path}: holds no tensors by name. Expected a model's state_dict.")
    return tensors


def named_tensors(values: object) -> dict[str, StoredTensor]:
    """Return the entries of a dictionary that are tensors; none if it is not a dictionary."""
    items = values.items() if isinstance(values, dict) else ()
    return {str(name): value for name, value in items if isinstance(value, StoredTensor)}


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Open the tensors of a safetensors file.

    Raises:
        CheckpointError: the file is missing, truncated, broken, or holds an unsupported data type.
    """

    def read(name: str) -> Tensor:
        try:
            with safe_open(path, framework="pt") as file:
                # Copied, because the file that is mapped into memory may change.
                tensor: Tensor = file.get_tensor(name).clone()
                return tensor
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: changed while it was read ({error})") from None

    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                part = file.get_slice(name)
                dtype = _SAFETENSORS_TYPES[part.get_dtype()]
                tensors[name] = StoredTensor(tuple(part.get_shape()), dtype, partial(read, name))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file. {HINT_AGAIN}") from None
    except (OSError, SafetensorError) as error:
        why = POINTER if is_pointer(path) else f"is truncated or broken ({error}). {HINT_AGAIN}"
        raise CheckpointError(f"{path}: {why}") from None
    except KeyError as error:
        raise CheckpointError(f"{path}: holds a tensor of type {error}, which is not supported") from None
    return tensors


# ---- pickles ----------------------------------------------------------------------------------------------


class Placeholder:
    """Placeholder for an object of any other class. It records the arguments and executes nothing.

    Attributes:
        origin: dotted name of the class in the file.
        args: arguments of the constructor.
        state: argument of `__setstate__`.
    """

    origin: ClassVar[str] = ""
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: object, **_: object) -> Self:
        """Keep the arguments."""
        self = super().__new__(cls)
        self.args, self.state = args, None
        return self

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __call__(self, *args: object, **_: object) -> "Placeholder":
        """Return a placeholder for the result of a call; nothing is called."""
        return Placeholder(*args)

    def __setstate__(self, state: object) -> None:
        """Keep the state."""
        self.state = state

    def _drop(self, *_: object) -> None:
        """Ignore items that the pickle adds."""

    append = extend = add = __setitem__ = _drop

    def __repr__(self) -> str:
        return f"<{self.origin or 'unknown'}>"


class _Function:
    """A function that a pickle may call but not change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *args: object) -> object:
        return self._function(*args)

    def __setstate__(self, _state: object) -> None:
        pass


class _Dict(dict[Any, Any]):
    """A dictionary without the attributes that PyTorch adds to state dicts."""

    def __setstate__(self, _state: object) -> None:
        pass


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str
    size: int


class _Unpickler(pickle.Unpickler):
    """Builds plain values, tensors if `tensors` is given, and a `Placeholder` for everything else."""

    def __init__(self, stream: IO[bytes], tensors: "_Tensors | None" = None) -> None:
        super().__init__(stream)
        self._tensors = tensors

    def find_class(self, module: str, name: str, /) -> object:
        """Resolve a name in a pickle; nothing is imported."""
        match module, name:
            case "collections", "OrderedDict":
                return _Function(_Dict)
            case (("builtins" | "__builtin__"), ("set" | "frozenset")):
                return _Function(frozenset)
            case "torch._utils", ("_rebuild_tensor_v2" | "_rebuild_tensor") if self._tensors:
                return _Function(self._tensors.rebuild)
            case "torch._utils", "_rebuild_parameter":
                return _Function(lambda data, *_: data)
            case (("torch" | "torch.storage"), _) if name in _STORAGE_TYPES:
                return _STORAGE_TYPES[name]
        return type("Placeholder", (Placeholder,), {"origin": f"{module}.{name}"})

    def persistent_load(self, pid: object, /) -> _Storage:
        """Resolve a reference to a storage."""
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), _, int(size), *_) if size >= 0:
                return _Storage(dtype, key, size)
        raise pickle.UnpicklingError(f"persistent id {pid!r} is not that of a storage")


def _load(stream: IO[bytes], tensors: "_Tensors | None" = None) -> Any:  # noqa: ANN401 - any value
    """Unpickle one object; every error of a malformed pickle is raised as UnpicklingError."""
    try:
        return _Unpickler(stream, tensors).load()
    except pickle.UnpicklingError:
        raise
    except MemoryError:
        raise pickle.UnpicklingError("it requires more memory than is available") from None
    except Exception as error:  # noqa: BLE001 - a malicious pickle can raise any
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from None


def read_pickle(path: Path) -> object:
    """Read a pickle of plain values, such as the `args.pkl` of FaST-VGS; other objects become placeholders.

    Raises:
        CheckpointError: the file is missing, truncated or not a pickle.
    """
    try:
        with path.open("rb") as stream:
            return _load(stream)
    except (OSError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: cannot be read as a pickle ({error})") from None


def attributes(value: object) -> dict[str, Any] | None:
    """Return the values of a dictionary or the attributes of a placeholder by name, or None for other values.

    Supports plain attributes (argparse.Namespace), and containers and nodes of OmegaConf.
    """
    if isinstance(value, Placeholder):
        value = value.state
    if isinstance(value, tuple) and value and isinstance(value[0], dict):
        value = value[0]
    if not isinstance(value, dict):
        return None
    content = value.get("_content")
    if isinstance(content, dict):
        return {str(key): _node(node) for key, node in content.items()}
    return {str(key): item for key, item in value.items()}


def _node(node: object) -> object:
    inner = attributes(node) if isinstance(node, Placeholder) else None
    return inner["_val"] if inner is not None and "_val" in inner else node


# ---- PyTorch checkpoints ----------------------------------------------------------------------------------


class _Tensors:
    """The tensors of one PyTorch file.

    Attributes:
        extents: storage key -> (first byte, number of bytes) in the file.
        used: the storage of each tensor, and the number of its elements that the tensor requires.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.extents: dict[str, tuple[int, int]] = {}
        self.used: list[tuple[_Storage, int]] = []

    def rebuild(self, storage: object, offset: Any, size: Any, stride: Any, *_: object) -> StoredTensor:  # noqa: ANN401
        if not (
            isinstance(storage, _Storage)
            and isinstance(offset, int)
            and isinstance(size, tuple)
            and isinstance(stride, tuple)
            and len(size) == len(stride)
            and all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride))
        ):
            raise pickle.UnpicklingError("a tensor without a storage, or of impossible size")
        span = 0 if 0 in size else 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        self.used.append((storage, offset + span))
        return StoredTensor(size, storage.dtype, lambda: self._read(storage, offset, span, size, stride))

    def check(self) -> None:
        """Raise CheckpointError if a tensor is not contained in the file."""
        for storage, needed in self.used:
            _, available = self.extents.get(storage.key, (0, -1))
            if available < storage.size * storage.dtype.itemsize or storage.size < needed:
                raise CheckpointError(
                    f"{self.path}: is truncated or broken: storage {storage.key} should have "
                    f"{max(storage.size, needed)} elements of {storage.dtype}"
                )

    def _read(self, storage: _Storage, offset: int, span: int, size: Shape, stride: Shape) -> Tensor:
        flat = torch.empty(span, dtype=storage.dtype)
        first, _ = self.extents[storage.key]
        with self.path.open("rb") as file:
            file.seek(first + offset * storage.dtype.itemsize)
            got = file.readinto(flat.view(torch.uint8).numpy()) if span else 0
        if got != span * storage.dtype.itemsize:
            raise CheckpointError(f"{self.path}: was truncated while it was read")
        return flat.as_strided(size, stride).contiguous() if span else flat.new_empty(size)


def read_torch(path: Path) -> object:
    """Read a file written by `torch.save`, in either of its formats; tensors become `StoredTensor`s.

    Raises:
        CheckpointError: the file is missing, truncated, broken or not a PyTorch checkpoint.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(ZIP_MAGIC))
            file.seek(0)
            if magic == ZIP_MAGIC:
                return _read_zip(path, file)
            if magic[:1] == PICKLE_MAGIC:
                return _read_legacy(path, file)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except _BROKEN as error:
        raise CheckpointError(f"{path}: is truncated, broken or not a PyTorch checkpoint ({error})") from None
    what = "is not a file that PyTorch writes" if magic else "is empty"
    why = POINTER if is_pointer(path) else f"{what}. Name a checkpoint, or the folder of a model."
    raise CheckpointError(f"{path}: {why}")


def _read_zip(path: Path, file: IO[bytes]) -> object:
    tensors = _Tensors(path)
    with zipfile.ZipFile(file) as archive:
        data = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
        if len(data) != 1:
            raise CheckpointError(f"{path}: is a zip archive, but not a checkpoint: it holds no data.pkl")
        folder = data[0].filename.removesuffix("data.pkl")
        for info in archive.infolist():
            if info.filename.startswith(f"{folder}data/"):
                if info.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError(f"{path}: {info.filename} is compressed, which PyTorch never does")
                key = info.filename.removeprefix(f"{folder}data/")
                tensors.extents[key] = (_data_start(file, info), info.file_size)
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise CheckpointError(f"{path}: was written on a big-endian machine, which is not supported")
        with archive.open(data[0]) as stream:
            found = _load(stream, tensors)
    tensors.check()
    return found


def _data_start(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Return the position of an entry's bytes, which follow its local header."""
    file.seek(info.header_offset + _LOCAL_HEADER - 4)
    name, extra = struct.unpack("<HH", file.read(4))
    start = info.header_offset + _LOCAL_HEADER + int(name) + int(extra)
    if start + info.file_size > os.fstat(file.fileno()).st_size:
        raise zipfile.BadZipFile(f"{info.filename} ends beyond the file")
    return start


def _read_legacy(path: Path, file: IO[bytes]) -> object:
    """Read the format before PyTorch 1.6: magic, version, system, object, storage keys; then the storages."""
    if _load(file) != _LEGACY_MAGIC:
        raise CheckpointError(f"{path}: is a pickle, but not a PyTorch checkpoint")
    _load(file)
    system = _load(file)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise CheckpointError(f"{path}: was written on a big-endian machine, which is not supported")
    tensors = _Tensors(path)
    found = _load(file, tensors)
    keys = _load(file)
    itemsizes = {storage.key: storage.dtype.itemsize for storage, _ in tensors.used}
    if not isinstance(keys, list) or not set(itemsizes) <= set(keys):
        raise pickle.UnpicklingError("its list of storages is incomplete")
    end = os.fstat(file.fileno()).st_size
    for key in keys:
        (size,) = struct.unpack("<q", file.read(8))
        if key not in itemsizes:
            raise pickle.UnpicklingError(f"storage {key} is used by no tensor, so its length is unknown")
        start, length = file.tell(), size * itemsizes[key]
        if size < 0 or start + length > end:
            raise pickle.UnpicklingError(f"storage {key} ends beyond the file")
        tensors.extents[key] = (start, length)
        file.seek(start + length)
    tensors.check()
    return found
