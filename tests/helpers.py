"""Values and functions that the tests of several packages import."""

import contextlib
import math
import shutil

import numpy as np
import pytest

from vgsplus.audio import write_wav
from vgsplus.corpora import Caption, Corpus, validate
from vgsplus.models.vgsplus import ModelConfig
from vgsplus.models.vision_transformer import VisionConfig

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
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


@contextlib.contextmanager
def browser(**context):
    """A page in Chromium, or skip the test; `sound`: a file that the microphone plays, once."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    arguments += ["--autoplay-policy=no-user-gesture-required"]
    sound = context.pop("sound", None)
    if sound is not None:
        arguments += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        arguments += [f"--use-file-for-fake-audio-capture={sound}%noloop"]
        context["permissions"] = ["microphone"]
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=arguments)
        page = chromium.new_context(**context).new_page()
        page.set_default_timeout(120_000)  # ms; a busy machine is slow, and only a failure waits as long
        yield page
        chromium.close()


TINY_MODEL = ModelConfig(
    conv_layers=((4, 10, 5), (8, 3, 2), (8, 3, 2), (8, 3, 2), (8, 3, 2), (8, 2, 2), (8, 2, 2)),
    dim=8,
    heads=2,
    ffn_dim=16,
    shared_layers=2,
    ssl_layers=1,
    pos_conv_kernel=8,
    pos_conv_groups=2,
    # At 0, frames whose whole kernel is masked are rounding errors, which LayerNorm enlarges.
    mask_vector_scale=1.0,
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
