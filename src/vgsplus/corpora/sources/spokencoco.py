"""SpokenCOCO: spoken captions of MS-COCO.

grouped     {"data": [{"image": "val2014/COCO_val2014_….jpg",
                       "captions": [{"text": …, "speaker": …, "uttid": …, "wav": …}, …]}, …]}
unrolled    {"data": [{"image": …, "caption": {"text": …, "speaker": …, "uttid": …, "wav": …}}, …]}

Sounds are used in place. See docs/corpora.md for the files and the known training lists.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from vgsplus.corpora import Summary
from vgsplus.corpora.format import CaptionEntry
from vgsplus.corpora.prepare import NO_SPLIT
from vgsplus.corpora.sources.karpathy import coco_splits
from vgsplus.corpora.sources.lists import (
    ListOptions,
    ListSource,
    as_text,
    fields_of,
    prepare_lists,
    read_list,
)
from vgsplus.errors import CorpusError
from vgsplus.regions.published import coco_number

FIELDS = ("text", "speaker", "uttid", "wav")
LIST_NAMES = {
    "train": r"SpokenCOCO_train(_unrolled)?(_karpathy)?\.json",
    "validation": r"SpokenCOCO_val(_unrolled)?(_karpathy)?\.json",
    "test": r"SpokenCOCO_test(_unrolled)?(_karpathy)?\.json",
}
"""Patterns of the file names of the lists, by split."""
TRAINING_LISTS = {
    113_287: "Karpathy's training split (train and restval)",
    118_287: "the published runs' list (all but 5,000 pictures of train2014 and val2014)",
}
"""Training lists in use, by number of images."""
NEAR = 500
"""Maximum difference in the number of images for which a list is identified."""
LICENCE = (
    "SpokenCOCO's and MS-COCO's own: the spoken captions by their distributors' terms, the written captions "
    "under Creative Commons BY 4.0, the pictures under their photographers' licences on Flickr."
)
SOURCE = ListSource("spokencoco", "SpokenCOCO", LICENCE, images="MS-COCO", image_key=coco_number)


def training_list(images: int) -> str:
    """Describe a training list by its number of images: which of the lists in use it is."""
    for size, name in TRAINING_LISTS.items():
        if abs(images - size) <= NEAR:
            return f"{images:,} training pictures, as in {name}: {size:,}"
    known = "; ".join(f"{size:,} for {name}" for size, name in TRAINING_LISTS.items())
    return f"{images:,} training pictures, like none of the lists in use: {known}"


def prepare_spokencoco(
    root: Path,
    *,
    lists: Mapping[str, Path],
    audio_root: Path,
    karpathy: Path | None = None,
    **options: Unpack[ListOptions],
) -> Summary:
    """Prepare lists of captions of SpokenCOCO, by split, as a corpus at `root`; see `prepare_lists`.

    The splits of `karpathy`, a dataset_coco.json, replace those of the lists, and captions of images that
    are not in it are skipped. `image_root` contains train2014/ and val2014/.

    Raises:
        CorpusError: `root` exists; all faults of the lists and sounds; or all faults of the regions.
    """
    if "train" not in lists:
        raise CorpusError("SpokenCOCO: no list of training captions. Name one with --train.")
    splits = None if karpathy is None else coco_splits(karpathy)

    def entries() -> Iterator[CaptionEntry | str]:
        for split, path in lists.items():
            for entry in read_list(path, split, _captions_of):
                if isinstance(entry, str) or splits is None:
                    yield entry
                elif (number := coco_number(entry.image or "")) is None or number in splits:
                    yield replace(entry, split=split if number is None else splits[number])
                else:
                    yield replace(entry, split=None, problem=NO_SPLIT)

    return prepare_lists(
        SOURCE,
        entries(),
        root,
        files=lists if karpathy is None else {**lists, "splits": karpathy},
        audio_root=audio_root,
        notes=lambda images: {"training_list": training_list(images["train"])},
        **options,
    )


def _captions_of(item: Any) -> Iterator[dict[str, str] | str]:  # noqa: ANN401 - as the file has it
    """Yield the fields of each caption of an entry, with its "image", or its faults."""
    image = as_text(item.get("image")) if isinstance(item, dict) else None
    if image is None:
        yield 'names no "image"'
        return
    captions = [item["caption"]] if "caption" in item else item.get("captions")
    if not isinstance(captions, list) or not captions:
        yield f'{image} has neither a "caption" nor a list of "captions"'
        return
    for caption in captions:
        found = fields_of(caption, FIELDS, unbroken=("speaker", "uttid"))
        yield f"a caption of {image} {found}" if isinstance(found, str) else found | {"image": image}
