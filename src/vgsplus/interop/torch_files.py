"""PyTorch files and pickles of strangers, read without running anything that is in them.

A pickle is a program: it may name any function and have it called. The reader here knows the few names that
make up tensors and plain containers; whatever else a file names becomes an `Inert` record, and nothing is
ever called. Tensors stay on disk until they are read, one by one.
"""

import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Self

import torch
from torch import Tensor

from vgsplus.errors import CheckpointError
from vgsplus.interop.tensors import StoredTensor

ZIP_MAGIC, PICKLE_MAGIC = b"PK\x03\x04", b"\x80"
BROKEN = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError),
    *(ValueError, TypeError, KeyError, NotImplementedError, RuntimeError, OverflowError, MemoryError),
)
"""What the standard library raises for archives and pickles that are broken."""
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LOCAL_HEADER = 30
"""Bytes of a zip entry's own header before its name; the lengths of name and extra field stand at byte 26."""
_DTYPES: Mapping[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


# ---- what a pickle may build ------------------------------------------------------------------------------


class Inert:
    """Stands for an object of a class that is not built: remembers what the file gave it and does nothing.

    Attributes:
        origin: the dotted name that the file asked for.
        args: what it would have been called with.
        state: what it would have been restored from.
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

    def __call__(self, *args: object, **_: object) -> "Inert":
        """Stand for what a call would have given; nothing is called."""
        return Inert(*args)

    def __setstate__(self, state: object) -> None:
        """Keep the state."""
        self.state = state

    def __setitem__(self, _key: object, _value: object) -> None:
        pass

    def append(self, _item: object) -> None:
        """Drop an item."""

    def extend(self, _items: object) -> None:
        """Drop items."""

    def add(self, _item: object) -> None:
        """Drop an item."""

    def __repr__(self) -> str:
        return f"<{self.origin or 'unknown'}>"


class _Builder:
    """A callable that a pickle may use; it holds nothing that a pickle could change."""

    __slots__ = ()

    def __setstate__(self, _state: object) -> None:
        pass


class _Dict(dict[Any, Any]):
    """A dictionary that drops the attributes that PyTorch hangs on state dicts."""

    def __setstate__(self, _state: object) -> None:
        pass


class _DictBuilder(_Builder):
    __slots__ = ()

    def __call__(self, *items: Any) -> _Dict:  # noqa: ANN401 - whatever the file holds
        return _Dict(*items)


class _SetBuilder(_Builder):
    __slots__ = ()

    def __call__(self, items: Any = ()) -> frozenset[Any]:  # noqa: ANN401
        return frozenset(items)


class _ParameterBuilder(_Builder):
    __slots__ = ()

    def __call__(self, data: object, *_: object) -> object:
        return data


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: torch.dtype

    def __setstate__(self, _state: object) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: torch.dtype
    key: str
    size: int

    def __setstate__(self, _state: object) -> None:
        pass


class _Reader(pickle.Unpickler):
    """Builds plain values and stored tensors, and inert records for everything else."""

    def __init__(self, stream: IO[bytes], tensor: "Callable[..., object] | None" = None) -> None:
        super().__init__(stream)
        self._tensor = tensor

    def find_class(self, module: str, name: str, /) -> Any:  # noqa: ANN401 - pickle's own signature
        """Answer a name in a pickle; nothing is imported."""
        match module, name:
            case "collections", "OrderedDict":
                return _DictBuilder()
            case (("builtins" | "__builtin__"), ("set" | "frozenset")):
                return _SetBuilder()
            case "torch._utils", ("_rebuild_tensor_v2" | "_rebuild_tensor") if self._tensor:
                return self._tensor
            case "torch._utils", "_rebuild_parameter":
                return _ParameterBuilder()
            case (("torch" | "torch.storage"), _) if name in _DTYPES:
                return _StorageType(_DTYPES[name])
        return type("Inert", (Inert,), {"origin": f"{module}.{name}"})

    def persistent_load(self, pid: Any, /) -> _Storage:  # noqa: ANN401 - pickle's own signature
        """Answer a reference to a storage."""
        match pid:
            case ("storage", _StorageType(dtype), str(key), _, int(size), *_) if size >= 0:
                return _Storage(dtype, key, size)
        raise pickle.UnpicklingError(f"a reference that is no tensor's: {pid!r}")


def read_plain(path: Path) -> object:
    """Read a pickle of plain values, such as a bundle's `args.pkl`; objects in it become `Inert` records.

    Raises:
        CheckpointError: there is no such file, or it is cut off or no pickle.
    """
    try:
        with path.open("rb") as stream:
            return _load(_Reader(stream))
    except (OSError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: cannot be read as a pickle ({error})") from None


def attributes(value: object) -> dict[str, Any] | None:
    """The named values of a dictionary, or of an object that was left inert; None if it has none.

    Understands plain attributes (argparse.Namespace) and OmegaConf's containers and nodes.
    """
    if isinstance(value, Inert):
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
    inner = attributes(node) if isinstance(node, Inert) else None
    return inner["_val"] if inner is not None and "_val" in inner else node


def _load(reader: _Reader) -> Any:  # noqa: ANN401 - whatever the file holds
    """Load, with whatever a malformed pickle provokes in the reader as one kind of error."""
    try:
        return reader.load()
    except pickle.UnpicklingError:
        raise
    except MemoryError:
        raise pickle.UnpicklingError("it asks for more memory than there is") from None
    except Exception as error:  # noqa: BLE001 - a hostile stream can provoke any of them
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from None


# ---- tensors in a file ------------------------------------------------------------------------------------


class _RebuildTensor(_Builder):
    """Makes the stored tensors of one file, and remembers them to be checked at the end."""

    __slots__ = ("made", "path", "places")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[str, tuple[int, int]] = {}
        """storage key -> (first byte, bytes) in the file."""
        self.made: list[tuple[_Storage, int]] = []
        """storage and how many of its elements a tensor needs."""

    def __call__(
        self,
        storage: object = None,
        offset: object = None,
        size: object = None,
        stride: object = None,
        *_: object,
    ) -> StoredTensor:
        sizes = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
        if not (
            isinstance(storage, _Storage)
            and isinstance(offset, int)
            and sizes
            and all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride))  # type: ignore[misc]
        ):
            raise pickle.UnpicklingError("a tensor without a storage, or of impossible size")
        assert isinstance(size, tuple)
        assert isinstance(stride, tuple)
        span = 0 if 0 in size else 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        self.made.append((storage, offset + span))
        return StoredTensor(size, storage.dtype, lambda: self._read(storage, offset, span, size, stride))

    def check(self) -> None:
        """Raise CheckpointError for a tensor that does not lie within its file."""
        for storage, needed in self.made:
            _, available = self.places.get(storage.key, (0, -1))
            if available < storage.size * storage.dtype.itemsize or storage.size < needed:
                raise CheckpointError(
                    f"{self.path}: is cut off or broken: storage {storage.key} should hold "
                    f"{max(storage.size, needed)} elements of {storage.dtype}, and does not"
                )

    def _read(
        self, storage: _Storage, offset: int, span: int, size: tuple[int, ...], stride: tuple[int, ...]
    ) -> Tensor:
        flat = torch.empty(span, dtype=storage.dtype)
        first, _ = self.places[storage.key]
        with self.path.open("rb") as file:
            file.seek(first + offset * storage.dtype.itemsize)
            got = file.readinto(flat.view(torch.uint8).numpy()) if span else 0
        if got != span * storage.dtype.itemsize:
            raise CheckpointError(f"{self.path}: was cut off while it was read")
        return flat.as_strided(size, stride).contiguous() if span else flat.new_empty(size)


def read_torch(path: Path) -> object:
    """Read what `torch.save` wrote, in either of its formats; tensors become `StoredTensor`s.

    Raises:
        CheckpointError: there is no such file; it is cut off, broken, or not PyTorch's.
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
    except BROKEN as error:
        raise CheckpointError(f"{path}: is cut off, broken or no PyTorch checkpoint ({error})") from None
    kind = "is empty" if not magic else "is no file that PyTorch writes"
    raise CheckpointError(f"{path}: {kind}; a checkpoint was expected")


def _read_zip(path: Path, file: IO[bytes]) -> object:
    rebuild = _RebuildTensor(path)
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
                rebuild.places[key] = (_data_start(file, info), info.file_size)
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise CheckpointError(f"{path}: was written on a big-endian machine, which is not supported")
        with archive.open(data[0]) as stream:
            found = _load(_Reader(stream, rebuild))
    rebuild.check()
    return found


def _data_start(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    file.seek(info.header_offset + _LOCAL_HEADER - 4)
    name, extra = struct.unpack("<HH", file.read(4))
    start = info.header_offset + _LOCAL_HEADER + int(name) + int(extra)
    if start + info.file_size > os.fstat(file.fileno()).st_size:
        raise zipfile.BadZipFile(f"{info.filename} ends beyond the file")
    return start


def _read_legacy(path: Path, file: IO[bytes]) -> object:
    """The format before 1.6: magic, version, system, the object, storage keys; then the storages."""
    if _load(_Reader(file)) != _LEGACY_MAGIC:
        raise CheckpointError(f"{path}: is a pickle, but no PyTorch checkpoint")
    _load(_Reader(file))
    system = _load(_Reader(file))
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise CheckpointError(f"{path}: was written on a big-endian machine, which is not supported")
    rebuild = _RebuildTensor(path)
    found = _load(_Reader(file, rebuild))
    keys = _load(_Reader(file))
    itemsizes = {storage.key: storage.dtype.itemsize for storage, _ in rebuild.made}
    if not isinstance(keys, list) or not set(itemsizes) <= set(keys):
        raise pickle.UnpicklingError("its list of storages is not whole")
    end = os.fstat(file.fileno()).st_size
    for key in keys:
        (size,) = struct.unpack("<q", file.read(8))
        if key not in itemsizes:
            raise pickle.UnpicklingError(f"storage {key} belongs to no tensor, so its length is unknown")
        start, length = file.tell(), size * itemsizes[key]
        if size < 0 or start + length > end:
            raise pickle.UnpicklingError(f"storage {key} ends beyond the file")
        rebuild.places[key] = (start, length)
        file.seek(start + length)
    rebuild.check()
    return found
