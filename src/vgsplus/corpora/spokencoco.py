"""SpokenCOCO: captions of MS-COCO read aloud, and the regions that a detector found in the pictures.

Sounds are used where they are. See docs/corpora.md for the files, and for what is known of the training
lists.
"""

import json
import os
import re
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import batched
from pathlib import Path

import soundfile

from vgsplus.audio import SAMPLE_RATE
from vgsplus.corpora.detections import coco_number
from vgsplus.corpora.format import Caption, CorpusError, CorpusWriter, Summary
from vgsplus.corpora.preparing import MIN_SAMPLES, MIN_SECONDS
from vgsplus.corpora.region_file import RegionFile, collect_regions
from vgsplus.corpora.region_layout import Dtype
from vgsplus.corpora.region_store import provenance_of
from vgsplus.corpora.spokencoco_json import SpokenCaption, read_list

SPLITS = {"train": "train", "validation": "val", "test": "test"}
"""The splits of a corpus, and how SpokenCOCO's files call them."""
LIST_NAME = "SpokenCOCO_{}(_unrolled)?(_karpathy)?\\.json"
TRAINING_LISTS = {
    113_287: "Karpathy's training split (train and restval)",
    118_287: "the published training list (all but 5,000 pictures of train2014 and val2014)",
}
"""Pictures of the lists that are in use."""
NEAR = 500
"""Pictures by which a list may differ from one of these and still be told to be like it."""
SOUNDS_AT_ONCE = 4096
LICENCE = (
    "SpokenCOCO's and MS-COCO's own: the spoken captions by their distributors' terms, the written captions "
    "under Creative Commons BY 4.0, the pictures under their photographers' licences on Flickr."
)

type Stages = Callable[[str, int, int], None]
"""Called with (stage, done, total) as the work goes on."""


@dataclass(slots=True)
class Survey:
    """What the lists hold: each picture's id and split by its COCO number, captions left out, faults."""

    images: dict[int, str] = field(default_factory=dict)
    splits: dict[int, str] = field(default_factory=dict)
    captions: int = 0
    faults: list[str] = field(default_factory=list)


def find_lists(root: Path, besides: Collection[str] = ()) -> dict[str, Path]:
    """The lists of captions in `root`, SpokenCOCO_train.json and its like, of the splits not in `besides`.

    Raises:
        CorpusError: two files claim the same split.
    """
    found: dict[str, Path] = {}
    for split, name in SPLITS.items():
        if split in besides:
            continue
        pattern = re.compile(LIST_NAME.format(name))
        matching = sorted(path for path in root.glob("*.json") if pattern.fullmatch(path.name))
        if len(matching) > 1:
            names = ", ".join(path.name for path in matching)
            raise CorpusError(f"{root}: holds {names}. Choose one with --{split}.")
        if matching:
            found[split] = matching[0]
    return found


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
    audio_root: Path,
    features: Sequence[Path],
    image_root: Path | None = None,
    dtype: Dtype = "float16",
    skip_faulty: bool = False,
    overwrite: bool = False,
    progress: Stages | None = None,
) -> Summary:
    """Prepare SpokenCOCO as a corpus at `root`, from its lists by split and the regions in `features`.

    Captions shorter than 0.25 s are left out; with `skip_faulty` also those whose sound is absent or faulty,
    whose picture has no regions, or whose uttid has come before. `image_root` holds train2014/ and val2014/.

    Raises:
        CorpusError: `root` is taken; every fault of the lists; then of the sounds; then of the regions.
    """
    if "train" not in lists:
        raise CorpusError("SpokenCOCO: no list of training captions. Name one with --train.")
    for what, folder in (("the folder of the wavs", audio_root), ("the folder of the pictures", image_root)):
        if folder is not None and not folder.is_dir():
            raise CorpusError(f"{folder}: there is no such folder, {what}.")
    if not features:
        raise CorpusError("SpokenCOCO: no file of region features. Name one or more with --features.")
    if absent := [path for path in features if not path.is_file()]:
        raise CorpusError([f"{path}: there is no such file of region features." for path in absent])
    with CorpusWriter(
        root,
        name="spokencoco",
        version="1",
        provenance={
            "source": "SpokenCOCO",
            "lists": {split: str(path.absolute()) for split, path in lists.items()},
            "features": [str(path.absolute()) for path in features],
            "regions": [provenance_of(path) for path in features],
        },
        licence=LICENCE,
        audio_root=audio_root.absolute(),
        image_root=None if image_root is None else image_root.absolute(),
        overwrite=overwrite,
        check_contents=False,
    ) as writer:
        survey = _survey(lists, image_root, skip_faulty=skip_faulty)
        if survey.faults:
            raise CorpusError(survey.faults)
        # Read beforehand, because half an hour of regions is no time to learn of a missing folder of wavs.
        samples, reasons = _measure(lists, audio_root, survey.captions, progress)
        if reasons and not skip_faulty and (faults := _sound_faults(lists, reasons)):
            raise CorpusError(faults)
        # Beside the writer's folder, which the next writer clears.
        staging = writer.root.with_name(f".{writer.root.name}.regions")
        tell = None if progress is None else partial(progress, "regions")
        regions = collect_regions(features, survey.images, staging, dtype=dtype, progress=tell)
        if regions.missing and not skip_faulty:
            raise CorpusError(
                [f"{image}: no file of --features holds its regions" for image in regions.missing]
            )
        _add_captions(writer, lists, survey, samples, reasons, regions)
        writer.adopt_regions(regions.path, regions.images)
        train = sum(split == "train" for split in survey.splits.values())
        writer.note("training_list", training_list(train))
        writer.note("regions_of_no_caption", regions.unnamed)
        summary = writer.finish()
    for left in staging.iterdir():
        left.unlink()
    staging.rmdir()
    return summary


