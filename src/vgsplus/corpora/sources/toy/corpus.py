"""The toy corpus: drawn scenes and spoken captions, made in seconds without any download.

Scenes of one to three coloured shapes (`toy_scenes`) are drawn (`toy_pictures`) and described by their
pixels (`regions`); eSpeak NG (`espeak`) speaks five captions of each, by five of fourteen voices. The same
seed gives the same bytes. Test scenes ask for composition: each shows a shape in a colour that training
never shows together, while all their words occur in training.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vgsplus.audio import write_wav
from vgsplus.corpora import Caption, CorpusWriter, Summary
from vgsplus.corpora.sources.toy.espeak import SILENCE_PHONE, Phone, Voice, speak
from vgsplus.corpora.sources.toy.pictures import draw
from vgsplus.corpora.sources.toy.scenes import HELD_OUT, Scene, describe, draw_scene
from vgsplus.errors import VgsplusError
from vgsplus.regions.pixel_grid import grid_regions

VERSION = "1"
CAPTIONS_AN_IMAGE = 5
ITEM_HEADER = "#file onset offset #phone prev-phone next-phone speaker"
TOKENS_A_CELL = 5
"""ABX items keep at most so many tokens of a phone in the same context by the same speaker."""
ABX_SPEAKERS = 6
"""ABX items are of the first so many voices: the pairs of speakers to compare grow with their square."""
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

type Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Line:
    """A caption to be spoken."""

    id: str
    speaker: str
    voice: Voice
    text: str


@dataclass(frozen=True, slots=True)
class _Task:
    """An image to be drawn and its captions, written below `folder`."""

    folder: Path
    split: str
    image_id: str
    scene: Scene
    lines: tuple[_Line, ...]


@dataclass(frozen=True, slots=True)
class _Made:
    """What became of a task: features (36, F) float16, boxes (36, 4), samples and phones a caption."""

    features: Array
    boxes: Array
    num_samples: tuple[int, ...]
    phones: tuple[tuple[Phone, ...], ...]


def prepare_toy(
    root: str | Path,
    *,
    train_images: int = 1600,
    validation_images: int = 60,
    test_images: int = 120,
    seed: int = 0,
    overwrite: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Make the toy corpus at `root`.

    Args:
        root: The corpus folder to make.
        train_images: Images of the split "train", each with five captions.
        validation_images: Images of the split "validation".
        test_images: Images of the split "test".
        seed: The same seed and sizes give the same bytes, whatever the number of workers.
        overwrite: Replace a corpus that is there.
        workers: Processes; by default one a core.
        progress: Called as progress(images done, images in all).

    Raises:
        VgsplusError: a size is not positive, the target is refused (see `CorpusWriter`), eSpeak NG fails.
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
    with CorpusWriter(
        root, name="toy", version=VERSION, provenance=provenance, licence="CC0-1.0", overwrite=overwrite
    ) as writer:
        tasks = list(_tasks(writer.folder, sizes, seed))
        items: dict[str, list[str]] = {"validation": [], "test": []}
        cells: Counter[tuple[str, ...]] = Counter()
        with _mapper(len(tasks), workers) as mapper:
            for done, (task, made) in enumerate(zip(tasks, mapper(_make, tasks), strict=True), start=1):
                _add(writer, task, made)
                if task.split in items:
                    items[task.split] += _items(task, made, cells)
                if progress is not None:
                    progress(done, len(tasks))
        for split, rows in items.items():
            text = "\n".join([ITEM_HEADER, *rows]) + "\n"
            (writer.folder / f"{split}.item").write_text(text, encoding="utf-8")
        return writer.finish()


def _tasks(folder: Path, sizes: dict[str, int], seed: int) -> Iterator[_Task]:
    """Every image of every split; what training and validation show differs in content."""
    shown: dict[frozenset[tuple[str, str, str]], str] = {}
    for split_index, (split, size) in enumerate(sizes.items()):
        for sub in ("images", "audio"):
            (folder / sub / split).mkdir(parents=True)
        for number in range(size):
            rng = np.random.default_rng([seed, split_index, number])
            scene = draw_scene(rng, held_out=split == "test")
            while shown.setdefault(scene.content, split) != split:
                scene = draw_scene(rng, held_out=split == "test")
            image_id = f"{split}/{number:06d}.png"
            yield _Task(folder, split, image_id, scene, _lines(image_id, scene, rng))


def _lines(image_id: str, scene: Scene, rng: np.random.Generator) -> tuple[_Line, ...]:
    """Five captions by five speakers, none of whom speaks at quite the same rate and pitch twice."""
    speakers = [list(VOICES)[index] for index in rng.permutation(len(VOICES))[:CAPTIONS_AN_IMAGE]]
    texts = describe(scene, rng, CAPTIONS_AN_IMAGE)
    stem = Path(image_id).with_suffix("")
    lines = []
    for index, (speaker, text) in enumerate(zip(speakers, texts, strict=True)):
        own = VOICES[speaker]
        rate, pitch = own.rate + int(rng.integers(-12, 13)), own.pitch + int(rng.integers(-5, 6))
        lines.append(_Line(f"{stem}_{index}", speaker, Voice(own.name, rate, pitch), text))
    return tuple(lines)


def _make(task: _Task) -> _Made:
    """Draw the picture, describe it, speak its captions; a pure function of the task, files included."""
    picture = draw(task.scene)
    picture.save(task.folder / "images" / task.image_id)
    features, boxes = grid_regions(picture)
    spoken = speak((line.voice, line.text) for line in task.lines)
    for line, speech in zip(task.lines, spoken, strict=True):
        # Resampling overshoots full scale by a few samples. They are cut off, as in every toy corpus that the
        # results were measured on: scaled, they would be another corpus.
        write_wav(task.folder / "audio" / f"{line.id}.wav", np.clip(speech.samples, -1, 1))
    return _Made(
        features.astype(np.float16),
        boxes,
        tuple(len(speech.samples) for speech in spoken),
        tuple(speech.phones for speech in spoken),
    )


def _add(writer: CorpusWriter, task: _Task, made: _Made) -> None:
    writer.add_regions(task.image_id, made.features, made.boxes)
    for line, num_samples in zip(task.lines, made.num_samples, strict=True):
        writer.add_caption(
            Caption(
                id=line.id,
                split=task.split,
                audio=f"{line.id}.wav",
                num_samples=num_samples,
                speaker=line.speaker,
                language="en",
                image=task.image_id,
                text=line.text,
            )
        )


def _items(task: _Task, made: _Made, cells: Counter[tuple[str, ...]]) -> Iterator[str]:
    """ABX items of an image's captions: every phone between two phones, as long as its cell has room."""
    speakers = list(VOICES)[:ABX_SPEAKERS]
    for line, phones in zip(task.lines, made.phones, strict=True):
        if line.speaker not in speakers:
            continue
        for before, phone, after in zip(phones, phones[1:], phones[2:], strict=False):
            names = (phone.name, before.name, after.name)
            cell = (task.split, *names, line.speaker)
            if SILENCE_PHONE in names or cells[cell] >= TOKENS_A_CELL:
                continue
            cells[cell] += 1
            yield f"{line.id} {phone.onset:.4f} {phone.offset:.4f} {' '.join(names)} {line.speaker}"


@contextmanager
def _mapper(
    count: int, workers: int | None
) -> Iterator[Callable[[Callable[[_Task], _Made], Sequence[_Task]], Iterable[_Made]]]:
    """A map in order, over processes where there is enough to do."""
    workers = workers or (1 if count < FEW_IMAGES else os.cpu_count() or 1)
    if workers == 1:
        yield map
        return
    # Fresh processes: a fork would inherit the threads and locks of libraries already at work here.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield lambda function, tasks: pool.map(function, tasks, chunksize=8)
