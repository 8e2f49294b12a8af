"""Sequences of captions that stay on disk: captions.jsonl is checked when opened, and lines parsed on access.

Only offsets, lengths and image rows are in memory, as arrays that forked workers share: 592,000 captions take
less than 20 MB. As many objects would take hundreds, and reference counting would copy them in every worker.
"""

import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from vgsplus.corpora.format import Caption
from vgsplus.errors import CorpusError
from vgsplus.remote import RemotePath

NO_IMAGE = -1
"""Image row of captions without an image."""


@dataclass(eq=False, repr=False)
class Captions(Sequence[Caption]):
    """The captions of a split, in the order of captions.jsonl, parsed on access.

    Can be passed to forked and spawned workers, because each process opens the file itself.

    Attributes:
        num_samples: (n,) int64, lengths at 16 kHz.
        image_rows: (n,) int64, rows of regions.h5; NO_IMAGE without an image.
    """

    _path: Path
    _spans: npt.NDArray[np.int64]
    num_samples: npt.NDArray[np.int64]
    image_rows: npt.NDArray[np.int64]
    _file: FileIO | None = None

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
        if isinstance(self._path, RemotePath):
            line = self._path.read_range(start, end - start)
        else:
            if self._file is None:
                self._file = FileIO(self._path)
            # pread, because forked processes share the file position of seek and read.
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
    """Return the captions of captions.jsonl by split, and all faults.

    The splits `splits` come first, also if they are empty. `image_rows` are rows in regions.h5 by image id.
    Faults are "FILE:LINE: …" for lines that cannot be parsed, then unknown images and lengths that are not
    integers, by the id of the caption.

    Raises:
        CorpusError: there is no such file.
    """
    line_faults: list[str] = []
    caption_faults: list[str] = []
    rows: dict[str | None, int] = {None: NO_IMAGE}
    rows.update(image_rows)
    columns: dict[str, array[int]] = {split: array("q") for split in splits}
    for start, end, record in _records(path, line_faults):
        row = rows.get(record["image"])
        if row is None:
            caption_faults.append(f"{path}: caption {record['id']} names the unknown image {record['image']}")
        elif not isinstance(record["num_samples"], int):
            caption_faults.append(f"{path}: caption {record['id']}: num_samples is {record['num_samples']!r}")
        else:
            flat = columns.setdefault(record["split"], array("q"))
            flat.extend((start, end, record["num_samples"], row))
    tables = {split: np.array(flat, np.int64).reshape(-1, 4) for split, flat in columns.items()}
    captions = {
        split: Captions(path, table[:, :2].copy(), table[:, 2].copy(), table[:, 3].copy())
        for split, table in tables.items()
    }
    return captions, line_faults + caption_faults


def read_captions(path: Path) -> tuple[list[Caption], list[str]]:
    """Return the captions of captions.jsonl, and a fault "FILE:LINE: …" for each line that cannot be parsed.

    Raises:
        CorpusError: there is no such file.
    """
    faults: list[str] = []
    return [Caption(**record) for _, _, record in _records(path, faults)], faults


def _records(path: Path, faults: list[str]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield (first byte, end, fields of the caption) of each line; other lines are added to `faults`."""
    if not path.is_file():
        raise CorpusError(f"{path}: is missing. Prepare the corpus again.")
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            start, end = end, end + len(line)
            try:
                record = json.loads(line)
                if not isinstance(record, dict) or record.keys() != Caption.__dataclass_fields__.keys():
                    Caption(**record)  # raises TypeError with the name of the field
                hash((record["id"], record["split"], record["image"]))  # TypeError for lists and objects
            except ValueError as error:
                faults.append(f"{path}:{number}: is not valid JSON ({error})")
            except TypeError as error:
                what = str(error).removeprefix("Caption.__init__() ")
                faults.append(f"{path}:{number}: is not a caption ({what})")
            else:
                yield start, end, record
