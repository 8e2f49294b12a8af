"""Spoken Places: spoken descriptions of images of Places205, PlacesAudio400k and its splits of 2020.

    {"image_base_path": …, "audio_base_path": …,
     "data": [{"uttid": "A2WQ…-GSUN_4213…", "speaker": "A2WQ…", "asr_text": …,
               "wav": "wavs/296/utterance_377328.wav", "image": "r/runway/gsun_4213….jpg"}, …]}

"asr_text" is the output of a speech recogniser. Sounds are used in place. See docs/corpora.md for the files.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Unpack

from vgsplus.corpora import Summary
from vgsplus.corpora.format import CaptionEntry
from vgsplus.corpora.sources.lists import ListOptions, entries_of, fields_of, lists_by_name, prepare_lists
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


def find_lists(root: Path, exclude: Collection[str] = ()) -> dict[str, Path]:
    """Return the lists of captions in `root` and `root`/metadata by split, except the splits `exclude`.

    Raises:
        CorpusError: there are two lists of one split.
    """
    return lists_by_name([root, root / "metadata"], LIST_NAMES, exclude)


def prepare_places(
    root: Path, *, lists: Mapping[str, Path], audio_root: Path, **options: Unpack[ListOptions]
) -> Summary:
    """Prepare Spoken Places as a corpus at `root`.

    Args:
        root: the corpus folder to create.
        lists: lists of captions by split.
        audio_root: folder of the wavs.
        options: see `ListOptions`.

    Raises:
        CorpusError: `root` exists; all faults of the lists and sounds; or all faults of the regions.
    """
    if "train" not in lists:
        raise CorpusError("Spoken Places: no list of training captions. Name one with --train.")
    return prepare_lists(
        (entry for split, path in lists.items() for entry in read_list(path, split)),
        root,
        name="places",
        title="Spoken Places",
        licence=LICENCE,
        files=lists,
        images="Places",
        image_key=path_key,
        audio_root=audio_root,
        **options,
    )


def read_list(path: Path, split: str) -> Iterator[CaptionEntry | str]:
    """Yield the captions of a list, or the fault "FILE: entry N: …" of those that cannot be read.

    Raises:
        CorpusError: the file is missing, not JSON or truncated, or has no list "data".
    """
    for number, item in enumerate(entries_of(path), start=1):
        origin = f"{path}: entry {number}"
        found = fields_of(item, FIELDS, unbroken=("uttid", "speaker"))
        text = item.get("asr_text") if isinstance(item, dict) else None
        if isinstance(found, str) or not isinstance(text, str):
            faults = [found] if isinstance(found, str) else []
            faults += [] if isinstance(text, str) else ["lacks asr_text"]
            yield f"{origin}: {'; '.join(faults)}"
        else:
            yield CaptionEntry(
                origin=origin,
                audio=found["wav"],
                id=found["uttid"],
                split=split,
                speaker=found["speaker"],
                language="en",
                image=found["image"],
                text=text.strip() or None,
            )
