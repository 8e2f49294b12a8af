"""SpokenCOCO: captions of MS-COCO read aloud, and the regions that a detector found in the pictures.

Sounds are used where they are. See docs/corpora.md for the files, and for what is known of the training
lists.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from vgsplus.corpora import Summary
from vgsplus.corpora.sources.caption_lists import Source, SpokenCaption, lists_by_name
from vgsplus.corpora.sources.karpathy import coco_splits
from vgsplus.corpora.sources.spoken_captions import prepare_spoken_captions
from vgsplus.corpora.sources.spokencoco_json import read_list
from vgsplus.errors import CorpusError
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.published import coco_number
from vgsplus.regions.store import Dtype

SPLITS = {"train": "train", "validation": "val", "test": "test"}
"""The splits of a corpus, and how SpokenCOCO's files call them."""
LIST_NAME = r"SpokenCOCO_{}(_unrolled)?(_karpathy)?\.json"
TRAINING_LISTS = {
    113_287: "Karpathy's training split (train and restval)",
    118_287: "the published runs' list (all but 5,000 pictures of train2014 and val2014)",
}
"""Pictures of the lists that are in use."""
NEAR = 500
"""Pictures by which a list may differ from one of these and still be told to be like it."""
LICENCE = (
    "SpokenCOCO's and MS-COCO's own: the spoken captions by their distributors' terms, the written captions "
    "under Creative Commons BY 4.0, the pictures under their photographers' licences on Flickr."
)


def find_lists(root: Path, besides: Collection[str] = ()) -> dict[str, Path]:
    """The lists of captions in `root`, SpokenCOCO_train.json and its like, of the splits not in `besides`.

    Raises:
        CorpusError: two files claim the same split.
    """
    return lists_by_name([root], {split: LIST_NAME.format(name) for split, name in SPLITS.items()}, besides)


def training_list(images: int) -> str:
    """Which of the training lists in use one of `images` pictures is like, in words."""
    for size, name in TRAINING_LISTS.items():
        if abs(images - size) <= NEAR:
            return f"{images:,} training pictures, as in {name}: {size:,}"
    known = "; ".join(f"{size:,} for {name}" for size, name in TRAINING_LISTS.items())
    return f"{images:,} training pictures, like none of the lists in use: {known}"


def prepare_spokencoco(
    root: Path,
    *,
    lists: Mapping[str, Path],
    karpathy: Path | None = None,
    audio_root: Path,
    features: Sequence[Path] = (),
    image_root: Path | None = None,
    dtype: Dtype = "float16",
    skip_faulty: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Summary:
    """Prepare SpokenCOCO as a corpus at `root`, from its lists by split and the regions in `features`.

    Where `karpathy` (his dataset_coco.json) is given, its splits count and not the lists'; captions of
    pictures that it does not name are left out.

    Without `features`, the pictures are described by the cells of a plain grid. Captions shorter than 0.25 s
    are left out; with `skip_faulty` also those whose sound is absent or faulty, whose picture has no regions,
    or whose uttid has come before. `image_root` holds train2014/ and val2014/.

    Raises:
        CorpusError: `root` is taken; every fault of the lists; then of the sounds; then of the regions.
    """
    if "train" not in lists:
        raise CorpusError("SpokenCOCO: no list of training captions. Name one with --train.")

    splits = None if karpathy is None else coco_splits(karpathy)

    def read() -> Iterator[tuple[str | None, SpokenCaption | str]]:
        for own, path in lists.items():
            for caption in read_list(path):
                number = coco_number(caption.image) if isinstance(caption, SpokenCaption) else None
                yield own if splits is None or number is None else splits.get(number), caption

    source = Source(
        name="spokencoco",
        title="SpokenCOCO",
        licence=LICENCE,
        pictures="MS-COCO",
        image_key=coco_number,
        files=lists if karpathy is None else {**lists, "splits": karpathy},
        read=read,
        notes=lambda images: {"training_list": training_list(images["train"])},
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
