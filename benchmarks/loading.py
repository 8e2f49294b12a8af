"""How fast batches are read on one core: captions a second from WAV and FLAC, with and without regions.

Compares our reader (`vgsplus.training.data`), also on the corpus packed (`vgsplus data pack`, for FLAC
with and without `--decode`) and by its URL, from a web server on this machine ("url") and from the cache
("kept"), with the published loader's way, written anew: every sound read whole, cut or
padded to 8 s, the regions of every caption looked up as a row of HDF5 and copied as float32, samples stacked
to a batch. The corpus is noise, written to a temporary folder: lengths are gamma distributed, shape 12, 4.4 s
in the mean, clipped to 0.8 to 30 s; all ways hear 8 s at most. Ways take turns in each repeat; times are of
the processor, not of the clock, so that other programs disturb them little, and files are in the system's
cache. Medians over the repeats are reported.

    python benchmarks/loading.py --repeats 5 --json loading.json
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import soundfile
import torch
from written import write_json

from vgsplus.audio import SAMPLE_RATE
from vgsplus.corpora import Caption, Corpus, CorpusWriter
from vgsplus.corpora.packing import pack
from vgsplus.training.data import Batch, SpeechImageDataset
from vgsplus.training.sampler import BatchIndices, epoch_order

FIXED_SECONDS = 8.0
FIXED_SAMPLES = int(FIXED_SECONDS * SAMPLE_RATE)
MEAN_SECONDS, SHAPE, SHORTEST_SECONDS, LONGEST_SECONDS = 4.4, 12, 0.8, 30.0
REGIONS, FEATURES = 36, 2048
SPLIT = "train"
FORMATS = ("wav", "flac")


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The speed of one way.

    Attributes:
        images: whether regions were read too, as at α > 0.
        captions_per_second: captions a second of one core, median over the repeats.
        batch_mb: size of a batch in the mean, 10⁶ bytes.
    """

    sound: str
    images: bool
    way: str
    captions_per_second: float
    batch_mb: float


# ---- the corpus -------------------------------------------------------------------------------------------


def draw_num_samples(captions: int, seed: int) -> npt.NDArray[np.int64]:
    """Lengths of captions, (n,) in samples."""
    seconds = np.random.default_rng([seed, 0]).gamma(SHAPE, MEAN_SECONDS / SHAPE, captions)
    return (np.clip(seconds, SHORTEST_SECONDS, LONGEST_SECONDS) * SAMPLE_RATE).astype(np.int64)


def write_corpus(root: Path, sound: str, captions: int, images: int, seed: int) -> Corpus:
    """A corpus of noise with float16 regions at the published size; captions go round the images."""
    rng = np.random.default_rng([seed, 1])
    with CorpusWriter(
        root,
        name="noise",
        version="1",
        provenance="made by a benchmark",
        licence="CC0",
        image_root=None,
        check_contents=False,
    ) as writer:
        (writer.folder / "audio").mkdir()
        boxes = np.tile(np.array([0.1, 0.2, 0.5, 0.9], np.float32), (REGIONS, 1))
        for image in range(images):
            features = rng.standard_normal((REGIONS, FEATURES), np.float32).astype(np.float16)
            writer.add_regions(f"{image}.jpg", features, boxes)
        for index, length in enumerate(draw_num_samples(captions, seed).tolist()):
            samples = 0.1 * rng.standard_normal(length, np.float32)
            name = f"{index}.{sound}"
            soundfile.write(writer.folder / "audio" / name, samples, SAMPLE_RATE, subtype="PCM_16")
            writer.add_caption(
                Caption(
                    id=str(index),
                    split=SPLIT,
                    audio=name,
                    num_samples=length,
                    speaker="s",
                    language="x",
                    image=f"{index % images}.jpg",
                    text=None,
                )
            )
    return Corpus.open(root)


# ---- the ways ---------------------------------------------------------------------------------------------


def our_way(corpus: Corpus) -> Callable[[BatchIndices], Batch]:
    """The reader that training uses."""
    dataset = SpeechImageDataset(corpus=corpus, captions=corpus.captions(SPLIT), max_samples=FIXED_SAMPLES)
    return dataset.__getitem__


