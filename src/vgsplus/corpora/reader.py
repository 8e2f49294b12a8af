"""Reading a corpus: trusts the format (see `format`), opens fast, fails with the file and the line."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from vgsplus.errors import VgsplusError

FORMAT = 1
INFO_FILE, CAPTIONS_FILE, REGIONS_FILE = "corpus.json", "captions.jsonl", "regions.h5"
REGION_SETS = ("image_ids", "features", "boxes")
SHOWN_FAULTS = 20


class CorpusError(VgsplusError):
    """What is wrong with a corpus; `faults` holds every fault, the message the first 20."""

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        more = len(self.faults) - SHOWN_FAULTS
        super().__init__(
            "\n".join([*self.faults[:SHOWN_FAULTS], *([f"… and {more} more faults"] if more > 0 else [])])
        )

    def __reduce__(self) -> tuple[type[Self], tuple[list[str]]]:
        return type(self), (self.faults,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """One spoken caption: `num_samples` at 16 kHz; `audio` relative to audio_root or absolute."""

    id: str
    split: str
    audio: str
    num_samples: int
    speaker: str
    language: str
    image: str | None
    text: str | None


class Corpus:
    """A corpus on disk. Opens regions.h5 lazily, once a process: it may go to forked or spawned workers."""

    def __init__(
        self,
        root: Path,
        info: dict[str, Any],
        captions: Sequence[Caption],
        image_ids: tuple[str, ...],
    ) -> None:
        self.root = root
        self.info = info
        self.image_ids = image_ids
        self._rows = {image_id: row for row, image_id in enumerate(image_ids)}
        self._captions: dict[str, list[Caption]] = {split: [] for split in info["counts"]}
        for caption in captions:
            self._captions.setdefault(caption.split, []).append(caption)
        self._file: h5py.File | None = None
        self._file_pid: int | None = None

    @classmethod
    def open(cls, root: str | Path) -> Self:
        """Open the corpus at `root`.

        Raises:
            CorpusError: no such folder or file, not a corpus, a bad line (file:line), a caption of an
                unknown image, no captions at all.
        """
        root = Path(root)
        info = read_info(root)
        image_ids = read_image_ids(root) if info["regions"] is not None else ()
        captions, faults = read_captions(root / CAPTIONS_FILE)
        known = {None, *image_ids}
        faults += [
            f"{root / CAPTIONS_FILE}: caption {caption.id} names the unknown image {caption.image}"
            for caption in captions
            if caption.image not in known
        ]
        if faults:
            raise CorpusError(faults)
        if not captions:
            raise CorpusError(f"{root / CAPTIONS_FILE}: the corpus holds no captions. Prepare it again.")
        return cls(root, info, captions, image_ids)

    @property
    def name(self) -> str:
        """The corpus's name."""
        return str(self.info["name"])

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, in the order of corpus.json."""
        return tuple(self._captions)

    @property
    def num_regions(self) -> int:
        """R, regions an image; 0 for a speech-only corpus."""
        return int(self.info["regions"]["count"]) if self.info["regions"] else 0

    @property
    def feature_dim(self) -> int:
        """F, features a region; 0 for a speech-only corpus."""
        return int(self.info["regions"]["dim"]) if self.info["regions"] else 0

    @property
    def audio_root(self) -> Path:
        """The folder that captions' audio paths are relative to."""
        return self.root / str(self.info["audio_root"])

    def captions(self, split: str) -> Sequence[Caption]:
        """The captions of a split, in the order of captions.jsonl.

        Raises:
            CorpusError: the split is unknown or empty.
        """
        there = ", ".join(f"{name} ({len(captions)} captions)" for name, captions in self._captions.items())
        if split not in self._captions:
            raise CorpusError(f"{self.root}: there is no split {split!r}; there are {there}.")
        if not self._captions[split]:
            raise CorpusError(f"{self.root}: the split {split!r} is empty; there are {there}.")
        return self._captions[split]

    def audio_path(self, caption: Caption) -> Path:
        """Where the caption's sound file is."""
        return self.audio_root / caption.audio

    def image_path(self, image_id: str) -> Path:
        """Where the picture of an image is.

        Raises:
            CorpusError: the corpus was prepared without its pictures (image_root is null).
        """
        if self.info["image_root"] is None:
            raise CorpusError(f"{self.root}: was prepared without its pictures, only with their regions.")
        return self.root / str(self.info["image_root"]) / image_id

    def image_row(self, image_id: str) -> int:
        """The row of an image in regions.h5.

        Raises:
            CorpusError: the image is unknown.
        """
        try:
            return self._rows[image_id]
        except KeyError:
            raise CorpusError(f"{self.root / REGIONS_FILE}: holds no image {image_id!r}.") from None

    def regions(self, image_ids: Sequence[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Features (n, R, F) and boxes (n, R, 4) of n images, both float32; reads each distinct row once.

        Raises:
            CorpusError: an image is unknown, or the corpus has no regions.
        """
        rows = np.array([self.image_row(image_id) for image_id in image_ids], dtype=np.int64)
        distinct, inverse = np.unique(rows, return_inverse=True)
        file = self._regions_file()
        features = np.empty((len(distinct), self.num_regions, self.feature_dim), np.float32)
        boxes = np.empty((len(distinct), self.num_regions, 4), np.float32)
        for index, row in enumerate(distinct):
            features[index] = file["features"][row]
            boxes[index] = file["boxes"][row]
        return features[inverse], boxes[inverse]

    def _regions_file(self) -> h5py.File:
        # An HDF5 handle inherited through fork shares its file position: each process opens its own.
        if self._file is None or self._file_pid != os.getpid():
            self._file = open_regions(self.root)
            self._file_pid = os.getpid()
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_file_pid": None}

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {len(captions)}" for split, captions in self._captions.items())
        return f"Corpus({self.name!r}: {sizes})"


def read_info(root: Path) -> dict[str, Any]:
    """The contents of corpus.json, checked for what reading relies on."""
    path = root / INFO_FILE
    if not root.is_dir():
        raise CorpusError(f"{root}: there is no such folder. Prepare a corpus there with: vgsplus data …")
    if not path.is_file():
        raise CorpusError(
            f"{root}: is not a corpus ({INFO_FILE} is missing). Prepare one with: vgsplus data …"
        )
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorpusError(f"{path}: is not valid JSON ({error}).") from None
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise CorpusError(
            f"{path}: is not a corpus of format {FORMAT}. Prepare it again with: vgsplus data …"
        )
    keys = ("name", "version", "sample_rate", "counts", "audio_root", "image_root", "regions", "provenance")
    if missing := [key for key in keys if key not in info]:
        raise CorpusError(f"{path}: lacks {', '.join(missing)}. Prepare the corpus again.")
    return info


def read_image_ids(root: Path) -> tuple[str, ...]:
    """The image ids of regions.h5, in the order of its rows."""
    with open_regions(root) as file:
        return tuple(file["image_ids"].asstr()[:])


def open_regions(root: Path) -> h5py.File:
    """Open regions.h5 for reading and make sure that its three data sets are there."""
    path = root / REGIONS_FILE
    if not path.is_file():
        raise CorpusError(f"{path}: is missing, though {INFO_FILE} names regions. Prepare the corpus again.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read as HDF5 ({error}). Prepare the corpus again.") from None
    if missing := set(REGION_SETS) - set(file):
        file.close()
        raise CorpusError(f"{path}: lacks {', '.join(sorted(missing))}. Prepare the corpus again.")
    return file


def read_captions(path: Path) -> tuple[list[Caption], list[str]]:
    """The captions of captions.jsonl that parse, and a fault "file:line: …" for each line that does not."""
    if not path.is_file():
        raise CorpusError(f"{path}: is missing. Prepare the corpus again.")
    faults: list[str] = []
    return list(_parse(path, faults)), faults


def _parse(path: Path, faults: list[str]) -> Iterator[Caption]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield Caption(**json.loads(line))
            except ValueError as error:
                faults.append(f"{path}:{number}: is not valid JSON ({error})")
            except TypeError as error:
                what = str(error).removeprefix("Caption.__init__() ")
                faults.append(f"{path}:{number}: is no caption ({what})")
