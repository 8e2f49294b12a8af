"""Regions of pictures found by a detector (bottom-up attention), as LXMERT's programs write them, or by ours.

    obj36 TSV    a picture a line, the columns of `COLUMNS` between tabs; arrays are base64 of int64 (ids) and
                 float32, little-endian; boxes in pixels (x1, y1, x2, y2)
    6 columns    the same with the columns of `SIX_COLUMNS`, as bottom-up attention's own program writes it;
                 without confidences, regions stay in the order of the file
    store        HDF5 with data sets of the names in `STORED`, a picture a row; the published code's
    regions      HDF5 with data sets of the names in `REGION_SETS`, as `vgsplus data regions` writes them:
                 boxes in [0, 1], regions in order

The published store of Places keeps 27 bytes of an id, less than its pictures' names: these are then read from
the JSON from names to rows that is beside it.

A file is read in pieces that know nothing of each other, so that processes share tens of gigabytes: of
a TSV the lines that start in a span of bytes, of HDF5 a span of rows.
"""

import binascii
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt

from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.files import is_file, nfc, read_text
from vgsplus.regions.store import HDF5_ERRORS, REGION_SETS, region_faults

COLUMNS = (
    "img_id",
    "img_h",
    "img_w",
    "objects_id",
    "objects_conf",
    "attrs_id",
    "attrs_conf",
    "num_boxes",
    "boxes",
    "features",
)
SIX_COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
HEADERS = frozenset({COLUMNS[0], SIX_COLUMNS[0]})
"""What the first line holds in place of a picture where it names the columns."""
STORED = ("img_id", "img_h", "img_w", "objects_conf", "boxes", "features")
MOST_PIXELS = 1_000_000
URL_SAFE = bytes.maketrans(b"-_", b"+/")
"""From the alphabet of base64 for addresses to the usual one."""
OVERSHOOT = 1.0
"""Pixels by which a box may leave its picture and is then clipped: detectors count from 0 or from 1."""
TSV_PIECE = 64 << 20
STORE_PIECE = 256
NUMBER = re.compile(r"(?:^|_)(\d+)$")
NAMES_FILE = "{}_imgid2idex.json"
"""The published code's name for the JSON from names to rows, after the store's own name."""
PICTURE_ENDINGS = {".jpg", ".jpeg", ".png"}

type Array = npt.NDArray[np.float32]
type Key = int | str
"""What names of one picture have in common, in lists of captions and in files of regions."""


@dataclass(frozen=True, slots=True)
class PictureNames:
    """How a corpus names its pictures: the key of a name, or None, and what a name without one is told."""

    key: Callable[[str], Key | None]
    keyless: str


class DetectionError(Exception):
    """What is wrong with the record of one picture."""


@dataclass(frozen=True, slots=True)
class Detections:
    """Regions by falling confidence: features (R, F), boxes (R, 4) in [0, 1] as (x1, y1, x2, y2)."""

    features: Array
    boxes: Array


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a file from `start` up to `stop`: bytes at which lines start, or rows."""

    path: Path
    kind: Literal["tsv", "store", "regions"]
    start: int
    stop: int
    names: Path | None = None
    """The JSON from names to rows, of a store that has cut its names."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record of a piece, not decoded yet: its place in the piece from 0, its picture, its contents."""

    place: int
    image: str
    line: bytes | None


def is_header(piece: Piece, record: Record) -> bool:
    """Whether a record is the first line of a file and names the columns."""
    return piece.kind == "tsv" and piece.start == record.place == 0 and record.image in HEADERS


def coco_number(image: str) -> int | None:
    """The number of an MS-COCO picture, from its path, its name or the bare number; None if it has none."""
    found = NUMBER.search(Path(image).stem)
    return int(found[1]) if found else None


def path_key(image: str) -> str | None:
    """A picture's path without its ending; None if it is empty."""
    return nfc(Path(image).with_suffix("").as_posix()) if Path(image).name else None


def stem_key(image: str) -> str | None:
    """A picture's name without folder and ending; None if it is empty."""
    return nfc(Path(image).stem) or None


COCO_NUMBERS = PictureNames(coco_number, "ends in no COCO number")
PATHS = PictureNames(path_key, "is no path of a picture")
STEMS = PictureNames(stem_key, "is no name of a picture")


def pieces_of(path: Path) -> list[Piece]:
    """The pieces of a file: HDF5 with image ids is of the kind "regions", other HDF5 a store, the rest a TSV.

    Raises:
        CorpusError: there is no such file, it is empty, a store lacks a data set, or its names are cut and
            no JSON beside it holds them.
    """
    if not is_file(path):
        raise CorpusError(f"{path}: there is no such file of region features.")
    try:
        return _pieces_of(path)
    except HDF5_ERRORS as error:
        what = " ".join(str(error).split())
        raise CorpusError(f"{path}: cannot be read ({what}). Fetch or make the file again.") from None


