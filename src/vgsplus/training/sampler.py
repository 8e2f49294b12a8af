"""The order of training batches: a function of (seed, stream, phase, epoch)."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vgsplus.training.runtime import RandomStream


class Part(NamedTuple):
    """The share of every batch that a process computes."""

    rank: int = 0
    processes: int = 1


WHOLE = Part()


class BatchIndices(NamedTuple):
    """One batch to read, or the part of it that a process computes.

    Attributes:
        captions: (B,) positions of the captions in their split.
        with_images: whether region features are read.
        crop_positions: (B,) in [0, 1), where longer captions are cropped (see `audio.read`); empty: all 0.
        places: (B,) of the captions among all of the batch, in the order of lengths; empty: 0, 1, ….
        batch_size: captions of the whole batch; 0: B.
    """

    captions: tuple[int, ...]
    with_images: bool = False
    crop_positions: tuple[float, ...] = ()
    places: tuple[int, ...] = ()
    batch_size: int = 0


def epoch_order(
    num_captions: int, seed: int, epoch: int, phase: int = 0, stream: RandomStream = RandomStream.ORDER
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Draw a permutation of the captions and their crop positions in [0, 1), both (num_captions,)."""
    generator = np.random.default_rng([seed, stream, phase, epoch])
    return generator.permutation(num_captions), generator.random(num_captions)


class CaptionSizes(NamedTuple):
    """What captions count for when batches are formed: 1 each, or their lengths in samples.

    Attributes:
        sizes: (n,) int64, of each caption, at most `batch_size`.
        batch_size: the sum of the sizes in a batch. Where they are lengths it holds on average: a caption
            belongs to the batch in which it ends when all captions of an epoch follow one another.
    """

    sizes: npt.NDArray[np.int64]
    batch_size: int

    @classmethod
    def equal(cls, num_captions: int, batch_size: int) -> "CaptionSizes":
        """Return sizes with which every batch has `batch_size` captions."""
        return cls(np.ones(num_captions, np.int64), batch_size)

    @property
    def batches(self) -> int:
        """Number of batches in an epoch, which does not depend on the order of the captions.

        A last incomplete batch is dropped (as drop_last), unless it is the only one: grounding counts the
        other captions of the batch as negatives, so its loss (and the statistics of BatchNorm) differ in a
        smaller batch. The captions dropped change from epoch to epoch.
        """
        return max(1, int(self.sizes.sum()) // self.batch_size)

    def split(self, order: npt.NDArray[np.int64]) -> list[slice]:
        """Split an order of the captions into batches."""
        ends = self.sizes[order].cumsum()
        bounds = np.searchsorted(ends, self.batch_size * np.arange(self.batches + 1), side="right")
        return [slice(*pair) for pair in itertools.pairwise(bounds.tolist())]


@dataclass(frozen=True, kw_only=True)
class BatchSampler:
    """Yields the `BatchIndices` of consecutive steps, a function of (seed, stream, phase, epoch).

    No earlier step is replayed. Processes take the captions of a batch in turn, in the order of lengths, so
    that all have about the same amount of speech.

    Attributes:
        captions: sizes of the captions in the split.
        seed: seed of the run.
        steps: steps of the phase to yield; an epoch has `captions.batches` of them.
        phase: index of the phase.
        stream: random stream of the order.
        with_images: function of the step, whether region features are read; None: never.
        random_crops: crop longer captions at random positions instead of at the start.
        part: the part of each batch to yield.
        lengths: (n,) of the captions, needed for a part.
    """

    captions: CaptionSizes
    seed: int
    steps: range
    phase: int = 0
    stream: RandomStream = RandomStream.ORDER
    with_images: Callable[[int], bool] | None = None
    random_crops: bool = False
    part: Part = WHOLE
    lengths: npt.NDArray[np.int64] | None = None

    def __iter__(self) -> Iterator[BatchIndices]:
        order, positions, current_epoch = np.empty(0, np.int64), np.empty(0), -1
        batches: list[slice] = []
        for step in self.steps:
            epoch, index = divmod(step, self.captions.batches)
            if epoch != current_epoch:
                num_captions = len(self.captions.sizes)
                order, positions = epoch_order(num_captions, self.seed, epoch, self.phase, self.stream)
                batches, current_epoch = self.captions.split(order), epoch
            chosen, crops = order[batches[index]], positions[batches[index]]
            size = len(chosen)
            places = np.empty(0, np.int64)
            if self.part.processes > 1:
                assert self.lengths is not None
                places = np.arange(self.part.rank, size, self.part.processes)
                own = self.lengths[chosen].argsort(kind="stable")[places]
                chosen, crops = chosen[own], crops[own]
            yield BatchIndices(
                tuple(chosen.tolist()),
                with_images=self.with_images is not None and self.with_images(step),
                crop_positions=tuple(crops.tolist()) if self.random_crops else (),
                places=tuple(places.tolist()),
                batch_size=size,
            )

    def __len__(self) -> int:
        return len(self.steps)
