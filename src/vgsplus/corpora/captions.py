"""Captions on disk: each line of captions.jsonl is checked once and parsed again on access.

In memory a caption is a few numbers in arrays, which forked workers share: 592,000 of them take less than
20 MB, whereas as many objects take hundreds, copied into every worker by reference counting.
"""

import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from vgsplus.corpora.format import CAPTION_FIELDS, Caption
from vgsplus.errors import CorpusError

NO_IMAGE = -1


_FIELDS = frozenset(CAPTION_FIELDS)


class Captions(Sequence[Caption]):
    """The captions of a split, in the order of captions.jsonl, each parsed on access.

    May be passed to forked and spawned workers: each process opens the file by its path.

    Attributes:
        num_samples: (n,) int64 at 16 kHz.
        image_rows: (n,) int64, rows of regions.h5; NO_IMAGE for captions without an image.
    """

    def __init__(
        self,
        path: Path,
        spans: npt.NDArray[np.int64],
        num_samples: npt.NDArray[np.int64],
        image_rows: npt.NDArray[np.int64],
    ) -> None:
        self.num_samples = num_samples
        self.image_rows = image_rows
        self._path = path
        self._spans = spans
        self._file: FileIO | None = None

    def __len__(self) -> int:
        return len(self._spans)

    @overload
    def __getitem__(self, index: int) -> Caption: ...
    @overload
    def __getitem__(self, index: slice) -> list[Caption]: ...
    def __getitem__(self, index: int | slice) -> Caption | list[Caption]:
        if isinstance(index, slice):
            return [self._read(start, end) for start, end in self._spans[index].tolist()]
        return self._read(*self._spans[index].tolist())

    def __iter__(self) -> Iterator[Caption]:
        return (self._read(start, end) for start, end in self._spans.tolist())

    def _read(self, start: int, end: int) -> Caption:
        if self._file is None:
            self._file = FileIO(self._path)
        # Unlike seek and read, pread has no position that forked processes would share.
        line = os.pread(self._file.fileno(), end - start, start)
        try:
            return Caption(**json.loads(line))
        except (ValueError, TypeError):
            raise CorpusError(
                f"{self._path}: has changed since the corpus was opened. Open it again."
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}


def index_captions(
    path: Path, splits: Sequence[str], image_rows: Mapping[str, int]
) -> tuple[dict[str, Captions], list[str]]:
    """Return the captions of captions.jsonl by split, those of `splits` first, and every fault of it.

    A line that does not parse is a fault "FILE:LINE: …". A caption of an image that is not in `image_rows`,
    or whose length is not an integer, is a fault that names the caption.

    Raises:
        CorpusError: there is no such file.
    """
    faults: list[str] = []
    misfits: list[str] = []
    rows: dict[str | None, int] = {None: NO_IMAGE}
    rows.update(image_rows)
    columns: dict[str, array[int]] = {split: array("q") for split in splits}
    for start, end, record in _records(path, faults):
        row = rows.get(record["image"])
        if row is None:
            misfits.append(f"{path}: caption {record['id']} names the unknown image {record['image']}")
        elif not isinstance(record["num_samples"], int):
            misfits.append(f"{path}: caption {record['id']}: num_samples is {record['num_samples']!r}")
        else:
            flat = columns.setdefault(record["split"], array("q"))
            flat.extend((start, end, record["num_samples"], row))
    tables = {split: np.array(flat, np.int64).reshape(-1, 4) for split, flat in columns.items()}
    captions = {
        split: Captions(path, table[:, :2].copy(), table[:, 2].copy(), table[:, 3].copy())
        for split, table in tables.items()
    }
    return captions, faults + misfits


def read_captions(path: Path) -> tuple[list[Caption], list[str]]:
    """Return the captions of captions.jsonl that parse, and a fault "FILE:LINE: …" for each other line.

    Raises:
        CorpusError: there is no such file.
    """
    faults: list[str] = []
    return [Caption(**record) for _, _, record in _records(path, faults)], faults


def _records(path: Path, faults: list[str]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(start, end, fields of a `Caption`) of each line, start and end in bytes; faults of the other lines."""
    if not path.is_file():
        raise CorpusError(f"{path}: is missing. Prepare the corpus again.")
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            start, end = end, end + len(line)
            try:
                record = json.loads(line)
                if not isinstance(record, dict) or record.keys() != _FIELDS:
                    Caption(**record)  # names the field that is absent or unknown
                hash((record["id"], record["split"], record["image"]))  # fails for lists and objects
            except ValueError as error:
                faults.append(f"{path}:{number}: is not valid JSON ({error})")
            except TypeError as error:
                what = str(error).removeprefix("Caption.__init__() ")
                faults.append(f"{path}:{number}: is no caption ({what})")
            else:
                yield start, end, record
