"""The store of region features: regions.h5 of a corpus, or an HDF5 file of `vgsplus data regions`.

    image_ids    (n,) UTF-8: path of the image relative to the folder of images
    features     (n, R, F) float16 or float32
    boxes        (n, R, 4) float32 as (x1, y1, x2, y2) in [0, 1]
    sha256       (n,) of the image files, in hexadecimal; optional
    attribute "provenance": JSON object, the model of the features and its settings; optional

n images, R regions per image, F features per region. Rows are read and written at their byte offset in the
file. This is several times as fast as indexing with h5py, allows several processes to write, and a kill or a
full disk cannot damage the file. (After a failed write HDF5 aborts the process; so do memory maps if the disk
is full or the file was truncated.)
"""

import errno
import gc
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import h5py
import numpy as np
import numpy.typing as npt

from vgsplus.errors import CorpusError
from vgsplus.files import is_file
from vgsplus.remote import RemotePath, fetch_ranges, locate

REGIONS_FILE = "regions.h5"
REGION_SETS = ("image_ids", "features", "boxes")
SHA256, PROVENANCE = "sha256", "provenance"
HDF5_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError, AttributeError)
"""Exceptions of h5py for broken files."""
TEXT_BYTES, HEADER_BYTES = 64, 1 << 20
"""Upper bounds of the overhead of HDF5 in bytes: per text, and in total."""

type Dtype = Literal["float16", "float32"]
type Array = npt.NDArray[np.floating]


