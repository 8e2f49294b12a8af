"""Spoken Places: pictures of Places205 described aloud, PlacesAudio400k and its splits of 2020.

    {"image_base_path": …, "audio_base_path": …,
     "data": [{"uttid": "A2WQ…-GSUN_4213…", "speaker": "A2WQ…", "asr_text": …,
               "wav": "wavs/296/utterance_377328.wav", "image": "r/runway/gsun_4213….jpg"}, …]}

"asr_text" is a speech recogniser's. Sounds are used where they are. See docs/corpora.md for the files.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from vgsplus.corpora import Summary
from vgsplus.corpora.sources.caption_lists import Source, SpokenCaption, lists_by_name
from vgsplus.corpora.sources.json_entries import entries_of, fields_of
from vgsplus.corpora.sources.spoken_captions import prepare_spoken_captions
from vgsplus.errors import CorpusError
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.published import path_key
from vgsplus.regions.store import Dtype

LIST_NAMES = {
    "train": r"train(_2020)?\.json",
    "validation": r"(val|dev_seen_2020)\.json",
    "validation_unseen": r"dev_unseen_2020\.json",
    "test": r"test_seen_2020\.json",
    "test_unseen": r"test_unseen_2020\.json",
}
"""The splits of a corpus, and how the files of Places call them."""
FIELDS = ("uttid", "speaker", "wav", "image")
LICENCE = "Spoken Places' and Places205's own, by their distributors' terms."


def find_lists(root: Path, besides: Collection[str] = ()) -> dict[str, Path]:
    """The lists of captions in `root` and `root`/metadata, of the splits not in `besides`.

    Raises:
        CorpusError: two files claim the same split.
    """
    return lists_by_name([root, root / "metadata"], LIST_NAMES, besides)


def prepare_places(
    root: Path,
    *,
    lists: Mapping[str, Path],
    audio_root: Path,
    features: Sequence[Path] = (),
    image_root: Path | None = None,
    dtype: Dtype = "float16",
    skip_faulty: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Summary:
    """Prepare Spoken Places as a corpus at `root`, from its lists by split and the regions in `features`.

    Without `features`, the pictures are described by the cells of a plain grid. Captions shorter than 0.25 s
    are left out; with `skip_faulty` also those whose sound is absent or faulty, whose picture has no regions,
    or whose uttid has come before.

    Raises:
        CorpusError: `root` is taken; every fault of the lists; then of the sounds; then of the regions.
    """
    if "train" not in lists:
        raise CorpusError("Spoken Places: no list of training captions. Name one with --train.")

    def read() -> Iterator[tuple[str, SpokenCaption | str]]:
        for split, path in lists.items():
            yield from ((split, caption) for caption in read_list(path))

    source = Source(
        name="places",
        title="Spoken Places",
        licence=LICENCE,
        pictures="Places",
        image_key=path_key,
        files=lists,
        read=read,
    )
    return prepare_spoken_captions(
        source,
        root,
        audio_root=audio_root,
        features=features,
        image_root=image_root,
        dtype=dtype,
        skip_faulty=skip_faulty,
        overwrite=overwrite,
        progress=progress,
    )


def read_list(path: Path) -> Iterator[SpokenCaption | str]:
    """The captions of a list in its order; in place of one that cannot be read, its fault "file: entry n: …".

    Raises:
        CorpusError: there is no such file, it is not JSON, has no list "data", or breaks off.
    """
    for entry, item in enumerate(entries_of(path), start=1):
        place = f"{path}: entry {entry}"
        found = fields_of(item, FIELDS, unbroken=("uttid", "speaker"))
        text = item.get("asr_text") if isinstance(item, dict) else None
        if isinstance(found, str) or not isinstance(text, str):
            what = [found] if isinstance(found, str) else []
            yield f"{place}: {'; '.join([*what, *([] if isinstance(text, str) else ['lacks asr_text'])])}"
            continue
        yield SpokenCaption(
            place, found["image"], text.strip() or None, found["speaker"], found["uttid"], found["wav"]
        )
