"""Validate a corpus on disk: find all faults, with file and line."""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import partial
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vgsplus.audio import SAMPLE_RATE, is_silent, read
from vgsplus.corpora.captions import read_captions
from vgsplus.corpora.format import CAPTIONS_FILE, INFO_FILE, Caption
from vgsplus.corpora.items import TIME_TOLERANCE, SoundIndex, label_faults, parse_items, repeat_faults, shown
from vgsplus.corpora.reader import open_regions, read_image_ids, read_info
from vgsplus.errors import AudioError, CorpusError
from vgsplus.files import as_on_disk, is_file
from vgsplus.parallel import parallel_map
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.store import REGIONS_FILE, region_faults
from vgsplus.remote import locate

BLANK = re.compile(r"\s")


def validate(root: str | Path, progress: Progress = SILENT, *, contents: bool = True) -> list[str]:
    """Return all faults of the corpus at `root`, an empty list if there are none.

    Checks the files, headers, sample rates and channels, lengths (num_samples against the sound), empty and
    silent sounds, missing and broken images, non-finite features, boxes outside [0, 1], unknown and repeated
    ids, splits that share images, empty splits, counts, and ABX item files. The contents of sounds, images
    and features are only read if `contents`. The stage of `progress` is "checking", counted in sounds.
    """
    root = locate(root)
    try:
        info = read_info(root)
        captions, faults = read_captions(root / CAPTIONS_FILE)
        image_ids = read_image_ids(root) if info["regions"] is not None else ()
    except CorpusError as error:
        return error.faults
    faults += chain.from_iterable(caption_faults(caption) for caption in captions)
    faults += _id_faults(root, captions, image_ids)
    faults += _split_faults(root, info, captions)
    if info["regions"] is not None:
        faults += _regions_file_faults(root, info, image_ids, contents=contents)
    audio_root = root / info["audio_root"]
    if contents:
        faults += filter(
            None,
            parallel_map(
                partial(_audio_fault, audio_root),
                [caption for caption in captions if isinstance(caption.audio, str)],
                progress,
                "checking",
            ),
        )
    if contents and info["image_root"] is not None:
        images = [locate(root / info["image_root"] / image_id) for image_id in image_ids]
        faults += filter(None, parallel_map(_image_fault, images))
    for path in sorted(root.glob("*.item")):
        faults += _item_faults(path, audio_root, captions)
    return faults


def caption_faults(caption: Caption) -> list[str]:
    """Return the faults of the fields of a caption."""
    faults = []
    for field in ("id", "split", "audio", "speaker", "language"):
        value = getattr(caption, field)
        if not isinstance(value, str) or not value:
            faults.append(f"caption {caption.id}: {field} must be a non-empty text, is {value!r}")
    for field in ("image", "text"):
        value = getattr(caption, field)
        if value is not None and (not isinstance(value, str) or not value):
            faults.append(f"caption {caption.id}: {field} must be a text or null, is {value!r}")
    faults += [
        f"caption {caption.id!r}: {field} must hold no blank, is {getattr(caption, field)!r}"
        for field in ("id", "speaker")  # blanks separate the columns of ABX item files
        if BLANK.search(str(getattr(caption, field)))
    ]
    if not isinstance(caption.num_samples, int) or caption.num_samples <= 0:
        faults.append(
            f"caption {caption.id}: num_samples must be a whole number > 0, is {caption.num_samples!r}"
        )
    return faults


def _id_faults(root: Path, captions: list[Caption], image_ids: Sequence[str]) -> Iterator[str]:
    """Find unknown image ids, and repeated ids."""
    known = {None, *image_ids}
    for caption in captions:
        if caption.image not in known:
            yield f"{root / CAPTIONS_FILE}: caption {caption.id} names the unknown image {caption.image}"
    for caption_id, count in Counter(caption.id for caption in captions).items():
        if count > 1:
            lines = " and ".join(map(str, _lines_of(root / CAPTIONS_FILE, caption_id)))
            yield f"{root / CAPTIONS_FILE}: {count} captions have the id {caption_id} (lines {lines})"
    for image_id, count in Counter(image_ids).items():
        if count > 1:
            rows = " and ".join(str(row) for row, other in enumerate(image_ids) if other == image_id)
            yield f"{root / REGIONS_FILE}: {count} rows have the image id {image_id} (rows {rows}, from 0)"


