import json
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vgsplus.audio import write_wav
from vgsplus.config import RunConfig
from vgsplus.corpora import Caption, CorpusWriter
from vgsplus.errors import Interrupted
from vgsplus.progress import Progress
from vgsplus.schedule import Alpha, OptimizerSettings, Phase, Schedule
from vgsplus.training import checkpoint
from vgsplus.training.checkpoint import MODEL_FILE, OPTIMIZER_FILE
from vgsplus.training.log import read_log
from vgsplus.training.trainer import train

REGIONS, FEATURES = 4, 6
TRAIN_CAPTIONS, VALIDATION_CAPTIONS = 13, 6
BATCH = 4


def write_corpus(root, *, images=True, silence=0):
    """13 training captions, two an image, and 6 to validate; noise of 0.3 to 0.6 s after silent samples."""
    rng = np.random.default_rng(0)
    about = {"name": "tiny", "version": "1", "provenance": "made by a test", "licence": "CC0"}
    with CorpusWriter(root, **about, image_root=None) as writer:
        (writer.folder / "audio").mkdir(exist_ok=True)
        seen = set()
        for split, num in (("train", TRAIN_CAPTIONS), ("validation", VALIDATION_CAPTIONS)):
            for index in range(num):
                noise = rng.normal(0, 0.1, rng.integers(4800, 9600)).astype(np.float32)
                samples = np.concatenate([np.zeros(silence, np.float32), noise])
                name = f"{split}_{index}"
                write_wav(writer.folder / "audio" / f"{name}.wav", samples)
                image = f"{split}_{index // 2}.png" if images else None
                if image and image not in seen:
                    seen.add(image)
                    boxes = np.tile(np.float32([0.1, 0.2, 0.5, 0.9]), (REGIONS, 1))
                    writer.add_regions(image, rng.normal(size=(REGIONS, FEATURES)).astype(np.float32), boxes)
                writer.add_caption(
                    Caption(
                        id=name,
                        split=split,
                        audio=f"{name}.wav",
                        num_samples=len(samples),
                        speaker="s",
                        language="x",
                        image=image,
                        text=None,
                    )
                )
    return root


@pytest.fixture(scope="session")
def make_corpus():
    return write_corpus


@pytest.fixture(scope="session")
def corpus_root(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpora") / "tiny")


@pytest.fixture(scope="session")
def speech_root(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpora") / "speech", images=False)


@pytest.fixture
def edited_corpus(tmp_path):
    """A copy of a corpus with the captions for which `change`, which may alter them, is true."""

    def edit(root, change, name="edited"):
        copy = shutil.copytree(root, tmp_path / name)
        captions = [json.loads(line) for line in (root / "captions.jsonl").read_text().splitlines()]
        kept = [json.dumps(caption) for caption in captions if change(caption)]
        (copy / "captions.jsonl").write_text("\n".join(kept) + "\n")
        return copy

    return edit


@pytest.fixture(scope="session")
def tiny_model(make_model):
    return make_model(shared_layers=1, num_negatives=5, resdavenet_kernel=3, feature_dim=FEATURES).config


@pytest.fixture(scope="session")
def make_config(corpus_root, tiny_model):
    """A run of two phases of 5 and 4 steps: α = 0, then α from 0.2 to 0.8; three steps an epoch."""

    def make(**changes):
        optimizer = OptimizerSettings(lr=1e-2)
        phases = (
            Phase(name="w2v2", alpha=Alpha.parse(0.0), epochs=5 / 3, optimizer=optimizer),
            Phase(name="mixed", alpha=Alpha.parse({"linear": [0.2, 0.8]}), epochs=4 / 3, optimizer=optimizer),
        )
        values = {
            "corpus": str(corpus_root),
            "schedule": Schedule(phases),
            "model": tiny_model,
            "batch_size": BATCH,
            "accelerator": "cpu",
            "workers": 0,
            "seed": 3,
        }
        return RunConfig(**(values | changes))

    return make


class Shown(Progress):
    """Keeps notes and details, and calls `action` after a step of the run of `make_config`."""

    def __init__(self, step=None, action=None):
        self.notes, self.details = [], []
        self._step, self._action = step, action

    def update(self, stage, done, _total=None, detail=""):
        self.details.append(detail)
        if detail and (0 if stage == "w2v2" else 5) + done == self._step:
            self._action()

    def note(self, text):
        self.notes.append(text)


class Runs:
    """Trains runs, stops them and compares them."""

    Shown = Shown

    def __init__(self, factory):
        self._factory, self._finished = factory, {}

    def finished(self, config):
        """The folder of a finished run, trained on first use. Do not change it."""
        if config not in self._finished:
            self._finished[config] = self._factory.mktemp("runs") / "run"
            train(config, self._finished[config])
        return self._finished[config]

    @staticmethod
    def stop(step, config, out, *, number=signal.SIGINT, **options):
        """Train until a signal arrives after a step, and return the message."""
        progress = Shown(step, lambda: signal.raise_signal(number))
        with pytest.raises(Interrupted) as stopped:
            train(config, out, progress=progress, **options)
        return str(stopped.value)

    @staticmethod
    def log(run, kind="train"):
        """The records of a run without what depends on the clock."""
        speeds = {"captions_per_second", "audio_seconds_per_second", "loader_wait", "matrix_share"}
        return [{k: v for k, v in record.items() if k not in speeds} for record in read_log(run, kind)]

    @staticmethod
    def tensors(run, file=MODEL_FILE):
        return load_file(checkpoint.latest_path(run) / file)

    def assert_same(self, one, other, *kinds):
        """The runs end with the same weights, buffers and optimiser state, and have the same log."""
        for file in (MODEL_FILE, OPTIMIZER_FILE):
            ours, theirs = self.tensors(one, file), self.tensors(other, file)
            assert ours.keys() == theirs.keys()
            assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]
        for kind in ("train", *kinds):
            assert self.log(one, kind) == self.log(other, kind)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory)
