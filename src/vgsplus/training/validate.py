"""The losses of a model averaged over the validation splits."""

from collections.abc import Callable, Generator
from contextlib import closing

import torch

from vgsplus.config import RunConfig
from vgsplus.corpora import Corpus
from vgsplus.losses import Losses
from vgsplus.schedule import PhaseSteps
from vgsplus.training.data import TRAIN, VALIDATION_SEED, Batch, extra_batch_size, validation_batches
from vgsplus.training.log import MOVED_CROPS, PendingScalars, loss_terms, merge_terms
from vgsplus.training.runtime import RandomStream, indexed_seed
from vgsplus.training.sampler import Part

type ComputeLosses = Callable[[Batch, float, int], Losses]
"""Losses of a batch at α, with a seed."""


def validate(
    compute_losses: ComputeLosses,
    config: RunConfig,
    phase: PhaseSteps,
    alpha: float,
    corpus: Corpus,
    additional_speech: Corpus | None,
    part: Part,
    stops: Callable[[], bool],
) -> dict[str, float] | None:
    """Return the means of losses and moved crops over the validation split, by name, or None when stopped.

    Losses are computed at `alpha` by the model in evaluation mode; those of additional speech, if any, are
    averaged over its own validation split. Each process computes its part of the batches; `stops`, which must
    return the same in all, is called after every batch.
    """
    batches = validation_batches(config, corpus, config.batch_size, part, with_images=alpha > 0)
    means = _average(compute_losses, batches, alpha, RandomStream.VALIDATION, stops)
    if means is None or additional_speech is None:
        return means
    size = extra_batch_size(config, phase, len(additional_speech.captions(TRAIN)))
    batches = validation_batches(config, additional_speech, size, part, with_images=False)
    additional = _average(compute_losses, batches, 0.0, RandomStream.EXTRA_VALIDATION, stops)
    return merge_terms(means, additional, phase.additional_weight) if additional else None


def _average(
    compute_losses: ComputeLosses,
    batches: Generator[tuple[Batch, ...]],
    alpha: float,
    stream: RandomStream,
    stops: Callable[[], bool],
) -> dict[str, float] | None:
    """Average over captions, with the same masks every time."""
    totals: dict[str, float] = {}
    captions = 0
    with closing(batches):
        for index, (batch,) in enumerate(batches):
            seed = indexed_seed(VALIDATION_SEED, stream, index)
            with torch.no_grad():
                values = PendingScalars(loss_terms(compute_losses(batch, alpha, seed))).read()
            values[MOVED_CROPS] = float(batch[MOVED_CROPS].float().mean())
            if stops():
                return None
            size = int(batch.get("batch_size", len(batch["num_samples"])))
            captions += size
            totals = {name: totals.get(name, 0.0) + value * size for name, value in values.items()}
    return {name: total / captions for name, total in totals.items()}
