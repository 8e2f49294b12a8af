"""Writing regions.h5 an image after another."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt


class RegionsWriter:
    """regions.h5 at `path`: bytes that depend on the contents alone, a chunk an image so that rows read fast.

    The first image decides R, F and the type (float16, else float32). Used until `close`.

    Raises:
        OSError: the disk takes no more; by any call.
    """

    def __init__(self, path: Path, features: npt.NDArray[np.floating]) -> None:
        self.shape: tuple[int, int] = (features.shape[0], features.shape[1])
        self._disk = _Disk(path, "w+")
        self._file = h5py.File(self._disk, "w")
        kind = np.float16 if features.dtype == np.float16 else np.float32
        for name, shape, dtype in (("features", self.shape, kind), ("boxes", (len(features), 4), np.float32)):
            self._file.create_dataset(
                name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(1, *shape), track_times=False
            )

    def append(self, features: npt.NDArray[np.floating], boxes: npt.NDArray[np.floating]) -> None:
        """Add the regions of an image: features (R, F) and boxes (R, 4)."""
        for name, value in (("features", features), ("boxes", boxes)):
            stored = self._file[name]
            stored.resize(len(stored) + 1, axis=0)
            stored[-1] = value
        self._disk.check()

    def complete(self, image_ids: Sequence[str]) -> None:
        """Name the images of the rows and see the file to disk."""
        text = h5py.string_dtype("utf-8")
        self._file.create_dataset("image_ids", data=image_ids, dtype=text, track_times=False)
        self.close()
        self._disk.check()

    def close(self) -> None:
        """Close the file, whatever is in it."""
        self._file.close()
        self._disk.close()


class _Disk(io.FileIO):
    """The file below HDF5, which crashes the process after a write that failed: it is told of none."""

    error: OSError | None = None

    def check(self) -> None:
        """Raise the error of the first write that failed."""
        if self.error is not None:
            raise self.error

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - any buffer
        view = memoryview(data).cast("B")
        while view and self.error is None:
            try:
                view = view[super().write(view) or 0 :]
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401 - any buffer
        view = memoryview(buffer).cast("B")
        read = super().readinto(view) or 0
        view[read:] = bytes(len(view) - read)  # what a failed write left out
        return len(view)
