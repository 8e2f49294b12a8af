"""Real human speech about pictures: the stamps of Tux Paint, described aloud by volunteers in 14 languages.

The folder holds NAME.png, NAME.txt (English on the first line, then `lang.utf8=text`) and the recordings
NAME_desc.ogg (English) and NAME_desc_LANG.ogg. NAME.ogg without `_desc` is a sound effect and no speech.

The splits:
    test_images      pictures that no other split knows, with all their recordings
    test_recordings  one recording each of pictures whose other recordings train
    validation       the same again, of fewer pictures. New recordings and not new pictures, because most
                     stamps show a thing that no other stamp shows: a new one is too hard to steer by
    train            the rest

Some recordings were copied from one stamp to another of the same thing. Pictures that share a sound or
their pixels (as is or mirrored) therefore stay together in train, and no copied sound is ever held out.
"""

import hashlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from vgsplus.audio import SCALED, load_any, write_wav
from vgsplus.corpora import Caption, CorpusWriter, Summary
from vgsplus.corpora.preparing import MIN_SAMPLES, MIN_SECONDS, reason
from vgsplus.corpora.sources.stamp_recordings import MEND, Recording, Take, find_recordings
from vgsplus.corpora.sources.stamp_splits import assign_splits, unite_copies
from vgsplus.errors import AudioError, CorpusError
from vgsplus.images import open_image
from vgsplus.parallel import Tick as Progress
from vgsplus.parallel import in_parallel
from vgsplus.regions.pixel_grid import grid_regions
from vgsplus.regions.store import RegionStore

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
    "regions": "cells of a 6x6 grid, described by their pixels",
}
type Regions = tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]

SHARED_IMAGES = [["train", "validation"], ["train", "test_recordings"], ["validation", "test_recordings"]]


def prepare_stamps(
    stamps: Path,
    root: Path,
    *,
    regions: Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Prepare the stamps in the folder `stamps` as a corpus at `root`; `seed` decides the splits.

    Pictures are described by the cells of a grid, or as the file `regions` holds them (see `region_store`).

    Left out, and counted by reason: recordings without a picture or a text, broken, silent or short ones.

    Raises:
        CorpusError: `stamps` is no folder of stamps, nothing in it is usable, `root` is taken, or `regions`
            lacks a picture; then every such picture.
    """
    stamps = Path(stamps)
    recordings, skipped = find_recordings(stamps)
    with (
        RegionStore(regions) if regions is not None else nullcontext() as store,
        CorpusWriter(
            root,
            name="stamps",
            version="1",
            provenance=PROVENANCE | ({} if store is None else {"regions": store.provenance}),
            licence=LICENCE,
            overwrite=overwrite,
        ) as writer,
    ):
        for why, what in skipped:
            writer.skip(why, what)
        recordings, looks = _add_pictures(writer, stamps, recordings, store)
        takes = unite_copies(_convert(writer, stamps, recordings, progress), writer.folder / "audio")
        _add_captions(writer, takes, assign_splits(takes, looks, seed))
        _note_oddities(writer, stamps, takes, looks)
        return writer.finish()


def _add_pictures(
    writer: CorpusWriter, stamps: Path, recordings: Sequence[Recording], store: RegionStore | None
) -> tuple[list[Recording], dict[str, str]]:
    """Copy and describe the pictures: the recordings whose picture is good, and the look of each picture."""
    looks: dict[str, str] = {}
    broken: set[str] = set()
    absent: list[str] = []
    names = sorted({recording.name for recording in recordings})
    describe = partial(_describe, stamps, store)
    for name, described in zip(names, in_parallel(describe, names), strict=True):
        if described is None:
            broken.add(name)
            continue
        looks[name], found = described
        if found is None:
            assert store is not None, "the grid describes every picture"
            absent.append(f"{stamps / name}.png: {store.absence()}")
            continue
        writer.add_regions(f"{name}.png", *found)
        target = writer.folder / "images" / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(stamps / f"{name}.png", target)
    if absent:
        raise CorpusError(absent)
    for recording in recordings:
        if recording.name in broken:
            writer.skip("broken picture", recording.path.relative_to(stamps).as_posix())
    return [recording for recording in recordings if recording.name not in broken], looks


def _describe(stamps: Path, store: RegionStore | None, name: str) -> tuple[str, Regions | None] | None:
    """The look of a picture, and its regions unless the store has none; None for a broken picture."""
    path = stamps / f"{name}.png"
    try:
        picture = open_image(path)
    except CorpusError:
        return None
    if store is None:
        return look_of(picture), grid_regions(picture)
    return look_of(picture), store.find(f"{name}.png", hashlib.sha256(path.read_bytes()).hexdigest())


def look_of(picture: Image.Image) -> str:
    """A digest of what a picture shows over white, the same for its mirror image."""
    layered = picture.convert("RGBA")
    seen = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    views = (seen.tobytes(), ImageOps.mirror(seen).tobytes())
    return min(hashlib.sha256(repr(seen.size).encode() + view).hexdigest() for view in views)


def _convert(
    writer: CorpusWriter, stamps: Path, recordings: Sequence[Recording], progress: Progress | None
) -> list[Take]:
    """Write the recordings as 16 kHz mono; those that are good."""
    audio = writer.folder / "audio"
    for folder in {(audio / recording.id).parent for recording in recordings}:
        folder.mkdir(parents=True, exist_ok=True)

    def convert(recording: Recording) -> Take | str:
        try:
            signal = load_any(recording.path)
        except AudioError as error:
            return reason(error, recording.path)
        if len(signal) < MIN_SAMPLES:
            return f"shorter than {MIN_SECONDS} s"
        factor = write_wav(audio / f"{recording.id}.wav", signal)
        return Take(
            recording=recording,
            num_samples=len(signal),
            sound=hashlib.sha256(signal.tobytes()).hexdigest(),
            scaled=factor != 1.0,
        )

    takes = []
    for recording, outcome in zip(recordings, in_parallel(convert, recordings, progress), strict=True):
        if isinstance(outcome, Take):
            takes.append(outcome)
            if outcome.scaled:
                writer.count_change(SCALED)
        else:
            writer.skip(outcome, recording.path.relative_to(stamps).as_posix())
    if not takes:
        raise CorpusError(f"{stamps}: none of {len(recordings)} recordings is usable. {MEND}")
    return takes


def _add_captions(writer: CorpusWriter, takes: Iterable[Take], splits: Mapping[str, str]) -> None:
    for take in takes:
        recording = take.recording
        writer.add_caption(
            Caption(
                id=recording.id,
                split=splits[recording.id],
                audio=take.audio,
                num_samples=take.num_samples,
                speaker=recording.language,
                language=recording.language,
                image=f"{recording.name}.png",
                text=recording.text,
            )
        )
    writer.note("shared_images", SHARED_IMAGES)


def _note_oddities(
    writer: CorpusWriter, stamps: Path, takes: Sequence[Take], looks: Mapping[str, str]
) -> None:
    """State in corpus.json what a careful reader would otherwise stumble over."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name, look in looks.items():
        alike[look].append(f"{name}.png")
    copies = Counter(take.sound for take in takes)
    writer.note("same_pictures", [sorted(names) for names in alike.values() if len(names) > 1])
    writer.note("copied_recordings", sum(count for count in copies.values() if count > 1))
    writer.note("without_text", sum(take.recording.text is None for take in takes))
    writer.note(
        "doubled_endings",
        [
            take.recording.path.relative_to(stamps).as_posix()
            for take in takes
            if len(take.recording.path.suffixes) > 1
            and take.recording.path.suffixes[-1] == take.recording.path.suffixes[-2]
        ],
    )
