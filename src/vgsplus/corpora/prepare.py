"""The pipeline from the captions that a source lists to a corpus.

A source yields a `CaptionEntry`, or a fault as text, for every caption. `prepare` reads the sounds (only
their headers where they are used in place), adds the regions of the images, and writes the captions. What
cannot be used is skipped or a fault; all faults are reported together.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vgsplus.audio import SCALED
from vgsplus.corpora.format import Caption, CaptionEntry
from vgsplus.corpora.sounds import Sound, nearest, phrase, read_headers, read_recordings
from vgsplus.corpora.writer import CorpusWriter, Summary
from vgsplus.errors import CorpusError
from vgsplus.files import is_file
from vgsplus.images import open_image
from vgsplus.parallel import parallel_map
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.pixel_grid import grid_regions
from vgsplus.regions.store import Dtype, RegionStore

NO_SPLIT = "picture of no split"
NO_REGIONS = "picture without regions"
IMAGES_AT_ONCE = 512
"""Images whose regions are held in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """What corpus.json states of a source; `label` names a skipped entry in skipped.jsonl."""

    name: str
    licence: str
    provenance: Mapping[str, Any]
    label: Callable[[CaptionEntry], str] = attrgetter("origin")


type Regions = tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]
type Usable = tuple[CaptionEntry, Sound]
type Review = Callable[[CorpusWriter, list[Usable]], Iterable[Usable | str]]
"""Returns the usable captions with their final split, or faults; may add notes and files to the corpus."""
type AddImages = Callable[[CorpusWriter, Sequence[str]], Mapping[str, str]]
"""Adds the regions of images, given by their ids, to the corpus; returns why some have none."""


def prepare(
    source: SourceInfo,
    entries: Iterable[CaptionEntry | str],
    root: str | Path,
    *,
    audio_root: Path | None = None,
    image_root: str | Path | None = None,
    add_images: AddImages | None = None,
    skip: Collection[str] | None = (),
    copy: bool = False,
    review: Review = lambda _, usable: usable,
    overwrite: bool = False,
    progress: Progress = SILENT,
    check_contents: bool = True,
) -> Summary:
    """Write the captions that a source lists as a corpus at `root`.

    Args:
        source: what to state in corpus.json.
        entries: captions, and faults of the lists. Read once, after `root` is found to be free.
        root: the corpus folder to make.
        audio_root: folder of the sounds, which are used in place. None: sounds of any format are decoded, and
            converted into the corpus unless they are 16 kHz mono WAV (PCM16) or FLAC.
        image_root: folder of the images; None if there are none.
        add_images: adds the regions of the images.
        skip: reasons for which captions are skipped and counted instead of being faults. None: all reasons.
        copy: whether to convert all sounds.
        review: called with the usable captions before they are written.
        overwrite: whether to replace an existing corpus.
        progress: stages "sounds" and "checking".
        check_contents: whether the writer reads every sound, image and feature again.

    Raises:
        CorpusError: `root` is taken, or every fault. Where sounds are used in place, faults of lists and
            sounds are raised before images are read, which can take long.
    """
    with CorpusWriter(
        root,
        name=source.name,
        version="1",
        provenance=dict(source.provenance),
        licence=source.licence,
        audio_root=audio_root or "audio",
        image_root=image_root,
        overwrite=overwrite,
        progress=progress,
        check_contents=check_contents,
    ) as writer:
        _write_captions(
            writer, source, entries, audio_root, add_images, skip, review, copy=copy, progress=progress
        )
        return writer.finish()


def _write_captions(
    writer: CorpusWriter,
    source: SourceInfo,
    entries: Iterable[CaptionEntry | str],
    audio_root: Path | None,
    add_images: AddImages | None,
    skip: Collection[str] | None,
    review: Review,
    *,
    copy: bool,
    progress: Progress,
) -> None:
    """Write everything but corpus.json; the entries are released before the corpus is validated."""
    read = list(entries)
    listed = [entry for entry in read if isinstance(entry, CaptionEntry)]
    faults = [fault for fault in read if isinstance(fault, str)]
    usable, unusable = _read_sounds(source, listed, writer, audio_root, skip, copy=copy, progress=progress)
    faults += unusable
    if faults and audio_root is not None:
        raise CorpusError(_by_line(faults))
    if add_images is not None:
        # To report all faults together, images of captions without a usable sound are read too.
        missing = _read_images(listed, writer, add_images)
        faults += [f"{origin}: {fault}" for origin, fault in missing.values() if skip is not None]
        for entry, _ in usable:
            if skip is None and entry.image in missing:
                writer.skip(NO_REGIONS, source.label(entry))
        usable = [(entry, sound) for entry, sound in usable if entry.image not in missing]
    for reviewed in review(writer, usable):
        faults.append(reviewed) if isinstance(reviewed, str) else _add_caption(writer, *reviewed)
    if faults:
        raise CorpusError(_by_line(faults))
    for _ in {sound.audio for _, sound in usable if sound.scaled}:
        writer.count_change(SCALED)


