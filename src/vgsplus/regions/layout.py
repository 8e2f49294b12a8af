"""The layout of region features on disk: HDF5 whose rows are plain blocks of bytes, written without HDF5.

So processes may write rows at once, and a kill leaves the rows that were on disk as they are.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import numpy.typing as npt

type Dtype = Literal["float16", "float32"]
HDF5_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError, AttributeError)
"""What h5py raises for files that are broken."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where rows lie in the file: regions R and features F of each, the type, the byte of the first."""

    path: Path
    regions: int
    dim: int
    dtype: Dtype
    features_at: int
    boxes_at: int


def lay_out(path: Path, count: int, regions: int, dim: int, dtype: Dtype) -> Layout:
    """Make an HDF5 file with room for `count` rows of R regions by F features; where its arrays start."""
    with h5py.File(path, "w") as file:
        at = []
        for name, width, kind in (("features", dim, dtype), ("boxes", 4, "float32")):
            create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            create.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            create.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            create.set_obj_track_times(False)
            space = h5py.h5s.create_simple((count, regions, width))
            made = h5py.h5d.create(
                file.id, name.encode(), h5py.h5t.py_create(np.dtype(kind).newbyteorder("<")), space, create
            )
            at.append(int(made.get_offset()))
    return Layout(path, regions, dim, dtype, *at)


def write_row(
    file: int, layout: Layout, row: int, features: npt.NDArray[np.floating], boxes: npt.NDArray[np.floating]
) -> str | None:
    """Write features (R, F) and boxes (R, 4) to a row of the open file descriptor; or say what is wrong."""
    with np.errstate(over="ignore"):
        stored = features.astype(np.dtype(layout.dtype).newbyteorder("<"))
    if not np.isfinite(stored).all():
        return f"features holds values beyond {layout.dtype}; ask for --dtype float32"
    for at, array in ((layout.features_at, stored), (layout.boxes_at, boxes.astype("<f4"))):
        _write_at(file, array, at + row * array.nbytes)
    return None


def _write_at(file: int, array: npt.NDArray[np.generic], at: int) -> None:
    data = memoryview(array.tobytes())
    while data:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written
