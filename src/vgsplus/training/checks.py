"""Checks of configuration, corpora and hardware before training starts."""

import importlib.util
from collections.abc import Callable, Iterator

import torch

from vgsplus.audio import SAMPLE_RATE
from vgsplus.audio_files import sound_exists
from vgsplus.config import RunConfig
from vgsplus.corpora import Corpus
from vgsplus.corpora.captions import NO_IMAGE
from vgsplus.errors import ConfigError, CorpusError, VgsplusError
from vgsplus.models.feature_extractor import receptive_field
from vgsplus.models.published import build_model
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.regions.backbones import check_backbone
from vgsplus.training.data import TRAIN, VALIDATION

type LoadWeights = Callable[[VGSPlus, str], str]
"""Loads the weights at a path into a model and returns a report; on the meta device it only checks."""


def check_run(
    config: RunConfig,
    corpus: Corpus,
    load_weights: LoadWeights | None,
    *,
    first_phase: int = 0,
    processes: int = 1,
    here: bool = True,
) -> None:
    """Check that settings, corpora and machine fit each other.

    Weights are not checked for phases before `first_phase`: those that the resumed run has started. Each of
    `processes` must have a caption of every batch. `here`: the run is to be trained on this machine.

    Raises:
        ConfigError: they do not; names every problem.
        CorpusError: a split that is needed is missing or empty.
    """
    problems = [
        *(_machine_problems(config) if here else ()),
        *_init_problems(config, load_weights, first_phase),
        *_batch_problems(config, corpus),
        *(_process_problems(config, corpus, processes) if processes > 1 else ()),
        *_image_problems(config, corpus),
        *(_backbone_problems(config) if first_phase == 0 else ()),
        *_crop_problems(config),
        *(problem for split in splits(config) for problem in _clip_problems(config, corpus, split)),
        *_additional_speech_problems(config),
    ]
    if problems:
        raise ConfigError("the run cannot start:\n" + "\n".join(f"- {problem}" for problem in problems))


def splits(config: RunConfig) -> tuple[str, ...]:
    """Return the splits that a run reads."""
    return (TRAIN,) if config.validate_every is None else (TRAIN, VALIDATION)


def needs_images(config: RunConfig) -> bool:
    """Whether α is above 0 at any time."""
    return any(phase.alpha.ever_positive for phase in config.schedule.phases)


def _machine_problems(config: RunConfig) -> Iterator[str]:
    cuda = torch.cuda.is_available()
    if config.accelerator == "cuda" and not cuda:
        yield "accelerator: is cuda, but PyTorch finds no CUDA device; use auto or cpu"
    if config.precision == "16-mixed" and (config.accelerator == "cpu" or not cuda):
        yield "precision: 16-mixed needs a CUDA device; use 32-true or bf16-mixed"
    if config.logger == "wandb" and importlib.util.find_spec("wandb") is None:
        yield "logger: wandb is not installed; install vgsplus with the extra wandb, or use tensorboard"


def _init_problems(config: RunConfig, load_weights: LoadWeights | None, first_phase: int) -> Iterator[str]:
    for index, phase in enumerate(config.schedule.phases):
        if phase.init is None or index < first_phase:
            continue
        if load_weights is None:
            yield f"schedule.{index}.init: train was called without load_weights"
        else:
            try:
                with torch.device("meta"):
                    load_weights(build_model(config.model), phase.init)
            except VgsplusError as error:
                yield f"schedule.{index}.init: {error}"


def _batch_problems(config: RunConfig, corpus: Corpus) -> Iterator[str]:
    num = len(corpus.captions(TRAIN))
    if config.batch_size > num:
        yield f"batch_size: {config.batch_size} is more than the {num} captions of the split {TRAIN}"
    if config.batch_seconds is not None and config.batch_seconds < config.max_seconds:
        yield (
            f"batch_seconds: {config.batch_seconds:g} is less than max_seconds ({config.max_seconds:g}): a "
            "batch must have room for the longest caption"
        )
    if config.batch_size == 1 and needs_images(config):
        yield "batch_size: must be at least 2 for α > 0, because the other images of a batch are negatives"