def _pieces_of(path: Path) -> list[Piece]:
    names: Path | None = None
    kind: Literal["tsv", "store", "regions"]
    sets: tuple[str, ...]
    if h5py.is_hdf5(path):
        with h5py.File(path) as store:
            sets, kind = (REGION_SETS, "regions") if "image_ids" in store else (STORED, "store")
            if missing := [name for name in sets if name not in store]:
                raise CorpusError(f"{path}: lacks the data sets {', '.join(missing)}; expected {sets}.")
            lengths = {name: len(store[name]) for name in sets}
            if kind == "store":
                names = _names_file(path, store["img_id"])
        if len(set(lengths.values())) > 1:
            raise CorpusError(f"{path}: its data sets differ in length: {lengths}. Make the file again.")
        total, step = lengths["features"], STORE_PIECE
    else:
        total, step, kind = path.stat().st_size, TSV_PIECE, "tsv"
    if total == 0:
        raise CorpusError(f"{path}: is empty. Fetch or make the file again.")
    return [Piece(path, kind, start, min(start + step, total), names) for start in range(0, total, step)]


def records_of(piece: Piece) -> Iterator[Record]:
    """The records of a piece, in order; one at a time is in memory."""
    if piece.kind != "tsv":
        if piece.names is not None:
            ids = _read_names(piece.names, piece.names.stat().st_mtime_ns)[piece.start : piece.stop]
        else:
            try:
                with h5py.File(piece.path) as store:
                    data = store["img_id" if piece.kind == "store" else "image_ids"]
                    ids = data.asstr(errors="replace")[piece.start : piece.stop]
            except HDF5_ERRORS as error:
                raise CorpusError(f"{piece.path}: its names of pictures cannot be read ({error}).") from None
        yield from (Record(place, str(image), None) for place, image in enumerate(ids))
        return
    with piece.path.open("rb") as file:
        if piece.start:
            # The line that the byte before belongs to is the previous piece's.
            file.seek(piece.start - 1)
            file.readline()
        place = 0
        while file.tell() < piece.stop and (line := file.readline()):
            image = line[: line.find(b"\t")] if b"\t" in line else line.strip()[:80]
            yield Record(place, image.decode("utf-8", errors="replace"), line)
            place += 1


def _names_file(path: Path, ids: h5py.Dataset) -> Path | None:
    """The JSON that holds the names of a store that has cut them; None if they are whole."""
    text = h5py.check_string_dtype(ids.dtype)
    if text is None:
        raise CorpusError(f"{path}: its img_id are {ids.dtype}, not text. Make the file again.")
    width = text.length
    stored = [bytes(name) for name in ids[:]] if width is not None else []
    full = [name.decode(errors="replace") for name in stored if len(name) == width]
    if all(Path(name).suffix.lower() in PICTURE_ENDINGS or coco_number(name) is not None for name in full):
        return None
    name = NAMES_FILE.format(path.stem)
    for names in (path.with_name(name), path.absolute().parent.parent / "metadata" / name):
        if names.is_file():
            whole = [name.encode()[:width] for name in _read_names(names, names.stat().st_mtime_ns)]
            if whole != stored:
                raise CorpusError(f"{names}: its names are not those of {path}. Make both again.")
            return names
    raise CorpusError(
        f"{path}: its names of pictures are cut to {width} bytes. Put {name}, from names to rows, beside it."
    )


@lru_cache(maxsize=8)
def _read_names(path: Path, written: int) -> tuple[str, ...]:  # noqa: ARG001 - so that none is kept too long
    """The names in a JSON from names to rows, `written` then, in the order of the rows."""
    try:
        rows = json.loads(read_text(path))
    except (ValueError, RecursionError, VgsplusError) as error:
        raise CorpusError(f"{path}: is no JSON ({error}). Fetch or make the file again.") from None
    numbers: list[Any] = list(rows.values()) if isinstance(rows, dict) else [None]
    if not all(type(row) is int for row in numbers) or sorted(numbers) != list(range(len(numbers))):
        raise CorpusError(f"{path}: expected an object from names to rows, each row from 0 on once.")
    return tuple(sorted(rows, key=rows.__getitem__))


def place_name(piece: Piece, place: int, before: int) -> str:
    """Where a record is: "file:line", or "file: row n"; `before` counts the lines of the pieces before."""
    if piece.kind != "tsv":
        return f"{piece.path}: row {piece.start + place}"
    return f"{piece.path}:{before + place + 1}"


