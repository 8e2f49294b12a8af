"""Writing a corpus: beside its target under a temporary name, validated, then renamed; never half-written."""

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import h5py
import numpy as np
import numpy.typing as npt
from rich.markup import escape
from rich.table import Table

from vgsplus.audio import SAMPLE_RATE
from vgsplus.corpora.captions import CAPTION_FIELDS, Caption
from vgsplus.corpora.reader import CAPTIONS_FILE, FORMAT, INFO_FILE, REGIONS_FILE
from vgsplus.corpora.validation import caption_faults, region_faults, validate
from vgsplus.errors import CorpusError
from vgsplus.files import HeldError, hold
from vgsplus.parallel import Tick as Progress
from vgsplus.regions.writer import RegionsWriter

LOCK_FILE = ".lock"
SKIPPED_FILE = "skipped.jsonl"


@dataclass(frozen=True, slots=True)
class SplitCount:
    """How much a split holds; `seconds` of speech."""

    captions: int
    images: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What preparation kept, by split, what it skipped, by reason, and what it changed, by kind."""

    name: str
    root: Path
    kept: dict[str, SplitCount]
    skipped: dict[str, int]
    changed: dict[str, int] = field(default_factory=dict)

    def __rich__(self) -> Table:
        table = Table("split", "captions", "images", "hours", title=f"{self.name} in {self.root}")
        if self.skipped or self.changed:
            # Made before the rows: a column that is added later takes the cells of all rows, from the first.
            table.add_column("why", overflow="fold")
        for split, count in self.kept.items():
            table.add_row(split, str(count.captions), str(count.images), f"{count.seconds / 3600:.2f}")
        for label, numbers in (("skipped", self.skipped), ("changed", self.changed)):
            for reason, captions in numbers.items():
                table.add_row(label, str(captions), "", "", escape(reason))
        return table

    def __str__(self) -> str:
        kept = [
            f"{split}: {count.captions} captions of {count.images} images, {count.seconds / 3600:.2f} hours"
            for split, count in self.kept.items()
        ]
        skipped = [f"skipped {number}: {reason}" for reason, number in self.skipped.items()]
        changed = [f"changed {number}: {reason}" for reason, number in self.changed.items()]
        return "\n".join([f"{self.name} in {self.root}", *kept, *skipped, *changed])


class CorpusWriter:
    """A context manager that writes one corpus to `root`.

    Everything goes to `folder`, a hidden sibling of `root`; `finish` validates it and renames it to `root`.
    An exception inside the block removes it; what a killed writer left is removed by the next one. A second
    writer to the same root is refused while the first lives. `progress` follows the validation, which decodes
    all sound; with `check_contents` false, `finish` reads no sound, picture or feature again: for large
    sources that have checked each one.

    Raises:
        CorpusError: `root` exists and is not empty (unless `overwrite`, which replaces only a corpus),
            another process is writing it, an item added is faulty, or the finished corpus is.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        name: str,
        version: str,
        provenance: Any,  # noqa: ANN401 - any JSON value
        licence: str,
        image_root: str | Path | None = "images",
        audio_root: str | Path = "audio",
        overwrite: bool = False,
        progress: Progress | None = None,
        check_contents: bool = True,
    ) -> None:
        self.root = Path(root).resolve()
        self.folder = self.root.with_name(f".{self.root.name}.preparing")
        self._overwrite = overwrite
        self._progress = progress
        self._check_contents = check_contents
        self._info: dict[str, Any] = {
            "format": FORMAT,
            "name": name,
            "version": version,
            "sample_rate": SAMPLE_RATE,
            "provenance": provenance,
            "licence": licence,
            "audio_root": str(audio_root),
            "image_root": None if image_root is None else str(image_root),
        }
        self._notes: dict[str, Any] = {}
        self._skipped: list[tuple[str, str]] = []
        self._changed: Counter[str] = Counter()
        self._ids: set[str] = set()
        self._image_ids: dict[str, None] = {}
        self._counts: dict[str, Counter[str]] = {}
        self._split_images: dict[str, set[str]] = {}
        self._lock: IO[str] | None = None
        self._captions: IO[str] | None = None
        self._regions: RegionsWriter | None = None
        self._shape: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        self._refuse_target()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.folder, self.root)
        self._clear()
        self._captions = (self.folder / CAPTIONS_FILE).open("w", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is None:
            return
        if kind is None:
            self.finish()
        else:
            self._abandon()
            self._explain(error)

    def add_caption(self, caption: Caption) -> None:
        """Append a spoken caption; its sound file may be written before or after, until `finish`.

        Raises:
            CorpusError: a field is faulty or the id was added before.
        """
        assert self._captions is not None, "CorpusWriter is used in a with block"
        faults = caption_faults(caption)
        if caption.id in self._ids:
            faults.append(f"caption {caption.id}: is added twice")
        if caption.audio.startswith(f"{self.root}{os.sep}"):
            faults.append(f"caption {caption.id}: its sound lies in the folder that is to be replaced")
        if faults:
            raise CorpusError(faults)
        self._ids.add(caption.id)
        self._counts.setdefault(caption.split, Counter()).update(captions=1, samples=caption.num_samples)
        images = self._split_images.setdefault(caption.split, set())
        if caption.image is not None:
            images.add(caption.image)
        record = {name: getattr(caption, name) for name in CAPTION_FIELDS}
        self._captions.write(json.dumps(record, ensure_ascii=False) + "\n")

    def add_regions(
        self, image_id: str, features: npt.NDArray[np.floating], boxes: npt.NDArray[np.floating]
    ) -> None:
        """Append the regions of an image: features (R, F), stored as float16 or float32, and boxes (R, 4).

        The first image decides R, F and the type.

        Raises:
            CorpusError: a shape differs, a value is not finite, a box leaves [0, 1], an image comes twice.
        """
        faults = [f"image {image_id}: {fault}" for fault in region_faults(features, boxes)]
        if image_id in self._image_ids:
            faults.append(f"image {image_id}: is added twice")
        path = Path(image_id)
        if not image_id or path.is_absolute() or ".." in path.parts:
            faults.append(f"image {image_id!r}: an image id is the picture's path relative to image_root")
        if self._shape is not None and features.shape != self._shape:
            faults.append(
                f"image {image_id}: features of shape {features.shape}, those before had {self._shape}"
            )
        if faults:
            raise CorpusError(faults)
        if self._regions is None:
            self._regions = RegionsWriter(self.folder / REGIONS_FILE, features)
            self._shape = self._regions.shape
        self._image_ids[image_id] = None
        self._regions.append(features, boxes)

    def adopt_regions(self, path: Path, image_ids: Sequence[str]) -> None:
        """Move a finished regions.h5, whose rows are the images `image_ids`, into the corpus.

        The corpus gets no others. The file is on the same file system; its maker has checked what is in it.
        """
        assert self._regions is None, "regions come from one place: add_regions or adopt_regions"
        path.replace(self.folder / REGIONS_FILE)
        with h5py.File(self.folder / REGIONS_FILE) as file:
            self._shape = file["features"].shape[1:]
        self._image_ids = dict.fromkeys(image_ids)

    def skip(self, reason: str, what: str) -> None:
        """Record that preparation left out `what` because of `reason` (a short phrase that repeats)."""
        self._skipped.append((reason, what))

    def count_change(self, kind: str) -> None:
        """Count a sound that is stored otherwise than it was recorded; `kind` is a short phrase."""
        self._changed[kind] += 1

    def note(self, key: str, value: Any) -> None:  # noqa: ANN401 - any JSON value
        """Put a further key into corpus.json."""
        if key in self._info or key in {"counts", "regions", "skipped", "changed"}:
            raise ValueError(f"corpus.json: the key {key!r} is the format's own")
        self._notes[key] = value

    def finish(self) -> Summary:
        """Complete, validate and rename the corpus; on a fault remove it and raise CorpusError."""
        if self._lock is None:
            raise ValueError("CorpusWriter.finish: nothing is being written")
        try:
            summary = self._complete()
            self._check()
            self._publish()
        except BaseException as error:
            self._abandon()
            self._explain(error)
            raise
        return summary

    def _explain(self, error: BaseException | None) -> None:
        """Raise what a write that failed means; such an error names no file, or one of the corpus."""
        if not isinstance(error, OSError):
            return
        # Of a copy, the second is the one that is written.
        where = error.filename2 or error.filename or self.folder
        if Path(where).is_relative_to(self.folder):
            raise CorpusError(
                f"{self.root}: cannot be written ({error.strerror or error}), so it is not there. "
                "Make room, or choose another folder."
            ) from error

    def _check(self) -> None:
        if faults := validate(self.folder, self._progress, contents=self._check_contents):
            raise CorpusError([fault.replace(str(self.folder), str(self.root)) for fault in faults])

    def _complete(self) -> Summary:
        if self._regions is not None:
            self._regions.complete(list(self._image_ids))
        self._close()
        kept = {
            split: SplitCount(
                count["captions"], len(self._split_images[split]), round(count["samples"] / SAMPLE_RATE, 3)
            )
            for split, count in self._counts.items()
        }
        skipped = dict(sorted(Counter(reason for reason, _ in self._skipped).items()))
        counts = {split: asdict(count) for split, count in kept.items()}
        regions = None if self._shape is None else {"count": self._shape[0], "dim": self._shape[1]}
        changed = dict(sorted(self._changed.items()))
        info = self._info | {"counts": counts, "regions": regions, "skipped": skipped, "changed": changed}
        info |= self._notes
        text = json.dumps(info, indent=2, ensure_ascii=False) + "\n"
        (self.folder / INFO_FILE).write_text(text, encoding="utf-8")
        if self._skipped:
            with (self.folder / SKIPPED_FILE).open("w", encoding="utf-8") as file:
                for reason, what in self._skipped:
                    file.write(json.dumps({"reason": reason, "what": what}, ensure_ascii=False) + "\n")
        return Summary(self._info["name"], self.root, kept, skipped, changed)

    def _publish(self) -> None:
        assert self._lock is not None
        self._refuse_target()
        old = self.root.with_name(f".{self.root.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        if self.root.exists():
            self.root.rename(old)
        self.folder.rename(self.root)
        (self.root / LOCK_FILE).unlink()
        shutil.rmtree(old, ignore_errors=True)
        self._release()

    def _refuse_target(self) -> None:
        if not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir())):
            return
        if not (self.root / INFO_FILE).is_file():
            raise CorpusError(f"{self.root}: exists and is not a corpus, so it stays. Choose another folder.")
        if not self._overwrite:
            raise CorpusError(
                f"{self.root}: is a corpus already. Choose another folder or ask to overwrite it."
            )
        for used in (self._info["audio_root"], self._info["image_root"]):
            if used and Path(used).is_absolute() and Path(used).resolve().is_relative_to(self.root):
                raise CorpusError(
                    f"{self.root}: is not overwritten, because the new corpus uses {used}. Choose another "
                    "folder."
                )

    def _abandon(self) -> None:
        with contextlib.suppress(Exception):
            self._close()
        # The lock goes last: whoever comes next must not find files that are still being removed.
        with contextlib.suppress(OSError):
            self._clear()
            (self.folder / LOCK_FILE).unlink()
            self.folder.rmdir()
        self._release()

    def _clear(self) -> None:
        for leftover in self.folder.iterdir():
            if leftover.name != LOCK_FILE:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def _close(self) -> None:
        for file in (self._captions, self._regions):
            if file is not None:
                file.close()
        self._captions = self._regions = None

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
        self._lock = None


def _lock(folder: Path, root: Path) -> IO[str]:
    try:
        return hold(folder / LOCK_FILE)
    except HeldError as holder:
        raise CorpusError(
            f"{root}: {holder} is preparing this corpus. Wait for it or choose another folder."
        ) from None
