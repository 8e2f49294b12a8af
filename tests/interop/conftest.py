import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ABOUT, CAPTION, TINY_MODEL
from PIL import Image

from vgsplus.audio import write_wav
from vgsplus.config import RunConfig
from vgsplus.corpora import CorpusWriter
from vgsplus.interop import fast_vgs
from vgsplus.regions.pixel_grid import PIXEL_GRID, grid_regions
from vgsplus.schedule import Alpha, OptimizerSettings, Phase, Schedule
from vgsplus.training.trainer import train

GOLDEN = Path(__file__).parent.parent / "data" / "golden"


@pytest.fixture(scope="session")
def rule():
    spec = importlib.util.spec_from_file_location("golden_rule", GOLDEN / "rule.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def published(rule):
    """The published state dict, its arguments, and what else was stored with them."""
    meta, arrays = rule.load(GOLDEN)
    return rule.state_dict(meta), meta, arrays


@pytest.fixture(scope="module")
def golden(rule, published):
    """Our model with the published weights, the published batch, what came out, and the rest."""
    state, meta, arrays = published
    model = fast_vgs.build(state, meta["args"])
    batch = {name: torch.from_numpy(x) for name, x in rule.inputs(meta).items()}
    batch["num_samples"] = torch.tensor(meta["num_samples"])
    batch["image_ids"] = meta["image_ids"]
    return model, batch, arrays, meta


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run of two updates on pictures that are described by the pixel grid."""
    folder = tmp_path_factory.mktemp("trained")
    about = ABOUT | {"provenance": {"regions": PIXEL_GRID}}
    with CorpusWriter(folder / "corpus", **about) as writer:
        for kind in ("audio", "images"):
            (writer.folder / kind).mkdir()
        for n in range(4):
            image = Image.new("RGB", (24, 24), (60 * n, 0, 0))
            image.save(writer.folder / "images" / f"{n}.png")
            writer.add_regions(f"{n}.png", *grid_regions(image))
            write_wav(
                writer.folder / "audio" / f"{n}.wav", np.sin(np.arange(4000, dtype=np.float32) * (n + 1))
            )
            changed = {"id": f"u{n}", "audio": f"{n}.wav", "image": f"{n}.png"}
            writer.add_caption(dataclasses.replace(CAPTION, **changed))
    phase = Phase(name="vgs", alpha=Alpha.parse(1.0), epochs=1.0, optimizer=OptimizerSettings(lr=1e-3))
    config = RunConfig(
        corpus=str(folder / "corpus"),
        schedule=Schedule((phase,)),
        model=dataclasses.replace(TINY_MODEL, feature_dim=224),
        batch_size=2,
        accelerator="cpu",
        workers=0,
        validate_every=None,
        evaluate_every=1.0,
    )
    train(config, folder / "run", evaluate=lambda *_: {"recall@10": 0.25})
    return folder / "run"
