"""The pipeline for sources that are lists of spoken captions of images.

Sounds are used in place. Region features are read from files (see `regions.published`) or computed by
`regions.pixel_grid`.
"""

import codecs
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import ijson

from vgsplus.corpora import CorpusWriter, Summary
from vgsplus.corpora.format import CaptionEntry
from vgsplus.corpora.prepare import NO_SPLIT, Usable, add_captions, add_image_regions
from vgsplus.corpora.sounds import EMPTY, TOO_SHORT
from vgsplus.errors import CorpusError
from vgsplus.files import as_on_disk, is_file
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.collect import ImageKey, collect_regions
from vgsplus.regions.pixel_grid import PIXEL_GRID
from vgsplus.regions.store import Dtype, provenance_of


@dataclass(frozen=True, slots=True)
class ListSource:
    """A corpus that is a list of captions.

    Attributes:
        name: name of the corpus.
        title: name of the corpus in messages and in its provenance.
        licence: licence of the corpus.
        images: name of the collection of images, for messages.
        image_key: maps names of images, in the lists and in files of regions, to keys.
    """

    name: str
    title: str
    licence: str
    images: str
    image_key: ImageKey


class ListOptions(TypedDict, total=False):
    """Options of all sources that are lists.

    Attributes:
        features: files of region features. Default: compute them with the pixel grid.
        image_root: folder of the images, required without `features`.
        dtype: data type of the stored features, "float16" (default) or "float32".
        skip_faulty: whether to skip captions whose sound is missing or faulty, whose speaker is unknown,
            whose image has no regions, or whose id or sound repeats. Default: False, these are faults.
            Sounds under 0.25 s and images without a split are always skipped.
        overwrite: whether to replace an existing corpus. Default: False.
        progress: stages "sounds", "regions" or "pictures", and "checking".
    """

    features: Sequence[Path]
    image_root: Path | None
    dtype: Dtype
    skip_faulty: bool
    overwrite: bool
    progress: Progress


def prepare_lists(
    source: ListSource,
    entries: Iterable[CaptionEntry | str],
    root: Path,
    *,
    files: Mapping[str, Path],
    audio_root: Path,
    notes: Callable[[Mapping[str, int]], Mapping[str, Any]] = lambda _: {},
    **options: Unpack[ListOptions],
) -> Summary:
    """Prepare listed captions as a corpus at `root`.

    `entries` are captions, with sounds relative to `audio_root`, and faults of the lists. `files` are the
    lists, by purpose, for the provenance. `notes` returns further entries of corpus.json from the number of
    images of each split.

    Raises:
        CorpusError: `root` exists; all faults of the lists and sounds; or all faults of the regions.
    """
    features, image_root = options.get("features", ()), options.get("image_root")
    dtype: Dtype = options.get("dtype", "float16")
    skip_faulty, progress = options.get("skip_faulty", False), options.get("progress", SILENT)
    _check_inputs(source.title, audio_root, features, image_root)
    listed: dict[int | str, tuple[str, str | None]] = {}  # image id and split of each image key
    resume_folder = Path(root).resolve().with_name(f".{Path(root).resolve().name}.regions")

    def check() -> Iterator[CaptionEntry | str]:
        yield from _check_entries(source, entries, listed, allow_repeats=skip_faulty)
        if image_root is not None and (features or not skip_faulty):
            paths = (image_root / image for image, _ in listed.values())
            yield from (
                f"{path}: there is no such picture" for path in paths if not is_file(as_on_disk(path))
            )
        if not listed:
            yield f"{', '.join(map(str, files.values()))}: hold no captions"

    def add_images(writer: CorpusWriter, image_ids: Sequence[str]) -> Mapping[str, str]:
        if image_root is not None and not features:
            return add_image_regions(writer, image_ids, image_root, dtype=dtype)
        path, missing, others = collect_regions(
            features,
            {key: image for key, (image, _) in listed.items()},
            resume_folder,
            image_key=source.image_key,
            dtype=dtype,
            partial=skip_faulty,
            progress=progress,
        )
        writer.move_regions(path)
        writer.set_info("regions_of_no_caption", others)
        return missing

    def review(writer: CorpusWriter, usable: list[Usable]) -> Iterator[Usable]:
        for key, value in notes(Counter(split for _, split in listed.values() if split is not None)).items():
            writer.set_info(key, value)
        return _skip_repeats(writer, usable)

    provenance = {
        "source": source.title,
        "lists": {what: str(path.absolute()) for what, path in files.items()},
        "features": [str(path.absolute()) for path in features],
        "regions": [provenance_of(path) for path in features] or PIXEL_GRID,
    }
    with CorpusWriter(
        root,
        name=source.name,
        licence=source.licence,
        provenance=provenance,
        audio_root=audio_root.absolute(),
        image_root=None if image_root is None else image_root.absolute(),
        overwrite=options.get("overwrite", False),
        progress=progress,
        check_contents=False,
    ) as writer:
        add_captions(
            writer,
            check(),
            audio_root=audio_root.absolute(),
            add_images=add_images,
            skip="all" if skip_faulty else {TOO_SHORT, EMPTY, NO_SPLIT},
            label=_label,
            review=review,
        )
        summary = writer.finish()
    shutil.rmtree(resume_folder, ignore_errors=True)
    return summary


