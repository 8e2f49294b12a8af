"""A model as the encoder that the package mteb (Massive Text Embedding Benchmark) asks for.

So that its tasks between sound and pictures, SpokenCOCO's among them, score a model of ours by the same code
as every other model. Only the metadata imports mteb, which is an extra of the same name.

Shape letters: N inputs, B of them in a batch, S samples, R regions, F region features, D embedding.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from vgsplus import audio
from vgsplus.audio import SAMPLE_RATE
from vgsplus.corpora.regions import grid_regions
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.embedding import MAX_SECONDS, evaluating, require_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mteb.models import ModelMeta
    from numpy.typing import ArrayLike
    from torch import Tensor
    from torch.utils.data import DataLoader

    from vgsplus.audio import Signal
    from vgsplus.corpora.regions import Array
    from vgsplus.models.vgsplus import VGSPlus

SOUND, PICTURE = "audio", "image"
MODALITIES = (SOUND, PICTURE)
OTHER_MODALITIES = ("text", "video")
MAX_SAMPLES = round(MAX_SECONDS * SAMPLE_RATE)
ABILITY = (
    "A vgsplus model embeds spoken captions and pictures, each by itself: run tasks of sounds and pictures "
    "alone, such as SpokenCOCOA2IRetrieval and SpokenCOCOI2ARetrieval."
)


class Task(Protocol):
    """What is asked of mteb's description of a task."""

    @property
    def name(self) -> str:
        """The task's name."""

    @property
    def modalities(self) -> Sequence[str]:
        """All that its inputs are made of: "audio", "image", "text", "video"."""


