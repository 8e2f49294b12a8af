"""Sound files below a folder, and whether a model can hear them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from vgsplus import audio
from vgsplus.errors import AudioError, CorpusError
from vgsplus.evaluation.embedding import READERS
from vgsplus.files import as_on_disk, files_below

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vgsplus.models.vgsplus import VGSPlus

    type Progress = Callable[[int, int], object]

SHOWN_FAULTS = 20


def find_sounds(place: Path) -> dict[str, Path]:
    """The sounds below a folder (see `sounds_below`), or the one file, whatever its ending.

    Returns:
        {name: file} in the order of the names.

    Raises:
        CorpusError: there is nothing, no sound, or two sounds differ in their suffix alone.
    """
    place = as_on_disk(place)
    if place.is_file():
        return {place.stem: place}
    if not place.is_dir():
        raise CorpusError(f"{place}: there is no such file or folder.")
    if not (sounds := sounds_below(place)):
        raise CorpusError(f"{place}: holds no sound files ({', '.join(sorted(audio.SUFFIXES))}).")
    return sounds


def sounds_below(folder: Path) -> dict[str, Path]:
    """The files below a folder, at any depth, that end as `audio.SUFFIXES`; none where there is no folder.

    Returns:
        {name: file} in the order of the names: paths below the folder, with "/" and without the last ending,
        so that a.wav is "a" and a.wav.wav is "a.wav".

    Raises:
        CorpusError: two sounds differ in their ending alone.
        VgsplusError: a folder cannot be read.
    """
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
        raise CorpusError(list_faults(faults))
    return dict(sorted(sounds.items()))


def measure(
    paths: Sequence[Path], model: VGSPlus, *, least_frames: int = 1, progress: Progress | None = None
) -> tuple[list[int], list[str]]:
    """Decode sounds of any rate (see `audio.load_any`): their lengths in samples at 16 kHz, and all faults.

    A sound that cannot be read, is silent, or is too short for `least_frames` frames of the model is a fault
    and has no length.
    """

    def length(path: Path) -> int | AudioError:
        try:
            return len(audio.load_any(path))
        except AudioError as error:
            return error

    wanted = "one frame" if least_frames == 1 else f"{least_frames} frames"
    num_samples, faults = [], []
    with ThreadPoolExecutor(READERS) as pool:
        for done, (path, found) in enumerate(zip(paths, pool.map(length, paths), strict=True), start=1):
            if isinstance(found, AudioError):
                faults.append(str(found))
            elif int(model.speech.waveform.num_frames(torch.tensor(found))) < least_frames:
                faults.append(f"{path}: {found} samples at 16 kHz are too short for {wanted}. {audio.MEND}")
            else:
                num_samples.append(found)
            if progress:
                progress(done, len(paths))
    return num_samples, faults


def list_faults(faults: Sequence[str]) -> str:
    """The faults as lines, the first of them if there are many."""
    more = len(faults) - SHOWN_FAULTS
    return "\n".join([*faults[:SHOWN_FAULTS], *([f"… and {more} more faults"] if more > 0 else [])])
