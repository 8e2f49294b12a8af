"""Features of sounds as files for other programs: .npy, .pt or one HDF5 file.

A model hears each sound once for all layers. Memory holds the outputs of one batch.

Shape letters: L layers, T frames, D dimensions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, Self

import h5py
import numpy as np
import torch

from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.evaluation.abx_frames import check_finite
from vgsplus.evaluation.layers import frame_rate, speech_layers
from vgsplus.evaluation.sounds import list_faults, measure
from vgsplus.files import whole_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from io import BufferedWriter

    from numpy.typing import NDArray

    from vgsplus.evaluation.sounds import Progress
    from vgsplus.models.vgsplus import VGSPlus

    type Write = Callable[[BufferedWriter, NDArray[np.float32]], object]

ABOUT = "features.json"
GIGABYTE = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What features come from.

    Attributes:
        model: where the model was read.
        weights: a digest of its speech encoder; another model has another, wherever it lies.
        layers: L transformer layers from 1, in their order in the features.
        frame_rate: frames a second.
    """

    model: str
    weights: str
    layers: tuple[int, ...]
    frame_rate: float


def origin_of(model: VGSPlus, path: Path, layers: Sequence[int]) -> Origin:
    """What features of these layers of a model, read at a path, come from."""
    digest = hashlib.sha256(model.config.padding.encode())
    for name, tensor in sorted(model.speech.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return Origin(
        model=str(path),
        weights=digest.hexdigest(),
        layers=tuple(layers),
        frame_rate=float(frame_rate(model)),
    )


class Store(Protocol):
    """Where features go: a context manager that is entered once its place was found free.

    `least_frames` is what a sound must have, `bytes_per_value` what a number takes on disk.
    """

    least_frames: int
    bytes_per_value: int

    @property
    def place(self) -> Path:
        """The file or folder that will hold the features."""

    def missing(self, names: Iterable[str]) -> list[str]:
        """The names of which there are no features yet; writes nothing.

        Raises:
            VgsplusError: the place holds something else or cannot be written.
        """

    def add(self, name: str, features: NDArray[np.float32]) -> None:
        """Keep the features (T, D) or (L, T, D) of a sound.

        Raises:
            VgsplusError: they cannot be written.
        """

    def __enter__(self) -> Self:
        """Make the place; raises VgsplusError where that fails."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave it whole."""


# ---- writing ----------------------------------------------------------------------------------------------


def select(
    store: Store,
    sounds: Mapping[str, Path],
    model: VGSPlus,
    layers: Sequence[int],
    progress: Progress | None = None,
) -> dict[str, Path]:
    """The sounds whose features a store lacks, after every check that needs no pass of the model.

    Args:
        store: where the features will go.
        sounds: {name: sound file of any rate}.
        model: whose features they will be.
        layers: L transformer layers, from 1.
        progress: called with the sounds checked and the sounds in all.

    Raises:
        VgsplusError: a place that is taken, cannot be written or has no room.
        CorpusError: sounds that cannot be read, are silent or too short: all of them are told.
    """
    missing = {name: sounds[name] for name in store.missing(sounds)}
    num_samples, faults = measure(
        list(missing.values()), model, least_frames=store.least_frames, progress=progress
    )
    if faults:
        raise CorpusError(list_faults(faults))
    frames = int(model.speech.waveform.num_frames(torch.tensor(num_samples, dtype=torch.int64)).sum())
    needed = frames * len(layers) * model.config.dim * store.bytes_per_value
    free = shutil.disk_usage(_nearest_folder(store.place)).free
    if needed > free:
        raise VgsplusError(
            f"{store.place}: the features take {needed / GIGABYTE:.1f} GB, and {free / GIGABYTE:.1f} GB are "
            "free there. Make room, name another place, or fewer layers."
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
    progress: Progress | None = None,
) -> None:
    """Write the features of sounds: float32 (T, D) of one layer, (L, T, D) of several, from one pass for all.

    Sounds are heard as `layers.speech_layers` says; what was written stays when the work is interrupted, but
    in an HDF5 file.

    Args:
        store: where they go.
        sounds: those that `select` gave.
        model: a model that already is on `device`; its modes are left as they were.
        layers: L transformer layers from 1, in the order wanted.
        device: where the batches go.
        batch_seconds: sound in one pass, padding included; a longer file goes alone.
        progress: called with the sounds done and the sounds in all.

    Raises:
        VgsplusError: features that cannot be written.
        VgsplusError: features that are not finite.
        AudioError: a sound that cannot be used any more.
    """
    with store:
        heard = speech_layers(model, sounds, layers, device=device, batch_seconds=batch_seconds)
        for done, (name, outputs) in enumerate(heard if sounds else (), start=1):
            for layer, frames in zip(layers, outputs, strict=True):
                check_finite(frames, f"{sounds[name]}, layer {layer}")
            features = outputs[0] if len(layers) == 1 else torch.stack(outputs)
            store.add(name, features.cpu().numpy())
            if progress:
                progress(done, len(sounds))


def require_writable(folder: Path) -> None:
    """Make sure that files can be made in a folder, or where it has to be made itself; leaves nothing.

    Raises:
        VgsplusError: they cannot.
    """
    try:
        with tempfile.TemporaryFile(dir=_nearest_folder(folder)):
            pass
    except OSError as error:
        raise unwritable(folder, error) from None


def unwritable(place: Path, error: OSError) -> VgsplusError:
    """The error of a place where the system refuses to write."""
    return VgsplusError(f"{place}: cannot be written ({error.strerror or error}). Choose another place.")


def _require_apart(places: Mapping[str, str], where: str) -> None:
    """Raise VgsplusError where the place of a sound, by its name, lies inside that of another."""
    for place, name in places.items():
        for parent in map(str, Path(place).parents):
            if parent in places:
                raise VgsplusError(
                    f"The sounds {places[parent]} and {name} cannot both be in {where}: {parent} would have "
                    "to hold features and other sounds. Rename one of them, or choose another format."
                )


def _nearest_folder(place: Path) -> Path:
    """The place itself where there is something, else the nearest folder above it."""
    return next(folder for folder in (place, *place.absolute().parents) if folder.exists())


# ---- places -----------------------------------------------------------------------------------------------


def open_store(form: Literal["npy", "pt", "hdf5"], out: Path, origin: Origin) -> Store:
    """A folder of .npy files or of .pt files, each a plain tensor, or one HDF5 file."""
    match form:
        case "npy":
            return FeatureFolder(out, ".npy", np.save, origin)
        case "pt":
            return FeatureFolder(out, ".pt", _save_tensor, origin)
        case "hdf5":
            return FeatureFile(out, origin)


def _save_tensor(file: BufferedWriter, features: NDArray[np.float32]) -> None:
    torch.save(torch.from_numpy(features), file)


class FeatureFolder:
    """A folder with a file a sound, at the sound's name, and features.json, which tells their origin.

    Files are whole or not there, so that an interrupted export goes on with those that are missing.

    Args:
        place: the folder; its parents are made too.
        suffix: of the files.
        write: puts features into an open file.
        origin: of the features; a folder holds those of one origin.
        bytes_per_value: about what a number takes in such a file.
        least_frames: which a sound must have.
    """

    def __init__(
        self,
        place: Path,
        suffix: str,
        write: Write,
        origin: Origin,
        *,
        bytes_per_value: int = 4,
        least_frames: int = 1,
    ) -> None:
        self.place, self.bytes_per_value, self.least_frames = place, bytes_per_value, least_frames
        self._suffix, self._write, self._origin = suffix, write, origin

    def missing(self, names: Iterable[str]) -> list[str]:
        """As `Store.missing`; features that are there must have the same origin, by features.json.

        VgsplusError also where a file would have to be a folder of others.
        """
        require_writable(self.place)
        names = list(names)
        _require_apart({f"{name}{self._suffix}": name for name in names}, "a folder")
        missing = [name for name in names if not self._path(name).exists()]
        known = self.place / ABOUT
        if known.exists():
            self._require_same_origin(known)
        elif len(missing) < len(names):
            raise VgsplusError(
                f"{self.place}: holds files such as {next(n for n in names if n not in missing)}"
                f"{self._suffix}, but no {ABOUT} that tells where they come from. Choose another folder."
            )
        return missing

    def add(self, name: str, features: NDArray[np.float32]) -> None:
        """As `Store.add`."""
        path = self._path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                self._write(file, features)
        except OSError as error:
            raise unwritable(path, error) from error

    def __enter__(self) -> Self:
        about = json.dumps(dataclasses.asdict(self._origin), indent=1, ensure_ascii=False)
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            if not (self.place / ABOUT).exists():
                with whole_file(self.place / ABOUT) as file:
                    file.write(f"{about}\n".encode())
        except OSError as error:
            raise unwritable(self.place, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        """Every file is whole already."""

    def _path(self, name: str) -> Path:
        return self.place / f"{name}{self._suffix}"

    def _require_same_origin(self, known: Path) -> None:
        try:
            found = json.loads(known.read_text(encoding="utf-8"))
            layers, model, weights = found["layers"], found["model"], found["weights"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise VgsplusError(f"{known}: is broken ({error!r}). Choose another folder.") from None
        if weights != self._origin.weights or layers != list(self._origin.layers):
            raise VgsplusError(
                f"{self.place}: holds features of layers {layers} of {model}, or of other weights that were "
                f"there, not of layers {list(self._origin.layers)} of {self._origin.model}. Choose another "
                "folder, or remove this one."
            )


class FeatureFile:
    """An HDF5 file with a dataset a sound and the attributes layers, frame_rate (Hz), model and weights.

    It gets its name when it is whole; an interrupted export leaves none.

    Args:
        place: the file, which must not be there; its folder is made.
        origin: of the features.
    """

    least_frames = 1
    bytes_per_value = 4

    def __init__(self, place: Path, origin: Origin) -> None:
        self.place, self._origin = place, origin
        self._temporary = place.parent / f".{place.name}.writing"
        self._file: h5py.File | None = None

    def missing(self, names: Iterable[str]) -> list[str]:
        """All names; VgsplusError also where one would have to be a dataset and a group of others."""
        if self.place.exists():
            raise VgsplusError(f"{self.place}: is there already. Choose another file, or remove this one.")
        require_writable(self.place.parent)
        names = list(names)
        _require_apart({name: name for name in names}, "an HDF5 file")
        for name in names:
            try:
                name.encode()
            except UnicodeEncodeError:
                raise VgsplusError(
                    f"The name of the sound {name!r} is not UTF-8, and names in an HDF5 file are. Rename it, "
                    "or choose another format."
                ) from None
        return names

    def add(self, name: str, features: NDArray[np.float32]) -> None:
        """As `Store.add`."""
        assert self._file is not None
        try:
            self._file.create_dataset(name, data=features)
        except OSError as error:
            raise unwritable(self.place, error) from error

    def __enter__(self) -> Self:
        try:
            self.place.parent.mkdir(parents=True, exist_ok=True)
            self._file = h5py.File(self._temporary, "w")
        except OSError as error:
            raise unwritable(self.place, error) from error
        self._file.attrs.update(dataclasses.asdict(self._origin))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._file is not None
        try:
            self._file.close()
            if kind is None:
                self._temporary.replace(self.place)
        except OSError as error:
            if kind is None:
                raise unwritable(self.place, error) from error
        finally:
            self._temporary.unlink(missing_ok=True)
