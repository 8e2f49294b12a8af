"""Karpathy's splits of captioned pictures: dataset_coco.json and its like.

{"images": [{"filename": …, "cocoid": …, "split": "train" | "restval" | "val" | "test", "sentences": …}, …]}
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vgsplus.corpora.sources.json_entries import entries_of
from vgsplus.errors import CorpusError

SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}
"""His splits, and those of a corpus."""


def karpathy_images(path: Path) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """("file: image n", the record, its split) of every image; the split is None where it is none of his.

    Raises:
        CorpusError: it is not JSON, or has no list "images".
    """
    for entry, item in enumerate(entries_of(path, "images"), start=1):
        record = item if isinstance(item, dict) else {}
        yield f"{path}: image {entry}", record, SPLITS.get(str(record.get("split")))


def coco_splits(path: Path) -> dict[int, str]:
    """The split of each picture of dataset_coco.json, by its COCO number.

    Raises:
        CorpusError: as `karpathy_images`; or every image that lacks its number or split.
    """
    splits: dict[int, str] = {}
    places: dict[int, str] = {}
    faults = []
    for place, record, split in karpathy_images(path):
        if split is None or type(record.get("cocoid")) is not int:
            faults.append(f'{place}: lacks a "cocoid", or a "split" of {", ".join(SPLITS)}')
        elif (number := record["cocoid"]) in splits:
            faults.append(f"{place}: the picture {number} is in {places[number]} already")
        else:
            splits[number], places[number] = split, place.removeprefix(f"{path}: ")
    if faults:
        raise CorpusError(faults)
    return splits
