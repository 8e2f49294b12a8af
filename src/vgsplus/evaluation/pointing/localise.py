"""Where in a picture and when in a sound a model finds what they share.

The similarity of a sound and a picture is the dot product of their embeddings. A window of the sound has the
share of its embedding that is lost if the window is silent, and a region of the picture has the share by
which its embedding changes with the features of the region. The dot products of both are the scores: how much
of the similarity comes from that window together with that region. Sounds and pictures are thus each computed
by themselves, and what distinguishes neither, such as regions that all captions like, adds nothing to a
single word. How the shares are computed was chosen by the pointing accuracy on the toy corpus
(docs/trained-models.md).

Shape letters: S samples, T times, R regions, F features of a region, D dimensions.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vgsplus.audio import SAMPLE_RATE, Signal
from vgsplus.evaluation.hidden_states import batch_by_length, check_finite, inference, map_sounds
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.progress import SILENT, Progress

if TYPE_CHECKING:
    from vgsplus.corpora import Corpus

WINDOW = 0.3
"""Seconds that are silenced around a time."""
STEP = 0.04
"""Seconds from one time to the next."""
FADE = 0.5
"""Share of its own features that every region has where the change of the embedding is measured."""
CHANGE = 0.1
"""Share of its own features by which a region is changed in both directions."""
BATCH_SAMPLES = 60 * SAMPLE_RATE


class Localisation(NamedTuple):
    """What windows of a sound and regions of a picture contribute to their similarity, on the CPU.

    Attributes:
        times: (T,) the centres of the windows in seconds.
        boxes: (R, 4) as (x1, y1, x2, y2) in [0, 1].
        scores: (T, R), of a window together with a region. A positive score says that they belong together.
        time_scores: (T,), of a window together with the complete picture: by how much the similarity falls if
            the window is silent.
        region_scores: (R,), of a region together with the complete sound.
        similarity: of the complete sound and picture.
    """

    times: Tensor
    boxes: Tensor
    scores: Tensor
    time_scores: Tensor
    region_scores: Tensor
    similarity: float


def localise(
    model: VGSPlus,
    signal: Signal,
    image: Sequence[Tensor],
    *,
    step: float = STEP,
    progress: Progress = SILENT,
) -> Localisation:
    """Compute the contributions of windows and regions to the similarity of one sound and one picture.

    Args:
        model: a grounded model on any device; its train/eval modes are restored.
        signal: (S,) at 16 kHz, normalised.
        image: features (1, R, F) and boxes (1, R, 4), or pixels (1, 3, side, side).
        step: seconds from one time to the next.
        progress: receives the stage "windows".

    Raises:
        VgsplusError: a contribution is not finite.
    """
    times = window_times(len(signal), step)
    speech, windows = window_shares(model, signal, times, progress=progress)
    picture, regions, boxes = region_shares(model, image)
    return Localisation(
        times=torch.from_numpy(times).float(),
        boxes=boxes,
        scores=windows @ regions.T,
        time_scores=windows @ picture,
        region_scores=regions @ speech,
        similarity=float(speech @ picture),
    )


def corpus_picture(model: VGSPlus, corpus: "Corpus", image: str) -> list[Tensor]:
    """Return a picture of a corpus as `localise` takes it: the stored regions, or the pixels.

    Raises:
        CorpusError: the corpus has no such picture.
    """
    config = model.config.image
    arrays = corpus.regions([image]) if config is None else (corpus.pixels([image], config.side),)
    return [torch.from_numpy(array) for array in arrays]


def window_times(num_samples: int, step: float) -> NDArray[np.float64]:
    """Return the centres (T,) of windows every `step` seconds of a sound, at least one."""
    seconds = num_samples / SAMPLE_RATE
    number = np.arange(max(1, round(seconds / step)), dtype=np.float64)
    return (number + 0.5) * min(step, seconds)


def window_shares(
    model: VGSPlus, signal: Signal, times: NDArray[np.float64], *, progress: Progress = SILENT
) -> tuple[Tensor, Tensor]:
    """Return the embedding (D,) of a sound and how it differs from those with a silent window: (T, D).

    Arguments as for `localise`; `times` are the centres of windows of `WINDOW` seconds.
    """
    complete, half = -1, WINDOW * SAMPLE_RATE / 2

    def read(index: int) -> Signal:
        changed = signal.copy()
        if index != complete:
            centre = times[index] * SAMPLE_RATE
            changed[max(0, round(centre - half)) : max(0, round(centre + half))] = 0
        return changed

    keys = [complete, *range(len(times))]
    found: dict[int, Tensor] = {}
    device = next(model.parameters()).device
    # All are of one length, so that `published` padding adds nothing.
    batches = batch_by_length(dict.fromkeys(keys, len(signal)), total=BATCH_SAMPLES)
    for index, embedding in map_sounds(model, model.embed_speech, read, batches, device=device):
        found[index] = embedding.float().cpu()
        progress.update("windows", len(found), len(keys))
    embeddings = check_finite(torch.stack([found[key] for key in keys]), "The speech embeddings")
    return embeddings[0], embeddings[0] - embeddings[1:]


def region_shares(model: VGSPlus, image: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the embedding (D,) of a picture, how it changes with the features of each region, and the boxes.

    The regions fade to their mean by a half, where one that is changed matters most, and the change with each
    is measured between a little more and a little less of its own features, for all of them. In the complete
    picture a model may not miss one of several regions that show the same.

    Args:
        model: see `localise`.
        image: see `localise`.

    Returns:
        (D,), (R, D) and (R, 4), on the CPU.
    """
    device = next(model.parameters()).device
    with inference(model):
        tensors = [tensor.to(device) for tensor in image]
        features, boxes = tensors if model.config.image is None else model.pixels(*tensors)
        count = features.shape[1]
        own = features - features.mean(dim=1, keepdim=True)
        each = CHANGE * torch.eye(count, device=device)[:, :, None] * own
        variants = torch.cat([features, *(features - FADE * own + sign * each for sign in (1, -1))])
        embeddings = torch.cat(
            [model.image(part, boxes.expand(len(part), -1, -1)) for part in torch.split(variants, 2 * count)]
        )
    check_finite(embeddings, "The image embeddings")
    embeddings = embeddings.float().cpu()
    more, less = torch.split(embeddings[1:], count)
    return embeddings[0], (more - less) / (2 * CHANGE), boxes[0].cpu()


def heat_map(
    boxes: NDArray[np.floating],
    scores: NDArray[np.floating],
    width: int,
    height: int,
    *,
    highest: float | None = None,
) -> NDArray[np.float64]:
    """Return the highest score of the regions at each pixel (height, width), as a share of the highest.

    Scores that are not positive, and pixels without a region, are 0.

    Args:
        boxes: (R, 4) as (x1, y1, x2, y2) in [0, 1].
        scores: (R,).
        width: of the map in pixels.
        height: of the map in pixels.
        highest: the score that becomes 1. None: the highest of `scores`.
    """
    values = np.zeros((height, width))
    highest = float(scores.max()) if highest is None else highest
    corners = np.rint(boxes * (width, height, width, height)).astype(int)
    for region in np.argsort(scores):
        if scores[region] > 0:
            x1, y1, x2, y2 = corners[region]
            values[y1:y2, x1:x2] = scores[region] / highest
    return values
