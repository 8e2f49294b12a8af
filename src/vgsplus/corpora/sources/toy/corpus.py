"""The toy corpus: drawn scenes and spoken captions, made in seconds without any download.

Scenes of one to three coloured shapes (`scenes`) are drawn (`pictures`), and their regions are the cells of a
grid; eSpeak NG (`espeak`) speaks five captions of each, by five of fourteen voices. The same seed gives the
same bytes. Test scenes require composition: each shows a shape in a colour that never occur together in
training, while all words of their captions occur in training.
"""

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vgsplus.audio import write_wav
from vgsplus.corpora import Caption, CorpusWriter, Summary
from vgsplus.corpora.format import ITEM_COLUMNS
from vgsplus.corpora.sources.toy.espeak import SILENCE_PHONE, Phone, Voice, speak
from vgsplus.corpora.sources.toy.pictures import draw
from vgsplus.corpora.sources.toy.scenes import HELD_OUT, Scene, describe, draw_scene
from vgsplus.errors import VgsplusError
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.pixel_grid import grid_regions

VERSION = "1"
CAPTIONS_PER_IMAGE = 5
TOKENS_PER_CELL = 5
"""Maximum number of tokens of a phone in one context by one speaker in the ABX items."""
ABX_SPEAKERS = 6
"""Number of voices in the ABX items: the pairs of speakers to compare grow with its square."""
FEW_IMAGES = 40
"""Below this number of images, starting a second process takes longer than it saves."""

# None has a "breath" (f2, f3, f5, whisper …): eSpeak NG draws it from memory that it never initialises.
VOICES = {
    "us-adam": Voice("en-us", rate=195, pitch=42),
    "us-ben": Voice("en-us+m1", rate=205, pitch=35),
    "us-carl": Voice("en-us+m3", rate=185, pitch=30),
    "us-dan": Voice("en-us+m7", rate=215, pitch=55),
    "us-eva": Voice("en-us+f1", rate=195, pitch=60),
    "us-fay": Voice("en-us+f4", rate=210, pitch=50),
    "us-gina": Voice("en-us+linda", rate=185, pitch=60),
    "us-hank": Voice("en-us+klatt4", rate=200, pitch=40),
    "us-iris": Voice("en-us+steph", rate=205, pitch=60),
    "gb-jack": Voice("en+m2", rate=200, pitch=40),
    "gb-kate": Voice("en+belinda", rate=190, pitch=55),
    "gb-liam": Voice("en-gb-x-rp+m6", rate=210, pitch=30),
    "gb-mary": Voice("en-gb-x-rp+f4", rate=200, pitch=65),
    "sc-neil": Voice("en-gb-scotland+m4", rate=195, pitch=45),
}

type Spoken = list[tuple[Caption, Voice]]
"""The captions of an image, of 0 samples as yet, and the voices that speak them."""
type Made = tuple[npt.NDArray[np.float16], npt.NDArray[np.float32], list[tuple[int, tuple[Phone, ...]]]]
"""Features (36, F) and boxes (36, 4) of an image; number of samples and phones of each caption."""


def prepare_toy(
    root: str | Path,
    *,
    train_images: int = 1600,
    validation_images: int = 60,
    test_images: int = 120,
    seed: int = 0,
    overwrite: bool = False,
    workers: int | None = None,
    progress: Progress = SILENT,
) -> Summary:
    """Make the toy corpus at `root`.

    Args:
        root: the corpus folder to make.
        train_images: number of images of the split "train", each with five captions.
        validation_images: number of images of the split "validation".
        test_images: number of images of the split "test".
        seed: the same seed and numbers give the same bytes, whatever the number of workers.
        overwrite: whether to replace an existing corpus.
        workers: number of processes. Default: one per core.
        progress: stages "images" and "checking".

    Raises:
        VgsplusError: a number is not positive, eSpeak NG fails, or `root` is refused (see `CorpusWriter`).
    """
    sizes = {"train": train_images, "validation": validation_images, "test": test_images}
    if wrong := [f"{split} {size}" for split, size in sizes.items() if size < 1]:
        raise VgsplusError(f"toy corpus: every split needs at least one image, asked for {', '.join(wrong)}.")
    provenance = {
        "source": "drawn and spoken by vgsplus data toy",
        "seed": seed,
        "speech": "eSpeak NG, a voice a speaker",
        "test": "every scene shows a held-out pair of shape and colour; other splits show none of them",
        "held_out": sorted(f"{colour} {shape}" for shape, colour in HELD_OUT),
    }
    with (
        CorpusWriter(
            root,
            name="toy",
            version=VERSION,
            provenance=provenance,
            licence="CC0-1.0",
            overwrite=overwrite,
            progress=progress,
        ) as writer,
        ExitStack() as pool,
    ):
        for folder in ("images", "audio"):
            for split in sizes:
                (writer.folder / folder / split).mkdir(parents=True)
        images = list(_draw_images(sizes, seed))
        make = partial(_make, writer.folder)
        made: Iterator[Made] = map(make, images)
        workers = workers or (1 if len(images) < FEW_IMAGES else os.cpu_count() or 1)
        if workers > 1:
            # New processes: a fork would inherit the threads and locks of libraries in use here.
            spawn = multiprocessing.get_context("spawn")
            processes = pool.enter_context(ProcessPoolExecutor(workers, mp_context=spawn))
            made = processes.map(make, images, chunksize=8)
        items: dict[str, list[str]] = {split: [] for split in sizes}
        cells: Counter[tuple[str, ...]] = Counter()
        for done, ((_, captions), (features, boxes, spoken)) in enumerate(
            zip(images, made, strict=True), start=1
        ):
            writer.add_regions(f"{captions[0][0].image}", features, boxes)
            for (caption, _), (num_samples, phones) in zip(captions, spoken, strict=True):
                writer.add_caption(replace(caption, num_samples=num_samples))
                items[caption.split] += _items(caption, phones, cells)
            progress.update("images", done, len(images))
        for split in ("validation", "test"):
            text = "\n".join([" ".join(ITEM_COLUMNS), *items[split]]) + "\n"
            (writer.folder / f"{split}.item").write_text(text, encoding="utf-8")
        return writer.finish()


