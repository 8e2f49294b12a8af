"""Write a corpus to a temporary folder, validate it, and rename the folder."""

import json
import os
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt
from rich.markup import escape
from rich.table import Table

from vgsplus.audio import SAMPLE_RATE
from vgsplus.corpora.format import CAPTIONS_FILE, FORMAT, INFO_FILE, SKIPPED_FILE, Caption
from vgsplus.corpora.reader import open_regions
from vgsplus.corpora.validation import caption_faults, validate
from vgsplus.errors import CorpusError
from vgsplus.files import atomic_folder, lock_file
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.store import REGIONS_FILE, RegionAppender, region_faults

RESERVED_KEYS = frozenset(
    {"format", "name", "version", "sample_rate", "counts", "audio_root", "image_root", "regions"}
    | {"provenance", "licence", "skipped", "changed"}
)
"""Keys of corpus.json in every corpus, which `set_info` cannot set."""


@dataclass(frozen=True, slots=True)
class SplitCount:
    """Size of a split: number of captions, number of images, seconds of speech."""

    captions: int
    images: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Sizes of the splits of a corpus, number of skipped captions by reason, of changed sounds by change."""

    name: str
    root: Path
    kept: dict[str, SplitCount]
    skipped: dict[str, int]
    changed: dict[str, int] = field(default_factory=dict)

    def __rich__(self) -> Table:
        table = Table("split", "captions", "images", "hours", title=f"{self.name} in {self.root}")
        if self.skipped or self.changed:
            # Added before the rows: a later column would take the cells of all rows.
            table.add_column("why", overflow="fold")
        for split, count in self.kept.items():
            table.add_row(split, str(count.captions), str(count.images), f"{count.seconds / 3600:.2f}")
        for label, numbers in (("skipped", self.skipped), ("changed", self.changed)):
            for reason, captions in numbers.items():
                table.add_row(label, str(captions), "", "", escape(reason))
        return table


class CorpusWriter:
    """Context manager that writes a corpus to `root`.

    All files are written to `folder`, a hidden sibling of `root`. `finish`, which is called at the end of the
    block unless it was called before, validates the corpus and renames the folder. After an exception the
    folder is removed; after a kill the next writer removes it. Only one process can write to `root`.

    The folders of images (None: no images) and sounds are absolute or relative to the corpus folder. With
    `overwrite`, an existing corpus is replaced, but never another folder. The stage of `progress` is
    "checking", counted in sounds. With `check_contents`, `finish` validates also the contents of sounds,
    images and features.

    Raises:
        CorpusError: `root` exists and is not an empty folder or a corpus to replace; another process is
            writing to it; an added caption or region, or the finished corpus is faulty.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        name: str,
        version: str = "1",
        provenance: Any,  # noqa: ANN401 - any JSON value
        licence: str,
        image_root: str | Path | None = "images",
        audio_root: str | Path = "audio",
        overwrite: bool = False,
        progress: Progress = SILENT,
        check_contents: bool = True,
    ) -> None:
        self.root = Path(root).resolve()
        self.folder = self.root
        self.skipped: list[tuple[str, str]] = []
        """(reason, label) of each skipped caption."""
        self.changed: Counter[str] = Counter()
        """Number of sounds that were changed, by a phrase that describes the change."""
        self._overwrite = overwrite
        self.progress = progress
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
        self._ids: set[str] = set()
        self._image_ids: dict[str, None] = {}
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)
        self._split_images: dict[str, set[str]] = defaultdict(set)
        self._open: ExitStack | None = None
        self._captions: IO[str] | None = None
        self._regions: RegionAppender | None = None
        self._shape: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        self._check_target()
        if not self.root.parent.exists():
            self.root.parent.mkdir(parents=True)
        with ExitStack() as opened:
            try:
                opened.enter_context(lock_file(self.root.with_name(f".{self.root.name}.lock")))
            except BlockingIOError as error:
                raise CorpusError(
                    f"{self.root}: {error.strerror} is preparing this corpus. Wait for it or choose another "
                    "folder."
                ) from None
            self.folder = opened.enter_context(atomic_folder(self.root, replace=self._overwrite))
            self._captions = opened.enter_context((self.folder / CAPTIONS_FILE).open("w", encoding="utf-8"))
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is None:
            return
        if kind is None:
            self.finish()
        else:
            opened, self._open = self._open, None
            _name_file(error, self.root)
            opened.__exit__(kind, error, trace)

    def add_caption(self, caption: Caption) -> None:
        """Append a spoken caption. Its sound must exist when `finish` is called.

        Raises:
            CorpusError: a field is faulty, or the id repeats.
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
        self._counts[caption.split].update(captions=1, samples=caption.num_samples)
        if caption.image is not None:
            self._split_images[caption.split].add(caption.image)
        self._captions.write(json.dumps(asdict(caption), ensure_ascii=False) + "\n")

    def add_regions(
        self, image_id: str, features: npt.NDArray[np.floating], boxes: npt.NDArray[np.floating]
    ) -> None:
        """Append the regions of an image: features (R, F), stored as float16 or float32, and boxes (R, 4).

        The first image determines R, F and the data type.

        Raises:
            CorpusError: a shape differs, a value is not finite, a box exceeds [0, 1], or the image repeats.
        """
        assert self._open is not None, "CorpusWriter is used in a with block"
        faults = [f"image {image_id}: {fault}" for fault in region_faults(features, boxes)]
        if image_id in self._image_ids:
            faults.append(f"image {image_id}: is added twice")
        path = Path(image_id)
        if not image_id or path.is_absolute() or ".." in path.parts:
            faults.append(f"image {image_id!r}: an image id must be a path relative to image_root")
        if self._shape is not None and features.shape != self._shape:
            faults.append(
                f"image {image_id}: features of shape {features.shape}, of earlier images {self._shape}"
            )
        if faults:
            raise CorpusError(faults)
        if self._regions is None:
            self._regions = RegionAppender(self.folder / REGIONS_FILE, features)
            self._open.callback(self._regions.close)
            self._shape = self._regions.shape
        self._image_ids[image_id] = None
        self._regions.append(features, boxes)

    def move_regions(self, path: Path) -> None:
        """Move a complete and valid regions.h5 into the corpus, instead of calling `add_regions`.

        The file must be on the same file system.
        """
        assert self._regions is None, "either add_regions or move_regions"
        path.replace(self.folder / REGIONS_FILE)
        with open_regions(self.folder) as store:
            self._shape, self._image_ids = store.shape[1:], dict.fromkeys(store.image_ids)

    def skip(self, reason: str, what: str) -> None:
        """Record that the caption `what` was skipped for `reason`, a phrase to count captions by."""
        self.skipped.append((reason, what))

    def set_info(self, key: str, value: Any) -> None:  # noqa: ANN401 - any JSON value
        """Set a further key of corpus.json."""
        if key in RESERVED_KEYS:
            raise ValueError(f"corpus.json: the key {key!r} is reserved")
        self._notes[key] = value

    def finish(self) -> Summary:
        """Complete, validate and rename the corpus. It is removed if it is faulty.

        Raises:
            CorpusError: all faults of the corpus.
            OSError: it cannot be written.
        """
        if self._open is None:
            raise ValueError("CorpusWriter.finish: nothing is being written")
        opened, self._open = self._open, None
        try:
            with opened:
                summary = self._complete()
                if faults := validate(self.folder, self.progress, contents=self._check_contents):
                    raise CorpusError([fault.replace(str(self.folder), str(self.root)) for fault in faults])
                self._check_target()
        except OSError as error:
            _name_file(error, self.root)
            raise
        return summary

    def _complete(self) -> Summary:
        """Write regions.h5, corpus.json and skipped.jsonl; close captions.jsonl."""
        assert self._captions is not None
        self._captions.close()
        if self._regions is not None:
            self._regions.complete(list(self._image_ids))
        kept = {
            split: SplitCount(
                count["captions"], len(self._split_images[split]), round(count["samples"] / SAMPLE_RATE, 3)
            )
            for split, count in self._counts.items()
        }
        skipped = dict(sorted(Counter(reason for reason, _ in self.skipped).items()))
        counts = {split: asdict(count) for split, count in kept.items()}
        regions = None if self._shape is None else {"count": self._shape[0], "dim": self._shape[1]}
        changed = dict(sorted(self.changed.items()))
        info = self._info | {"counts": counts, "regions": regions, "skipped": skipped, "changed": changed}
        info |= self._notes
        text = json.dumps(info, indent=2, ensure_ascii=False) + "\n"
        (self.folder / INFO_FILE).write_text(text, encoding="utf-8")
        if self.skipped:
            with (self.folder / SKIPPED_FILE).open("w", encoding="utf-8") as file:
                for reason, what in self.skipped:
                    file.write(json.dumps({"reason": reason, "what": what}, ensure_ascii=False) + "\n")
        return Summary(self._info["name"], self.root, kept, skipped, changed)

    def _check_target(self) -> None:
        """Raise unless `root` does not exist, is an empty folder, or is a corpus to replace."""
        if not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir())):
            return
        if not (self.root / INFO_FILE).is_file():
            raise CorpusError(
                f"{self.root}: exists and is not a corpus, so it is not replaced. Choose another folder."
            )
        if not self._overwrite:
            raise CorpusError(f"{self.root}: is a corpus already. Choose another folder, or add --overwrite.")
        for used in (self._info["audio_root"], self._info["image_root"]):
            if used and Path(used).is_absolute() and Path(used).resolve().is_relative_to(self.root):
                raise CorpusError(
                    f"{self.root}: is not overwritten, because the new corpus uses {used}. Choose another "
                    "folder."
                )


def _name_file(error: BaseException | None, root: Path) -> None:
    """Set the file name of an OSError without one to the corpus folder."""
    if isinstance(error, OSError) and error.filename is None:
        error.filename = str(root)
