"""The stamps of Tux Paint: images with spoken descriptions by volunteers in 14 languages.

The folder contains NAME.png, NAME.txt (English on the first line, then `lang.utf8=text`) and the recordings
NAME_desc.ogg (English) and NAME_desc_LANG.ogg. NAME.ogg without `_desc` is a sound effect, not speech.

The splits:
    test_images      images that are in no other split, with all their recordings
    test_recordings  one recording of each image whose other recordings are in train
    validation       one recording of fewer images, likewise. Its images are in train: most stamps show
                     objects that no other stamp shows, so recall of new images is too low to select models
    train            the remaining recordings

Some recordings were copied from one stamp to another of the same object. Images that share a sound or their
pixels (also mirrored) are therefore kept in train, and copied sounds are not held out.
"""

import hashlib
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageOps

from vgsplus.corpora import CorpusWriter, Summary
from vgsplus.corpora.format import CaptionEntry
from vgsplus.corpora.prepare import Usable, add_captions, add_image_regions
from vgsplus.corpora.sources.stamps.splits import assign_splits, unite_copies
from vgsplus.errors import CorpusError
from vgsplus.parallel import parallel_map
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.images import open_image
from vgsplus.regions.pixel_grid import PIXEL_GRID, over_white
from vgsplus.regions.store import RegionStore, provenance_of

RECORDING = re.compile(
    r"(?P<name>.+)_desc(?:_(?P<language>[a-z]{2,3}(?:_[A-Z]{2})?))?(?P<ending>(?:\.(?:ogg|wav))+)"
)
HINT_FOLDER = (
    "Name the folder of Tux Paint's stamps. Debian and Ubuntu: apt-get install tuxpaint-stamps-default; "
    "dpkg -L tuxpaint-stamps-default shows where they are (/usr/share/tuxpaint/stamps)."
)
LICENCE = (
    "GPL-2, as the copyright file of Debian's tuxpaint-stamps-default states for the whole collection "
    "(copyright 2002-2022 Bill Kendrick). Its changelog names other free licences for single pictures and "
    "sounds (public domain, Creative Commons BY and BY-SA, GFDL). This corpus is made of copies and "
    "conversions of these files and inherits their licences."
)
PROVENANCE = {
    "source": "Tux Paint stamps (https://tuxpaint.org), Debian package tuxpaint-stamps-default",
    "speech": "descriptions of the pictures, read by volunteers",
    "speakers": (
        "The recordings name no speaker. The collection's changelog and the files' tags credit mostly one "
        "person a language: be Kseniya Buraya, bg Krasimir Petkov, da Joe Dalton, el Kyriaki Serafeim, "
        "es Estefanía Ortiz, fr PaulK, lt Andrius Jurkus, ro Tabbytha, ru Edwin Veber; pt_BR various school "
        "children. So `speaker` is the language."
    ),
    "changes": "resampled to 16 kHz mono WAV PCM16; pictures unchanged",
    "regions": PIXEL_GRID,
}
SHARED_IMAGES = [["train", "validation"], ["train", "test_recordings"], ["validation", "test_recordings"]]