def _lines_of(path: Path, caption_id: str) -> Iterator[int]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                if json.loads(line)["id"] == caption_id:
                    yield number


def _split_faults(root: Path, info: dict[str, Any], captions: list[Caption]) -> Iterator[str]:
    if not captions:
        yield f"{root / CAPTIONS_FILE}: the corpus holds no captions"
    images: dict[str, set[str]] = {split: set() for split in info["counts"]}
    found = Counter(caption.split for caption in captions)
    for caption in captions:
        if caption.image is not None:
            images.setdefault(caption.split, set()).add(caption.image)
    for split in sorted(found.keys() | info["counts"].keys(), key=str):
        expected = info["counts"].get(split, {}).get("captions", 0)
        if not found[split]:
            yield f"{root / INFO_FILE}: the split {split!r} is empty"
        elif found[split] != expected:
            yield f"{root / INFO_FILE}: split {split!r} should hold {expected} captions, holds {found[split]}"
    allowed = {frozenset(pair) for pair in info.get("shared_images", [])}
    for one, other in combinations(images, 2):
        shared = sorted(images[one] & images[other])
        if shared and frozenset((one, other)) not in allowed:
            yield f"{root}: splits {one!r} and {other!r} share {len(shared)} images, the first is {shared[0]}"


def _regions_file_faults(
    root: Path, info: dict[str, Any], image_ids: tuple[str, ...], *, contents: bool
) -> Iterator[str]:
    expected = (len(image_ids), info["regions"]["count"], info["regions"]["dim"])
    with open_regions(root) as store:
        if store.shape != expected:
            yield f"{store.path}: has features {store.shape}, not {expected} as in {INFO_FILE}"
            return
        for row, image_id in enumerate(image_ids if contents else ()):
            try:
                features, boxes = store.read([row])
            except CorpusError as error:
                yield f"{error} (image {image_id})"
                continue
            for fault in region_faults(features[0], boxes[0]):
                yield f"{store.path}: image {image_id}: {fault}"


def _audio_fault(audio_root: Path, caption: Caption) -> str | None:
    path = audio_root / caption.audio
    try:
        signal = read(path)
    except AudioError as error:
        return f"caption {caption.id}: {error}"
    if len(signal) != caption.num_samples:
        return f"caption {caption.id}: {path} has {len(signal)} samples, not {caption.num_samples} as stated"
    if not np.isfinite(signal).all():
        return f"caption {caption.id}: {path} holds samples that are not finite numbers"
    if is_silent(signal):
        return f"caption {caption.id}: {path} is silent from start to end"
    return None


def _image_fault(path: Path) -> str | None:
    path = as_on_disk(path)
    if not is_file(path):
        return f"{path}: the picture is missing"
    try:
        with Image.open(path):
            return None
    except Exception as error:  # noqa: BLE001 - Pillow's readers raise exceptions of many types
        return f"{path}: cannot be read as a picture ({error})"


def _item_faults(path: Path, audio_root: Path, captions: Sequence[Caption]) -> list[str]:
    """Find faults of an ABX item file, whose #file are resolved as in `evaluate abx`."""
    try:
        items, faults = parse_items(path)
    except CorpusError as error:
        return error.faults
    spoken = {
        audio_root / caption.audio: caption
        for caption in captions
        if isinstance(caption.audio, str) and isinstance(caption.num_samples, int)
    }
    index = SoundIndex(audio_root, spoken)
    sounds: dict[str, Path] = {}
    for file, indices in items.by_file().items():
        tokens = [items.tokens[number] for number in indices]
        found = index.find(file)
        if len(found) != 1:
            what = f"there is no caption {shown(file)}"
            if found:
                what = f"{shown(file)} may be {' and '.join(spoken[path].id for path in found[:2])}"
            faults += [f"{items.where(token)}: {what}" for token in tokens]
            continue
        sounds[file] = found[0]
        caption = spoken[found[0]]
        limit = Decimal(caption.num_samples) / SAMPLE_RATE + TIME_TOLERANCE
        faults += [
            f"{items.where(token)}: {token.onset} to {token.offset} s exceeds caption {caption.id}"
            for token in tokens
            if token.offset > limit
        ]
    return [*faults, *label_faults(items), *repeat_faults(items, sounds)]
