"""The toy corpus: drawn scenes and spoken captions, made in seconds without any download.

Scenes of one to three coloured shapes (`scenes`) are drawn (`pictures`). Five captions of each are spoken
by eSpeak NG (`espeak`), with five of fourteen voices. Corpora with the same seed are equal byte for byte.
Test scenes require composition: each shows a combination of shape and colour that does not occur in training,
while all words of their captions do.
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
from vgsplus.corpora.format import BOX_COLUMNS, ITEM_COLUMNS
from vgsplus.corpora.sources.toy.espeak import SILENCE_PHONE, Interval, Voice, speak
from vgsplus.corpora.sources.toy.pictures import box_of, draw
from vgsplus.corpora.sources.toy.scenes import HELD_OUT, Scene, describe, draw_scene
from vgsplus.errors import VgsplusError
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.pixel_grid import PIXEL_GRID, grid_regions

CAPTIONS_PER_IMAGE = 5
TOKENS_PER_CELL = 5
"""Maximum number of ABX tokens with the same phone, context and speaker."""
ABX_SPEAKERS = 6
"""Number of speakers in the ABX items; the number of pairs to compare grows with its square."""
FEW_IMAGES = 40
"""Number of images below which several processes are not faster than one."""

# Voices with "breath" (f2, f3, f5, whisper …) are excluded: eSpeak NG reads it from uninitialised memory.
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
"""The captions of an image, with num_samples 0, and their voices."""
type Made = tuple[
    npt.NDArray[np.float16],
    npt.NDArray[np.float32],
    list[tuple[int, tuple[Interval, ...], tuple[Interval, ...]]],
]
"""Features (36, F) and boxes (36, 4) of an image; number of samples, phones and words of each caption."""


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
    """Make the toy corpus at `root`, of these numbers of images by split, each with five captions.

    It depends on the random seed, but not on the number of processes, `workers` (default: one per core). The
    stages of `progress` are "images" and "checking".

    Raises:
        VgsplusError: a number is not positive, eSpeak NG fails, or `root` exists (see `CorpusWriter`).
    """
    sizes = {"train": train_images, "validation": validation_images, "test": test_images}
    if wrong := [f"{split} {size}" for split, size in sizes.items() if size < 1]:
        raise VgsplusError(f"toy corpus: every split needs at least one image, asked for {', '.join(wrong)}.")
    provenance = {
        "source": "drawn and spoken by vgsplus data toy",
        "seed": seed,
        "speech": "eSpeak NG, a voice a speaker",
        "regions": PIXEL_GRID,
        "test": "every scene shows a held-out pair of shape and colour; other splits show none of them",
        "held_out": sorted(f"{colour} {shape}" for shape, colour in HELD_OUT),
    }
    with (
        CorpusWriter(
            root,
            name="toy",
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
            # Spawned, because a fork would copy the locks of other threads.
            spawn = multiprocessing.get_context("spawn")
            processes = pool.enter_context(ProcessPoolExecutor(workers, mp_context=spawn))
            made = processes.map(make, images, chunksize=8)
        items: dict[str, list[str]] = {split: [] for split in sizes}
        words: dict[str, list[str]] = {split: [] for split in sizes}
        boxes_of_words: dict[str, list[str]] = {split: [] for split in sizes}
        cells: Counter[tuple[str, ...]] = Counter()
        for done, ((scene, captions), (features, boxes, spoken)) in enumerate(
            zip(images, made, strict=True), start=1
        ):
            writer.add_regions(f"{captions[0][0].image}", features, boxes)
            for (caption, _), (num_samples, phones, spoken_words) in zip(captions, spoken, strict=True):
                writer.add_caption(replace(caption, num_samples=num_samples))
                items[caption.split] += _items(caption, phones, cells)
                words[caption.split] += _ctm(caption, spoken_words)
                boxes_of_words[caption.split] += _word_boxes(caption, spoken_words, scene)
            progress.update("images", done, len(images))
        for split in ("validation", "test"):
            text = "\n".join([" ".join(ITEM_COLUMNS), *items[split]]) + "\n"
            (writer.folder / f"{split}.item").write_text(text, encoding="utf-8")
        for split, lines in words.items():
            (writer.folder / f"{split}.ctm").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for split, lines in boxes_of_words.items():
            text = "\n".join([" ".join(BOX_COLUMNS), *lines]) + "\n"
            (writer.folder / f"{split}.boxes").write_text(text, encoding="utf-8")
        return writer.finish()


def _draw_images(sizes: dict[str, int], seed: int) -> Iterator[tuple[Scene, Spoken]]:
    """Yield the images of all splits; training and validation share no contents of scenes."""
    shown: dict[frozenset[tuple[str, str, str]], str] = {}
    for split_index, (split, size) in enumerate(sizes.items()):
        for number in range(size):
            rng = np.random.default_rng([seed, split_index, number])
            scene = draw_scene(rng, held_out=split == "test")
            while shown.setdefault(scene.content, split) != split:
                scene = draw_scene(rng, held_out=split == "test")
            yield scene, _captions(split, f"{split}/{number:06d}", scene, rng)


def _captions(split: str, stem: str, scene: Scene, rng: np.random.Generator) -> Spoken:
    """Return captions of a scene by different speakers, with random rate and pitch."""
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
    """Draw an image and synthesise its captions, deterministically."""
    scene, captions = image
    picture = draw(scene)
    picture.save(folder / "images" / f"{captions[0][0].image}")
    features, boxes = grid_regions(picture)
    spoken = speak((voice, caption.text or "") for caption, voice in captions)
    for (caption, _), speech in zip(captions, spoken, strict=True):
        # A few samples exceed full scale after resampling. They are clipped, not scaled, because the results
        # in docs/results.md are of corpora made in this way.
        write_wav(folder / "audio" / caption.audio, np.clip(speech.samples, -1, 1))
    return (
        features.astype(np.float16),
        boxes,
        [(len(speech.samples), speech.phones, speech.words) for speech in spoken],
    )


def _items(caption: Caption, phones: Sequence[Interval], cells: Counter[tuple[str, ...]]) -> Iterator[str]:
    """Yield ABX items of a caption, up to TOKENS_PER_CELL per phone, context and speaker."""
    if caption.speaker not in list(VOICES)[:ABX_SPEAKERS]:
        return
    for before, phone, after in zip(phones, phones[1:], phones[2:], strict=False):
        names = (phone.name, before.name, after.name)
        cell = (caption.split, *names, caption.speaker)
        if SILENCE_PHONE not in names and cells[cell] < TOKENS_PER_CELL:
            cells[cell] += 1
            yield f"{caption.id} {phone.onset:.4f} {phone.offset:.4f} {' '.join(names)} {caption.speaker}"


def _ctm(caption: Caption, words: Sequence[Interval]) -> Iterator[str]:
    """Yield the words of a caption as lines of a CTM file."""
    for word in words:
        yield f"{caption.id} 1 {word.onset:.4f} {word.offset - word.onset:.4f} {word.name}"


def _word_boxes(caption: Caption, words: Sequence[Interval], scene: Scene) -> Iterator[str]:
    """Yield the words that name shapes, which differ in a scene, as lines of a table of boxes."""
    boxes = {thing.shape: " ".join(f"{value:.4f}" for value in box_of(thing)) for thing in scene.things}
    for word in words:
        for part in word.name.split("_"):
            if part in boxes:
                yield f"{caption.id} {word.onset:.4f} {word.offset:.4f} {part} {boxes[part]}"
