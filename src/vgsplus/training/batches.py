"""Batches of spoken captions, in an order that is a pure function of (seed, phase, epoch).

A batch is a dict of tensors: waveforms (B, S) float32 normalised and zero-padded, num_samples (B,) int64,
moved_crops (B,) bool (see `audio.read_crop`) and, where α > 0, features (B, R, F) and boxes (B, R, 4) float32
and image_ids (B,) int64, the images' rows.
"""

import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from vgsplus import audio
from vgsplus.config import RunConfig
from vgsplus.corpora import Caption, Corpus
from vgsplus.errors import VgsplusError
from vgsplus.models.speech_encoder import LENGTH_MULTIPLE
from vgsplus.schedule import PlannedPhase
from vgsplus.training.randomness import Use

type Batch = dict[str, Tensor]


class Reader[Request, Read](Protocol):
    """Whatever reads what a step asks for; it goes to the workers."""

    def read(self, request: Request) -> Read:
        """Read what one step needs; raises VgsplusError where that cannot be."""


TRAIN, VALIDATION = "train", "validation"

VALIDATION_SEED = 0
"""Validation draws its batches, and its masks, alike in every run: losses compare across runs and seeds."""


# ---- order ------------------------------------------------------------------------------------------------


def epoch_order(num: int, seed: int, epoch: int, phase: int = 0) -> npt.NDArray[np.int64]:
    """A random order (num,) of `num` captions: a pure function of its arguments."""
    return np.random.default_rng([seed, Use.ORDER, phase, epoch]).permutation(num)


def batch_places(num: int, batch_size: int, steps: range) -> Iterator[tuple[int, slice]]:
    """The epoch of each step, and where the batch lies in that epoch's order of `num` captions."""
    per_epoch = batches_per_epoch(num, batch_size)
    for step in steps:
        epoch, index = divmod(step, per_epoch)
        yield epoch, slice(index * batch_size, (index + 1) * batch_size)


