"""Describing a folder of pictures by a model, into one file of regions (see `corpora.region_store`).

The file is laid out at once, hidden beside its target; a journal says how many rows are on disk. Started
again on the same pictures with the same model, the work goes on; at the end the file is renamed.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from itertools import batched
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.files import HeldError, hold
from vgsplus.images import open_image
from vgsplus.parallel import in_parallel, stream_in_parallel
from vgsplus.regions.describer import Describer
from vgsplus.regions.store import Dtype, RegionStore, create_store

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
JOURNAL, LOCK, PLAN, WRITING = "journal", "lock", "plan.json", "regions.h5"

type Stages = Callable[[str, int, int], None]
"""Called with (stage, done, total) as the work goes on."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that can be decoded: its id, the path in its folder, and the SHA-256 of its file."""

    id: str
    digest: str


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: `regions` of `dim` features for each of the pictures; why others were left out."""

    path: Path
    pictures: int
    regions: int
    dim: int
    skipped: tuple[str, ...]

    def __str__(self) -> str:
        shape = f"{self.pictures} pictures, {self.regions} regions of {self.dim} features each"
        left = f"; {len(self.skipped)} left out" if self.skipped else ""
        return "\n".join([f"{self.path}: {shape}{left}", *(f"left out: {fault}" for fault in self.skipped)])


def describe_folder(
    folder: Path,
    out: Path,
    describer: Describer,
    *,
    dtype: Dtype = "float16",
    batch_size: int = 16,
    skip_faulty: bool = False,
    overwrite: bool = False,
    progress: Stages | None = None,
) -> Written:
    """Describe every picture in `folder` and the folders in it; the file of their regions becomes `out`.

    With `skip_faulty`, pictures that cannot be decoded are left out.

    Raises:
        VgsplusError: `out` is taken, or another process is writing it; the device lacks memory.
        CorpusError: there are no pictures, or every one that cannot be decoded; features do not fit `dtype`.
    """
    if out.exists() and not overwrite:
        raise VgsplusError(f"{out}: is there already. Choose another file, or ask to overwrite it.")
    pictures, faults = _survey(folder, progress)
    if faults and not skip_faulty:
        raise CorpusError(faults)
    if not pictures:
        raise CorpusError(f"{folder}: none of its {len(faults)} pictures can be decoded.")
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.absolute().with_name(f".{out.name}.writing")
    with _alone(staging, out):
        _open_plan(staging, pictures, describer, dtype)
        with (
            RegionStore(staging / WRITING, writable=True) as store,
            (staging / JOURNAL).open("r+b") as journal,
        ):
            _, regions, dim = store.shape
            whole = journal.read().rpartition(b"\n")[0]
            done = sum(map(int, whole.split()))
            # A line that a kill cut short is written over.
            journal.seek(len(whole) + 1 if whole else 0)
            journal.truncate()
            for rows in _describe(folder, pictures, done, describer, store, batch_size):
                done += rows
                journal.write(f"{rows}\n".encode())
                journal.flush()
                if progress is not None:
                    progress("regions", done, len(pictures))
        (staging / WRITING).replace(out)
        shutil.rmtree(staging)
    return Written(out, len(pictures), regions, dim, tuple(faults))


def _survey(folder: Path, progress: Stages | None) -> tuple[list[Picture], list[str]]:
    """The pictures in a folder, sorted by id, that can be decoded, and the faults of the others."""
    if not folder.is_dir():
        raise CorpusError(f"{folder}: there is no such folder of pictures.")
    ids = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if not ids:
        raise CorpusError(f"{folder}: holds no pictures ({', '.join(sorted(SUFFIXES))}).")

    def examine(image_id: str) -> Picture | str:
        path = folder / image_id
        try:
            open_image(path)
        except CorpusError as error:
            return str(error)
        return Picture(image_id, hashlib.sha256(path.read_bytes()).hexdigest())

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress("decoding", done, total)

    outcomes = in_parallel(examine, ids, tell)
    pictures = [outcome for outcome in outcomes if isinstance(outcome, Picture)]
    return pictures, [outcome for outcome in outcomes if isinstance(outcome, str)]


@contextmanager
def _alone(staging: Path, out: Path) -> Iterator[None]:
    """Make the folder `staging` and hold it."""
    staging.mkdir(exist_ok=True)
    try:
        lock = hold(staging / LOCK)
    except HeldError as holder:
        raise VgsplusError(f"{out}: {holder} is writing it. Wait for that to end.") from None
    with lock:
        yield


def _open_plan(staging: Path, pictures: Sequence[Picture], describer: Describer, dtype: Dtype) -> None:
    """Keep the file in `staging` that a call about the same left, or create it anew."""
    provenance = describer.provenance | {"torch": torch.__version__}
    about = json.dumps([dtype, provenance, [astuple(picture) for picture in pictures]], sort_keys=True)
    digest = hashlib.sha256(about.encode()).hexdigest()
    plan = staging / PLAN
    if plan.is_file():
        left: dict[str, Any] = json.loads(plan.read_text(encoding="utf-8"))
        if left.pop("about") == digest:
            return
    features, _ = describer.describe([describer.prepare(Image.new("RGB", (64, 64)))])
    for leftover in staging.iterdir():
        if leftover.name != LOCK:
            leftover.unlink()
    create_store(
        staging / WRITING,
        [picture.id for picture in pictures],
        (features.shape[1], features.shape[2]),
        dtype,
        sha256=[picture.digest for picture in pictures],
        provenance=provenance,
    )
    (staging / JOURNAL).touch()
    half = plan.with_suffix(".half")
    half.write_text(json.dumps({"about": digest}), encoding="utf-8")
    half.replace(plan)


def _describe(
    folder: Path,
    pictures: Sequence[Picture],
    done: int,
    describer: Describer,
    store: RegionStore,
    batch_size: int,
) -> Iterator[int]:
    """Describe the pictures from `done` on, and see their rows to disk; how many, batch by batch."""

    def prepare(picture: Picture) -> Tensor:
        return describer.prepare(open_image(folder / picture.id))

    # Twice a batch, so that the next one is decoded while the device is busy.
    prepared = stream_in_parallel(prepare, pictures[done:], at_once=2 * batch_size)
    for batch in batched(prepared, batch_size):
        features, boxes = _run(describer, batch)
        for index in range(len(batch)):
            row = done + index
            try:
                store.write(row, features[index].numpy(), boxes[index].numpy())
            except ValueError as error:
                raise CorpusError(f"{folder / pictures[row].id}: {error}.") from None
        store.sync()
        done += len(batch)
        yield len(batch)


def _run(describer: Describer, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    try:
        # cuDNN may otherwise take another kernel, or fewer digits, from one call to the next.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            return describer.describe(batch)
    except torch.OutOfMemoryError:
        raise VgsplusError(
            f"the device has no memory for {len(batch)} pictures at once. Ask for fewer: --batch-size"
        ) from None
