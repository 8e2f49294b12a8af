"""Write hidden states of sounds as files for other programs (`vgsplus embed`): .npy, .pt or HDF5.

All layers of a sound come from one pass of the model. Memory holds the outputs of one batch.

Shape letters: L layers, T frames, D dimensions.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from vgsplus import audio
from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.evaluation.hidden_states import (
    check_audio,
    check_finite,
    frame_rate,
    iterate_hidden_states,
)
from vgsplus.files import as_on_disk, atomic_file, files_below, write_file
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.progress import SILENT, Progress

type Features = NDArray[np.float32]
type Save = Callable[[BufferedWriter, Features], object]
type Metadata = Mapping[str, Any]
type Store = FeatureFolder | FeatureFile

METADATA_FILE = "features.json"
GIGABYTE = 1e9


# ---- sounds -----------------------------------------------------------------------------------------------


def find_sounds(path: Path) -> dict[str, Path]:
    """Find the sounds at any depth below a folder, or take the one file, whatever its suffix.

    Returns:
        {name: file}, sorted by name. A name is the path below the folder, with "/" and without the last
        suffix: a.wav is "a", and a.wav.wav is "a.wav".

    Raises:
        CorpusError: the path does not exist, there are no sounds, or two sounds differ in their suffix only.
        VgsplusError: a folder cannot be read.
    """
    path = as_on_disk(path)
    if path.is_file():
        return {path.stem: path}
    if not path.is_dir():
        raise CorpusError(f"{path}: there is no such file or folder.")
    if not (sounds := sounds_below(path)):
        raise CorpusError(f"{path}: holds no sound files ({', '.join(sorted(audio.SUFFIXES))}).")
    return sounds


def sounds_below(folder: Path) -> dict[str, Path]:
    """As `find_sounds` of a folder, but return {} if it does not exist or holds no sounds."""
    folder = as_on_disk(folder)
    if not folder.is_dir():
        return {}
    sounds: dict[str, Path] = {}
    faults = []
    for path in files_below(folder):
        if path.suffix.lower() not in audio.SUFFIXES:
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        other = sounds.setdefault(name, path)
        if other != path:
            faults.append(f"{other} and {path} have one name, {name}. Rename or remove one of them.")
    if faults:
        raise CorpusError(faults)
    return dict(sorted(sounds.items()))


# ---- export -----------------------------------------------------------------------------------------------


def pending(
    store: Store,
    sounds: Mapping[str, Path],
    model: VGSPlus,
    layers: Sequence[int],
    progress: Progress = SILENT,
) -> dict[str, Path]:
    """Return the sounds whose features a store lacks, after all checks that do not run the model.

    Sounds are {name: file of any rate}, and layers are numbered from 1. `progress` receives the stage
    "checking".

    Raises:
        VgsplusError: the store exists with other contents, cannot be written, or the disk space is too small.
        CorpusError: sounds that cannot be read, are silent or too short: all of them are listed.
    """
    missing = {name: sounds[name] for name in store.missing(sounds)}
    num_samples, faults = check_audio(
        list(missing.values()), model, min_frames=store.min_frames, progress=progress
    )
    if faults:
        raise CorpusError(faults)
    frames = int(model.speech.waveform.num_frames(torch.tensor(num_samples, dtype=torch.int64)).sum())
    needed = frames * len(layers) * model.config.dim * store.bytes_per_value
    free = shutil.disk_usage(_nearest_folder(store.path)).free
    if needed > free:
        raise VgsplusError(
            f"{store.path}: the features take {needed / GIGABYTE:.1f} GB, and {free / GIGABYTE:.1f} GB are "
            "free there. Free disk space, or name another path or fewer layers."
        )
    return missing


def export(
    store: Store,
    sounds: Mapping[str, Path],
    model: VGSPlus,
    layers: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    batch_seconds: float = 60.0,
    progress: Progress = SILENT,
) -> None:
    """Write the hidden states of sounds, float32: (T, D) of one layer, (L, T, D) of several.

    Takes the sounds that `pending` returns. Layers are numbered from 1 and written in the given order. After
    an interruption the features written so far remain, except in an HDF5 file. `progress` receives the stage
    "embedding"; other arguments are as in `iterate_hidden_states`.

    Raises:
        VgsplusError: features that cannot be written, or are not finite.
        AudioError: a sound that can no longer be used.
    """
    with store:
        found = iterate_hidden_states(model, sounds, layers, device=device, batch_seconds=batch_seconds)
        for done, (name, outputs) in enumerate(found, start=1):
            for layer, frames in zip(layers, outputs, strict=True):
                check_finite(frames, f"Features of {sounds[name]}, layer {layer}")
            features = outputs[0] if len(layers) == 1 else torch.stack(outputs)
            store.add(name, features.cpu().numpy())
            progress.update("embedding", done, len(sounds))


# ---- files and folders ------------------------------------------------------------------------------------


def metadata_of(model: VGSPlus, path: Path, layers: Sequence[int]) -> Metadata:
    """Return the metadata of hidden states.

    Returns:
        model: the path from which the model was read; weights: SHA-256 of its speech encoder; layers: L
        transformer layers from 1, in their order in the features; frame_rate: frames per second.
    """
    return {
        "model": str(path),
        "weights": weights_digest(model),
        "layers": list(layers),
        "frame_rate": float(frame_rate(model)),
    }


def weights_digest(model: VGSPlus) -> str:
    """Return the SHA-256 of a model's speech encoder."""
    digest = hashlib.sha256(model.config.padding.encode())
    for name, tensor in sorted(model.speech.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def open_store(form: Literal["npy", "pt", "hdf5"], path: Path, metadata: Metadata) -> Store:
    """Return the writer of a format: a folder of .npy files or of .pt files, or an HDF5 file."""
    if form == "hdf5":
        return FeatureFile(path, metadata)
    if form == "npy":
        return FeatureFolder(path, ".npy", np.save, metadata)
    return FeatureFolder(path, ".pt", lambda file, array: torch.save(torch.from_numpy(array), file), metadata)


class FeatureFolder:
    """A folder with a file per sound, NAME.suffix, and features.json, their metadata.

    Files are complete or absent, so an interrupted export resumes with the missing ones. Call `missing`
    before entering the folder as a context manager.

    Args:
        path: the folder; its parents are made too.
        suffix: suffix of the files.
        save: function that writes features to an open file.
        metadata: as from `metadata_of`; all features in a folder are of one model and the same layers.
    """

    min_frames = 1
    """Minimum number of frames of a sound."""
    bytes_per_value = 4
    """Approximate bytes per number on disk."""

    def __init__(self, path: Path, suffix: str, save: Save, metadata: Metadata) -> None:
        self.path = self.folder = path
        self.metadata = metadata
        self._suffix, self._save = suffix, save

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return the names whose features are missing; write nothing.

        Raises:
            VgsplusError: the folder cannot be written or holds features of another model or other layers, or
                one name would be both a file and a folder.
        """
        _check_writable(self.folder)
        names = list(names)
        _check_nesting({f"{name}{self._suffix}": name for name in names}, "a folder")
        missing = [name for name in names if not self._file(name).exists()]
        known = self.folder / METADATA_FILE
        if known.exists():
            self._check_metadata(known)
        elif len(missing) < len(names):
            raise VgsplusError(
                f"{self.folder}: holds files such as {next(n for n in names if n not in missing)}"
                f"{self._suffix}, but no {METADATA_FILE} with their model and layers. Choose another folder."
            )
        return missing

    def add(self, name: str, features: Features) -> None:
        """Write the features (T, D) or (L, T, D) of a sound.

        Raises:
            VgsplusError: they cannot be written.
        """
        path = self._file(name)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                self._save(file, features)

    def __enter__(self) -> Self:
        text = json.dumps(self.metadata, indent=1, ensure_ascii=False)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / METADATA_FILE).exists():
                write_file(self.folder / METADATA_FILE, f"{text}\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Do nothing: the files are already complete."""

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}{self._suffix}"

    def _check_metadata(self, known: Path) -> None:
        try:
            found = json.loads(known.read_text(encoding="utf-8"))
            layers, model, weights = found["layers"], found["model"], found["weights"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise VgsplusError(f"{known}: is broken ({error!r}). Choose another folder.") from None
        if (weights, layers) != (self.metadata["weights"], self.metadata["layers"]):
            raise VgsplusError(
                f"{self.folder}: holds features of layers {layers} of {model}, or of earlier weights of it, "
                f"not of layers {self.metadata['layers']} of {self.metadata['model']}. Choose another "
                "folder, or remove this one."
            )


class FeatureFile:
    """An HDF5 file with a dataset per sound and the metadata as attributes; used like a `FeatureFolder`.

    The file appears when it is complete; an interrupted export leaves no file.
    """

    min_frames = 1
    bytes_per_value = 4

    def __init__(self, path: Path, metadata: Metadata) -> None:
        self.path, self.metadata = path, metadata
        self._stack = ExitStack()
        self._file: h5py.File | None = None

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return all names.

        Raises:
            VgsplusError: the file exists or cannot be written, or a name is not UTF-8 or would be both a
                dataset and a group.
        """
        check_absent(self.path)
        names = list(names)
        _check_nesting({name: name for name in names}, "an HDF5 file")
        for name in names:
            try:
                name.encode()
            except UnicodeEncodeError:
                raise VgsplusError(
                    f"The name of the sound {name!r} is not UTF-8, which HDF5 requires. Rename it, or choose "
                    "another format."
                ) from None
        return names

    def add(self, name: str, features: Features) -> None:
        """As `FeatureFolder.add`."""
        assert self._file is not None
        with writing(self.path):
            self._file.create_dataset(name, data=features)

    def __enter__(self) -> Self:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self._stack.enter_context(atomic_file(self.path))
            self._file = self._stack.enter_context(h5py.File(file.name, "w"))
        self._file.attrs.update(self.metadata)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError) if kind else writing(self.path):
            self._stack.__exit__(kind, error, trace)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert an OSError to a VgsplusError that names the path."""
    try:
        yield
    except OSError as error:
        raise VgsplusError(
            f"{path}: cannot be written ({error.strerror or error}). Choose another path."
        ) from error


def _check_writable(folder: Path) -> None:
    """Check that a file can be created in a folder, or in its nearest existing parent."""
    with writing(folder), tempfile.TemporaryFile(dir=_nearest_folder(folder)):
        pass


def check_absent(path: Path) -> None:
    """Raise VgsplusError if a path exists or cannot be created."""
    if path.exists():
        raise VgsplusError(f"{path}: exists already. Choose another path, or remove this one.")
    _check_writable(path.parent)


def _check_nesting(paths: Mapping[str, str], where: str) -> None:
    """Raise VgsplusError if the path of a sound, {path: name}, is inside that of another."""
    for path, name in paths.items():
        for parent in map(str, Path(path).parents):
            if parent in paths:
                raise VgsplusError(
                    f"The sounds {paths[parent]} and {name} cannot both be in {where}: {parent} would have "
                    "to hold features and other sounds. Rename one of them, or choose another format."
                )


def _nearest_folder(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
