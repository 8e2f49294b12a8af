"""Additional speech beside the captions: which clips a step hears, who reads them, how their losses count.

FaST-VGS+ (Peng & Harwath) learns from LibriSpeech beside SpokenCOCO: each update draws a batch of either, and
the wav2vec 2.0 loss of LibriSpeech enters the sum of losses with a weight. Here

    total = α · L_AV + (1 - α) · L_AUD(captions) + weight · L_AUD(additional speech)

The two batches go through the model one after the other, each to its gradient, and the gradients add up to
that of the total: so an update holds the activations of one batch at a time.
"""

import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from torch import Tensor

from vgsplus.config import RunConfig
from vgsplus.corpora import Corpus
from vgsplus.schedule import PlannedPhase, Schedule
from vgsplus.training.batches import (
    TRAIN,
    VALIDATION,
    Batch,
    BatchReader,
    BatchRequest,
    TrainingOrder,
    batch_places,
    read_batches,
    split_reader,
    validation_order,
)
from vgsplus.training.log import ADDITIONAL
from vgsplus.training.randomness import Use

type Step = tuple[Batch, Batch | None]
"""What one update learns from: captions, and additional speech where the phase has any."""


@dataclass(frozen=True, kw_only=True)
class AdditionalOrder:
    """The batches of a phase's additional speech from `first_step` on, without any replay of those before.

    Order and crops are a pure function of (seed, phase, epoch of this corpus), independent of the captions'.
    """

    num: int
    batch_size: int
    seed: int
    planned: PlannedPhase
    first_step: int = 0

    def __iter__(self) -> Iterator[BatchRequest]:
        steps = range(self.first_step, self.planned.steps)
        order, crops, order_epoch = np.empty(0, np.int64), np.empty(0), -1
        for epoch, place in batch_places(self.num, self.batch_size, steps):
            if epoch != order_epoch:
                generator = np.random.default_rng(
                    [self.seed, Use.ADDITIONAL_ORDER, self.planned.index, epoch]
                )
                order, crops, order_epoch = generator.permutation(self.num), generator.random(self.num), epoch
            yield BatchRequest(tuple(order[place].tolist()), images=False, crops=tuple(crops[place].tolist()))


@dataclass(frozen=True, kw_only=True)
class AdditionalBatches:
    """A phase's additional speech, ready to be read.

    Attributes:
        batch_size: clips in a batch.
        train: reads its training split; clips longer than `max_seconds` are cut out at random places.
        validation: reads its validation split; None where nothing is validated.
    """

    batch_size: int
    train: BatchReader
    validation: BatchReader | None

    def order_beside(self, captions: TrainingOrder) -> AdditionalOrder:
        """The batches for the same steps as those of the captions."""
        return AdditionalOrder(
            num=len(self.train.captions),
            batch_size=self.batch_size,
            seed=captions.seed,
            planned=captions.planned,
            first_step=captions.first_step,
        )

    def validation_order(self) -> list[BatchRequest]:
        """The batches of a validation: always the same."""
        assert self.validation is not None
        return validation_order(len(self.validation.captions), self.batch_size, images=False)


@dataclass(frozen=True, kw_only=True)
class StepReader:
    """Reads both batches of a step, in one worker."""

    captions: BatchReader
    additional: BatchReader | None

    def read(self, request: tuple[BatchRequest, BatchRequest | None]) -> Step:
        """Read what one update learns from.

        Raises:
            AudioError: a sound file is absent or broken.
            CorpusError: an image is unknown.
        """
        captions, additional = request
        if self.additional is None or additional is None:
            return self.captions.read(captions), None
        return self.captions.read(captions), self.additional.read(additional)


def read_steps(
    reader: BatchReader,
    order: TrainingOrder,
    additional: AdditionalBatches | None,
    *,
    workers: int,
    pin_memory: bool,
) -> Generator[Step]:
    """Read the captions of `order`, and additional speech where there is any; see `read_batches`.

    Raises:
        AudioError, CorpusError: as `StepReader.read`.
    """
    beside: Iterable[BatchRequest | None] = (
        additional.order_beside(order) if additional else repeat(None, len(order))
    )
    return read_batches(
        StepReader(captions=reader, additional=additional.train if additional else None),
        zip(order, beside, strict=True),
        workers=workers,
        pin_memory=pin_memory,
    )


def open_additional(schedule: Schedule) -> dict[str, Corpus]:
    """The corpora of the phases' additional speech, by the phases' names; each is opened once.

    Raises:
        CorpusError: as `Corpus.open`.
    """
    folders = {phase.name: speech.corpus for phase in schedule.phases if (speech := phase.weighted_speech)}
    opened = {folder: Corpus.open(folder) for folder in dict.fromkeys(folders.values())}
    return {name: opened[folder] for name, folder in folders.items()}


def additional_batches(
    config: RunConfig, planned: PlannedPhase, corpus: Corpus | None
) -> AdditionalBatches | None:
    """The additional speech of a phase from its corpus (see `open_additional`), None where it has none."""
    speech = planned.phase.weighted_speech
    if speech is None or corpus is None:
        return None
    train = split_reader(config, corpus, TRAIN)
    once_an_epoch = math.ceil(len(train.captions) / planned.steps_per_epoch)
    return AdditionalBatches(
        batch_size=speech.batch_size or min(once_an_epoch, config.batch_size),
        train=train,
        validation=None if config.validate_every is None else split_reader(config, corpus, VALIDATION),
    )


def with_additional[Value: (float, Tensor)](
    captions: dict[str, Value], additional: dict[str, Value], weight: float
) -> dict[str, Value]:
    """The losses of captions and, under names of their own, of additional speech; the total counts both."""
    own = {f"{ADDITIONAL}{name}": value for name, value in additional.items() if name != "total"}
    return captions | own | {"total": captions["total"] + weight * additional["total"]}