def _check_inputs(title: str, audio_root: Path, features: Sequence[Path], image_root: Path | None) -> None:
    """Raise for missing folders and files."""
    for what, folder in (("the folder of the wavs", audio_root), ("the folder of the pictures", image_root)):
        if folder is not None and not folder.is_dir():
            raise CorpusError(f"{folder}: there is no such folder, {what}.")
    if not features and image_root is None:
        raise CorpusError(
            f"{title}: no region features. Name files of them with --features, or the folder of the pictures "
            "with --images, to compute them from pixels."
        )
    if absent := [path for path in features if not path.is_file()]:
        raise CorpusError([f"{path}: there is no such file of region features." for path in absent])


def _check_entries(
    source: ListSource,
    entries: Iterable[CaptionEntry | str],
    listed: dict[int | str, tuple[str, str | None]],
    *,
    allow_repeats: bool,
) -> Iterator[CaptionEntry | str]:
    """Yield the entries, with one image id for each image, and their faults; fill `listed`.

    Repeated ids and sounds are faults unless `allow_repeats`.
    """
    origins: dict[tuple[str, str], str] = {}
    for entry in entries:
        if isinstance(entry, str) or entry.problem == NO_SPLIT:
            yield entry
            continue
        assert entry.image is not None, "every listed caption has an image"
        key = source.image_key(entry.image)
        if key is None or ".." in Path(entry.image).parts or Path(entry.image).is_absolute():
            yield f"{entry.origin}: {entry.image!r} is not a picture of {source.images}"
            continue
        names = (("uttid", entry.id), ("wav", entry.audio))
        if not allow_repeats and (repeated := next((name for name in names if name in origins), None)):
            yield f"{entry.origin}: the {' '.join(repeated)} repeats that of {origins[repeated]}"
        origins |= dict.fromkeys(names, entry.origin)
        image, split = listed.setdefault(key, (entry.image, entry.split))
        if split != entry.split:
            yield f"{entry.origin}: {entry.image} is in the split {split!r} already"
        yield entry if entry.image == image else replace(entry, image=image)


def _skip_repeats(writer: CorpusWriter, usable: list[Usable]) -> Iterator[Usable]:
    """Skip captions whose id or sound repeats that of a usable caption."""
    ids: set[str] = set()
    sounds: set[str] = set()
    for entry, sound in usable:
        if entry.id in ids:
            writer.skip("repeated uttid", _label(entry))
        elif entry.audio in sounds:
            writer.skip("repeated wav", _label(entry))
        else:
            ids.add(entry.id)
            sounds.add(entry.audio)
            yield entry, sound


def _label(entry: CaptionEntry) -> str:
    return json.dumps([entry.id, entry.audio, entry.image])