def prepare_stamps(
    stamps: Path,
    root: Path,
    *,
    regions: Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Summary:
    """Prepare the stamps in the folder `stamps` as a corpus at `root`, with the options `table.TableOptions`.

    Recordings without an image or a text, and broken, silent or short ones, are skipped and counted.

    Raises:
        CorpusError: `stamps` is not a folder of stamps or has no usable recording; `root` exists; or all
            images that are not in `regions`.
    """
    stamps = Path(stamps)
    entries, digests = find_recordings(stamps)

    def add_images(writer: CorpusWriter, images: Sequence[str]) -> Mapping[str, str]:
        images = sorted(images, key=lambda image: image.removesuffix(".png"))
        missing = add_image_regions(writer, images, stamps, store=store)
        if missing:
            raise CorpusError(list(missing.values()))
        for image in images:
            target = writer.folder / "images" / image
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(stamps / image, target)
        return missing

    def review(writer: CorpusWriter, usable: list[Usable]) -> Iterator[Usable]:
        if not usable:
            raise CorpusError(f"{stamps}: none of {len(entries)} recordings is usable. {HINT_FOLDER}")
        usable = unite_copies(usable, writer.folder / "audio")
        writer.set_info("shared_images", SHARED_IMAGES)
        _set_statistics(writer, usable, digests)
        splits = assign_splits(usable, digests, seed)
        return ((replace(entry, split=splits[entry.id]), sound) for entry, sound in usable)

    with (
        RegionStore(regions) if regions is not None else nullcontext() as store,
        CorpusWriter(
            root,
            name="stamps",
            licence=LICENCE,
            provenance=PROVENANCE | ({} if regions is None else {"regions": provenance_of(regions)}),
            overwrite=overwrite,
            progress=progress,
        ) as writer,
    ):
        add_captions(writer, entries, add_images=add_images, skip="all", convert_all=True, review=review)
        return writer.finish()


def find_recordings(stamps: Path) -> tuple[list[CaptionEntry], dict[str, str]]:
    """Find the recordings in a folder of stamps, by the names of the files.

    Returns:
        The recordings, and the `image_digest` of each of their images.

    Raises:
        CorpusError: `stamps` is not a folder of stamps.
    """
    if not stamps.is_dir():
        raise CorpusError(f"{stamps}: there is no such folder. {HINT_FOLDER}")
    names = {path.relative_to(stamps).as_posix() for path in stamps.rglob("*") if path.is_file()}
    spoken = sorted(name for name in names if "_desc" in name and name.endswith((".ogg", ".wav")))
    if not spoken:
        raise CorpusError(f"{stamps}: holds no spoken description (NAME_desc_LANG.ogg). {HINT_FOLDER}")
    entries: dict[str, CaptionEntry] = {}
    skipped: list[CaptionEntry] = []
    texts: dict[str, dict[str, str]] = {}
    for name in spoken:
        match = RECORDING.fullmatch(name)
        stem = match["name"] if match else name
        language = (match and match["language"]) or "en"
        problem = _problem(stem, names) if match else "file name not understood"
        if problem is None and stem not in texts:
            texts[stem] = read_texts(stamps / f"{stem}.txt")
        entry = CaptionEntry(
            origin=name,
            audio=str(stamps / name),
            id=f"{stem}_{language}".replace(" ", "-"),
            speaker=language,
            language=language,
            image=f"{stem}.png",
            text=texts.get(stem, {}).get(language),
            problem=problem,
        )
        if problem is None and entry.id in entries:
            entry = replace(entry, problem="second recording of a picture in a language")
        if entry.problem is None:
            entries[entry.id] = entry
        else:
            skipped.append(entry)
    if not entries:
        raise CorpusError(f"{stamps}: no recording has a picture NAME.png and a text NAME.txt. {HINT_FOLDER}")
    images = sorted({entry.image for entry in entries.values() if entry.image is not None})
    found = zip(images, parallel_map(lambda image: _read_digest(stamps / image), images), strict=True)
    digests = {image: digest for image, digest in found if digest is not None}
    checked = [
        entry if entry.image in digests else replace(entry, problem="broken picture")
        for entry in entries.values()
    ]
    return skipped + checked, digests


def _problem(stem: str, names: set[str]) -> str | None:
    """Return why a recording cannot be used, by the names of the files, or None."""
    if f"{stem}.png" not in names:
        return "picture only as SVG" if f"{stem}.svg" in names else "no picture"
    return None if f"{stem}.txt" in names else "no text"


def read_texts(path: Path) -> dict[str, str]:
    """Return the texts of a stamp by language."""
    first, *others = path.read_text(encoding="utf-8-sig", errors="replace").splitlines() or [""]
    texts = {"en": first.strip()}
    for line in others:
        key, equals, text = line.partition("=")
        if equals:
            texts.setdefault(key.strip().removesuffix(".utf8"), text.strip())
    return {language: text for language, text in texts.items() if text}


def _read_digest(path: Path) -> str | None:
    try:
        return image_digest(open_image(path))
    except CorpusError:
        return None


def image_digest(image: Image.Image) -> str:
    """Return the SHA-256 of the pixels of an image over white, equal to that of its mirror image."""
    flat = over_white(image)
    views = (flat.tobytes(), ImageOps.mirror(flat).tobytes())
    return min(hashlib.sha256(repr(flat.size).encode() + view).hexdigest() for view in views)


def _set_statistics(writer: CorpusWriter, usable: Sequence[Usable], digests: Mapping[str, str]) -> None:
    """State copies, missing texts and repeated suffixes in corpus.json."""
    same: dict[str, list[str]] = defaultdict(list)
    for image, digest in digests.items():
        same[digest].append(image)
    copies = Counter(sound.digest for _, sound in usable)
    writer.set_info("same_pictures", [sorted(images) for images in same.values() if len(images) > 1])
    writer.set_info("copied_recordings", sum(count for count in copies.values() if count > 1))
    writer.set_info("without_text", sum(entry.text is None for entry, _ in usable))
    doubled = [entry.origin for entry, _ in usable if re.search(r"(\.\w+)\1$", entry.origin)]
    writer.set_info("doubled_endings", doubled)
