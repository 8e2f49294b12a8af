"""Reading of training batches: `SpeechImageDataset`, `load_batches`, `training_batches`.

A batch is a dict of tensors:
    waveforms    (B, S) float32, normalised and zero-padded
    num_samples  (B,) int64, length of each row before padding
    moved_crops  (B,) bool, whether the crop was silent and was moved (see `audio.read_crop`)
    features     (B, R, F) float32, region features; this and the following only where α > 0
    boxes        (B, R, 4) float32
    pixels       (B, 3, S, S) uint8, in place of features and boxes where the model reads pictures
    image_ids    (B,) int64, rows of the images in the corpus
    places       (B,) int64, see `BatchIndices`; this and the following only where several processes train
    batch_size   () int64, captions of the batch in all processes

In a phase with additional speech (see `schedule.AdditionalSpeech`), every step also reads a batch of it, the
extra batch.
"""

import math
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from vgsplus import audio
from vgsplus.config import RunConfig
from vgsplus.corpora import Caption, Corpus
from vgsplus.corpora.captions import Captions
from vgsplus.errors import VgsplusError
from vgsplus.schedule import Phase, PhaseSteps, Schedule
from vgsplus.training.runtime import STOP_SIGNALS, RandomStream, device_name
from vgsplus.training.sampler import BatchIndices, BatchSampler, CaptionSizes, Part

type Batch = dict[str, Tensor]

TRAIN, VALIDATION = "train", "validation"

VALIDATION_SEED = 0
"""Validation uses a fixed seed for batches and masks, so that losses are comparable across runs."""


# ---- reading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SpeechImageDataset(Dataset[Batch]):
    """Batches of one split of a corpus, indexed by `BatchIndices`.

    A batch is in the order of the lengths, because the model runs consecutive utterances of like length
    together. Waveforms are padded to the longest of the batch.

    Attributes:
        corpus: the corpus.
        captions: its captions of the split.
        max_samples: longer captions are cropped to this length.
        pad_to_max: pad all batches to `max_samples` instead.
        side: S, the side in pixels to which pictures are resized; None: read stored regions instead.
    """

    corpus: Corpus
    captions: Sequence[Caption]
    max_samples: int
    pad_to_max: bool = False
    side: int | None = None

    def __getitem__(self, indices: BatchIndices) -> Batch:
        """Read one batch.

        Raises:
            AudioError: a sound file is missing or broken.
            CorpusError: an image is unknown.
        """
        chosen = [self.captions[position] for position in indices.captions]
        crops = zip(chosen, indices.crop_positions or [0.0] * len(chosen), strict=True)
        captions, crop_positions = zip(*sorted(crops, key=lambda crop: crop[0].num_samples), strict=True)
        batch = self._read_waveforms(captions, crop_positions)
        if indices.with_images:
            # The condition only narrows the type: `check_run` refuses α > 0 with captions without an image.
            images = [caption.image for caption in captions if caption.image is not None]
            if self.side is not None:
                batch["pixels"] = torch.from_numpy(self.corpus.pixels(images, self.side))
            else:
                features, boxes = self.corpus.stored_regions(images)
                # Converting float16 in PyTorch is much faster than in NumPy.
                batch["features"] = torch.from_numpy(features).float()
                batch["boxes"] = torch.from_numpy(boxes).float()
            batch["image_ids"] = torch.tensor([self.corpus.image_row(image) for image in images])
        if indices.places:
            batch["places"] = torch.tensor(indices.places)
            batch["batch_size"] = torch.tensor(indices.batch_size)
        return batch

    def __len__(self) -> int:
        """Return the number of captions in the split."""
        return len(self.captions)

    def _read_waveforms(self, captions: Sequence[Caption], crop_positions: Sequence[float]) -> Batch:
        self.corpus.fetch_sounds(captions)
        read = [
            audio.read_crop(self.corpus.audio_path(caption), self.max_samples, position)
            for caption, position in zip(captions, crop_positions, strict=True)
        ]
        padded = self.max_samples if self.pad_to_max else max(len(samples) for samples, _ in read)
        waveforms = np.zeros((len(read), padded), np.float32)
        for row, (samples, _) in zip(waveforms, read, strict=True):
            row[: len(samples)] = audio.normalise(samples)
        return {
            "waveforms": torch.from_numpy(waveforms),
            "num_samples": torch.tensor([len(samples) for samples, _ in read]),
            "moved_crops": torch.tensor([moved for _, moved in read]),
        }


