import numpy as np
import pytest

from vgsplus.audio import write_wav
from vgsplus.config import RunConfig
from vgsplus.corpora import Caption, CorpusWriter
from vgsplus.models.vgsplus import ModelConfig
from vgsplus.schedule import Alpha, OptimizerSettings, Phase, Schedule

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


@pytest.fixture(scope="session")
def tiny_model():
    return ModelConfig(
        conv_layers=((4, 10, 5), (8, 3, 2), (8, 3, 2), (8, 3, 2), (8, 3, 2), (8, 2, 2), (8, 2, 2)),
        dim=8,
        heads=2,
        ffn_dim=16,
        shared_layers=1,
        ssl_layers=1,
        pos_conv_kernel=8,
        pos_conv_groups=2,
        quantizer_codes=8,
        quantizer_dim=8,
        ssl_dim=8,
        num_negatives=5,
        resdavenet_widths=(8,),
        resdavenet_blocks=1,
        resdavenet_kernel=3,
        feature_dim=FEATURES,
        image_layers=1,
    )


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
