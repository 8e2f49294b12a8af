"""Embed every image and every spoken caption of a split.

Shape letters: D embedding, N images, M captions.
"""

import logging
from dataclasses import dataclass
from itertools import batched

import torch
from torch import Tensor

from vgsplus import audio
from vgsplus.audio import Signal
from vgsplus.corpora import Caption, Corpus
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.hidden_states import batch_by_length, check_finite, inference, map_sounds
from vgsplus.functional import check_stop, gather_objects, own_share
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.progress import SILENT, Progress

_log = logging.getLogger("vgsplus")
MAX_SECONDS = 10.0
"""Seconds to which captions are cropped in evaluation, as published for validation."""
MAX_SAMPLES = round(MAX_SECONDS * audio.SAMPLE_RATE)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SplitEmbeddings:
    """Embeddings of a split, float32 on the CPU.

    Attributes:
        split: name of the split.
        image_ids: N distinct image ids, in the order in which captions first refer to them.
        images: (N, D), in the order of `image_ids`.
        captions: M captions.
        speech: (M, D), in the order of `captions`.
    """

    split: str
    image_ids: tuple[str, ...]
    images: Tensor
    captions: tuple[Caption, ...]
    speech: Tensor


def embed_split(
    model: VGSPlus,
    corpus: Corpus,
    split: str,
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    pad_to_max: bool = False,
    precision: torch.dtype | None = None,
    progress: Progress = SILENT,
) -> SplitEmbeddings:
    """Embed a split in evaluation mode; the model's modes are restored.

    Captions are cropped to their first 10 s (`MAX_SECONDS`), normalised over the crop and batched by length.
    With `pad_to_max`, all are padded to 10 s; with `published` padding the outputs depend on it. Batches of
    `batch_size` captions or images are moved to `device`, where the model is, and computed with autocast to
    `precision` (None: without). The processes of a run share the batches, and must all call this. `progress`
    receives the stages "pictures" and "captions", of this process.

    Raises:
        VgsplusError: a caption without an image, or an embedding that is not finite.
    """
    captions = tuple(corpus.captions(split))
    image_ids: dict[str, None] = {}
    for caption in captions:
        if caption.image is None:
            raise VgsplusError(
                f"Caption '{caption.id}' of split '{split}' has no picture. Retrieval needs a split whose "
                "captions all have pictures."
            )
        image_ids[caption.image] = None

    images: dict[str, Tensor] = {}
    own_images = own_share(list(batched(image_ids, batch_size)))
    num_images = sum(map(len, own_images))
    with inference(model, device, precision):
        for ids in own_images:
            check_stop()
            config = model.config.image
            arrays = corpus.regions(ids) if config is None else (corpus.pixels(ids, config.side),)
            inputs = (torch.from_numpy(array).to(device) for array in arrays)
            images |= zip(ids, model.embed_image(*inputs).float().cpu(), strict=True)
            progress.update("pictures", len(images), num_images)

    moved: set[int] = set()

    def read(index: int) -> Signal:
        signal, silent = audio.read_crop(corpus.audio_path(captions[index]), MAX_SAMPLES)
        if silent:
            moved.add(index)
        return audio.normalise(signal)

    lengths = {index: min(caption.num_samples, MAX_SAMPLES) for index, caption in enumerate(captions)}
    own_sounds = own_share(list(batch_by_length(lengths, size=batch_size)))
    num_sounds = sum(map(len, own_sounds))
    found: dict[int, Tensor] = {}
    for index, embedding in map_sounds(
        model,
        model.embed_speech,
        read,
        own_sounds,
        device=device,
        precision=precision,
        min_samples=MAX_SAMPLES if pad_to_max else 0,
    ):
        found[index] = embedding.float().cpu()
        progress.update("captions", len(found), num_sounds)
    for other_images, other_found, other_moved in gather_objects((images, found, moved)):
        images |= other_images
        found |= other_found
        moved |= other_moved
    if moved:
        _log.warning(
            "%d captions are silent for their first %g s; they are cropped to a part with sound",
            len(moved),
            MAX_SECONDS,
        )
    speech = torch.stack([found[index] for index in range(len(captions))])
    shown = torch.stack([images[image] for image in image_ids])
    return SplitEmbeddings(
        split=split,
        image_ids=tuple(image_ids),
        images=check_finite(shown, f"Image embeddings of split '{split}'"),
        captions=captions,
        speech=check_finite(speech, f"Speech embeddings of split '{split}'"),
    )