def _process_problems(config: RunConfig, corpus: Corpus, processes: int) -> Iterator[str]:
    if config.model.padding == "published":
        yield f"model.padding: published trains in one process, not in {processes}; use exact"
    sizes = {"batch_size": config.batch_size}
    for index, phase in enumerate(config.schedule.phases):
        if (speech := phase.active_additional_speech) and speech.batch_size is not None:
            sizes[f"schedule.{index}.additional_speech.batch_size"] = speech.batch_size
    for split in splits(config):
        sizes[f"corpus: the number of captions of the split {split}"] = len(corpus.captions(split))
    for setting, size in sizes.items():
        if size < processes:
            yield f"{setting}: {size} is less than the {processes} processes"
    least = (processes + 1) * config.max_seconds
    if config.batch_seconds is not None and config.batch_seconds < least:
        yield (
            f"batch_seconds: must be at least {least:g}, max_seconds for each of the {processes} processes "
            "and once more"
        )


def _image_problems(config: RunConfig, corpus: Corpus) -> Iterator[str]:
    if not needs_images(config):
        return
    if not config.model.grounded:
        yield "schedule: α > 0 needs model.grounded: true; without it the model is wav2vec 2.0 alone"
    if not corpus.feature_dim:
        yield (
            f"schedule: α > 0 needs images, but {corpus.root} is a corpus of speech alone; "
            "use α = 0 (w2v2), or a corpus with images"
        )
        return
    if config.model.image is None and corpus.feature_dim != config.model.feature_dim:
        yield (
            f"model.feature_dim: is {config.model.feature_dim}, but the regions of {corpus.root} have "
            f"{corpus.feature_dim} features"
        )
    for split in splits(config):
        captions = corpus.captions(split)
        without = (captions.image_rows == NO_IMAGE).nonzero()[0]
        if without.size:
            yield (
                f"schedule: α > 0 needs an image for every caption, but {without.size} of the split {split} "
                f"have none, the first {captions[int(without[0])].id}; use α = 0, or a corpus with images"
            )
        elif config.model.image is not None:
            # As for sounds, the first one shows whether the files were moved.
            try:
                corpus.pixels([str(captions[0].image)], config.model.image.side)
            except CorpusError as error:
                yield f"model.image: {error} It reads pictures; without it, stored regions are read"


def _backbone_problems(config: RunConfig) -> Iterator[str]:
    if config.model.image is not None:
        try:
            check_backbone(config.model.image)
        except VgsplusError as error:
            yield f"model.image.weights: {error}"


def _crop_problems(config: RunConfig) -> Iterator[str]:
    least = receptive_field(config.model.conv_layers)
    crops = {"max_seconds": config.max_seconds}
    if VALIDATION in splits(config):
        crops["validation_max_seconds"] = config.validation_max_seconds
    for setting, seconds in crops.items():
        if round(seconds * SAMPLE_RATE) < least:
            yield (
                f"{setting}: {seconds} s is shorter than the receptive field of one frame ({least} samples, "
                f"{1000 * least / SAMPLE_RATE:.0f} ms)"
            )


def _clip_problems(config: RunConfig, corpus: Corpus, split: str, setting: str = "corpus") -> Iterator[str]:
    captions = corpus.captions(split)
    least = receptive_field(config.model.conv_layers)
    short = (captions.num_samples < least).nonzero()[0]
    if short.size:
        first = captions[int(short[0])]
        yield (
            f"{setting}: {short.size} captions of the split {split} are shorter than the receptive field of "
            f"one frame ({least} samples, {1000 * least / SAMPLE_RATE:.0f} ms), the first {first.id} with "
            f"{first.num_samples}; prepare the corpus without them"
        )
    # Preparation checked every file; the first one shows whether they were moved since.
    sound = corpus.audio_path(captions[0])
    if not sound_exists(sound):
        yield (
            f"{setting}: the sound file {sound} does not exist; if the files were moved, prepare the corpus "
            "again"
        )


def _additional_speech_problems(config: RunConfig) -> Iterator[str]:
    opened: dict[str, Corpus] = {}
    for index, phase in enumerate(config.schedule.phases):
        speech, setting = phase.active_additional_speech, f"schedule.{index}.additional_speech"
        if speech is None:
            continue
        try:
            if speech.corpus not in opened:
                opened[speech.corpus] = Corpus.open(speech.corpus)
                for split in splits(config):
                    yield from _clip_problems(config, opened[speech.corpus], split, f"{setting}.corpus")
            num = len(opened[speech.corpus].captions(TRAIN))
        except CorpusError as error:
            yield f"{setting}.corpus: {error}"
            continue
        if speech.batch_size is not None and speech.batch_size > num:
            yield (
                f"{setting}.batch_size: {speech.batch_size} is more than the {num} captions of the split "
                f"{TRAIN} of {speech.corpus}"
            )
