"""Read a corpus (see `format`). Only captions.jsonl and the shape of regions.h5 are validated."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vgsplus.audio_files import fetch_parts, parse_path
from vgsplus.corpora.captions import Captions, index_captions
from vgsplus.corpora.format import CAPTIONS_FILE, FORMAT, INFO_FILE, Caption
from vgsplus.errors import CorpusError
from vgsplus.files import as_on_disk, read_text
from vgsplus.regions.images import open_image, square_pixels
from vgsplus.regions.store import REGIONS_FILE, RegionStore
from vgsplus.remote import RemotePath, locate


@dataclass(eq=False, repr=False)
class Corpus:
    """A corpus on disk. Can be passed to forked and spawned workers, which open regions.h5 themselves."""

    root: Path
    info: dict[str, Any]
    image_ids: tuple[str, ...]
    _rows: dict[str, int]
    _captions: dict[str, Captions]
    _opened: RegionStore | None = None
    _opened_pid: int | None = None

    @classmethod
    def open(cls, root: str | Path) -> Self:
        """Open the corpus at `root`, a folder or, if it is packed, a URL.

        Raises:
            CorpusError: `root` is not a corpus, a file is missing, captions.jsonl is faulty (all lines are
                listed), there are no captions, or a corpus at a URL is not packed.
            DownloadError: a URL cannot be read.
        """
        root = locate(root)
        if isinstance(root, RemotePath):
            root.forget_versions()
        info = read_info(root)
        image_ids = read_image_ids(root) if info["regions"] is not None else ()
        rows = {image_id: row for row, image_id in enumerate(image_ids)}
        captions, faults = index_captions(root / CAPTIONS_FILE, tuple(info["counts"]), rows)
        if faults:
            raise CorpusError(faults)
        if not any(captions.values()):
            raise CorpusError(f"{root / CAPTIONS_FILE}: the corpus holds no captions. Prepare it again.")
        corpus = cls(root, info, image_ids, rows, captions)
        if isinstance(root, RemotePath):
            corpus._require_packed()
        return corpus

    def _require_packed(self) -> None:
        for captions in filter(None, self._captions.values()):
            if parse_path(str(self.audio_path(captions[0])))[1] is None:
                raise CorpusError(
                    f"{self.root}: is not packed; pack it before it is uploaded: vgsplus data pack"
                )

    @property
    def name(self) -> str:
        """Name of the corpus."""
        return str(self.info["name"])

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in the order of corpus.json."""
        return tuple(self._captions)

    @property
    def num_regions(self) -> int:
        """R, regions per image; 0 without images."""
        return int(self.info["regions"]["count"]) if self.info["regions"] else 0

    @property
    def feature_dim(self) -> int:
        """F, features per region; 0 without images."""
        return int(self.info["regions"]["dim"]) if self.info["regions"] else 0

    @cached_property
    def audio_root(self) -> Path:
        """Folder to which the audio paths of captions are relative."""
        return self.root / str(self.info["audio_root"])

    def captions(self, split: str) -> Captions:
        """Return the captions of a split, in the order of captions.jsonl.

        Raises:
            CorpusError: the split is unknown or empty.
        """
        splits = ", ".join(f"{name} ({len(captions)} captions)" for name, captions in self._captions.items())
        if split not in self._captions:
            raise CorpusError(f"{self.root}: there is no split {split!r}; there are {splits}.")
        if not self._captions[split]:
            raise CorpusError(f"{self.root}: the split {split!r} is empty; there are {splits}.")
        return self._captions[split]

    def audio_path(self, caption: Caption) -> Path:
        """Return the path of the sound of a caption."""
        return self.audio_root / caption.audio

    def fetch_sounds(self, captions: Iterable[Caption]) -> None:
        """Bring the sounds of captions into the cache, several at a time, if the corpus is at a URL."""
        if isinstance(self.root, RemotePath):
            fetch_parts(map(self.audio_path, captions))

    def image_path(self, image_id: str) -> Path:
        """Return the path of an image.

        Raises:
            CorpusError: the corpus has only the regions of the images (image_root is null).
        """
        if self.info["image_root"] is None:
            raise CorpusError(f"{self.root}: was prepared without its pictures, only with their regions.")
        return as_on_disk(locate(self.root / str(self.info["image_root"]) / image_id))

    def image_row(self, image_id: str) -> int:
        """Return the row of an image in regions.h5.

        Raises:
            CorpusError: the image is unknown.
        """
        try:
            return self._rows[image_id]
        except KeyError:
            raise CorpusError(f"{self.root / REGIONS_FILE}: holds no image {image_id!r}.") from None

    def regions(self, image_ids: Sequence[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return features (n, R, F) and boxes (n, R, 4) of n images, both float32.

        Raises:
            CorpusError: an image is unknown, or the corpus has no regions.
        """
        features, boxes = self.stored_regions(image_ids)
        return features.astype(np.float32, copy=False), boxes.astype(np.float32, copy=False)

    def stored_regions(
        self, image_ids: Sequence[str]
    ) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
        """Like `regions`, but features in the stored data type, float16 or float32."""
        rows = [self.image_row(image_id) for image_id in image_ids]
        # Forked processes would share the file position of an HDF5 handle, so each process opens its own.
        if self._opened is None or self._opened_pid != os.getpid():
            self._opened, self._opened_pid = open_regions(self.root), os.getpid()
        return self._opened.read(rows)

    def pixels(self, image_ids: Sequence[str], side: int) -> npt.NDArray[np.uint8]:
        """Decode n images and resize them to squares: (n, 3, `side`, `side`).

        Raises:
            CorpusError: an image is missing or broken, or the corpus has only regions.
        """
        return np.stack([square_pixels(open_image(self.image_path(image)), side) for image in image_ids])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None, "_opened_pid": None}

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {len(captions)}" for split, captions in self._captions.items())
        return f"Corpus({self.name!r}: {sizes})"


def read_info(root: Path) -> dict[str, Any]:
    """Read corpus.json and check the keys that are required for reading."""
    path = root / INFO_FILE
    if not root.is_dir():
        raise CorpusError(f"{root}: there is no such folder. Prepare a corpus there with: vgsplus data …")
    if not path.is_file():
        raise CorpusError(
            f"{root}: is not a corpus ({INFO_FILE} is missing). Prepare one with: vgsplus data …"
        )
    try:
        info = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path}: is not valid JSON ({error}).") from None
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise CorpusError(
            f"{path}: is not a corpus of format {FORMAT}. Prepare it again with: vgsplus data …"
        )
    keys = ("name", "version", "sample_rate", "counts", "audio_root", "image_root", "regions", "provenance")
    if missing := [key for key in keys if key not in info]:
        raise CorpusError(f"{path}: lacks {', '.join(missing)}. Prepare the corpus again.")
    counts, regions = info["counts"], info["regions"]
    valid = {
        "counts": isinstance(counts, dict) and all(isinstance(count, dict) for count in counts.values()),
        "regions": regions is None
        or (isinstance(regions, dict) and all(type(regions.get(key)) is int for key in ("count", "dim"))),
        "audio_root": isinstance(info["audio_root"], str),
        "image_root": info["image_root"] is None or isinstance(info["image_root"], str),
    }
    if invalid := [key for key, is_valid in valid.items() if not is_valid]:
        raise CorpusError(
            f"{path}: {invalid[0]} is {str(info[invalid[0]])[:40]!r}. Prepare the corpus again."
        )
    return info


def read_image_ids(root: Path) -> tuple[str, ...]:
    """Return the image ids of regions.h5 in the order of its rows."""
    with open_regions(root) as store:
        return store.image_ids


def open_regions(root: Path) -> RegionStore:
    """Open regions.h5 of the corpus at `root`."""
    return RegionStore(root / REGIONS_FILE, remedy="Prepare the corpus again.")