def _read_sounds(
    source: SourceInfo,
    listed: Sequence[CaptionEntry],
    writer: CorpusWriter,
    audio_root: Path | None,
    skip: Collection[str] | None,
    *,
    copy: bool,
    progress: Progress,
) -> tuple[list[Usable], list[str]]:
    """The entries with their sounds, and the faults of the others that are not skipped."""
    good = [entry for entry in listed if entry.problem is None]
    if audio_root is not None:
        read = read_headers(good, audio_root, progress)
    else:
        read = read_recordings(good, writer.folder / "audio", copy=copy, progress=progress)
    usable: list[Usable] = []
    faults: list[str] = []
    for entry in listed:
        sound = entry.problem or next(read)
        if isinstance(sound, Sound):
            usable.append((entry, sound))
            continue
        reason = phrase(sound, (audio_root or Path()) / entry.audio)
        if skip is None or reason in skip:
            writer.skip(reason, source.label(entry))
        else:
            where = f"{entry.audio}: " if entry.problem else ""
            faults.append(f"{entry.origin}: {where}{sound}")
    return usable, faults


def _read_images(
    entries: Iterable[CaptionEntry], writer: CorpusWriter, add_images: AddImages
) -> dict[str | None, tuple[str, str]]:
    """Add the regions of all images; the first origin of each image without regions, and why it has none."""
    origins: dict[str, str] = {}
    for entry in entries:
        if entry.image is not None and entry.problem is None:
            origins.setdefault(entry.image, entry.origin)
    return {image: (origins[image], why) for image, why in add_images(writer, list(origins)).items()}


def describe_images(
    writer: CorpusWriter,
    images: Sequence[str],
    image_root: Path,
    *,
    store: RegionStore | None = None,
    dtype: Dtype = "float32",
    progress: Progress = SILENT,
) -> dict[str, str]:
    """Add the regions of images: those in `store`, or of a grid of pixels as `dtype`.

    Returns:
        Why images have no regions, by image id.
    """

    def describe(image: str) -> Regions | str:
        path = image_root / image
        try:
            picture = open_image(path)
        except CorpusError as error:
            return f"{error}{'' if is_file(path) else nearest(path)}"
        if store is None:
            features, boxes = grid_regions(picture)
            return features.astype(dtype, copy=False), boxes
        found = store.find(image, hashlib.sha256(path.read_bytes()).hexdigest())
        return found or f"{path}: {store.not_found()}"

    missing: dict[str, str] = {}
    described = parallel_map(describe, images, progress, "pictures", at_once=IMAGES_AT_ONCE)
    for image, outcome in zip(images, described, strict=True):
        if isinstance(outcome, str):
            missing[image] = outcome
        else:
            writer.add_regions(image, *outcome)
    return missing


def _add_caption(writer: CorpusWriter, entry: CaptionEntry, sound: Sound) -> None:
    assert entry.split is not None, "every usable caption has a split"
    writer.add_caption(
        Caption(
            id=entry.id,
            split=entry.split,
            audio=sound.audio,
            num_samples=sound.num_samples,
            speaker=entry.speaker,
            language=entry.language,
            image=entry.image,
            text=entry.text,
        )
    )


def unique_ids(names: Sequence[str], lines: Sequence[int]) -> list[str]:
    """Append its line to each name that repeats an earlier one, so that all differ."""
    taken, seen = set(names), set[str]()
    ids = []
    for name, line in zip(names, lines, strict=True):
        own, tries = name, 0
        if name in seen:
            own = f"{name}-{line}"
            while own in taken:
                tries += 1
                own = f"{name}-{line}-{tries}"
            taken.add(own)
        seen.add(name)
        ids.append(own)
    return ids


def _by_line(faults: Sequence[str]) -> list[str]:
    """Faults by file and line, those without a line last."""
    files: dict[str, int] = {}

    def place(fault: str) -> tuple[int, int]:
        found = re.match(r"(.+?):(\d+): ", fault)
        return (files.setdefault(found[1], len(files)), int(found[2])) if found else (len(faults), 0)

    return sorted(faults, key=place)
