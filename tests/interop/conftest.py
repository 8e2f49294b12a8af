import importlib.util
from pathlib import Path

import pytest
import torch

from vgsplus.interop import fast_vgs

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
