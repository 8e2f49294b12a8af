"""Spoken Places: spoken descriptions of images of Places205, PlacesAudio400k and its splits of 2020.

    {"image_base_path": …, "audio_base_path": …,
     "data": [{"uttid": "A2WQ…-GSUN_4213…", "speaker": "A2WQ…", "asr_text": …,
               "wav": "wavs/296/utterance_377328.wav", "image": "r/runway/gsun_4213….jpg"}, …]}

"asr_text" is the output of a speech recogniser. Sounds are used in place. See docs/corpora.md for the files.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

from vgsplus.corpora import Summary
from vgsplus.corpora.sources.lists import ListOptions, ListSource, fields_of, prepare_lists, read_list
from vgsplus.errors import CorpusError
from vgsplus.regions.published import path_key

LIST_NAMES = {
    "train": r"train(_2020)?\.json",
    "validation": r"(val|dev_seen_2020)\.json",
    "validation_unseen": r"dev_unseen_2020\.json",
    "test": r"test_seen_2020\.json",
    "test_unseen": r"test_unseen_2020\.json",
}
"""Patterns of the file names of the lists, by split."""
FIELDS = ("uttid", "speaker", "wav", "image")
LICENCE = "Spoken Places' and Places205's own, by their distributors' terms."
SOURCE = ListSource("places", "Spoken Places", LICENCE, images="Places", image_key=path_key)


def prepare_places(
    root: Path, *, lists: Mapping[str, Path], audio_root: Path, **options: Unpack[ListOptions]
) -> Summary:
    """Prepare lists of captions of Spoken Places, by split, as a corpus at `root`; see `prepare_lists`.

    Raises:
        CorpusError: `root` exists; all faults of the lists and sounds; or all faults of the regions.
    """
    if "train" not in lists:
        raise CorpusError("Spoken Places: no list of training captions. Name one with --train.")
    entries = (entry for split, path in lists.items() for entry in read_list(path, split, _caption_of))
    return prepare_lists(SOURCE, entries, root, files=lists, audio_root=audio_root, **options)


def _caption_of(item: Any) -> Iterator[dict[str, str] | str]:  # noqa: ANN401 - as the file has it
    """Yield the fields of an entry, or its faults."""
    found = fields_of(item, FIELDS, unbroken=("uttid", "speaker"))
    text = item.get("asr_text") if isinstance(item, dict) else None
    if isinstance(found, dict) and isinstance(text, str):
        yield found | {"text": text.strip()}
    else:
        faults = [found] if isinstance(found, str) else []
        yield "; ".join(faults if isinstance(text, str) else [*faults, "lacks asr_text"])