def _draw_images(sizes: dict[str, int], seed: int) -> Iterator[tuple[Scene, Spoken]]:
    """The images of all splits; no content is shared by training and validation."""
    shown: dict[frozenset[tuple[str, str, str]], str] = {}
    for split_index, (split, size) in enumerate(sizes.items()):
        for number in range(size):
            rng = np.random.default_rng([seed, split_index, number])
            scene = draw_scene(rng, held_out=split == "test")
            while shown.setdefault(scene.content, split) != split:
                scene = draw_scene(rng, held_out=split == "test")
            yield scene, _captions(split, f"{split}/{number:06d}", scene, rng)


def _captions(split: str, stem: str, scene: Scene, rng: np.random.Generator) -> Spoken:
    """Captions of a scene by different speakers, who vary in rate and pitch from caption to caption."""
    speakers = [list(VOICES)[index] for index in rng.permutation(len(VOICES))[:CAPTIONS_PER_IMAGE]]
    texts = describe(scene, rng, CAPTIONS_PER_IMAGE)
    captions = []
    for index, (speaker, text) in enumerate(zip(speakers, texts, strict=True)):
        own, name = VOICES[speaker], f"{stem}_{index}"
        rate, pitch = own.rate + int(rng.integers(-12, 13)), own.pitch + int(rng.integers(-5, 6))
        caption = Caption(
            id=name,
            split=split,
            audio=f"{name}.wav",
            num_samples=0,
            speaker=speaker,
            language="en",
            image=f"{stem}.png",
            text=text,
        )
        captions.append((caption, Voice(own.name, rate, pitch)))
    return captions


def _make(folder: Path, image: tuple[Scene, Spoken]) -> Made:
    """Draw an image and speak its captions; a function of the arguments alone, as are the files it writes."""
    scene, captions = image
    picture = draw(scene)
    picture.save(folder / "images" / f"{captions[0][0].image}")
    features, boxes = grid_regions(picture)
    spoken = speak((voice, caption.text or "") for caption, voice in captions)
    for (caption, _), speech in zip(captions, spoken, strict=True):
        # Resampling overshoots full scale by a few samples. They are clipped, as in every toy corpus that
        # results were measured on: scaling would make another corpus.
        write_wav(folder / "audio" / caption.audio, np.clip(speech.samples, -1, 1))
    return features.astype(np.float16), boxes, [(len(speech.samples), speech.phones) for speech in spoken]


def _items(caption: Caption, phones: Sequence[Phone], cells: Counter[tuple[str, ...]]) -> Iterator[str]:
    """ABX items of the phones of a caption between two phones, until their cell is full."""
    if caption.speaker not in list(VOICES)[:ABX_SPEAKERS]:
        return
    for before, phone, after in zip(phones, phones[1:], phones[2:], strict=False):
        names = (phone.name, before.name, after.name)
        cell = (caption.split, *names, caption.speaker)
        if SILENCE_PHONE not in names and cells[cell] < TOKENS_PER_CELL:
            cells[cell] += 1
            yield f"{caption.id} {phone.onset:.4f} {phone.offset:.4f} {' '.join(names)} {caption.speaker}"
