"""Extract the region features of a folder of images into a store."""

import hashlib
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
from vgsplus.files import lock_file
from vgsplus.images import open_image
from vgsplus.parallel import parallel_map
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.resume import resumable_store
from vgsplus.regions.store import Dtype, RegionStore, create_store

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


class RegionExtractor(Protocol):
    """Model that extracts R regions of F features from an image, independently of other images.

    Attributes:
        provenance: the model, its weights and their digest, and the preprocessing, as JSON.
    """

    provenance: dict[str, Any]

    def prepare(self, image: Image.Image) -> Tensor:
        """Preprocess an image to float32 (3, H, W) on the CPU; called by several threads."""

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
    """Extract the regions of every image in a folder, at any depth, into the store `out`.

    An interrupted call is resumed by another one with the same images and model. Until the store is complete
    it is in `.NAME.writing` next to `out`.

    Args:
        folder: of the images.
        out: the HDF5 file to make.
        extractor: the model.
        dtype: of the stored features.
        batch_size: number of images per forward pass.
        skip_faulty: whether to skip images that cannot be decoded.
        overwrite: whether to replace `out`.
        progress: stages "decoding" and "regions", of images.

    Returns:
        (n, R, F), numbers of images, regions per image and features per region; and why images were skipped.

    Raises:
        VgsplusError: `out` exists or is being written by another process, or the device lacks memory.
        CorpusError: there are no images; some cannot be decoded; features do not fit `dtype`.
        OSError: there is not enough disk space.
    """
    if out.exists() and not overwrite:
        raise VgsplusError(f"{out}: exists. Choose another file, or ask to overwrite it.")
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
    with _alone(out), resumable_store(staging, task, create) as (path, sizes, record):
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
    """Decode all images: SHA-256 of their files by their sorted ids, and what is wrong with the others."""
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
        return image_id, hashlib.sha256(path.read_bytes()).hexdigest()

    outcomes = list(parallel_map(read, ids, progress, "decoding"))
    digests = {image_id: digest for image_id, digest in outcomes if digest is not None}
    return digests, [fault for fault, digest in outcomes if digest is None]


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    try:
        with lock_file(out.with_name(f".{out.name}.lock")):
            yield
    except BlockingIOError as error:
        raise VgsplusError(f"{out}: {error.strerror} is writing it. Wait for that to end.") from None


def _batches(
    folder: Path, images: Sequence[str], extractor: RegionExtractor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (B, R, F) and boxes (B, R, 4) of each batch of images."""

    def prepare(image_id: str) -> Tensor:
        return extractor.prepare(open_image(folder / image_id))

    # Twice a batch, so that the next one is decoded while the device is busy.
    prepared = parallel_map(prepare, images, at_once=2 * batch_size)
    # cuDNN may otherwise choose another kernel, or fewer digits, from one call to the next.
    exactly = {"enabled": True, "benchmark": False, "deterministic": True, "allow_tf32": False}
    for batch in batched(prepared, batch_size):
        try:
            with torch.backends.cudnn.flags(**exactly):
                found = extractor.extract(batch)
        except torch.OutOfMemoryError:
            raise VgsplusError(
                f"the device has no memory for {len(batch)} images at once. Ask for fewer: --batch-size"
            ) from None
        yield found
