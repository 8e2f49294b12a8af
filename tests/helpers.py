"""Values and functions that the tests of several packages import."""

import math

import numpy as np

from vgsplus.audio import write_wav
from vgsplus.corpora import Caption, Corpus, validate
from vgsplus.models.vgsplus import ModelConfig
from vgsplus.models.vision_transformer import VisionConfig

ABOUT = {"name": "c", "version": "2", "provenance": {"source": "a test"}, "licence": "CC0-1.0"}
CAPTION = Caption(
    id="u0",
    split="train",
    audio="u0.wav",
    num_samples=4000,
    speaker="s",
    language="en",
    image=None,
    text="a ß and a 猫",
)
FEATURES, BOXES = np.ones((3, 4), np.float32), np.tile(np.float32([0, 0.1, 0.5, 1]), (3, 1))


def put_sound(writer):
    """Write the sound of CAPTION."""
    (writer.folder / "audio").mkdir(exist_ok=True)
    write_wav(writer.folder / "audio" / CAPTION.audio, np.sin(np.arange(4000, dtype=np.float32)))


def open_valid(root):
    """Open a corpus that has no faults."""
    assert validate(root) == []
    return Corpus.open(root)


def captions_of(summary):
    """Return the number of captions by split."""
    return {split: count.captions for split, count in summary.kept.items()}


TINY_MODEL = ModelConfig(
    conv_layers=((4, 10, 5), (8, 3, 2), (8, 3, 2), (8, 3, 2), (8, 3, 2), (8, 2, 2), (8, 2, 2)),
    dim=8,
    heads=2,
    ffn_dim=16,
    shared_layers=2,
    ssl_layers=1,
    pos_conv_kernel=8,
    pos_conv_groups=2,
    quantizer_codes=8,
    quantizer_dim=8,
    ssl_dim=8,
    resdavenet_widths=(8,),
    resdavenet_blocks=1,
    feature_dim=4,
    image_layers=1,
)
"""The paper's convolutions (a frame of 400 samples every 320) and three layers of 8 dimensions."""

TINY_VISION = VisionConfig(dim=16, layers=3, heads=2, ffn_dim=32, patch=14, positions=5, side=42)
"""Nine patches of a picture, whose position embeddings are interpolated."""


def path_cost(a, b):
    """Compute the cost of dynamic time warping by the recursion over whole prefixes, cell by cell."""
    cost = {}
    for t, frame in enumerate(a):
        for u, other in enumerate(b):
            before = [cost[p] for p in ((t - 1, u), (t, u - 1), (t - 1, u - 1)) if p in cost]
            cost[t, u] = math.sqrt(sum((frame - other) ** 2)) + min(before, default=0.0)
    return cost[len(a) - 1, len(b) - 1]
