"""Karpathy's splits of captioned images: dataset_coco.json, dataset_flickr8k.json.

{"images": [{"filename": …, "cocoid": …, "split": "train" | "restval" | "val" | "test", "sentences": …}, …]}
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vgsplus.corpora.sources.lists import entries_of
from vgsplus.errors import CorpusError

SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}
"""The split of the corpus for each of Karpathy's splits."""


def karpathy_images(path: Path) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """Yield ("FILE: image N", record, split or None if it is unknown) of every image.

    Raises:
        CorpusError: it is not JSON, or has no list "images".
    """
    for entry, item in enumerate(entries_of(path, "images"), start=1):
        record = item if isinstance(item, dict) else {}
        yield f"{path}: image {entry}", record, SPLITS.get(str(record.get("split")))


def coco_splits(path: Path) -> dict[int, str]:
    """Return the split of each image of dataset_coco.json, by its COCO number.

    Raises:
        CorpusError: it is not JSON, has no list "images", or all images without number or split.
    """
    splits: dict[int, str] = {}
    origins: dict[int, str] = {}
    faults = []
    for origin, record, split in karpathy_images(path):
        if split is None or type(record.get("cocoid")) is not int:
            faults.append(f'{origin}: lacks a "cocoid", or a "split" of {", ".join(SPLITS)}')
        elif (number := record["cocoid"]) in splits:
            faults.append(f"{origin}: the picture {number} is in {origins[number]} already")
        else:
            splits[number], origins[number] = split, origin.removeprefix(f"{path}: ")
    if faults:
        raise CorpusError(faults)
    return splits
