"""Extract the region features of a folder of images into a store."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import batched
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.files import file_digest, lock_file
from vgsplus.parallel import parallel_map
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.images import open_image
from vgsplus.regions.resume import resumable_store
from vgsplus.regions.store import Dtype, RegionStore, create_store

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


class RegionExtractor(Protocol):
    """A model that extracts R regions of F features from each image, independently of other images."""

    @property
    def provenance(self) -> dict[str, Any]:
        """Model, weights, their digest and preprocessing, as a JSON object."""

    def prepare(self, image: Image.Image) -> Tensor:
        """Preprocess an image to float32 (3, H, W) on the CPU. Must be thread-safe."""

    def extract(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return features (B, R, F) and boxes (B, R, 4) in [0, 1] of prepared images, float32 on the CPU."""


def extract_folder(
    folder: Path,
    out: Path,
    extractor: RegionExtractor,
    *,
    dtype: Dtype = "float16",
    batch_size: int = 16,
    skip_faulty: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> tuple[tuple[int, int, int], list[str]]:
    """Extract the regions of all images in a folder, at any depth, into the store `out`.

    Until it is complete, the store is in the folder `.NAME.writing` next to `out`. An interrupted call is
    resumed by another one with the same images and model. The features are stored as `dtype`. A forward pass
    processes `batch_size` images. Images that cannot be decoded are faults unless `skip_faulty`. The stages
    of `progress` are "decoding" and "regions", counted in images.

    Returns:
        (n, R, F): number of images, regions per image and features per region; and the faults of skipped
        images.

    Raises:
        VgsplusError: `out` exists or is being written by another process, or the device is out of memory.
        CorpusError: there are no images, some cannot be decoded, or features exceed the range of `dtype`.
        OSError: there is not enough disk space.
    """
    if out.exists() and not overwrite:
        raise VgsplusError(f"{out}: exists. Choose another file, or add --overwrite.")
    digests, faults = _read_folder(folder, progress)
    if faults and not skip_faulty:
        raise CorpusError(faults)
    if not digests:
        raise CorpusError(f"{folder}: none of its {len(faults)} images can be decoded.")
    images, provenance = list(digests), extractor.provenance | {"torch": torch.__version__}
    task = [dtype, provenance, list(digests.items())]

    def create(path: Path) -> None:
        features, _ = extractor.extract([extractor.prepare(Image.new("RGB", (64, 64)))])
        shape = (features.shape[1], features.shape[2])
        create_store(path, images, shape, dtype, sha256=list(digests.values()), provenance=provenance)

    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.absolute().with_name(f".{out.name}.writing")
    with _locked(out), resumable_store(staging, task, create) as (path, sizes, record):
        done = sum(sizes)
        with RegionStore(path, writable=True) as store:
            for features, boxes in _batches(folder, images[done:], extractor, batch_size):
                for row, image in enumerate(images[done : done + len(features)], start=done):
                    try:
                        store.write(row, features[row - done].numpy(), boxes[row - done].numpy())
                    except ValueError as error:
                        raise CorpusError(f"{folder / image}: {error}.") from None
                store.sync()
                done += len(features)
                record(len(features))
                progress.update("regions", done, len(images))
        path.replace(out)
        shutil.rmtree(staging)
    return store.shape, faults


def _read_folder(folder: Path, progress: Progress) -> tuple[dict[str, str], list[str]]:
    """Decode all images; return the SHA-256 of their files by sorted id, and the faults of the others."""
    if not folder.is_dir():
        raise CorpusError(f"{folder}: there is no such folder of images.")
    ids = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if not ids:
        raise CorpusError(f"{folder}: holds no images ({', '.join(sorted(SUFFIXES))}).")

    def read(image_id: str) -> tuple[str, str | None]:
        path = folder / image_id
        try:
            open_image(path)
        except CorpusError as error:
            return str(error), None
        return image_id, file_digest(path)

    outcomes = list(parallel_map(read, ids, progress, "decoding"))
    digests = {image_id: digest for image_id, digest in outcomes if digest is not None}
    return digests, [fault for fault, digest in outcomes if digest is None]


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    try:
        with lock_file(out.with_name(f".{out.name}.lock")):
            yield
    except BlockingIOError as error:
        raise VgsplusError(f"{out}: {error.strerror} is writing it. Wait for it to end.") from None


def _batches(
    folder: Path, images: Sequence[str], extractor: RegionExtractor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (B, R, F) and boxes (B, R, 4) of each batch of images."""

    def prepare(image_id: str) -> Tensor:
        return extractor.prepare(open_image(folder / image_id))

    # Two batches per chunk: one is decoded while the device processes the other.
    prepared = parallel_map(prepare, images, at_once=2 * batch_size)
    # Otherwise cuDNN may choose another kernel or a lower precision from call to call.
    exactly = {"enabled": True, "benchmark": False, "deterministic": True, "allow_tf32": False}
    for batch in batched(prepared, batch_size):
        try:
            with torch.backends.cudnn.flags(**exactly):
                found = extractor.extract(batch)
        except torch.OutOfMemoryError:
            raise VgsplusError(
                f"the device has not enough memory for {len(batch)} images per batch. Reduce --batch-size."
            ) from None
        yield found
