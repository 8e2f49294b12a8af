"""Read published files of region features, and those of `vgsplus data regions`.

    obj36 TSV        LXMERT: one image per line with the tab-separated `COLUMNS`; arrays are base64 of
                     little-endian int64 (ids) or float32; boxes in pixels as (x1, y1, x2, y2)
    6-column TSV     bottom-up attention: the same with `SIX_COLUMNS`; there are no confidences, so regions
                     keep the order of the file
    FaST-VGS HDF5    data sets `STORED`, one image per row
    own HDF5         see `store`: boxes in [0, 1]; regions keep their order

The published HDF5 file of Places truncates image names to 27 bytes. The full names are read from the JSON
file next to it, which maps names to rows.

Files are split into parts that several processes can read: the lines of a TSV that start in a range of bytes,
or a range of rows of an HDF5 file.
"""

import base64
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.files import nfc, read_text
from vgsplus.regions.store import HDF5_ERRORS, REGION_SETS, region_faults

COLUMNS = (
    *("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
    *("num_boxes", "boxes", "features"),
)
SIX_COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
STORED = ("img_id", "img_h", "img_w", "objects_conf", "boxes", "features")
INT64, FLOAT32 = np.dtype("<i8"), np.dtype("<f4")
MOST_PIXELS = 1_000_000
OVERSHOOT = 1.0
"""Pixels by which a box may exceed its image, because some detectors count from 1. It is clipped."""
TSV_PART_BYTES, STORE_PART_ROWS = 64 << 20, 256
NUMBER = re.compile(r"(?:^|_)(\d+)$")
PICTURE_ENDINGS = {".jpg", ".jpeg", ".png"}

type Regions = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Features (R, F) and boxes (R, 4) in [0, 1] as (x1, y1, x2, y2), by decreasing confidence."""


@dataclass(frozen=True, slots=True)
class Part:
    """The lines of a TSV that start in [start, stop) bytes, or the rows [start, stop) of an HDF5 file.

    `names` is the JSON file of the image names, if the HDF5 file truncates them.
    """

    path: Path
    hdf5: bool
    start: int
    stop: int
    names: Path | None = None

    def records(self) -> Iterator[tuple[int, str, Callable[[], Regions] | None]]:
        """Yield (index in the part, image name, function that decodes the regions) for each record.

        The function is None for the header of a TSV. It raises ValueError for faulty records.

        Raises:
            CorpusError: image names cannot be read.
        """
        if self.hdf5:
            with h5py.File(self.path) as store:
                for index, image in enumerate(self._image_names(store)):
                    yield index, image, partial(_decode_row, store, self.start + index)
            return
        with self.path.open("rb") as file:
            if self.start:  # a line that starts earlier belongs to the previous part
                file.seek(self.start - 1)
                file.readline()
            index = 0
            while file.tell() < self.stop and (line := file.readline()):
                name = line[: line.find(b"\t")] if b"\t" in line else line.strip()[:80]
                image = name.decode("utf-8", errors="replace")
                header = self.start == index == 0 and image in (COLUMNS[0], SIX_COLUMNS[0])
                yield index, image, None if header else partial(_decode_line, line)
                index += 1

    def place(self, index: int, lines: int) -> str:
        """Return the place of a record, "file:line" or "file: row n"; `lines` precede the part."""
        return f"{self.path}: row {self.start + index}" if self.hdf5 else f"{self.path}:{lines + index + 1}"

    def _image_names(self, store: h5py.File) -> Sequence[str]:
        if self.names is not None:
            return _read_names(self.names, self.names.stat().st_mtime_ns)[self.start : self.stop]
        data_set = store["image_ids" if "image_ids" in store else "img_id"]
        try:
            return list(map(str, data_set.asstr(errors="replace")[self.start : self.stop]))
        except HDF5_ERRORS as error:
            raise CorpusError(f"{self.path}: its image names cannot be read ({error}).") from None


def coco_number(image: str) -> int | None:
    """Return the number in the path or name of an MS-COCO image, or None."""
    found = NUMBER.search(Path(image).stem)
    return int(found[1]) if found else None


def path_key(image: str) -> str | None:
    """Return the path of an image without its suffix; None if it is empty."""
    return nfc(Path(image).with_suffix("").as_posix()) if Path(image).name else None


def stem_key(image: str) -> str | None:
    """Return the name of an image without folder and suffix; None if it is empty."""
    return nfc(Path(image).stem) or None


def split_file(path: Path) -> list[Part]:
    """Split a file into parts. HDF5 files with image_ids are own ones, others those of FaST-VGS.

    Raises:
        CorpusError: the file is missing or empty, a data set is missing, or image names are truncated and
            there is no JSON file with the full names.
    """
    try:
        names, hdf5 = None, h5py.is_hdf5(path)
        total, size = path.stat().st_size, TSV_PART_BYTES
        if hdf5:
            with h5py.File(path) as store:
                ours = "image_ids" in store
                data_sets = REGION_SETS if ours else STORED
                if missing := [name for name in data_sets if name not in store]:
                    raise CorpusError(
                        f"{path}: lacks the data sets {', '.join(missing)}; expected {data_sets}."
                    )
                lengths = {name: len(store[name]) for name in data_sets}
                names = None if ours else _names_file(path, store["img_id"])
            if len(set(lengths.values())) > 1:
                raise CorpusError(f"{path}: its data sets differ in length: {lengths}. Make the file again.")
            total, size = lengths["features"], STORE_PART_ROWS
    except HDF5_ERRORS as error:
        what = " ".join(str(error).split())
        raise CorpusError(f"{path}: cannot be read ({what}). Fetch or make the file again.") from None
    if total == 0:
        raise CorpusError(f"{path}: is empty. Fetch or make the file again.")
    return [Part(path, hdf5, start, min(start + size, total), names) for start in range(0, total, size)]


def _names_file(path: Path, ids: h5py.Dataset) -> Path | None:
    """Return the JSON file with the full names if the HDF5 file truncates them, else None."""
    text = h5py.check_string_dtype(ids.dtype)
    if text is None:
        raise CorpusError(f"{path}: its img_id are {ids.dtype}, not text. Make the file again.")
    width = text.length
    stored = [bytes(name) for name in ids[:]] if width is not None else []
    full = [name.decode(errors="replace") for name in stored if len(name) == width]
    if all(Path(name).suffix.lower() in PICTURE_ENDINGS or coco_number(name) is not None for name in full):
        return None
    name = f"{path.stem}_imgid2idex.json"
    for names in (path.with_name(name), path.absolute().parent.parent / "metadata" / name):
        if names.is_file():
            truncated = [name.encode()[:width] for name in _read_names(names, names.stat().st_mtime_ns)]
            if truncated != stored:
                raise CorpusError(f"{names}: its names are not those of {path}. Make both again.")
            return names
    raise CorpusError(
        f"{path}: its image names are truncated to {width} bytes. Put {name}, from names to rows, next to it."
    )


@lru_cache(maxsize=8)
def _read_names(path: Path, written: int) -> tuple[str, ...]:  # noqa: ARG001
    """Read a JSON file from names to rows: the names by row. The mtime `written` invalidates the cache."""
    try:
        rows = json.loads(read_text(path))
    except (ValueError, RecursionError, VgsplusError) as error:
        raise CorpusError(f"{path}: is not JSON ({error}). Fetch or make the file again.") from None
    numbers: list[Any] = list(rows.values()) if isinstance(rows, dict) else [None]
    if not all(type(row) is int for row in numbers) or sorted(numbers) != list(range(len(numbers))):
        raise CorpusError(f"{path}: expected an object from names to rows, each row from 0 on once.")
    return tuple(sorted(rows, key=rows.__getitem__))


def _decode_line(line: bytes) -> Regions:
    columns = line.rstrip(b"\r\n").split(b"\t")
    if len(columns) not in (len(COLUMNS), len(SIX_COLUMNS)):
        ending = "" if line.endswith(b"\n") else "; the file ends here"
        raise ValueError(f"has {len(columns)} of {len(COLUMNS)} columns{ending}")
    six = len(columns) == len(SIX_COLUMNS)
    cells = dict(zip(SIX_COLUMNS if six else COLUMNS, columns, strict=True))
    sizes = ("image_h", "image_w") if six else ("img_h", "img_w")
    height, width, count = (_integer(name, cells[name]) for name in (*sizes, "num_boxes"))
    if count <= 0:
        raise ValueError(f"num_boxes is {count}")
    confidence = np.zeros(count, np.float32)
    if not six:
        for name in ("objects_id", "attrs_id"):
            _array(name, cells[name], INT64, count)
        _array("attrs_conf", cells["attrs_conf"], FLOAT32, count)
        confidence = _array("objects_conf", cells["objects_conf"], FLOAT32, count)
    boxes = _array("boxes", cells["boxes"], FLOAT32, count * 4).reshape(count, 4)
    features = _array("features", cells["features"], FLOAT32, None)
    if features.size == 0 or features.size % count:
        raise ValueError(f"features holds {features.size} numbers, which is not a multiple of {count} boxes")
    return _checked(height, width, confidence, boxes, features.reshape(count, -1))


def _decode_row(store: h5py.File, row: int) -> Regions:
    names = ("features", "boxes") if "image_ids" in store else ("features", "boxes", "objects_conf")
    try:
        features, boxes, *others = (np.asarray(store[name][row], np.float32) for name in names)
        height, width = (int(store[name][row]) for name in ("img_h", "img_w")) if others else (1, 1)
    except (*HDF5_ERRORS, OverflowError) as error:
        raise ValueError(f"cannot be read ({' '.join(str(error).split())})") from None
    if not others:
        if faults := region_faults(features, boxes):
            raise ValueError(faults[0])
        return features, boxes
    (confidence,) = others
    shapes = (confidence.shape, boxes.shape, features.shape)
    if features.ndim != 2 or not features.size or shapes[:2] != ((len(features),), (len(features), 4)):
        raise ValueError(
            f"has objects_conf {shapes[0]}, boxes {shapes[1]} and features {shapes[2]}; "
            "expected (R,), (R, 4) and (R, F)"
        )
    return _checked(height, width, confidence, boxes, features)


def _integer(name: str, text: bytes) -> int:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number.is_integer() or abs(number) > MOST_PIXELS:
        raise ValueError(f"{name} is {text[:20].decode(errors='replace')!r}, not an integer")
    return int(number)


def _array[T: np.generic](name: str, text: bytes, kind: np.dtype[T], count: int | None) -> npt.NDArray[T]:
    """Decode base64 of either alphabet, with or without padding, or printed as Python bytes: b'…'."""
    if text.startswith(b"b'") and text.endswith(b"'"):
        text = text[2:-1]
    text = text.rstrip(b"=")
    try:
        data = base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise ValueError(f"{name} is not valid base64 ({error})") from None
    if count is not None and len(data) != count * kind.itemsize:
        expected = f"{count * kind.itemsize} ({count} of {kind.name})"
        raise ValueError(f"{name} holds {len(data)} bytes; expected {expected}")
    if len(data) % kind.itemsize:
        raise ValueError(f"{name} holds {len(data)} bytes, which is not a multiple of {kind.name}")
    return np.frombuffer(data, kind)


def _checked(
    height: int,
    width: int,
    confidence: npt.NDArray[np.float32],
    boxes: npt.NDArray[np.float32],
    features: npt.NDArray[np.float32],
) -> Regions:
    """Sort regions by decreasing confidence (stable), and scale boxes from pixels to [0, 1]."""
    if height <= 0 or width <= 0:
        raise ValueError(f"the picture is {width} x {height} pixels")
    for name, array in (("objects_conf", confidence), ("boxes", boxes), ("features", features)):
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds values that are not finite numbers")
    size = np.array([width, height, width, height], np.float32)
    outside = (boxes < -OVERSHOOT) | (boxes > size + OVERSHOOT)
    if outside.any():
        box = boxes[outside.any(axis=1).argmax()].tolist()
        fits = bool((boxes <= size[[1, 0, 3, 2]] + OVERSHOOT).all())
        swapped = "; its height and width may have been swapped" if fits else ""
        raise ValueError(f"the box {box} lies outside the picture of {width} x {height} pixels{swapped}")
    boxes = np.clip(boxes, 0, size) / size
    if not (boxes[:, :2] <= boxes[:, 2:]).all():
        raise ValueError("a box ends before it starts; expected (x1, y1, x2, y2)")
    order = np.argsort(-confidence, kind="stable")
    # Division may exceed [0, 1] by rounding.
    return features[order], np.clip(boxes[order], 0, 1)
