"""Fixtures that every part's tests share."""

import base64
import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers import TINY_MODEL
from PIL import Image

from vgsplus.audio import SAMPLE_RATE, write_wav
from vgsplus.corpora import Caption, CorpusWriter
from vgsplus.models.published import build_model
from vgsplus.progress import Progress
from vgsplus.regions.published import COLUMNS
from vgsplus.training.checkpoint import TrainingState, save_checkpoint

# Some tests fork a process that trains, which hangs where the parent has started OpenMP threads.
torch.set_num_threads(1)

TINY_SPLITS = {"train": 8, "validation": 4, "test": 4}
TINY_SPEAKERS = ("ann", "bob", "cid")
TINY_REGIONS, TINY_FEATURES = 5, 12


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory) -> Path:
    """The folder of a corpus of 16 images with two captions each: a tone whose pitch tells the image."""
    root = tmp_path_factory.mktemp("corpora") / "tiny"
    with CorpusWriter(
        root, name="tiny", version="1", provenance="made by the tests", licence="CC0-1.0"
    ) as writer:
        number = 0
        for split, images in TINY_SPLITS.items():
            for index in range(images):
                _add_image(writer, split, index, number)
                number += 1
        _write_items(writer.folder)
    return root


def _add_image(writer: CorpusWriter, split: str, index: int, number: int) -> None:
    rng = np.random.default_rng([7, number])
    image_id = f"{split}/{index:03d}.png"
    picture = writer.folder / "images" / image_id
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 24), (15 * number, 255 - 15 * number, 120)).save(picture)
    features = rng.normal(size=(TINY_REGIONS, TINY_FEATURES)).astype(np.float32)
    corners = np.sort(rng.uniform(size=(TINY_REGIONS, 2, 2)), axis=1).reshape(TINY_REGIONS, 4)
    writer.add_regions(image_id, features, corners.astype(np.float32))
    for take in range(2):
        caption_id = f"{split}-{index:03d}-{take}"
        sound = writer.folder / "audio" / f"{caption_id}.wav"
        sound.parent.mkdir(exist_ok=True)
        seconds = np.arange(int(rng.integers(8_000, 14_000))) / SAMPLE_RATE
        tone = 0.3 * np.sin(2 * np.pi * (200 + 60 * number) * seconds)
        write_wav(sound, (tone + rng.normal(0, 0.02, len(tone))).astype(np.float32))
        writer.add_caption(
            Caption(
                id=caption_id,
                split=split,
                audio=sound.name,
                num_samples=len(tone),
                speaker=TINY_SPEAKERS[(number + take) % len(TINY_SPEAKERS)],
                language="en",
                image=image_id,
                text=f"tone number {number}",
            )
        )


def _write_items(folder: Path) -> None:
    """Two phones in one context, twice in every test caption: enough for ABX within and across speakers."""
    rows = ["#file onset offset #phone prev-phone next-phone speaker"]
    number = sum(TINY_SPLITS.values()) - TINY_SPLITS["test"]
    for index in range(TINY_SPLITS["test"]):
        for take in range(2):
            speaker = TINY_SPEAKERS[(number + index + take) % len(TINY_SPEAKERS)]
            for part, phone in enumerate("abab"):
                onset = 0.02 + 0.11 * part
                rows.append(f"test-{index:03d}-{take} {onset:.2f} {onset + 0.1:.2f} {phone} k t {speaker}")
    (folder / "test.item").write_text("\n".join(rows) + "\n")


class RecordedProgress(Progress):
    """Keeps every (stage, done, total)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int | None]] = []

    def update(self, stage: str, done: int, total: int | None = None, detail: str = "") -> None:  # noqa: ARG002
        self.calls.append((stage, done, total))

    def of(self, stage: str) -> list[tuple[int, int | None]]:
        """(done, total) of the calls of a stage."""
        return [(done, total) for name, done, total in self.calls if name == stage]


@pytest.fixture
def recorded_progress() -> RecordedProgress:
    return RecordedProgress()


@pytest.fixture(scope="session")
def make_model():
    """A function that builds a tiny model in evaluation mode from a seed and changed settings."""

    def make(seed=0, **changes):
        torch.manual_seed(seed)
        return build_model(dataclasses.replace(TINY_MODEL, **changes)).eval()

    return make


@pytest.fixture(scope="session")
def save_run():
    """A function that saves a model as a run's only checkpoint and returns the run's folder."""

    def save(model, folder):
        state = TrainingState(
            phase=0,
            phase_name="vgs",
            step=1,
            steps=1,
            epoch=1.0,
            global_step=1,
            seed=0,
            model=dataclasses.asdict(model.config),
            run={},
            corpus={},
        )
        save_checkpoint(folder, state, model.state_dict(), {})
        return folder

    return save


# Region features of a detector, as published

DETECTIONS, DETECTION_FEATURES = 3, 5


def _detection(image, seed):
    """A picture of 200 x 100 pixels whose regions are not in the order of their confidence."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 45, (DETECTIONS, 2))
    return {
        "img_id": image,
        "img_h": 100,
        "img_w": 200,
        "objects_id": np.arange(DETECTIONS, dtype=np.int64),
        "objects_conf": np.float32([0.2, 0.9, 0.5]),
        "attrs_id": np.arange(DETECTIONS, dtype=np.int64),
        "attrs_conf": np.full(DETECTIONS, 0.5, np.float32),
        "num_boxes": DETECTIONS,
        "boxes": np.hstack([low, low + 50]).astype(np.float32),
        "features": rng.random((DETECTIONS, DETECTION_FEATURES)).astype(np.float32),
    }


class Detected:
    """Regions of pictures by name, written as an obj36 TSV or as the published store."""

    def __init__(self, images):
        self.records = {image: _detection(image, seed) for seed, image in enumerate(images)}

    def lines(self):
        """Lines of the TSV, each a list of cells."""
        rows = [[record[name] for name in COLUMNS] for record in self.records.values()]
        return [
            [base64.b64encode(cell) if isinstance(cell, np.ndarray) else str(cell).encode() for cell in row]
            for row in rows
        ]

    def write_tsv(self, *paths, change=lambda cells: cells):
        """Write the first half of the lines to the first path, the others to the second, if there are two."""
        lines = [b"\t".join(change(cells)) + b"\r\n" for cells in self.lines()]
        half = len(lines) // len(paths)
        for number, path in enumerate(paths):
            end = None if number == len(paths) - 1 else half
            path.write_bytes(b"".join(lines[number * half : end]))

    def write_store(self, path):
        """As the published code does, which keeps 27 bytes of a name."""
        kind = h5py.string_dtype("utf-8", 27)
        with h5py.File(path, "w") as file:
            names = file.create_dataset("img_id", (len(self.records),), dtype=kind)
            for row, name in enumerate(self.records):
                names[row] = np.array(name.encode(), dtype=kind)
            for name in set(COLUMNS) - {"img_id", "num_boxes"}:
                file[name] = np.stack([record[name] for record in self.records.values()])

    def assert_in(self, corpus, image_ids):
        """The images of a corpus have the features of the pictures, in order, sorted by confidence."""
        for image_id, record in zip(image_ids, self.records.values(), strict=False):
            np.testing.assert_array_equal(corpus.regions([image_id])[0][0], record["features"][[1, 2, 0]])


@pytest.fixture
def detected():
    return Detected
