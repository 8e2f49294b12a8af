"""A model as an encoder of the package mteb (Massive Text Embedding Benchmark).

mteb's tasks between sounds and images, such as SpokenCOCO's, then score vgsplus models by the same code as
others. Only `mteb_model_meta` imports mteb, which the extra "mteb" installs.

Shape letters: N inputs, B of them in a batch, S samples, R regions, F region features, D embedding.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from vgsplus import audio
from vgsplus.audio import SAMPLE_RATE, Signal
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.embeddings import MAX_SAMPLES
from vgsplus.evaluation.hidden_states import check_finite, inference, pad_signals
from vgsplus.models.vgsplus import ModelConfig, VGSPlus
from vgsplus.regions.pixel_grid import RegionFunction, grid_regions
from vgsplus.regions.restore import image_inputs

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta

AUDIO, IMAGE = "audio", "image"
MODALITIES = (AUDIO, IMAGE)
OTHER_MODALITIES = ("text", "video")
ABILITY = (
    "A vgsplus model embeds spoken captions and pictures, each by itself: run tasks of sounds and pictures "
    "only, such as SpokenCOCOA2IRetrieval and SpokenCOCOI2ARetrieval."
)


class MtebEncoder:
    """Embed sounds and images for mteb (its `EncoderProtocol`); `mteb.evaluate` takes it as a model.

    Sounds of any rate and channels are converted to 16 kHz mono, cropped to the first 10 s, normalised over
    the crop and padded to the longest of the batch, as in `embed_split`.

    Args:
        model: moved to `device`; its train/eval modes are restored.
        device: where the batches are moved.
        regions: extracts the region features of an image as for the training corpus: features (R, F) and
            boxes (R, 4) as (x1, y1, x2, y2) in [0, 1], float32, with the same R for all images; by default
            the cells of a grid, as in a corpus prepared without --features and --regions. Not used by a model
            that reads pictures.
        name: name of the model in mteb's results, as "organisation/model".

    Raises:
        VgsplusError: the model is not grounded, or the name has another form.
    """

    def __init__(
        self,
        model: VGSPlus,
        *,
        device: torch.device | str = "cpu",
        regions: RegionFunction = grid_regions,
        name: str = "vgsplus/model",
    ) -> None:
        if not model.config.grounded:
            raise VgsplusError(
                "This model is a wav2vec 2.0 without embeddings: mteb can only score a grounded model."
            )
        organisation, slash, model_name = name.partition("/")
        if not (organisation and slash and model_name):
            raise VgsplusError(f"A model's name for mteb must be 'organisation/model', not '{name}'.")
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.regions = regions
        self.name = name

    @cached_property
    def mteb_model_meta(self) -> "ModelMeta":
        """Name, sizes and similarity function, as mteb's results record them.

        The revision is a hash of configuration and weights, because mteb reuses a result of the same name and
        revision instead of running the task.

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
                "revision": self._digest(),
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
        task_metadata: "TaskMetadata",
        show_progress_bar: bool = True,
        **_: object,
    ) -> Tensor:
        """Return embeddings (N, D) of all inputs in their order, float32 on the CPU.

        Args:
            inputs: a loader of rows {"audio": sound} or {"image": PIL image}; a sound is
                {"array": (S,) or (channels, S), "sampling_rate": Hz}. Other columns are ignored.
            task_metadata: the task; its modalities are checked before anything is embedded.
            show_progress_bar: whether to show a progress bar.
            **_: other arguments of the protocol (split, subset, type of prompt), which are ignored.

        Raises:
            VgsplusError: inputs or a task of text, video, or sound and image in one; images that cannot be
                read or whose region features are not those of the training; a sound that is not an array, too
                short or not finite, or whose channels cancel each other; embeddings that are not finite.
        """
        collate = Collate(
            task=task_metadata.name,
            min_samples=self.model.speech.waveform.receptive_field,
            config=self.model.config,
            regions=self.regions,
        )
        for modality in task_metadata.modalities:
            if modality not in MODALITIES:
                raise VgsplusError(f"The mteb task {task_metadata.name} needs {modality}. {ABILITY}")
        if IMAGE in task_metadata.modalities:
            # Check the region features now: SpokenCOCO's first image comes after 25,000 sounds.
            collate.images([Image.new("RGB", (96, 96))])
        # mteb's sounds are open decoders, which cannot be passed between processes: the workers that load
        # them also read them.
        prepared: DataLoader[Any] = DataLoader(
            inputs.dataset,
            batch_size=inputs.batch_size,
            num_workers=inputs.num_workers,
            collate_fn=collate,
        )
        batches = track(
            prepared,
            f"Embedding {task_metadata.name}",
            total=len(prepared),
            console=Console(stderr=True),
            disable=not show_progress_bar,
        )
        embed: dict[str, Callable[..., Tensor]] = {
            AUDIO: self.model.embed_speech,
            IMAGE: self.model.embed_image,
        }
        with inference(self.model):
            parts = [
                embed[modality](*(tensor.to(self.device) for tensor in tensors)).float().cpu()
                for modality, *tensors in batches
            ]
        return check_finite(torch.cat(parts), f"Embeddings of the mteb task {task_metadata.name}")

    def similarity(self, embeddings1: ArrayLike | Tensor, embeddings2: ArrayLike | Tensor) -> Tensor:
        """Return dot products (N1, N2) of all pairs from (N1, D) and (N2, D), as in training."""
        return _rows(embeddings1) @ _rows(embeddings2).T

    def similarity_pairwise(self, embeddings1: ArrayLike | Tensor, embeddings2: ArrayLike | Tensor) -> Tensor:
        """Return dot products (N,) of corresponding rows of (N, D) and (N, D)."""
        return (_rows(embeddings1) * _rows(embeddings2)).sum(-1)

    def _digest(self) -> str:
        digest = hashlib.sha256(repr(self.model.config).encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Collate:
    """Convert the rows of a batch to tensors.

    Attributes:
        task: name of the task, for messages.
        min_samples: minimum number of samples, from which the model computes one frame.
        config: of the model.
        regions: as in `MtebEncoder`.
    """

    task: str
    min_samples: int
    config: ModelConfig
    regions: RegionFunction

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> tuple[str, *tuple[Tensor, ...]]:
        """Return "audio", waveforms (B, S) and num_samples (B,), or "image" and its inputs to the model."""
        given = [modality for modality in (*MODALITIES, *OTHER_MODALITIES) if modality in rows[0]]
        if len(given) != 1 or given[0] not in MODALITIES:
            held = " and ".join(given) or "none of these"
            raise VgsplusError(f"An input of the mteb task {self.task} is made of {held}. {ABILITY}")
        items = [row[given[0]] for row in rows]
        if given[0] == AUDIO:
            return AUDIO, *pad_signals([self._signal(item) for item in items])
        return IMAGE, *self.images(items)

    def _signal(self, item: Mapping[str, Any]) -> Signal:
        a_sound = f"A sound of the mteb task {self.task}"
        try:
            samples, rate = np.asarray(item["array"], dtype=np.float32), int(item["sampling_rate"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise VgsplusError(f"{a_sound} is not an array with a sampling_rate in Hz ({error!r}).") from None
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
        if len(cropped) < self.min_samples:
            raise VgsplusError(
                f"{a_sound} has {len(cropped)} samples at 16 kHz; the model needs at least "
                f"{self.min_samples}."
            )
        return audio.normalise(cropped)

    def images(self, images: Sequence[Image.Image]) -> tuple[Tensor, ...]:
        """Return features (B, R, F) and boxes (B, R, 4), or pixels (B, 3, S, S)."""
        try:
            return image_inputs(self.config, images, self.regions)
        except OSError as error:
            raise VgsplusError(f"A picture of the mteb task {self.task} cannot be read ({error}).") from None


def _rows(embeddings: ArrayLike | Tensor) -> Tensor:
    """Convert to (N, D); (D,) is one row."""
    vectors = torch.as_tensor(embeddings)
    return vectors.reshape(-1, vectors.shape[-1])
