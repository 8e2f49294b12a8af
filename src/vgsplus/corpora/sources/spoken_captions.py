"""What corpora of pictures with captions read aloud share: lists of captions and regions become a corpus.

The lists are read several times rather than held, so that half a million captions take no memory. Sounds are
used where they are.
"""

import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import batched
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vgsplus.audio import num_samples
from vgsplus.audio_files import sound_exists
from vgsplus.corpora import Caption, CorpusWriter, Summary
from vgsplus.corpora.preparing import MIN_SAMPLES, MIN_SECONDS, reason
from vgsplus.corpora.sources.caption_lists import Source, SpokenCaption, walk
from vgsplus.errors import AudioError, CorpusError
from vgsplus.files import as_on_disk, is_file
from vgsplus.images import open_image
from vgsplus.parallel import stream_in_parallel
from vgsplus.progress import Progress
from vgsplus.regions.collect import NOT_HELD, Collected, collect_regions
from vgsplus.regions.pixel_grid import grid_regions
from vgsplus.regions.store import Dtype, provenance_of

SOUNDS_AT_ONCE = 4096
PICTURES_AT_ONCE = 512
"""Described before their features go to disk."""
TOO_SHORT = f"shorter than {MIN_SECONDS} s"
NO_SPLIT = "picture of no split"
NO_SPEAKER = "unknown speaker"
NO_REGIONS = "picture without regions"
EMPTY = "holds no samples"
NO_FAULTS = {TOO_SHORT, EMPTY, NO_SPLIT}
"""Reasons for which a caption is left out without being asked to."""

type Regions = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


@dataclass(slots=True)
class Survey:
    """What the lists hold: each picture's id and split by its key, captions left out, faults."""

    images: dict[int | str, str] = field(default_factory=dict)
    splits: dict[int | str, str] = field(default_factory=dict)
    captions: int = 0
    faults: list[str] = field(default_factory=list)


def prepare_spoken_captions(
    source: Source,
    root: Path,
    *,
    audio_root: Path,
    features: Sequence[Path],
    image_root: Path | None,
    dtype: Dtype,
    skip_faulty: bool,
    overwrite: bool,
    progress: Progress,
) -> Summary:
    """Prepare a source as a corpus at `root`, with the regions in `features`.

    Without `features`, the pictures in `image_root` are described by the cells of a plain grid. Captions
    shorter than 0.25 s or of no split are left out; with `skip_faulty` also those whose sound is absent or
    faulty, whose speaker is unknown, whose picture has no regions, or whose uttid or wav has come before.

    Raises:
        CorpusError: `root` is taken; every fault of the lists; then of the sounds; then of the regions.
    """
    _check_inputs(source, audio_root, features, image_root)
    with CorpusWriter(
        root,
        name=source.name,
        version="1",
        provenance={
            "source": source.title,
            "lists": {what: str(path.absolute()) for what, path in source.files.items()},
            "features": [str(path.absolute()) for path in features],
            "regions": [provenance_of(path) for path in features],
        },
        licence=source.licence,
        audio_root=audio_root.absolute(),
        image_root=None if image_root is None else image_root.absolute(),
        overwrite=overwrite,
        check_contents=False,
    ) as writer:
        # Those of a grid may be left out when they are described.
        looked = image_root if features or not skip_faulty else None
        survey = _survey(source, looked, skip_faulty=skip_faulty)
        if survey.faults:
            raise CorpusError(survey.faults)
        # Read beforehand, because half an hour of regions is no time to learn of a missing folder of wavs.
        samples, reasons = _measure(source, audio_root, survey.captions, progress)
        if not skip_faulty and (faults := _caption_faults(source, reasons)):
            raise CorpusError(faults)
        # Beside the writer's folder, which the next writer clears.
        staging = writer.root.with_name(f".{writer.root.name}.regions")
        regions: Collected | None = None
        if image_root is not None and not features:
            missing = _describe_pictures(writer, image_root, list(survey.images.values()), dtype, progress)
        else:
            regions = collect_regions(
                features,
                survey.images,
                staging,
                image_key=source.image_key,
                dtype=dtype,
                partial=skip_faulty,
                progress=progress,
            )
            missing = dict.fromkeys(regions.missing, NOT_HELD)
        if missing and not skip_faulty:
            raise CorpusError([f"{image}: {what}" for image, what in missing.items()])
        _add_captions(writer, source, survey, samples, reasons, missing)
        if regions is not None:
            writer.adopt_regions(regions.path, regions.images)
            writer.note("regions_of_no_caption", regions.unnamed)
        for key, value in source.notes(Counter(survey.splits.values())).items():
            writer.note(key, value)
        summary = writer.finish()
    shutil.rmtree(staging, ignore_errors=True)
    return summary


def _check_inputs(
    source: Source, audio_root: Path, features: Sequence[Path], image_root: Path | None
) -> None:
    """Raise for folders and files that are not there, before anything is read."""
    for what, folder in (("the folder of the wavs", audio_root), ("the folder of the pictures", image_root)):
        if folder is not None and not folder.is_dir():
            raise CorpusError(f"{folder}: there is no such folder, {what}.")
    if not features and image_root is None:
        raise CorpusError(
            f"{source.title}: no file of region features. Name one or more with --features, or the pictures "
            "with --images, to describe them by a plain grid."
        )
    if absent := [path for path in features if not path.is_file()]:
        raise CorpusError([f"{path}: there is no such file of region features." for path in absent])