def batches_per_epoch(num: int, batch_size: int) -> int:
    """How many batches `num` captions make.

    A last partial batch is left out where there is a full one: grounding counts the other captions of the
    batch as negatives, so its loss (and BatchNorm's statistics) in a smaller batch is another quantity.
    Another order brings what was left out into the next epoch.
    """
    return max(1, num // batch_size)


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """One batch to read: positions (B,) of captions in their split, and whether images are needed.

    `crops` (B,) in [0, 1) says where longer captions are cut out (see `audio.read`); None at their start.
    """

    captions: tuple[int, ...]
    images: bool
    crops: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingOrder:
    """The batches of a phase from `first_step` on, without any replay of those before.

    This is the one place that says which captions make a batch; a process among many would take its share
    of each batch here.
    """

    num: int
    batch_size: int
    seed: int
    planned: PlannedPhase
    first_step: int = 0

    def __iter__(self) -> Iterator[BatchRequest]:
        steps = range(self.first_step, self.planned.steps)
        order, order_epoch = np.empty(0, np.int64), -1
        for step, (epoch, place) in zip(steps, batch_places(self.num, self.batch_size, steps), strict=True):
            if epoch != order_epoch:
                order, order_epoch = epoch_order(self.num, self.seed, epoch, self.planned.index), epoch
            yield BatchRequest(tuple(order[place].tolist()), images=self.planned.alpha(step) > 0)

    def __len__(self) -> int:
        return self.planned.steps - self.first_step


def validation_order(num: int, batch_size: int, *, images: bool) -> list[BatchRequest]:
    """The batches of a validation: always the same, mixed so that a batch holds different images."""
    order = epoch_order(num, VALIDATION_SEED, 0)
    return [
        BatchRequest(tuple(order[place].tolist()), images=images)
        for _, place in batch_places(num, batch_size, range(batches_per_epoch(num, batch_size)))
    ]


# ---- reading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BatchReader:
    """Reads batches of one split; captions are cut to `max_samples` samples.

    Waveforms are padded to the longest of the batch, rounded up to LENGTH_MULTIPLE, or always to
    `max_samples` where `pad_to_max`.
    """

    corpus: Corpus
    captions: Sequence[Caption]
    max_samples: int
    pad_to_max: bool = False

    def read(self, request: BatchRequest) -> Batch:
        """Read one batch.

        Raises:
            AudioError: a sound file is absent or broken.
            CorpusError: an image is unknown.
        """
        captions = [self.captions[position] for position in request.captions]
        batch = self._waveforms(captions, request.crops or [0.0] * len(captions))
        if request.images:
            image_ids = [caption.image for caption in captions if caption.image is not None]
            features, boxes = self.corpus.stored_regions(image_ids)
            # PyTorch widens float16 in a fraction of the time that NumPy takes.
            batch["features"] = torch.from_numpy(features).float()
            batch["boxes"] = torch.from_numpy(boxes).float()
            batch["image_ids"] = torch.tensor([self.corpus.image_row(image) for image in image_ids])
        return batch

    def _waveforms(self, captions: Sequence[Caption], crops: Sequence[float]) -> Batch:
        signals, moved = zip(
            *(
                audio.read_crop(self.corpus.audio_path(caption), self.max_samples, crop)
                for caption, crop in zip(captions, crops, strict=True)
            ),
            strict=True,
        )
        longest = self.max_samples if self.pad_to_max else _rounded_up(max(map(len, signals)))
        waveforms = np.zeros((len(signals), longest), np.float32)
        for row, samples in zip(waveforms, signals, strict=True):
            row[: len(samples)] = audio.normalise(samples)
        lengths = torch.tensor([len(samples) for samples in signals])
        return {
            "waveforms": torch.from_numpy(waveforms),
            "num_samples": lengths,
            "moved_crops": torch.tensor(moved),
        }


def split_reader(config: RunConfig, corpus: Corpus, split: str) -> BatchReader:
    """Reads the training or the validation split of a corpus as a run does.

    Raises:
        CorpusError: the split is unknown or empty.
    """
    seconds = config.max_seconds if split == TRAIN else config.validation_max_seconds
    return BatchReader(
        corpus=corpus,
        captions=corpus.captions(split),
        max_samples=round(seconds * audio.SAMPLE_RATE),
        pad_to_max=config.model.padding == "published",
    )


def _rounded_up(num_samples: int) -> int:
    return -(-num_samples // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def read_batches[Request, Read](
    reader: Reader[Request, Read], requests: Iterable[Request], *, workers: int = 0, pin_memory: bool = False
) -> Generator[Read]:
    """Read batches in order, ahead of their use in `workers` processes, or in this one if 0.

    Close the generator where it may not run to its end: that ends the workers.

    Raises:
        AudioError, CorpusError: as `BatchReader.read`, with their own message from workers too.
    """
    loader: DataLoader[Read | VgsplusError] = DataLoader(
        _Requested(reader),
        sampler=requests,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_trainer,
    )
    iterator = iter(loader)
    try:
        for batch in iterator:
            if isinstance(batch, VgsplusError):
                raise batch
            yield batch
    finally:
        # Left to garbage collection, an exception's traceback would keep the workers, and they the
        # interpreter from its exit: they ignore the SIGTERM that it would end them with.
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()  # noqa: SLF001 - there is no public way


class _Requested[Request, Read](Dataset["Read | VgsplusError"]):
    """Hands errors back as values: DataLoader would bury their message under a worker's traceback."""

    def __init__(self, reader: Reader[Request, Read]) -> None:
        self._reader = reader

    def __getitem__(self, request: Request) -> Read | VgsplusError:
        try:
            return self._reader.read(request)
        except VgsplusError as error:
            return error


def _leave_signals_to_the_trainer(_worker: int) -> None:
    # Ctrl-C reaches the whole process group. Workers must live on until the trainer has ended its step; they
    # end by themselves when it stops asking or dies.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