def find_lists(
    folders: Sequence[Path], names: Mapping[str, str], exclude: Collection[str] = ()
) -> dict[str, Path]:
    """Return the lists of captions in `folders` by split, except the splits `exclude`.

    `names` are regular expressions of the names of the files, by split.

    Raises:
        CorpusError: there are two lists of one split.
    """
    found: dict[str, Path] = {}
    for split, name in names.items():
        if split in exclude:
            continue
        paths = (path for folder in folders for path in folder.glob("*.json"))
        matching = sorted(path for path in paths if re.fullmatch(name, path.name))
        if len(matching) > 1:
            found_names = ", ".join(path.name for path in matching)
            option = split.replace("_", "-")
            raise CorpusError(f"{folders[0]}: holds {found_names}. Choose one with --{option}.")
        if matching:
            found[split] = matching[0]
    return found


# ---- JSON -------------------------------------------------------------------------------------------------


def read_list(
    path: Path, split: str, captions_of: Callable[[Any], Iterable[Mapping[str, str] | str]]
) -> Iterator[CaptionEntry | str]:
    """Yield the English captions of a JSON list, and faults "FILE: entry N: …".

    Args:
        path: the list.
        split: split of the captions.
        captions_of: returns the captions of an entry: their fields "uttid", "wav", "speaker", "image" and
            "text" (which may be empty), or a fault.

    Raises:
        CorpusError: the file is missing, not JSON or truncated, or has no list "data".
    """
    for number, item in enumerate(entries_of(path), start=1):
        origin = f"{path}: entry {number}"
        for caption in captions_of(item):
            if isinstance(caption, str):
                yield f"{origin}: {caption}"
                continue
            yield CaptionEntry(
                origin=origin,
                audio=caption["wav"],
                id=caption["uttid"],
                split=split,
                speaker=caption["speaker"],
                language="en",
                image=caption["image"],
                text=caption["text"] or None,
            )


def entries_of(path: Path, key: str = "data") -> Iterator[Any]:
    """Yield the entries of the list `key` in a JSON file, without loading the complete file into memory.

    Raises:
        CorpusError: the file is missing, not JSON or truncated, or the list is missing or empty.
    """
    if not is_file(path):
        raise CorpusError(f"{path}: there is no such list of captions.")
    entries = 0
    with path.open("rb") as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        try:
            for entry in ijson.items(file, f"{key}.item", use_float=True):
                entries += 1
                yield entry
        except (ijson.JSONError, ValueError, OverflowError, RecursionError) as error:
            what = " ".join(str(error).split())
            raise CorpusError(
                f"{path}: is not valid JSON or truncated after {entries} entries ({what}). "
                "Fetch the file again."
            ) from None
    if not entries:
        raise CorpusError(f'{path}: has no list "{key}", or an empty one. Is it the right file?')


def as_text(value: Any) -> str | None:  # noqa: ANN401 - as the file has it
    """Return a stripped text, or an integer as text; None for empty texts and other values."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return (value.strip() or None) if isinstance(value, str) else None


def fields_of(item: Any, names: Sequence[str], *, unbroken: Collection[str]) -> dict[str, str] | str:  # noqa: ANN401 - as the file has it
    """Return fields of an entry as texts, or their faults as a text; `unbroken` ones must have no blanks."""
    values = item if isinstance(item, dict) else {}
    found = {name: as_text(values.get(name)) for name in names}
    texts = {name: text for name, text in found.items() if text is not None}
    faults = []
    if absent := [name for name in names if values.get(name) in (None, "")]:
        faults.append(f"lacks {', '.join(absent)}")
    faults += [
        f"has {name} = {str(values[name])[:40]!r}, which is not text"
        for name in names
        if name not in texts and name not in absent
    ]
    faults += [
        f"has a blank in {name} {text!r}"
        for name, text in texts.items()
        if name in unbroken and len(text.split()) > 1
    ]
    return "; ".join(faults) or texts
