"""Rows of an HDF5 data set, read where they lie in the file.

For a row of 147 KB, h5py's selection and HDF5's way to it take several times as long as reading it.
"""

import os
from collections.abc import Sequence
from io import FileIO

import h5py
import numpy as np
import numpy.typing as npt

from vgsplus.errors import CorpusError
from vgsplus.regions.layout import HDF5_ERRORS


class StoredRows:
    """The rows of a data set (n, …), in the type that is stored; belongs to the process that opened it.

    Rows that are neither contiguous nor a plain chunk each, as after compression, are read through h5py.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self._file = FileIO(dataset.file.filename)
        self._plain = dataset.id.get_create_plist().get_nfilters() == 0
        self._start: int | None = dataset.id.get_offset() if dataset.chunks is None else None

    def read(self, rows: Sequence[int]) -> npt.NDArray[np.floating]:
        """(len(rows), …), in the order asked for; a row that repeats is read once.

        Raises:
            CorpusError: the file breaks off in a row.
        """
        read: npt.NDArray[np.floating] = np.empty((len(rows), *self._dataset.shape[1:]), self._dataset.dtype)
        first: dict[int, int] = {}
        for index, row in enumerate(rows):
            known = first.setdefault(row, index)
            if known != index:
                read[index] = read[known]
            elif (offset := self._offset(row, read[index].nbytes)) is None:
                try:
                    read[index] = self._dataset[row]
                except HDF5_ERRORS as error:
                    what = " ".join(str(error).split())
                    raise CorpusError(f"{self._dataset.file.filename}: row {row}: {what}.") from None
            elif os.preadv(self._file.fileno(), [read[index]], offset) < read[index].nbytes:
                raise CorpusError(f"{self._dataset.file.filename}: breaks off in row {row}. Fetch it again.")
        return read

    def _offset(self, row: int, size: int) -> int | None:
        """Where a row's bytes start in the file; None where they do not lie there as they are."""
        if self._start is not None:
            return self._start + row * size
        if not self._plain or self._dataset.chunks != (1, *self._dataset.shape[1:]):
            return None
        place = (row, *(0 for _ in self._dataset.shape[1:]))
        offset: int | None = self._dataset.id.get_chunk_info_by_coord(place).byte_offset
        return offset