def decode(piece: Piece, record: Record, store: h5py.File | None) -> Detections:
    """Decode and check a record; `store` is the open file of a piece of HDF5.

    Raises:
        DetectionError: what is wrong with it.
    """
    if store is not None:
        try:
            return _decode_row(piece, piece.start + record.place, store)
        except HDF5_ERRORS as error:
            raise DetectionError(f"cannot be read ({' '.join(str(error).split())})") from None
    assert record.line is not None
    columns = record.line.rstrip(b"\r\n").split(b"\t")
    if len(columns) not in (len(COLUMNS), len(SIX_COLUMNS)):
        ending = "" if record.line.endswith(b"\n") else "; the file breaks off here"
        raise DetectionError(f"has {len(columns)} of {len(COLUMNS)} columns{ending}")
    six = len(columns) == len(SIX_COLUMNS)
    fields = dict(zip(SIX_COLUMNS if six else COLUMNS, columns, strict=True))
    sizes = ("image_h", "image_w") if six else ("img_h", "img_w")
    height, width, boxes = (_whole(name, fields[name]) for name in (*sizes, "num_boxes"))
    if boxes <= 0:
        raise DetectionError(f"num_boxes is {boxes}")
    confidence: npt.NDArray[np.generic] = np.zeros(boxes, np.float32)
    if not six:
        for name in ("objects_id", "attrs_id"):
            _array(name, fields[name], np.dtype("<i8"), boxes)
        _array("attrs_conf", fields["attrs_conf"], np.dtype("<f4"), boxes)
        confidence = _array("objects_conf", fields["objects_conf"], np.dtype("<f4"), boxes)
    corners = _array("boxes", fields["boxes"], np.dtype("<f4"), boxes * 4).reshape(boxes, 4)
    features = _array("features", fields["features"], np.dtype("<f4"), None)
    if features.size == 0 or features.size % boxes:
        raise DetectionError(f"features holds {features.size} numbers, which {boxes} boxes cannot share")
    return _checked(height, width, confidence, corners, features.reshape(boxes, -1))


def _decode_row(piece: Piece, row: int, store: h5py.File) -> Detections:
    if piece.kind == "regions":
        found = Detections(*(np.asarray(store[name][row], np.float32) for name in ("features", "boxes")))
        if faults := region_faults(found.features, found.boxes):
            raise DetectionError(faults[0])
        return found
    height, width = int(store["img_h"][row]), int(store["img_w"][row])
    confidence, boxes, features = (
        np.asarray(store[name][row], np.float32) for name in ("objects_conf", "boxes", "features")
    )
    if (
        features.ndim != 2
        or not features.size
        or boxes.shape != (len(features), 4)
        or confidence.shape != (len(features),)
    ):
        raise DetectionError(
            f"has objects_conf {confidence.shape}, boxes {boxes.shape} and features {features.shape}; "
            "expected (R,), (R, 4) and (R, F)"
        )
    return _checked(height, width, confidence, boxes, features)


def _whole(name: str, text: bytes) -> int:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number.is_integer() or abs(number) > MOST_PIXELS:
        raise DetectionError(f"{name} is {text[:20].decode(errors='replace')!r}, no whole number")
    return int(number)


def _array(name: str, text: bytes, kind: np.dtype[np.generic], count: int | None) -> npt.NDArray[np.generic]:
    """An array in base64, of either alphabet, with or without padding, or as Python prints bytes: b'…'."""
    if text.startswith(b"b'") and text.endswith(b"'"):
        text = text[2:-1]
    text = text.translate(URL_SAFE).rstrip(b"=")
    try:
        data = binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except binascii.Error as error:
        raise DetectionError(f"{name} is not valid base64 ({error})") from None
    if len(data) % kind.itemsize or (count is not None and len(data) != count * kind.itemsize):
        expected = (
            f", not of {kind.name}"
            if count is None
            else f"; expected {count * kind.itemsize} ({count} of {kind.name})"
        )
        raise DetectionError(f"{name} holds {len(data)} bytes{expected}")
    return np.frombuffer(data, kind)


def _checked(
    height: int,
    width: int,
    confidence: npt.NDArray[np.generic],
    boxes: npt.NDArray[np.generic],
    features: npt.NDArray[np.generic],
) -> Detections:
    """Regions in pixels, as detections by falling confidence; equal ones stay in the file's order."""
    if height <= 0 or width <= 0:
        raise DetectionError(f"the picture is {width} x {height} pixels")
    values = {"objects_conf": confidence, "boxes": boxes, "features": features}
    for name, array in values.items():
        if not np.isfinite(array.astype(np.float32, copy=False)).all():
            raise DetectionError(f"{name} holds values that are not finite numbers")
    size = np.array([width, height, width, height], np.float32)
    corners = boxes.astype(np.float32)
    outside = (corners < -OVERSHOOT) | (corners > size + OVERSHOOT)
    if outside.any():
        box = corners[outside.any(axis=1).argmax()].tolist()
        fits = bool((corners <= size[[1, 0, 3, 2]] + OVERSHOOT).all())
        swapped = "; its height and width may have been swapped" if fits else ""
        raise DetectionError(f"the box {box} lies outside the picture of {width} x {height} pixels{swapped}")
    corners = np.clip(corners, 0, size) / size
    if not (corners[:, :2] <= corners[:, 2:]).all():
        raise DetectionError("a box ends before it starts; expected (x1, y1, x2, y2)")
    order = np.argsort(-confidence.astype(np.float32), kind="stable")
    # Division may leave [0, 1] by a rounding.
    return Detections(features.astype(np.float32, copy=False)[order], np.clip(corners[order], 0, 1))