def load_batches(
    *streams: tuple[SpeechImageDataset, Iterable[BatchIndices]], workers: int = 0, pin_memory: bool = False
) -> Generator[tuple[Batch, ...]]:
    """Yield one batch of every stream per step, read ahead by `workers` processes (0: by this one).

    Close the generator to end the workers early.

    Args:
        streams: pairs of a dataset and its sampler, which must be of equal length. One worker reads all
            batches of a step.
        workers: number of processes.
        pin_memory: copy the tensors into page-locked memory.

    Raises:
        AudioError, CorpusError: a dataset, here or in a worker, could not read a batch.
    """
    datasets, samplers = zip(*streams, strict=True)
    loader: DataLoader[list[Batch] | VgsplusError] = DataLoader(
        _StepDataset(datasets),
        sampler=zip(*samplers, strict=True),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_signals,
    )
    iterator = iter(loader)
    try:
        for batches in iterator:
            if isinstance(batches, VgsplusError):
                raise batches
            yield tuple(batches)
    finally:
        # Shut the workers down explicitly: the traceback of an exception would keep a reference to the
        # iterator, and the workers, which ignore SIGTERM, would then block interpreter exit.
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()  # noqa: SLF001 - no public equivalent


class _StepDataset(Dataset["list[Batch] | VgsplusError"]):
    """Returns errors as values: DataLoader would hide their message under the traceback of a worker."""

    def __init__(self, datasets: Sequence[SpeechImageDataset]) -> None:
        self._datasets = datasets

    def __getitem__(self, indices: Sequence[BatchIndices]) -> list[Batch] | VgsplusError:
        try:
            return [dataset[one] for dataset, one in zip(self._datasets, indices, strict=True)]
        except VgsplusError as error:
            return error


def _ignore_signals(_worker: int) -> None:
    # Ctrl-C reaches all processes of the group, and signals of SLURM all of a job. Workers must outlive the
    # current step of the trainer; they exit when it closes the loader or exits.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


# ---- moving to the device ---------------------------------------------------------------------------------