def _survey(source: Source, image_root: Path | None, *, skip_faulty: bool) -> Survey:
    """Read all lists once for what is wrong with them, alone and together."""
    survey = Survey()
    uttids: dict[str, str] = {}
    wavs: dict[str, str] = {}
    for split, caption in source.read():
        if isinstance(caption, str):
            survey.faults.append(caption)
            continue
        survey.captions += 1
        if split is None:
            continue
        key = source.image_key(caption.image)
        if key is None or _leaves(caption.image):
            survey.faults.append(f"{caption.place}: {caption.image!r} is no picture of {source.pictures}")
            continue
        if not skip_faulty:
            survey.faults += _repeats(caption, uttids, wavs)
        survey.images.setdefault(key, caption.image)
        home = survey.splits.setdefault(key, split)
        if home != split:
            survey.faults.append(f"{caption.place}: {caption.image} is in the split {home!r} already")
    if image_root is not None:
        pictures = (image_root / image for image in survey.images.values())
        survey.faults += [
            f"{path}: there is no such picture" for path in pictures if not is_file(as_on_disk(path))
        ]
    if not survey.images and not survey.faults:
        survey.faults.append(f"{', '.join(map(str, source.files.values()))}: hold no captions")
    return survey


def _repeats(caption: SpokenCaption, uttids: dict[str, str], wavs: dict[str, str]) -> Iterator[str]:
    """A fault where the uttid or the wav of a caption has come before; the places of both are kept."""
    for what, name, places in (("uttid", caption.uttid, uttids), ("wav", caption.wav, wavs)):
        if name in places:
            yield f"{caption.place}: the {what} {name} has come before ({places[name]})"
            return
    uttids[caption.uttid] = wavs[caption.wav] = caption.place


def _leaves(image: str) -> bool:
    """Whether a picture's path leads out of the folder of the pictures."""
    return ".." in Path(image).parts or Path(image).is_absolute()


def _measure(
    source: Source, audio_root: Path, total: int, progress: Progress
) -> tuple["array[int]", dict[int, str]]:
    """Samples of each caption's sound, from its header, and why some are out, by the caption's number."""
    samples = array("i")
    reasons: dict[int, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for some in batched(walk(source), SOUNDS_AT_ONCE):
            paths = [audio_root / caption.wav for _, caption in some]
            for (split, caption), length in zip(some, pool.map(_length, paths), strict=True):
                if split is None:
                    reasons[len(samples)] = NO_SPLIT
                elif isinstance(length, str):
                    reasons[len(samples)] = length
                elif caption.speaker is None:
                    reasons[len(samples)] = NO_SPEAKER
                samples.append(0 if isinstance(length, str) else length)
            progress.update("sounds", len(samples), total)
    return samples, reasons


def _length(path: Path) -> int | str:
    """Samples of a sound that can be used where it is, or the reason why it cannot."""
    if not sound_exists(path):
        return "absent sound"
    try:
        length = num_samples(path)
    except AudioError as error:
        return reason(error, path)
    return length if length >= MIN_SAMPLES else TOO_SHORT


def _caption_faults(source: Source, reasons: Mapping[int, str]) -> list[str]:
    if not set(reasons.values()) - NO_FAULTS:
        return []
    return [
        f"{caption.place}: {caption.wav}: {reasons[index]}"
        for index, (_, caption) in enumerate(walk(source))
        if reasons.get(index, TOO_SHORT) not in NO_FAULTS
    ]


def _describe_pictures(
    writer: CorpusWriter, image_root: Path, images: Sequence[str], dtype: Dtype, progress: Progress
) -> dict[str, str]:
    """Add the regions of a plain grid for each picture; those that cannot be read, and why."""
    missing: dict[str, str] = {}
    paths = [image_root / image for image in images]
    described = stream_in_parallel(
        _describe, paths, partial(progress.update, "pictures"), at_once=PICTURES_AT_ONCE
    )
    for image, outcome in zip(images, described, strict=True):
        if isinstance(outcome, str):
            missing[image] = outcome
        else:
            features, boxes = outcome
            writer.add_regions(image, features.astype(dtype), boxes)
    return missing


def _describe(path: Path) -> Regions | str:
    try:
        return grid_regions(open_image(path))
    except CorpusError as error:
        return str(error)


def _add_captions(
    writer: CorpusWriter,
    source: Source,
    survey: Survey,
    samples: Sequence[int],
    reasons: Mapping[int, str],
    missing: Collection[str],
) -> None:
    uttids: set[str] = set()
    wavs: set[str] = set()
    for index, (split, caption) in enumerate(walk(source)):
        key = source.image_key(caption.image)
        image = caption.image if key is None else survey.images.get(key, caption.image)
        reason = reasons.get(index)
        if reason is None and image in missing:
            reason = NO_REGIONS
        if reason is None and caption.uttid in uttids:
            reason = "uttid that has come before"
        if reason is None and caption.wav in wavs:
            reason = "wav that has come before"
        if reason is not None:
            writer.skip(reason, json.dumps([caption.uttid, caption.wav, image]))
            continue
        assert split is not None
        assert caption.speaker is not None
        uttids.add(caption.uttid)
        wavs.add(caption.wav)
        writer.add_caption(
            Caption(
                id=caption.uttid,
                split=split,
                audio=caption.wav,
                num_samples=samples[index],
                speaker=caption.speaker,
                language="en",
                image=image,
                text=caption.text,
            )
        )