def create_store(
    path: Path,
    image_ids: Sequence[str],
    shape: tuple[int, int],
    dtype: npt.DTypeLike,
    *,
    sha256: Sequence[str] | None = None,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Create or overwrite a store with reserved disk space, to be filled by `RegionStore.write`.

    `image_ids` and `sha256`, the digests of their files, have one entry per row. `shape` is (R, F), `dtype`
    the data type of the features, float16 or float32.

    Raises:
        OSError: there is not enough disk space for all rows, or the file cannot be written.
    """
    texts = {"image_ids": image_ids} | ({} if sha256 is None else {SHA256: sha256})
    text_bytes = sum(len(text.encode()) + TEXT_BYTES for values in texts.values() for text in values)
    row_bytes = shape[0] * (shape[1] * np.dtype(dtype).itemsize + 4 * 4)
    _reserve(path, len(image_ids) * row_bytes + text_bytes + HEADER_BYTES)
    with h5py.File(path, "w") as file:
        for name, width, kind in (("features", shape[1], dtype), ("boxes", 4, "float32")):
            size, number = (len(image_ids), shape[0], width), np.dtype(kind).newbyteorder("<")
            data_set = file.create_dataset(name, size, number, fill_time="never", track_times=False)
            data_set[0] = 0  # HDF5 allocates all rows when the first one is written
        for name, values in texts.items():
            file.create_dataset(name, data=values, dtype=h5py.string_dtype("utf-8"), track_times=False)
        if provenance is not None:
            file.attrs[PROVENANCE] = json.dumps(provenance, sort_keys=True, ensure_ascii=False)
    _reserve(path, path.stat().st_size)


def _reserve(path: Path, size: int) -> None:
    """Allocate disk space for `size` bytes of a file; remove the file if there is not enough."""
    with path.open("ab") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                path.unlink()
                raise OSError(error.errno, error.strerror, str(path)) from None


class RegionStore:
    """An open store. Reading is thread-safe. A forked process must open the store again.

    `remedy` is the last sentence of error messages.

    Attributes:
        shape: (n, R, F).
        dtype: data type of the features.
        by_content: whether `find` identifies images by the SHA-256 of their file instead of their id.

    Raises:
        CorpusError: the file is missing or not HDF5, or a data set is missing or has the wrong shape or type.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        remedy: str = "Make it again with: vgsplus data regions",
        writable: bool = False,
    ) -> None:
        self.path = locate(path)
        self._remedy = remedy
        if not is_file(self.path):
            raise CorpusError(f"{self.path}: is missing. {remedy}")
        remote = isinstance(self.path, RemotePath)
        with ExitStack() as opened, _collection_paused():
            try:
                self._hdf5 = opened.enter_context(h5py.File(self.path.open("rb") if remote else self.path))
                self._check_data_sets()
            except HDF5_ERRORS as error:
                raise self._broken(error) from None
            self._file = opened.enter_context(self.path.open("r+b" if writable else "rb"))
            self._opened = opened.pop_all()
        self._features, self._boxes = self._hdf5["features"], self._hdf5["boxes"]
        self.shape: tuple[int, int, int] = self._features.shape
        self.dtype: np.dtype[np.floating] = self._features.dtype
        self.by_content = SHA256 in self._hdf5

    def _check_data_sets(self) -> None:
        if missing := [name for name in REGION_SETS if name not in self._hdf5]:
            raise CorpusError(f"{self.path}: lacks {', '.join(missing)}. {self._remedy}")
        sets = {name: self._hdf5[name] for name in (*REGION_SETS, SHA256) if name in self._hdf5}
        for name, data_set in sets.items():
            kinds = "fiu" if name in ("features", "boxes") else "OS"  # NumPy kinds: numbers, texts
            if not isinstance(data_set, h5py.Dataset) or data_set.dtype.kind not in kinds:
                raise CorpusError(f"{self.path}: {name} is not a data set of its type. {self._remedy}")
        ids, features, boxes = (sets[name].shape for name in REGION_SETS)
        lengths = {data_set.shape[:1] for data_set in sets.values()}
        if len(features) != 3 or boxes != (*features[:2], 4) or len(lengths) > 1:
            raise CorpusError(
                f"{self.path}: has features {features}, boxes {boxes} and image_ids {ids}; expected "
                f"(n, R, F), (n, R, 4) and (n,). {self._remedy}"
            )

    def _broken(self, error: BaseException) -> CorpusError:
        what = " ".join(str(error).split())
        return CorpusError(f"{self.path}: cannot be read as HDF5 ({what}). {self._remedy}")

    @cached_property
    def image_ids(self) -> tuple[str, ...]:
        """The image ids in the order of the rows."""
        return self._texts("image_ids")

    @cached_property
    def _rows(self) -> dict[str, int]:
        """The row of each image by its digest, or else its id."""
        keys = self._texts(SHA256) if self.by_content else self.image_ids
        if not self.by_content and (twice := [key for key, count in Counter(keys).items() if count > 1]):
            raise CorpusError(f"{self.path}: holds {twice[0]} more than once. {self._remedy}")
        return {key: row for row, key in enumerate(keys)}

    def _texts(self, name: str) -> tuple[str, ...]:
        try:
            with _collection_paused():
                return tuple(self._hdf5[name].asstr()[:])
        except HDF5_ERRORS as error:
            raise self._broken(error) from None

    def find(self, image_id: str, sha256: str) -> tuple[Array, Array] | None:
        """Return features (R, F) as stored and boxes (R, 4) of an image, or None if it is not in the store.

        It is identified by the SHA-256 of its file in hexadecimal if `by_content`, else by its id.

        Raises:
            CorpusError: an image is stored twice, or the file cannot be read.
        """
        row = self._rows.get(sha256 if self.by_content else image_id)
        if row is None:
            return None
        features, boxes = self.read([row])
        return features[0], boxes[0]

    def read(self, rows: Sequence[int]) -> tuple[Array, Array]:
        """Return features (len(rows), R, F) as stored and boxes (len(rows), R, 4).

        Raises:
            CorpusError: the file is truncated or cannot be read.
        """
        return self._read(self._features, rows), self._read(self._boxes, rows)

    def _read(self, data_set: h5py.Dataset, rows: Sequence[int]) -> Array:
        values: Array = np.empty((len(rows), *data_set.shape[1:]), data_set.dtype)
        # Chunked or compressed files, of earlier versions and other programs, are read by h5py.
        start = data_set.id.get_offset() if data_set.chunks is None else None
        if start is not None and isinstance(self.path, RemotePath):
            size = values[:1].nbytes
            fetch_ranges((self.path, start + row * size, size) for row in rows)
            for row, value in zip(rows, values, strict=True):
                part = self.path.read_range(start + row * size, size)
                if len(part) < size:
                    raise self._truncated(row)
                value[...] = np.frombuffer(part, value.dtype).reshape(value.shape)
            return values
        for row, value in zip(rows, values, strict=True):
            if start is None:
                try:
                    with _collection_paused():
                        value[...] = data_set[row]
                except HDF5_ERRORS as error:
                    raise self._broken(error) from None
            elif os.preadv(self._file.fileno(), [value], start + row * value.nbytes) < value.nbytes:
                raise self._truncated(row)
        return values

    def _truncated(self, row: int) -> CorpusError:
        return CorpusError(f"{self.path}: is truncated in row {row}. {self._remedy}")

    def write(self, row: int, features: Array, boxes: Array) -> None:
        """Write features (R, F) and boxes (R, 4) to a row of a store made by `create_store`.

        Raises:
            ValueError: the features have another shape than the store, or exceed the range of its data type.
        """
        if features.shape != self.shape[1:]:
            raise ValueError(f"has features of shape {features.shape}, most have {self.shape[1:]}")
        with np.errstate(over="ignore"):
            stored = features.astype(self.dtype)
        if not np.isfinite(stored).all():
            raise ValueError(f"features holds values beyond {self.dtype}; use --dtype float32")
        for data_set, values in ((self._features, stored), (self._boxes, boxes.astype(self._boxes.dtype))):
            self._file.seek(data_set.id.get_offset() + row * values.nbytes)
            self._file.write(values.tobytes())

    def sync(self) -> None:
        """Flush the rows written so far to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Pause the collection of cyclic garbage while h5py reads, perhaps a file at a URL.

    h5py holds its lock meanwhile. The thread that receives the bytes would wait for this lock forever if it
    collected objects of h5py.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class RegionAppender:
    """Writes a store whose number of images is not known in advance, via a temporary file of rows.

    `features` (R, F), of the first image, determine R, F and the data type (float16, or else float32).
    """

    def __init__(self, path: Path, features: Array) -> None:
        self.path = path
        self.shape: tuple[int, int] = (features.shape[0], features.shape[1])
        self._dtype = np.float16 if features.dtype == np.float16 else np.float32
        self._buffer = path.with_suffix(".rows").open("w+b")

    def append(self, features: Array, boxes: Array) -> None:
        """Append the regions of an image: features (R, F) and boxes (R, 4)."""
        self._buffer.write(features.astype(self._dtype).tobytes() + boxes.astype(np.float32).tobytes())

    def complete(self, image_ids: Sequence[str]) -> None:
        """Write the store; `image_ids` are those of the appended rows."""
        self._buffer.flush()
        row_type = np.dtype(
            [("features", self._dtype, self.shape), ("boxes", np.float32, (self.shape[0], 4))]
        )
        create_store(self.path, image_ids, self.shape, self._dtype)
        with RegionStore(self.path, writable=True) as store:
            for index, row in enumerate(np.memmap(self._buffer, row_type, "r")):
                store.write(index, row["features"], row["boxes"])
            store.sync()
        self.close()

    def close(self) -> None:
        """Remove the temporary file."""
        self._buffer.close()
        Path(self._buffer.name).unlink(missing_ok=True)


def region_faults(features: Array, boxes: Array) -> list[str]:
    """Return the faults of the features (R, F) and boxes (R, 4) of one image."""
    if features.ndim != 2 or boxes.shape != (len(features), 4) or features.size == 0:
        return [f"expected features (R, F) and boxes (R, 4), got {features.shape} and {boxes.shape}"]
    faults = []
    if not np.isfinite(features).all():
        faults.append("holds features that are not finite numbers")
    if not ((boxes >= 0) & (boxes <= 1)).all():
        faults.append("holds a box outside [0, 1]")
    elif not (boxes[:, :2] <= boxes[:, 2:]).all():
        faults.append("holds a box whose end lies before its start; expected (x1, y1, x2, y2)")
    return faults


def provenance_of(path: Path) -> dict[str, Any] | None:
    """Return the provenance of the features in a file; None if there is none or the file is not HDF5.

    Raises:
        CorpusError: the HDF5 file is broken, or the provenance is not a JSON object.
    """
    if not h5py.is_hdf5(path):
        return None
    try:
        with h5py.File(path) as file:
            text = file.attrs.get(PROVENANCE)
    except HDF5_ERRORS as error:
        raise CorpusError(f"{path}: cannot be read as HDF5 ({error}). Fetch or make it again.") from None
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise CorpusError(f"{path}: its attribute {PROVENANCE!r} is not JSON ({error}).") from None
    if not isinstance(found, dict):
        raise CorpusError(f"{path}: its attribute {PROVENANCE!r} is not a JSON object.")
    return found
