"""The pipeline from the captions listed by a source to a corpus.

A source yields a `CaptionEntry` or a fault (text) for every caption. `add_captions` reads the sounds (only
headers of those used in place), adds the region features of the images, and writes the captions. Unusable
captions are skipped or are faults, depending on the reason; all faults are reported together.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from vgsplus.audio import SCALED
from vgsplus.corpora.format import Caption, CaptionEntry
from vgsplus.corpora.sounds import Sound, read_headers, read_recordings, skip_reason, spelling_hint
from vgsplus.corpora.writer import CorpusWriter
from vgsplus.errors import CorpusError
from vgsplus.files import file_digest, is_file
from vgsplus.parallel import parallel_map
from vgsplus.regions.images import open_image
from vgsplus.regions.pixel_grid import grid_regions
from vgsplus.regions.store import Dtype, RegionStore

NO_SPLIT = "picture of no split"
NO_REGIONS = "picture without regions"
IMAGES_AT_ONCE = 512
"""Number of images whose regions are in memory at a time."""


type Regions = tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]
type Usable = tuple[CaptionEntry, Sound]
type Review = Callable[[CorpusWriter, list[Usable]], Iterable[Usable | str]]
"""Called with the writer and the usable captions; returns those to write, with their splits, and faults."""
type AddImages = Callable[[CorpusWriter, Sequence[str]], Mapping[str, str]]
"""Called with the writer and image ids; adds their regions, and returns faults of the others by image id."""


def add_captions(
    writer: CorpusWriter,
    entries: Iterable[CaptionEntry | str],
    *,
    audio_root: Path | None = None,
    add_images: AddImages | None = None,
    skip: Collection[str] | Literal["all"] = (),
    label: Callable[[CaptionEntry], str] = attrgetter("origin"),
    convert_all: bool = False,
    review: Review = lambda _, usable: usable,
) -> None:
    """Add the captions listed by a source to a corpus.

    Args:
        writer: writer of the corpus. The stage of its `progress` is "sounds".
        entries: captions, and faults of the lists.
        audio_root: folder of the sounds, which are used in place. None: sounds of any format are decoded, and
            converted into the corpus unless they are 16 kHz mono WAV (PCM16) or FLAC.
        add_images: adds the regions of the images.
        skip: reasons for which captions are skipped and counted; other reasons are faults.
        label: returns the name of a skipped caption in skipped.jsonl.
        convert_all: whether to convert also sounds that could be used in place.
        review: may change splits, add faults, and add entries and files to the corpus before captions are
            written.

    Raises:
        CorpusError: all faults. With `audio_root`, faults of lists and sounds are raised before images are
            read, which can take hours.
    """
    read = list(entries)
    listed = [entry for entry in read if isinstance(entry, CaptionEntry)]
    faults = [fault for fault in read if isinstance(fault, str)]
    candidates = [entry for entry in listed if entry.problem is None]
    folder = writer.folder / "audio"
    sounds = (
        read_recordings(candidates, folder, convert_all=convert_all, progress=writer.progress)
        if audio_root is None
        else read_headers(candidates, audio_root, writer.progress)
    )
    usable: list[Usable] = []
    for entry in listed:
        sound = entry.problem or next(sounds)
        if isinstance(sound, Sound):
            usable.append((entry, sound))
            continue
        reason = skip_reason(sound, (audio_root or Path()) / entry.audio)
        if skip == "all" or reason in skip:
            writer.skip(reason, label(entry))
        else:
            where = f"{entry.audio}: " if entry.problem else ""
            faults.append(f"{entry.origin}: {where}{sound}")
    if faults and audio_root is not None:
        raise CorpusError(_by_line(faults))
    # To report all faults together, images of captions without a usable sound are read too.
    missing = {} if add_images is None else _read_images(listed, writer, add_images)
    faults += [f"{origin}: {fault}" for origin, fault in missing.values() if skip != "all"]
    for entry, _ in usable:
        if skip == "all" and entry.image in missing:
            writer.skip(NO_REGIONS, label(entry))
    usable = [(entry, sound) for entry, sound in usable if entry.image not in missing]
    for reviewed in review(writer, usable):
        faults.append(reviewed) if isinstance(reviewed, str) else _add_caption(writer, *reviewed)
    if faults:
        raise CorpusError(_by_line(faults))
    for _ in {sound.audio for _, sound in usable if sound.scaled}:
        writer.changed[SCALED] += 1


def _read_images(
    entries: Iterable[CaptionEntry], writer: CorpusWriter, add_images: AddImages
) -> dict[str | None, tuple[str, str]]:
    """Add the regions of all images; return (first origin, fault) of each image without regions."""
    origins: dict[str, str] = {}
    for entry in entries:
        if entry.image is not None and entry.problem is None:
            origins.setdefault(entry.image, entry.origin)
    return {image: (origins[image], why) for image, why in add_images(writer, list(origins)).items()}


def add_image_regions(
    writer: CorpusWriter,
    images: Sequence[str],
    image_root: Path,
    *,
    store: RegionStore | None = None,
    dtype: Dtype = "float32",
) -> dict[str, str]:
    """Add the regions of images in the folder `image_root` to a corpus; return the faults of others by id.

    The regions are those in `store`, or else of the pixel grid, with features of type `dtype`. The stage of
    the writer's `progress` is "pictures".
    """

    def regions_of(image: str) -> Regions | str:
        path = image_root / image
        try:
            picture = open_image(path)
        except CorpusError as error:
            return f"{error}{'' if is_file(path) else spelling_hint(path)}"
        if store is None:
            features, boxes = grid_regions(picture)
            return features.astype(dtype, copy=False), boxes
        if found := store.find(image, file_digest(path)):
            return found
        how = "an image of these contents" if store.by_content else "an image of this name"
        return f"{path}: {store.path}: holds no regions of {how}. Make them with: vgsplus data regions"

    missing: dict[str, str] = {}
    found = parallel_map(regions_of, images, writer.progress, "pictures", at_once=IMAGES_AT_ONCE)
    for image, regions in zip(images, found, strict=True):
        if isinstance(regions, str):
            missing[image] = regions
        else:
            writer.add_regions(image, *regions)
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


def unique_ids(entries: Sequence[CaptionEntry]) -> Iterator[str]:
    """Yield the id of each entry, with its line appended if it repeats that of an earlier one."""
    taken, seen = {entry.id for entry in entries}, set[str]()
    for entry in entries:
        own, tries = entry.id, 0
        if entry.id in seen:
            own = f"{entry.id}-{entry.line}"
            while own in taken:
                tries += 1
                own = f"{entry.id}-{entry.line}-{tries}"
            taken.add(own)
        seen.add(entry.id)
        yield own


def _by_line(faults: Sequence[str]) -> list[str]:
    """Sort faults by file and line; those without a line are last."""
    files: dict[str, int] = {}

    def place(fault: str) -> tuple[int, int]:
        found = re.match(r"(.+?):(\d+): ", fault)
        return (files.setdefault(found[1], len(files)), int(found[2])) if found else (len(faults), 0)

    return sorted(faults, key=place)
