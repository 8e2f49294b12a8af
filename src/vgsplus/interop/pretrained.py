"""A trained model to use from Python: embeddings of sounds and pictures, hidden states, saving and sharing.

Shape letters: N sounds, M pictures, D embedding, S samples, T frames.
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from itertools import batched
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from vgsplus import audio
from vgsplus.audio import SAMPLE_RATE
from vgsplus.errors import CheckpointError, CorpusError, VgsplusError
from vgsplus.evaluation.hidden_states import (
    batch_by_length,
    check_audio,
    check_finite,
    inference,
    layers_of,
    map_sounds,
    read_sound,
)
from vgsplus.evaluation.pointing.localise import STEP, Localisation, localise
from vgsplus.files import as_on_disk, is_file, write_file
from vgsplus.functional import check_stop
from vgsplus.interop import fast_vgs, hub
from vgsplus.interop.huggingface import CONFIG
from vgsplus.interop.loading import TOY, open_model, read_about, write_model
from vgsplus.interop.mapping import LoadReport
from vgsplus.models.published import PublishedVGSPlus
from vgsplus.models.vgsplus import ModelConfig, VGSPlus
from vgsplus.parallel import parallel_map
from vgsplus.progress import SILENT, Progress, console_progress
from vgsplus.regions.images import read_picture
from vgsplus.regions.pixel_grid import RegionFunction
from vgsplus.regions.restore import image_inputs, restore_regions

type Sound = str | Path | ArrayLike | Tensor
"""A file of any rate and channels, or samples (S,) at 16 kHz of any scale."""
type Picture = str | Path | Image.Image

BATCH_SAMPLES = 60 * SAMPLE_RATE
"""Samples of speech in one pass, padding included; a longer sound is processed alone."""
BATCH_PICTURES = 32
LONG_LIST = 100
"""Number of items from which the progress is displayed."""
_log = logging.getLogger("vgsplus")


class PretrainedModel(VGSPlus):
    """A `VGSPlus` that reads sounds and pictures, and knows how it was trained; `vgsplus.load` returns one.

    It runs where its parameters are (`load(…, device=…)`, or `to` of every PyTorch module), in evaluation
    mode and float32; its modes are restored.

    Attributes:
        about: what is recorded of the training, empty if nothing: "regions", how its pictures were described
            (`provenance.regions` of the corpus); "training", a JSON object of schedule, corpus and measures;
            "checkpoint", the folder of the run's checkpoint that it was read from, which is not saved.
    """

    about: Mapping[str, Any] = MappingProxyType({})

    def encode_speech(self, sounds: Sound | Sequence[Sound], *, progress: Progress | None = None) -> Tensor:
        """Embed complete sounds, in batches of similar length.

        Args:
            sounds: N files or arrays of samples; one of them is a list of one.
            progress: receives the stages "checking" and "speech". None: displayed for long lists.

        Returns:
            (N, D) float32 on the CPU, in the order of the sounds.

        Raises:
            CorpusError: files that cannot be read, are silent or too short: all are named, before one is
                embedded.
            AudioError: samples that are not (S,) finite real numbers, or too few for a frame.
            VgsplusError: the model is not grounded, or an embedding is not finite.
        """
        self._require_embeddings()
        listed = _as_list(sounds)
        with _display(progress, len(listed)) as shown:
            files = {n: Path(s) for n, s in enumerate(listed) if isinstance(s, str | Path)}
            file_lengths, faults = check_audio(list(files.values()), self, progress=shown)
            if faults:
                raise CorpusError(faults)
            lengths = dict(zip(files, file_lengths, strict=True))
            arrays = {n: read_sound(self, s) for n, s in enumerate(listed) if n not in files}
            lengths |= {n: len(signal) for n, signal in arrays.items()}
            # With published padding an output depends on its batch.
            size = 1 if self.config.padding == "published" else len(listed)
            found: dict[int, Tensor] = {}
            for index, embedding in map_sounds(
                self,
                self.embed_speech,
                lambda n: audio.normalise(audio.load_any(files[n]) if n in files else arrays[n]),
                batch_by_length(lengths, size=size, total=BATCH_SAMPLES),
                device=self._device,
            ):
                found[index] = embedding.float().cpu()
                shown.update("speech", len(found), len(listed))
        return self._stack([found[n] for n in range(len(listed))], "speech")

    def encode_image(
        self,
        images: Picture | Sequence[Picture],
        *,
        regions: RegionFunction | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Embed pictures.

        Args:
            images: M files or images of Pillow; one of them is a list of one.
            regions: describes a picture as those of the training were: features (R, F) and boxes (R, 4).
                None: as recorded at the training. Not used by a model that reads pictures.
            progress: receives the stage "pictures". None: displayed for long lists.

        Returns:
            (M, D) float32 on the CPU, in the order of the pictures.

        Raises:
            CorpusError: a file is missing (all are named, before one is embedded), a picture cannot be
                decoded, or is neither a file nor an image of Pillow.
            VgsplusError: the model is not grounded; it is not known how its pictures were described, or that
                cannot be repeated here; `regions` returns other shapes than at the training; or an embedding
                is not finite.
        """
        self._require_embeddings()
        one = isinstance(images, str | Path | Image.Image | np.ndarray | Tensor)
        listed: list[Picture] = [images] if one else list(images)  # type: ignore[arg-type, list-item]
        files = [Path(image) for image in listed if isinstance(image, str | Path)]
        if faults := [
            f"{path}: there is no such picture." for path in files if not is_file(as_on_disk(path))
        ]:
            raise CorpusError(faults)
        regions = self.region_function(regions)
        found: list[Tensor] = []
        with _display(progress, len(listed)) as shown, inference(self):
            for batch in batched(
                parallel_map(read_picture, listed, at_once=2 * BATCH_PICTURES), BATCH_PICTURES
            ):
                check_stop()
                inputs = image_inputs(self.config, batch, regions)
                found += self.embed_image(*(tensor.to(self._device) for tensor in inputs)).float().cpu()
                shown.update("pictures", len(found), len(listed))
        return self._stack(found, "image")

    @staticmethod
    def similarity(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> Tensor:
        """Return the dot products (N, M) of all pairs of embeddings (N, D) and (M, D), as in training."""
        return torch.inner(torch.as_tensor(a).float(), torch.as_tensor(b).float())

    def localise(
        self,
        sound: Sound,
        image: Picture,
        *,
        step: float = STEP,
        regions: RegionFunction | None = None,
        progress: Progress | None = None,
    ) -> Localisation:
        """Find which moments of a sound and regions of a picture make up their similarity.

        The sound is embedded once for each moment, with a window around it silenced, so that the time grows
        with the square of its length.

        Args:
            sound: a file or an array of samples.
            image: a file or an image of Pillow.
            step: seconds from one moment to the next, positive.
            regions: see `encode_image`.
            progress: receives the stage "windows". None: displayed from 100 moments on.

        Returns:
            times (T,) in seconds, boxes (R, 4), scores (T, R) of both together, time_scores (T,) and
            region_scores (R,) of each alone, and the similarity; see `Localisation`.

        Raises:
            AudioError: the sound cannot be read, is silent or too short for a frame.
            CorpusError: the picture is missing or cannot be decoded.
            VgsplusError: as for `encode_image`, or the step is not positive.
        """
        self._require_embeddings()
        if not step > 0:
            raise VgsplusError(f"The step from one moment to the next must be positive, not {step} s.")
        signal, picture = audio.normalise(read_sound(self, sound)), read_picture(image)
        inputs = image_inputs(self.config, [picture], self.region_function(regions))
        with _display(progress, round(len(signal) / SAMPLE_RATE / step)) as shown:
            return localise(self, signal, inputs, step=step, progress=shown)

    def layers(self, sound: Sound) -> dict[int, Tensor]:
        """Return the hidden states of all layers of one sound; see `evaluation.hidden_states.layers_of`.

        Returns:
            {layer from 1: (T, D) float32 on the CPU}.
        """
        return layers_of(self, sound)

    def region_function(self, given: RegionFunction | None = None) -> RegionFunction | None:
        """Return `given`, or what describes pictures as at the training; None if the model reads them."""
        if given is None and self.config.image is None:
            return restore_regions(self.about.get("regions"), self._device)
        return given

    # ---- saving -------------------------------------------------------------------------------------------

    def save_pretrained(
        self, save_directory: str | Path, *, licence: str | None = None, repo_id: str | None = None
    ) -> None:
        """Write model.safetensors, config.json and README.md, a model card, to a folder.

        An existing README.md is kept, as by the mixins of huggingface_hub.

        Args:
            save_directory: the folder, which may exist.
            licence: of the weights, as the hub names it, such as "cc-by-4.0", for the model card.
            repo_id: "organisation/name" on the hub, for the model card.

        Raises:
            CheckpointError: the folder holds a model of another kind, or what is recorded of the training is
                broken.
            OSError: it cannot be written.
        """
        folder = Path(save_directory)
        if (folder / CONFIG).exists() and read_about(folder) is None:
            raise CheckpointError(f"{folder}: holds a model of another kind. Choose another folder.")
        try:
            about = hub.public_record(self.about)
            card = hub.model_card(self, about, licence=licence, repo_id=repo_id)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f'The record of the training of this model is broken ({error!r}). Remove "training" from the '
                f"{CONFIG} it was loaded with."
            ) from None
        folder.mkdir(parents=True, exist_ok=True)
        write_model(self, folder, about)
        if not (folder / hub.CARD).exists():
            write_file(folder / hub.CARD, card)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        licence: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload a model of vgsplus",
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub, and return the URL of the commit.

        `private` and `token` are those of huggingface_hub.

        Raises:
            VgsplusError: huggingface_hub is not installed, or the hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, licence=licence, repo_id=repo_id)
            return hub.upload(
                Path(folder), repo_id, private=private, token=token, commit_message=commit_message
            )

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> "PretrainedModel":
        """Load a model from a folder or, if there is no such folder, from the Hugging Face hub.

        Args:
            name_or_folder: a folder that `load` reads, "organisation/name", or "toy".
            device: of the model.
            revision: branch, tag or commit on the hub; other arguments are those of huggingface_hub, too.
            cache_dir: folder of files from the hub.
            token: for a repository that is not public.
            force_download: fetch files that are in the cache.
            local_files_only: use the cache only.

        Raises:
            VgsplusError: as `load`; or the repository cannot be fetched, or holds no safetensors.
        """
        name = str(name_or_folder)
        if Path(name).exists() or name == TOY:
            return load(name, device=device)
        folder = hub.fetch(
            name.removeprefix(hub.PREFIX),
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        return load(folder, device=device)

    # ---- parts --------------------------------------------------------------------------------------------

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _require_embeddings(self) -> None:
        if not self.config.grounded:
            raise VgsplusError(
                "This model is a wav2vec 2.0 or HuBERT without grounding modules, which has no embeddings of "
                "sounds and pictures: use layers(sound), or load a model that was trained with pictures."
            )

    def _stack(self, found: Sequence[Tensor], what: str) -> Tensor:
        embeddings = torch.stack(list(found)) if found else torch.empty(0, self.config.dim)
        return check_finite(embeddings, f"The {what} embeddings")


class PublishedPretrainedModel(PretrainedModel, PublishedVGSPlus):
    """`PretrainedModel` in `published` padding mode, of published bundles."""


def load(path: str | Path, *, device: torch.device | str = "cpu") -> PretrainedModel:
    """Load a model in evaluation mode. No code in the file is executed.

    Weights that are stored as float16 or bfloat16 become float32. Logs a warning with a table if tensors of
    the file are not used, or tensors of the model keep their initial values.

    Args:
        path: one of

            - a run of vgsplus (its newest checkpoint), a checkpoint, or a folder that `save_pretrained` or
              `vgsplus convert` wrote;
            - "hf:organisation/name": a model on the Hugging Face hub, or in its cache on this machine;
            - "toy": a small VGS model of drawn scenes, in the package; a file or folder of that name in the
              current directory comes first;
            - a published bundle (`best_bundle.pth`, `bundle.pth`) or its folder; sizes are read from
              `args.pkl` next to it, or from the tensors;
            - a fairseq wav2vec 2.0 or HuBERT checkpoint;
            - a Hugging Face wav2vec 2.0 or HuBERT folder.

            Bundles get `published` padding. The models of fairseq and Hugging Face are not grounded.
        device: of the model.

    Raises:
        VgsplusError: the path is missing, broken or of an unknown kind, a tensor has a wrong shape, a model
            on the hub cannot be fetched, or PyTorch cannot use the device.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter in builds of PyTorch without CUDA
        raise VgsplusError(
            f"The device {str(device)!r} cannot be used: {str(error).partition('\n')[0]}"
        ) from None
    model, report = load_with_report(path)
    ours = {name for name in report.unused if not name.startswith(fast_vgs.DISCARDED)}
    if report.initial or ours or report.assumed:
        _log.warning("%s", report)
    return model.to(device)


def load_with_report(path: str | Path) -> tuple[PretrainedModel, LoadReport]:
    """Load a model from a path, on the CPU, and return which tensors were matched; errors as for `load`."""
    stored = open_model(Path(path))
    model, report = stored.build(_build)
    model.about = dict(stored.about)
    return model, report


def _build(config: ModelConfig) -> PretrainedModel:
    return (PublishedPretrainedModel if config.padding == "published" else PretrainedModel)(config)


def _as_list(sounds: Sound | Sequence[Sound]) -> list[Any]:
    """Return sounds as a list; a path or samples (S,) are a list of one."""
    numbers = isinstance(sounds, Sequence) and bool(sounds) and isinstance(sounds[0], Real)
    samples = isinstance(sounds, np.ndarray | Tensor) and sounds.ndim == 1
    one = isinstance(sounds, str | Path) or numbers or samples
    return [sounds] if one else list(sounds)  # type: ignore[arg-type]


def _display(progress: Progress | None, items: int) -> Progress:
    return progress or (console_progress() if items >= LONG_LIST else SILENT)