def move(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to the device, but for what is read on the host."""
    on_host = ("num_samples", "moved_crops", "places", "batch_size")
    return {
        name: tensor if name in on_host else tensor.to(device, non_blocking=True)
        for name, tensor in batch.items()
    }


def move_ahead(steps: Iterable[tuple[Batch, ...]], device: torch.device) -> Iterator[tuple[Batch, ...]]:
    """Yield the batches of each step on the device; on a GPU they are copied while earlier steps run."""
    if device.type != "cuda":
        yield from steps
        return
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # of torch
    compute = torch.cuda.current_stream(device)
    waiting: deque[tuple[tuple[Batch, ...], torch.cuda.Event]] = deque()
    for batches in steps:
        with torch.cuda.stream(copies):
            moved = tuple(move(batch, device) for batch in batches)
        waiting.append((moved, copies.record_event()))
        if len(waiting) > 1:
            yield _arrived(*waiting.popleft(), compute)
    for moved, copied in waiting:
        yield _arrived(moved, copied, compute)


def _arrived(
    batches: tuple[Batch, ...], copied: torch.cuda.Event, compute: torch.cuda.Stream
) -> tuple[Batch, ...]:
    """Make the compute stream wait for the copy of these batches only, and return them."""
    compute.wait_event(copied)
    for batch in batches:
        for tensor in batch.values():
            if tensor.is_cuda:
                tensor.record_stream(compute)  # its memory is not reused before the step is done
    return batches


# ---- the batches of a run ---------------------------------------------------------------------------------


def open_split(config: RunConfig, corpus: Corpus, split: str) -> SpeechImageDataset:
    """Return the training or validation split of a corpus, with the lengths and padding of `config`.

    Raises:
        CorpusError: the split is unknown or empty.
    """
    seconds = config.max_seconds if split == TRAIN else config.validation_max_seconds
    return SpeechImageDataset(
        corpus=corpus,
        captions=corpus.captions(split),
        max_samples=round(seconds * audio.SAMPLE_RATE),
        pad_to_max=config.model.padding == "published",
        side=config.model.image.side if config.model.image else None,
    )


def open_additional_speech(schedule: Schedule) -> dict[str, Corpus]:
    """Open the corpora of additional speech by the names of their phases, each folder once.

    Raises:
        CorpusError: a folder is not a prepared corpus.
    """
    folders = {
        phase.name: speech.corpus for phase in schedule.phases if (speech := phase.active_additional_speech)
    }
    opened = {folder: Corpus.open(folder) for folder in dict.fromkeys(folders.values())}
    return {name: opened[folder] for name, folder in folders.items()}


def caption_sizes(config: RunConfig, phase: Phase, captions: Captions) -> CaptionSizes:
    """Return what the training captions count for in a phase (see `RunConfig.batch_seconds`)."""
    if config.batch_seconds is None or phase.alpha.ever_positive:
        return CaptionSizes.equal(len(captions), config.batch_size)
    longest = round(config.max_seconds * audio.SAMPLE_RATE)
    return CaptionSizes(
        np.minimum(captions.num_samples, longest), round(config.batch_seconds * audio.SAMPLE_RATE)
    )


def plan_steps(config: RunConfig, corpus: Corpus) -> tuple[PhaseSteps, ...]:
    """Measure the phases of a run in steps."""
    captions = corpus.captions(TRAIN)
    return config.schedule.plan(lambda phase: caption_sizes(config, phase, captions).batches)


def extra_batch_size(config: RunConfig, phase: PhaseSteps, num_clips: int) -> int:
    """Return the batch size of `num_clips` clips of additional speech (see `AdditionalSpeech.batch_size`)."""
    speech = phase.config.active_additional_speech
    assert speech is not None
    return speech.batch_size or min(math.ceil(num_clips / phase.steps_per_epoch), config.batch_size)


def training_batches(
    config: RunConfig,
    phase: PhaseSteps,
    corpus: Corpus,
    additional_speech: Corpus | None,
    part: Part,
    start_step: int,
) -> Generator[tuple[Batch, ...]]:
    """Yield the batch, or the batch and the extra batch, of each step of a phase from `start_step` on."""
    steps = range(start_step, phase.steps)
    captions = open_split(config, corpus, TRAIN)
    sampler = BatchSampler(
        captions=caption_sizes(config, phase.config, corpus.captions(TRAIN)),
        seed=config.seed,
        steps=steps,
        phase=phase.index,
        with_images=lambda step: phase.alpha(step) > 0,
        # Captions are cropped at the start, as published; speech without pictures as in wav2vec 2.0.
        random_crops=not corpus.feature_dim,
        part=part,
        lengths=corpus.captions(TRAIN).num_samples,
    )
    if additional_speech is None:
        return _load(config, (captions, sampler))
    clips = open_split(config, additional_speech, TRAIN)
    extra_sampler = BatchSampler(
        captions=CaptionSizes.equal(len(clips), extra_batch_size(config, phase, len(clips))),
        seed=config.seed,
        steps=steps,
        phase=phase.index,
        stream=RandomStream.EXTRA_ORDER,
        random_crops=True,
        part=part,
        lengths=additional_speech.captions(TRAIN).num_samples,
    )
    return _load(config, (captions, sampler), (clips, extra_sampler))


def validation_batches(
    config: RunConfig, corpus: Corpus, batch_size: int, part: Part, *, with_images: bool
) -> Generator[tuple[Batch, ...]]:
    """Yield the validation batches of a corpus: always the same, shuffled so that images differ in each."""
    dataset = open_split(config, corpus, VALIDATION)
    captions = CaptionSizes.equal(len(dataset), batch_size)
    sampler = BatchSampler(
        captions=captions,
        seed=VALIDATION_SEED,
        steps=range(captions.batches),
        with_images=lambda _: with_images,
        part=part,
        lengths=corpus.captions(VALIDATION).num_samples,
    )
    return _load(config, (dataset, sampler))


def _load(
    config: RunConfig, *streams: tuple[SpeechImageDataset, BatchSampler]
) -> Generator[tuple[Batch, ...]]:
    pinned = device_name(config.accelerator) == "cuda"
    return load_batches(*streams, workers=config.workers, pin_memory=pinned)