class PublishedWay:
    """A caption at a time, as in the published data set, and samples stacked to a batch."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.captions = list(corpus.captions(SPLIT))
        self.regions = h5py.File(corpus.root / "regions.h5")

    def __call__(self, request: BatchIndices) -> Batch:
        """Read a batch."""
        captions = [self.captions[index] for index in request.captions]
        samples = [self.sample(caption, images=request.with_images) for caption in captions]
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}

    def sample(self, caption: Caption, *, images: bool) -> Batch:
        """One caption, padded to 8 s, with the regions of its image."""
        signal, _ = soundfile.read(self.corpus.audio_path(caption), dtype="float32")
        signal = signal[:FIXED_SAMPLES]
        signal = (signal - signal.mean()) / signal.std()
        waveform = torch.zeros(FIXED_SAMPLES)
        waveform[: len(signal)] = torch.from_numpy(signal)
        sample = {"waveforms": waveform, "num_samples": torch.tensor(len(signal))}
        if images:
            assert caption.image is not None
            row = self.corpus.image_row(caption.image)
            for name in ("features", "boxes"):
                sample[name] = torch.from_numpy(self.regions[name][row].astype(np.float32))
            sample["image_ids"] = torch.tensor(row)
        return sample


SERVER = """
import socket, sys
from aiohttp import web
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
application = web.Application()
application.add_routes([web.static("/", sys.argv[1])])
web.run_app(application, sock=listening, print=None)
"""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder from another process, whose time is not counted; yields its URL."""
    command = [sys.executable, "-c", SERVER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603 - our own
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()


# ---- measuring --------------------------------------------------------------------------------------------


def measure(
    corpus: Corpus, packed: Mapping[str, Corpus], sound: str, batch_size: int, repeats: int, seed: int
) -> list[Speed]:
    """Read an epoch each way in each repeat, in another order every time."""
    ways: dict[str, Callable[[BatchIndices], Batch]] = {
        "ours": our_way(corpus),
        **{way: our_way(same) for way, same in packed.items()},
        "published": PublishedWay(corpus),
    }
    cases = [(images, way) for images in (False, True) for way in ways]
    captions = len(corpus.captions(SPLIT)) // batch_size * batch_size
    rates: dict[tuple[bool, str], list[float]] = {case: [] for case in cases}
    sizes: dict[tuple[bool, str], int] = {}
    for repeat in range(-1, repeats):  # the first turn brings files into the cache
        order, _ = epoch_order(len(corpus.captions(SPLIT)), seed, repeat + 1)
        order = order[:captions].reshape(-1, batch_size)
        for images, way in cases:
            requests = [BatchIndices(tuple(row.tolist()), with_images=images) for row in order]
            if way == "url":
                shutil.rmtree(os.environ["VGSPLUS_CACHE"], ignore_errors=True)
            start, size = time.process_time(), 0
            for request in requests:
                batch = ways[way](request)
                size += sum(tensor.nbytes for tensor in batch.values())
            rate = captions / (time.process_time() - start)
            if repeat >= 0:
                rates[images, way].append(rate)
                sizes[images, way] = size // len(requests)
    return [
        Speed(
            sound=sound,
            images=images,
            way=way,
            captions_per_second=statistics.median(rates[images, way]),
            batch_mb=sizes[images, way] / 1e6,
        )
        for images, way in cases
    ]


def show(speeds: Sequence[Speed]) -> None:
    """Print a line a way."""
    print(f"{'sound':<6} {'regions':<8} {'way':<10} {'captions/s':>10} {'times':>6} {'MB a batch':>11}")
    published = {(s.sound, s.images): s.captions_per_second for s in speeds if s.way == "published"}
    for s in speeds:
        times = s.captions_per_second / published[s.sound, s.images]
        regions = "read" if s.images else ""
        print(
            f"{s.sound:<6} {regions:<8} {s.way:<10} {s.captions_per_second:>10.0f} "
            f"{times:>6.2f} {s.batch_mb:>11.1f}"
        )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--captions", type=int, default=2000)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--sounds", nargs="+", choices=FORMATS, default=list(FORMATS), help="what to read")
    parser.add_argument("--repeats", type=int, default=3, help="timed turns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the results here too")
    arguments = parser.parse_args()
    if arguments.repeats < 1 or arguments.images < 1 or not 0 < arguments.batch_size <= arguments.captions:
        parser.error("needs a repeat, an image, and a batch of at least one caption and at most all")
    return arguments


def main() -> None:
    """Time the sounds asked for, print a table, and write JSON where asked."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    speeds = []
    for sound in arguments.sounds:
        with tempfile.TemporaryDirectory() as folder:
            corpus = write_corpus(
                Path(folder) / "corpus", sound, arguments.captions, arguments.images, arguments.seed
            )
            packed = {}
            for way in ("packed", "decoded") if sound == "flac" else ("packed",):
                pack(corpus.root, Path(folder) / way, decode=way == "decoded")
                packed[way] = Corpus.open(Path(folder) / way)
            os.environ["VGSPLUS_CACHE"] = str(Path(folder) / "cache")
            with served(Path(folder) / "packed") as url:
                packed |= {"url": Corpus.open(url), "kept": Corpus.open(url)}
                speeds += measure(
                    corpus, packed, sound, arguments.batch_size, arguments.repeats, arguments.seed
                )
    show(speeds)
    write_json(
        arguments.json,
        machine={"name": platform.machine(), "threads": 1, "torch": torch.__version__},
        case={name: getattr(arguments, name) for name in ("captions", "images", "batch_size", "seed")},
        repeats=arguments.repeats,
        speeds=speeds,
    )


if __name__ == "__main__":
    main()
