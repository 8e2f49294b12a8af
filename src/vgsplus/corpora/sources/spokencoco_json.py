"""SpokenCOCO's lists of captions, read entry by entry.

grouped     {"data": [{"image": "val2014/COCO_val2014_….jpg",
                       "captions": [{"text": …, "speaker": …, "uttid": …, "wav": …}, …]}, …]}
unrolled    {"data": [{"image": …, "caption": {"text": …, "speaker": …, "uttid": …, "wav": …}}, …]}
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vgsplus.corpora.sources.caption_lists import SpokenCaption
from vgsplus.corpora.sources.json_entries import as_text, entries_of, fields_of

FIELDS = ("text", "speaker", "uttid", "wav")


def read_list(path: Path) -> Iterator[SpokenCaption | str]:
    """The captions of a list in its order; in place of one that cannot be read, its fault "file: entry n: …".

    Raises:
        CorpusError: there is no such file, it is not JSON, has no list "data", or breaks off.
    """
    for entry, item in enumerate(entries_of(path), start=1):
        place = f"{path}: entry {entry}"
        for caption in _captions_of(item):
            yield (f"{place}: {caption}" if isinstance(caption, str) else SpokenCaption(place, *caption))


def _captions_of(item: Any) -> Iterator[tuple[str, str, str, str, str] | str]:  # noqa: ANN401 - as the file has it
    """(image, text, speaker, uttid, wav) of each caption of an entry, or what is wrong with it."""
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
        if isinstance(found, str):
            yield f"a caption of {image} {found}"
        else:
            yield image, found["text"], found["speaker"], found["uttid"], found["wav"]
