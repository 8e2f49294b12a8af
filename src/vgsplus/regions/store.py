"""A file of region features that `vgsplus data regions` made, or another program in the same layout.

image_ids    (n,) utf-8: a picture's path relative to the folder of pictures
features     (n, R, F) float16 or float32
boxes        (n, R, 4) in [0, 1] as (x1, y1, x2, y2)
sha256       (n,) of the pictures' files, in hexadecimal; optional
attribute "provenance": JSON, which model made the features and how; optional
"""

import json
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from vgsplus.corpora.reader import REGION_SETS
from vgsplus.errors import CorpusError
from vgsplus.files import is_file
from vgsplus.regions.layout import HDF5_ERRORS

DIGESTS, PROVENANCE = "sha256", "provenance"

type Stored = npt.NDArray[np.floating]


class RegionStore:
    """A context manager that looks up pictures' regions; what is read is one picture at a time.

    A picture is known by what its file holds where the file of regions tells it, else by its id.

    Raises:
        CorpusError: the file is absent, is no HDF5, lacks a data set, or its data sets do not fit together.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not is_file(self.path):
            raise CorpusError(
                f"{self.path}: there is no such file of regions. Make it with: vgsplus data regions"
            )
        if not h5py.is_hdf5(self.path):
            raise CorpusError(
                f"{self.path}: is no HDF5 file, or was not written to its end. Make it again with: "
                "vgsplus data regions"
            )
        self.provenance = provenance_of(self.path)
        try:
            self._file = h5py.File(self.path)
        except OSError as error:
            raise self._broken(error) from None
        try:
            self._rows, self.by_content = self._read_keys()
        except HDF5_ERRORS as error:
            self._file.close()
            raise self._broken(error) from None
        except BaseException:
            self._file.close()
            raise

    def _broken(self, error: BaseException) -> CorpusError:
        what = " ".join(str(error).split())
        return CorpusError(f"{self.path}: cannot be read ({what}). Make it again with: vgsplus data regions")

    def _read_keys(self) -> tuple[dict[str, int], bool]:
        if missing := [name for name in REGION_SETS if name not in self._file]:
            raise CorpusError(f"{self.path}: lacks {', '.join(missing)}; expected {', '.join(REGION_SETS)}.")
        by_content = DIGESTS in self._file
        names = (*REGION_SETS, DIGESTS) if by_content else REGION_SETS
        shapes = {name: self._file[name].shape for name in names}
        features, boxes = shapes["features"], shapes["boxes"]
        lengths = {shape[0] for shape in shapes.values()}
        if len(features) != 3 or boxes != (*features[:2], 4) or len(lengths) > 1:
            raise CorpusError(
                f"{self.path}: expected features (n, R, F), boxes (n, R, 4) and n image_ids, got {shapes}."
            )
        keys = self._file[DIGESTS if by_content else "image_ids"].asstr()[:]
        if not by_content and (twice := [key for key, count in Counter(keys).items() if count > 1]):
            raise CorpusError(f"{self.path}: holds {twice[0]} more than once. Make it again.")
        return {key: row for row, key in enumerate(keys)}, by_content

    def regions(self, image_id: str, digest: str) -> tuple[Stored, Stored] | None:
        """Features (R, F), in the type they are stored in, and boxes (R, 4); None if it has none.

        `digest` is the SHA-256 of the picture's file, in hexadecimal.
        """
        row = self._rows.get(digest if self.by_content else image_id)
        if row is None:
            return None
        try:
            return self._file["features"][row], self._file["boxes"][row]
        except HDF5_ERRORS as error:
            raise self._broken(error) from None

    def absence(self) -> str:
        """What to say of a picture that `regions` does not know."""
        how = "a picture of these contents" if self.by_content else "a picture of this name"
        return f"{self.path} holds no regions of {how}. Make them with: vgsplus data regions"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def provenance_of(path: Path) -> dict[str, Any] | None:
    """Which model made the features of a file, and how; None where the file does not tell.

    Raises:
        CorpusError: it begins as HDF5 but cannot be read; what it tells is no JSON object.
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
        raise CorpusError(f"{path}: its attribute {PROVENANCE!r} is no JSON ({error}).") from None
    if not isinstance(found, dict):
        raise CorpusError(f"{path}: its attribute {PROVENANCE!r} is no JSON object.")
    return found