def _walk(lists: Mapping[str, Path]) -> Iterator[tuple[str, SpokenCaption]]:
    """(split, caption) of every good caption, the same each time."""
    for split, path in lists.items():
        yield from ((split, caption) for caption in read_list(path) if isinstance(caption, SpokenCaption))


def _survey(lists: Mapping[str, Path], image_root: Path | None, *, skip_faulty: bool) -> Survey:
    """Read all lists once for what is wrong with them, alone and together."""
    survey = Survey()
    uttids: set[str] = set()
    for split, path in lists.items():
        for caption in read_list(path):
            if isinstance(caption, str):
                survey.faults.append(caption)
                continue
            survey.captions += 1
            place = f"{path}: entry {caption.entry}"
            number = coco_number(caption.image)
            if number is None or ".." in Path(caption.image).parts or Path(caption.image).is_absolute():
                survey.faults.append(f"{place}: {caption.image!r} is no picture of MS-COCO")
                continue
            if caption.uttid in uttids and not skip_faulty:
                survey.faults.append(f"{place}: the uttid {caption.uttid} has come before")
            uttids.add(caption.uttid)
            survey.images.setdefault(number, caption.image)
            home = survey.splits.setdefault(number, split)
            if home != split:
                survey.faults.append(f"{place}: {caption.image} is in the split {home!r} already")
    if image_root is not None:
        absent = (image_root / image for image in survey.images.values())
        survey.faults += [f"{path}: there is no such picture" for path in absent if not path.is_file()]
    if not survey.captions and not survey.faults:
        survey.faults.append(f"{', '.join(map(str, lists.values()))}: hold no captions")
    return survey


def _measure(
    lists: Mapping[str, Path], audio_root: Path, total: int, progress: Stages | None
) -> tuple["array[int]", dict[int, str]]:
    """Samples of each caption's sound, from its header, and why some are out, by the caption's number."""
    samples = array("i")
    reasons: dict[int, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for some in batched(_walk(lists), SOUNDS_AT_ONCE):
            paths = [audio_root / caption.wav for _, caption in some]
            for length in pool.map(_length, paths):
                if isinstance(length, str):
                    reasons[len(samples)] = length
                samples.append(0 if isinstance(length, str) else length)
            if progress is not None:
                progress("sounds", len(samples), total)
    return samples, reasons


def _length(path: Path) -> int | str:
    """Samples of a sound that can be used where it is, or the reason why it cannot."""
    if not path.is_file():
        return "absent sound"
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, OSError):
        return "broken sound"
    if info.samplerate != SAMPLE_RATE or info.channels != 1:
        return f"sound of {info.samplerate} Hz and {info.channels} channels, not {SAMPLE_RATE} Hz mono"
    return info.frames if info.frames >= MIN_SAMPLES else TOO_SHORT


TOO_SHORT = f"shorter than {MIN_SECONDS} s"


def _sound_faults(lists: Mapping[str, Path], reasons: Mapping[int, str]) -> list[str]:
    return [
        f"{lists[split]}: entry {caption.entry}: {caption.wav}: {reasons[index]}"
        for index, (split, caption) in enumerate(_walk(lists))
        if reasons.get(index, TOO_SHORT) != TOO_SHORT
    ]


def _add_captions(
    writer: CorpusWriter,
    lists: Mapping[str, Path],
    survey: Survey,
    samples: Sequence[int],
    reasons: Mapping[int, str],
    regions: RegionFile,
) -> None:
    missing = set(regions.missing)
    uttids: set[str] = set()
    for index, (split, caption) in enumerate(_walk(lists)):
        number = coco_number(caption.image)
        assert number is not None
        image = survey.images[number]
        reason = reasons.get(index)
        if reason is None and image in missing:
            reason = "picture without regions"
        if reason is None and caption.uttid in uttids:
            reason = "uttid that has come before"
        if reason is not None:
            writer.skip(reason, json.dumps([caption.uttid, caption.wav, image]))
            continue
        uttids.add(caption.uttid)
        writer.add_caption(
            Caption(
                id=caption.uttid,
                split=split,
                audio=caption.wav,
                num_samples=samples[index],
                speaker=caption.speaker,
                language="en",
                image=image,
                text=caption.text,
            )
        )