class MtebEncoder:
    """Embeds what mteb hands over (its `EncoderProtocol`); `mteb.evaluate` takes it as a model.

    Sound of any rate and channels is brought to 16 kHz mono, cropped to its first 10 s, normalised over the
    crop and padded to the longest of its batch, as in `embed_split`; pictures become region features.

    Args:
        model: moved to `device`; its train/eval modes are left as they were.
        device: where the batches go.
        regions: describes a picture as the training corpus did: features (R, F) and boxes (R, 4) as
            (x1, y1, x2, y2) in [0, 1], float32, with the same R for all pictures; by default the cells of a
            grid, as in every corpus that `vgsplus data` prepares.
        name: what mteb's results call the model, as "organisation/model".

    Raises:
        VgsplusError: a model without a grounding side, a name of another form.
    """

    def __init__(
        self,
        model: VGSPlus,
        *,
        device: torch.device | str = "cpu",
        regions: Callable[[Image.Image], tuple[Array, Array]] = grid_regions,
        name: str = "vgsplus/model",
    ) -> None:
        if not model.config.grounded:
            raise VgsplusError(
                "This model is wav2vec 2.0 alone and embeds nothing: mteb can only score a grounded model."
            )
        organisation, slash, model_name = name.partition("/")
        if not (organisation and slash and model_name):
            raise VgsplusError(f"mteb calls models 'organisation/model'; '{name}' has another form.")
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.regions = regions
        self.name = name

    @cached_property
    def mteb_model_meta(self) -> ModelMeta:
        """Name, sizes and similarity, for mteb's results.

        The revision is a hash of sizes and weights, because mteb takes a result it has for the same name and
        revision in place of running the task.

        Raises:
            VgsplusError: mteb is not installed.
        """
        try:
            from mteb.models import ModelMeta  # noqa: PLC0415 (an extra, and it takes seconds to import)
            from mteb.models.model_meta import ScoringFunction  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise VgsplusError(
                f"mteb cannot be used ({error}). Install the extra: pip install 'vgsplus[mteb]'."
            ) from None
        return ModelMeta.create_empty(
            {
                "name": self.name,
                "revision": _digest(self.model),
                "n_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
                "embed_dim": self.model.config.dim,
                "framework": ["PyTorch"],
                "similarity_fn_name": ScoringFunction.DOT_PRODUCT,
                "use_instructions": False,
                "modalities": list(MODALITIES),
            }
        )

    def encode(
        self,
        inputs: DataLoader[dict[str, Any]],
        *,
        task_metadata: Task,
        show_progress_bar: bool = True,
        **_: object,
    ) -> Tensor:
        """Embeddings (N, D) of all inputs in their order, float32 on the CPU.

        Args:
            inputs: batches, {"audio": B sounds} or {"image": B pictures of Pillow's}; a sound is
                {"array": (S,) or (channels, S), "sampling_rate": Hz}. Ids and the like are not looked at.
            task_metadata: the task. Whether the model can do it at all is asked before anything is embedded.
            show_progress_bar: whether to show one.
            **_: split, subset, type of prompt and the like, on which no embedding depends.

        Raises:
            VgsplusError: inputs or a task of text, video, or sound and pictures in one; pictures described
                otherwise than the model was trained on; a sound that is too short or not finite; embeddings
                that are not finite.
        """
        self._require_ability(task_metadata)
        title = f"Embedding {task_metadata.name}"
        console = Console(stderr=True)
        parts: list[Tensor] = []
        with evaluating(self.model), torch.no_grad():
            batches = track(
                inputs,
                title,
                total=len(inputs),
                console=console,
                disable=not show_progress_bar,
                transient=True,
            )
            for batch in batches:
                modality = _modality_of(batch, task_metadata)
                embed = self._embed_sounds if modality == SOUND else self._embed_pictures
                parts.append(embed(batch[modality]).float().cpu())
        vectors = torch.cat(parts)
        require_finite(vectors, f"embeddings of the mteb task {task_metadata.name}")
        return vectors

    def similarity(self, embeddings1: ArrayLike | Tensor, embeddings2: ArrayLike | Tensor) -> Tensor:
        """Dot products (N1, N2) of all pairs from (N1, D) and (N2, D), as the model was trained."""
        return _rows(embeddings1) @ _rows(embeddings2).T

    def similarity_pairwise(self, embeddings1: ArrayLike | Tensor, embeddings2: ArrayLike | Tensor) -> Tensor:
        """Dot products (N,) of row with row, from (N, D) both."""
        return (_rows(embeddings1) * _rows(embeddings2)).sum(-1)

    def _require_ability(self, task: Task) -> None:
        for modality in task.modalities:
            if modality not in MODALITIES:
                raise VgsplusError(f"The mteb task {task.name} needs {modality}. {ABILITY}")
        if PICTURE in task.modalities:
            # A retrieval task may hand over 25,000 sounds before its first picture.
            self._describe([Image.new("RGB", (96, 96))])

    def _embed_sounds(self, items: Sequence[Mapping[str, Any]]) -> Tensor:
        signals = [torch.from_numpy(self._signal(item)) for item in items]
        waveforms = torch.nn.utils.rnn.pad_sequence(signals, batch_first=True)
        num_samples = torch.tensor([len(signal) for signal in signals])
        return self.model.embed_speech(waveforms.to(self.device), num_samples.to(self.device))

    def _signal(self, item: Mapping[str, Any]) -> Signal:
        """A sound of mteb's as the model hears it."""
        samples = np.asarray(item["array"], dtype=np.float32)
        if not np.isfinite(samples).all():
            raise VgsplusError("A sound of the mteb task holds samples that are not finite numbers.")
        signal: Signal = np.atleast_2d(samples).mean(axis=0, dtype=np.float32)
        if item["sampling_rate"] != SAMPLE_RATE:
            signal = audio.resample(signal, item["sampling_rate"])
        cropped = signal[:MAX_SAMPLES]
        shortest = self.model.speech.waveform.receptive_field
        if len(cropped) < shortest:
            raise VgsplusError(
                f"A sound of the mteb task has {len(cropped)} samples at 16 kHz; the model hears nothing in "
                f"fewer than {shortest}."
            )
        return audio.normalise(cropped)

    def _embed_pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        features, boxes = self._describe(pictures)
        return self.model.embed_image(features.to(self.device), boxes.to(self.device))

    def _describe(self, pictures: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Features (B, R, F) and boxes (B, R, 4)."""
        described = [self.regions(picture) for picture in pictures]
        feature_dim, count = self.model.config.feature_dim, len(described[0][0])
        for features, boxes in described:
            if features.shape[1:] != (feature_dim,):
                raise VgsplusError(
                    f"The model was trained on region features of {feature_dim} values, and pictures are "
                    f"described here by {features.shape[-1]}. Give MtebEncoder as `regions` what "
                    "described its training pictures (2048 values are those of the paper's detector), or "
                    "evaluate a model trained on a corpus of `vgsplus data`, which takes the cells of a grid."
                )
            if len(features) != count or boxes.shape != (count, 4):
                raise VgsplusError(
                    f"`regions` gave features {features.shape} and boxes {boxes.shape}; a batch needs "
                    f"({count}, {feature_dim}) and ({count}, 4) for every picture."
                )
        return (
            torch.from_numpy(np.stack([features for features, _ in described])),
            torch.from_numpy(np.stack([boxes for _, boxes in described])),
        )


def _modality_of(batch: Mapping[str, Any], task: Task) -> str:
    """Which of `MODALITIES` a batch is made of."""
    given = [modality for modality in (*MODALITIES, *OTHER_MODALITIES) if modality in batch]
    if len(given) != 1 or given[0] not in MODALITIES:
        held = " and ".join(given) or "none of these"
        raise VgsplusError(f"An input of the mteb task {task.name} is made of {held}. {ABILITY}")
    return given[0]


def _rows(embeddings: ArrayLike | Tensor) -> Tensor:
    """(N, D), or (D,) as one row."""
    vectors = torch.as_tensor(embeddings)
    return vectors.reshape(-1, vectors.shape[-1])


def _digest(model: VGSPlus) -> str:
    """A hash of all that decides on a model's embeddings."""
    digest = hashlib.sha256(repr(model.config).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
