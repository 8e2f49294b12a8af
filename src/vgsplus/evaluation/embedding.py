"""Every picture and every spoken caption of a split as vectors.

Shape letters: B batch, S samples, R regions, F region features, D embedding, N pictures, M captions.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from vgsplus import audio
from vgsplus.errors import VgsplusError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from vgsplus.audio import Signal
    from vgsplus.corpora import Caption, Corpus

_log = logging.getLogger("vgsplus")
READERS = 4
MAX_SECONDS = 10.0
"""How much of a long caption is heard in evaluation, as published for validation."""


class HasModules(Protocol):
    """What setting modes needs of a model."""

    def modules(self) -> Iterator[torch.nn.Module]:
        """Every module, the model itself included."""


class JointModel(HasModules, Protocol):
    """What retrieval needs of a model: `VGSPlus` and every loaded checkpoint have it."""

    def embed_speech(self, waveforms: Tensor, num_samples: Tensor) -> Tensor:
        """Speech embeddings (B, D) of waveforms (B, S) with num_samples (B,)."""

    def embed_image(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Image embeddings (B, D) of region features (B, R, F) and boxes (B, R, 4)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SplitEmbeddings:
    """Embeddings of a split, float32 on the CPU.

    `images` is (N, D) in the order of `image_ids`, `speech` is (M, D) in the order of `captions`; pictures
    are named once each, in the order in which captions first speak of them.
    """

    image_ids: tuple[str, ...]
    images: Tensor
    captions: tuple[Caption, ...]
    speech: Tensor


def embed_split(
    model: JointModel,
    corpus: Corpus,
    split: str,
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    max_seconds: float = MAX_SECONDS,
    pad_to_max: bool = False,
    precision: torch.dtype | None = None,
) -> SplitEmbeddings:
    """Embed a whole split in evaluation mode and leave the model's modes as they were.

    Captions are read through `vgsplus.audio`, cropped to their first `max_seconds` (10 s, as published for
    validation), normalised over the crop and batched by length, longest first.

    Args:
        model: a model that already is on `device`.
        corpus: a prepared corpus.
        split: name of one of its splits; every caption in it must speak of a picture.
        batch_size: captions, or pictures, in one pass.
        device: where the batches go.
        max_seconds: how much of a long caption is heard, in seconds.
        pad_to_max: pad every caption to `max_seconds`, on which outputs depend in published mode.
        precision: dtype of autocast, None for none.

    Raises:
        VgsplusError: a caption without a picture, or an embedding that is not finite.
    """
    captions = tuple(corpus.captions(split))
    image_ids = _pictures_of(captions, split)
    device = torch.device(device)
    autocast = torch.autocast(device.type, precision, enabled=precision is not None)
    with evaluating(model), torch.no_grad(), autocast:
        images = _embed_images(model, corpus, image_ids, batch_size, device)
        max_samples = round(max_seconds * audio.SAMPLE_RATE)
        width = max_samples if pad_to_max else 0
        speech = _embed_captions(
            model, corpus, captions, batch_size, device=device, max_samples=max_samples, width=width
        )
    for kind, vectors in (("image", images), ("speech", speech)):
        require_finite(vectors, f"{kind} embeddings of split '{split}'")
    return SplitEmbeddings(image_ids=image_ids, images=images, captions=captions, speech=speech)


def require_finite(vectors: Tensor, what: str) -> None:
    """Raise VgsplusError, naming what they are, where embeddings hold NaN or infinity."""
    if not bool(torch.isfinite(vectors).all()):
        message = f"The model gives {what} that are not finite."
        raise VgsplusError(f"{message} It has diverged: evaluate an earlier checkpoint.")


def _pictures_of(captions: Sequence[Caption], split: str) -> tuple[str, ...]:
    images: dict[str, None] = {}
    for caption in captions:
        if caption.image is None:
            message = f"Caption '{caption.id}' of split '{split}' speaks of no picture."
            raise VgsplusError(f"{message} Retrieval needs a split whose captions all have pictures.")
        images[caption.image] = None
    return tuple(images)


def _embed_images(
    model: JointModel, corpus: Corpus, image_ids: Sequence[str], batch_size: int, device: torch.device
) -> Tensor:
    """Image embeddings (N, D) in the order of the ids."""
    parts = []
    for ids in _chunks(image_ids, batch_size):
        features, boxes = (torch.from_numpy(array).to(device) for array in corpus.regions(ids))
        parts.append(model.embed_image(features, boxes).float().cpu())
    return torch.cat(parts)


def _embed_captions(
    model: JointModel,
    corpus: Corpus,
    captions: Sequence[Caption],
    batch_size: int,
    *,
    device: torch.device,
    max_samples: int,
    width: int,
) -> Tensor:
    """Speech embeddings (M, D) in the order of the captions, padded to `width` samples or more."""
    moved: set[int] = set()

    def read(index: int) -> Signal:
        signal, silent = audio.read_crop(corpus.audio_path(captions[index]), max_samples)
        if silent:
            moved.add(index)
        return audio.normalise(signal)

    lengths = [min(caption.num_samples, max_samples) for caption in captions]
    order: list[int] = []
    parts = []
    for indices, waveforms, num_samples in padded_batches(read, lengths, batch_size, device, width):
        order += indices
        parts.append(model.embed_speech(waveforms, num_samples).float().cpu())
    if moved:
        _log.warning(
            "%d captions are silent for their first %g s; they are taken from where there is sound",
            len(moved),
            max_samples / audio.SAMPLE_RATE,
        )
    vectors = torch.cat(parts)
    placed = torch.empty_like(vectors)
    placed[torch.tensor(order)] = vectors
    return placed


def padded_batches(
    read: Callable[[int], Signal],
    lengths: Sequence[int],
    batch_size: int,
    device: torch.device,
    width: int = 0,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Every signal once, as (indices, waveforms (B, S) zero-padded, num_samples (B,)), the longest first.

    So there is little padding in any batch, and memory that does not suffice fails in the first one.

    Args:
        read: gives signal i, normalised; called by several threads.
        lengths: of the signals, in samples; they decide the order alone.
        batch_size: signals in one batch.
        device: where the batches go.
        width: samples that every batch has at least.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    with ThreadPoolExecutor(READERS) as pool:
        for indices in _chunks(order, batch_size):
            waves = [torch.from_numpy(wave) for wave in pool.map(read, indices)]
            padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
            padded = torch.nn.functional.pad(padded, (0, max(0, width - padded.shape[1])))
            num_samples = torch.tensor([len(wave) for wave in waves])
            yield list(indices), padded.to(device), num_samples.to(device)


def _chunks[T](items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@contextmanager
def evaluating(model: HasModules) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is back in its own mode, mixed modes included."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
