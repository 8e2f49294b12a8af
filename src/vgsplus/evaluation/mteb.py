"""A model as the encoder that the package mteb (Massive Text Embedding Benchmark) asks for.

So that its tasks between sound and pictures, SpokenCOCO's among them, score a model of ours by the same code
as every other model. Only the metadata imports mteb, which is an extra of the same name.

Shape letters: N inputs, B of them in a batch, S samples, R regions, F region features, D embedding.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader

from vgsplus import audio
from vgsplus.audio import SAMPLE_RATE
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.embeddings import MAX_SECONDS
from vgsplus.evaluation.hidden_states import check_finite, inference
from vgsplus.regions.pixel_grid import grid_regions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mteb.models import ModelMeta
    from numpy.typing import ArrayLike
    from torch import Tensor

    from vgsplus.audio import Signal
    from vgsplus.models.vgsplus import VGSPlus
    from vgsplus.regions.pixel_grid import Array

    type Describe = Callable[[Image.Image], tuple[Array, Array]]
    type Prepared = tuple[str, Tensor, Tensor]

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
            grid, as in every corpus prepared without --features and --regions.
        name: what mteb's results call the model, as "organisation/model".

    Raises:
        VgsplusError: a model without a grounding side, a name of another form.
    """

    def __init__(
        self,
        model: VGSPlus,
        *,
        device: torch.device | str = "cpu",
        regions: Describe = grid_regions,
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
                f"mteb cannot be used ({error}). Install vgsplus with its extra 'mteb', as docs/mteb.md says."
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
            inputs: a loader of rows {"audio": sound} or {"image": Pillow's picture}; a sound is
                {"array": (S,) or (channels, S), "sampling_rate": Hz}. Ids and the like are not looked at.
            task_metadata: the task. Whether the model can do it at all is asked before anything is embedded.
            show_progress_bar: whether to show one.
            **_: split, subset, type of prompt and the like, on which no embedding depends.

        Raises:
            VgsplusError: inputs or a task of text, video, or sound and pictures in one; pictures that cannot
                be read or are described otherwise than the model was trained on; a sound that is none, too
                short or not finite, or whose channels cancel each other; embeddings that are not finite.
        """
        preparation = Preparation(
            task=task_metadata.name,
            shortest=self.model.speech.waveform.receptive_field,
            feature_dim=self.model.config.feature_dim,
            regions=self.regions,
        )
        _require_ability(task_metadata, preparation)
        # A sound of mteb's is an open decoder, which is of no use in another process than the one that opened
        # it: where the loader has workers, all is prepared in them.
        prepared: DataLoader[Any] = DataLoader(
            inputs.dataset,
            batch_size=inputs.batch_size,
            num_workers=inputs.num_workers,
            collate_fn=preparation,
        )
        batches = track(
            prepared,
            f"Embedding {task_metadata.name}",
            total=len(prepared),
            console=Console(stderr=True),
            disable=not show_progress_bar,
        )
        embed = {SOUND: self.model.embed_speech, PICTURE: self.model.embed_image}
        with inference(self.model):
            parts = [
                embed[modality](first.to(self.device), second.to(self.device)).float().cpu()
                for modality, first, second in batches
            ]
        return check_finite(torch.cat(parts), f"Embeddings of the mteb task {task_metadata.name}")

    def similarity(self, embeddings1: ArrayLike | Tensor, embeddings2: ArrayLike | Tensor) -> Tensor:
        """Dot products (N1, N2) of all pairs from (N1, D) and (N2, D), as the model was trained."""
        return _rows(embeddings1) @ _rows(embeddings2).T

    def similarity_pairwise(self, embeddings1: ArrayLike | Tensor, embeddings2: ArrayLike | Tensor) -> Tensor:
        """Dot products (N,) of row with row, from (N, D) both."""
        return (_rows(embeddings1) * _rows(embeddings2)).sum(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """Makes of the rows of a batch what a model embeds.

    Attributes:
        task: name, for messages.
        shortest: samples that give the model a frame.
        feature_dim: F.
        regions: as in `MtebEncoder`.
    """

    task: str
    shortest: int
    feature_dim: int
    regions: Describe

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Prepared:
        """B rows to "audio", waveforms (B, S) and num_samples (B,), or "image", features and boxes."""
        given = [modality for modality in (*MODALITIES, *OTHER_MODALITIES) if modality in rows[0]]
        if len(given) != 1 or given[0] not in MODALITIES:
            held = " and ".join(given) or "none of these"
            raise VgsplusError(f"An input of the mteb task {self.task} is made of {held}. {ABILITY}")
        items = [row[given[0]] for row in rows]
        return (given[0], *(self.sounds(items) if given[0] == SOUND else self.pictures(items)))

    def sounds(self, items: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S), zero-padded, and num_samples (B,)."""
        signals = [torch.from_numpy(self._signal(item)) for item in items]
        waveforms = torch.nn.utils.rnn.pad_sequence(signals, batch_first=True)
        return waveforms, torch.tensor([len(signal) for signal in signals])

    def _signal(self, item: Mapping[str, Any]) -> Signal:
        a_sound = f"A sound of the mteb task {self.task}"
        try:
            samples, rate = np.asarray(item["array"], dtype=np.float32), int(item["sampling_rate"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise VgsplusError(f"{a_sound} is no array with a sampling_rate in Hz ({error!r}).") from None
        if samples.ndim not in (1, 2) or not samples.size or rate <= 0:
            raise VgsplusError(
                f"{a_sound} has samples {samples.shape} at {rate} Hz; expected (S,) or (channels, S)."
            )
        if not np.isfinite(samples).all():
            raise VgsplusError(f"{a_sound} holds samples that are not finite numbers.")
        signal: Signal = np.atleast_2d(samples).mean(axis=0, dtype=np.float32)
        if audio.is_silent(signal) and not all(map(audio.is_silent, np.atleast_2d(samples))):
            raise VgsplusError(f"{a_sound} has channels that cancel each other: their mean is silent.")
        if rate != SAMPLE_RATE:
            signal = audio.resample(signal, rate)
        cropped = signal[:MAX_SAMPLES]
        if len(cropped) < self.shortest:
            raise VgsplusError(
                f"{a_sound} has {len(cropped)} samples at 16 kHz; the model hears nothing in fewer than "
                f"{self.shortest}."
            )
        return audio.normalise(cropped)

    def pictures(self, pictures: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Features (B, R, F) and boxes (B, R, 4)."""
        try:
            described = [self.regions(picture) for picture in pictures]
        except OSError as error:
            raise VgsplusError(f"A picture of the mteb task {self.task} cannot be read ({error}).") from None
        count = len(described[0][0])
        for features, boxes in described:
            if features.shape[1:] != (self.feature_dim,):
                raise VgsplusError(
                    f"The model was trained on region features of {self.feature_dim} values; pictures are "
                    f"described here by {features.shape[-1]}. Give MtebEncoder as `regions` what described "
                    "its training pictures (2048 values are those of the paper's detector), or evaluate one "
                    "trained on a corpus prepared without --features and --regions."
                )
            if len(features) != count or boxes.shape != (count, 4):
                raise VgsplusError(
                    f"`regions` gave features {features.shape} and boxes {boxes.shape}; a batch needs "
                    f"({count}, {self.feature_dim}) and ({count}, 4) for every picture."
                )
        return (
            torch.from_numpy(np.stack([features for features, _ in described])),
            torch.from_numpy(np.stack([boxes for _, boxes in described])),
        )


def _require_ability(task: Task, preparation: Preparation) -> None:
    for modality in task.modalities:
        if modality not in MODALITIES:
            raise VgsplusError(f"The mteb task {task.name} needs {modality}. {ABILITY}")
    if PICTURE in task.modalities:
        # SpokenCOCO's task from sound to picture hands over 25,000 sounds before its first picture.
        preparation.pictures([Image.new("RGB", (96, 96))])


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
