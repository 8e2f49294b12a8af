"""Compare ways to find the region that a spoken word names, by the pointing game on a corpus with boxes.

Usage: python benchmarks/pointing.py RUN [--corpus CORPUS] [--split validation]

Ways differ in the share of a moment (what the embedding loses if a window is silent; or gradient x input of
its frames) and in that of a region (the change of the embedding with its features, in the picture or half-way
to the mean of its regions; what is lost if it is left out; or gradient x input). Attention of the CLS token
does not depend on the word.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import vgsplus
from vgsplus.audio import SAMPLE_RATE
from vgsplus.config import load_config
from vgsplus.corpora import Corpus
from vgsplus.evaluation.hidden_states import inference
from vgsplus.evaluation.pointing import evaluate, localise
from vgsplus.evaluation.pointing.words import read_named_objects
from vgsplus.models.segments import Segments
from vgsplus.models.speech_encoder import SpeechFeatures
from vgsplus.models.transformer import TransformerLayer
from vgsplus.training.run_folder import CONFIG_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from vgsplus.audio import Signal
    from vgsplus.evaluation.pointing.words import NamedObject
    from vgsplus.interop.pretrained import PretrainedModel

WINDOWS, FADES = (0.1, 0.2, 0.45), (0, 0.25, 0.5, 0.75)
type Windows = Callable[..., tuple[Tensor, Tensor]]
type Regions = Callable[[PretrainedModel, Sequence[Tensor]], tuple[Tensor, Tensor, Tensor]]


def gradient_windows(
    model: PretrainedModel, signal: Signal, times: NDArray[np.float64]
) -> tuple[Tensor, Tensor]:
    """Gradient x input of the frames within half a step of each time."""
    wave = torch.from_numpy(signal)[None]
    with torch.no_grad():
        features = model.speech.extract_features(wave, torch.tensor([len(signal)]))
    count, dim = features.segments.num_rows, model.config.dim
    own = features.features[:count]
    # Output d of copy d: its gradient is that of one dimension of the embedding.
    copies = own.repeat(dim, 1, 1).requires_grad_()
    segments = Segments([count] * dim, own.device, rounded=True)
    rows = SpeechFeatures(segments.concatenate([copies.flatten(0, 1)]), torch.tensor(0.0), segments)
    (hidden,) = model.speech(rows, None, [model.config.shared_layers - 1])
    embeddings = model.speech_head(hidden, segments)
    (gradient,) = torch.autograd.grad(embeddings.diagonal().sum(), copies)
    shares = (gradient * own).sum(-1).T.detach()
    encoder = model.speech.waveform
    centres = (np.arange(count) * encoder.stride + encoder.receptive_field / 2) / SAMPLE_RATE
    near = np.abs(centres - np.asarray(times)[:, None]) <= localise.STEP / 2 + 1e-9
    return embeddings[0].detach(), torch.from_numpy(near).float() @ shares


def gradient_regions(model: PretrainedModel, image: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient x input of the features of each region."""
    features, boxes = image
    copies = features.repeat(model.config.dim, 1, 1).requires_grad_()
    embeddings = model.image(copies, boxes.expand(len(copies), -1, -1))
    (gradient,) = torch.autograd.grad(embeddings.diagonal().sum(), copies)
    return embeddings[0].detach(), (gradient * features).sum(-1).T.detach(), boxes[0]


def left_out_regions(model: PretrainedModel, image: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What the embedding loses without a region."""
    features, boxes = image
    count = features.shape[1]
    others = torch.tensor([[r for r in range(count) if r != out] for out in range(count)])
    with inference(model):
        (whole,) = model.image(features, boxes)
        return whole, whole - model.image(features[0, others], boxes[0, others]), boxes[0]


def attended_regions(model: PretrainedModel, image: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of the CLS token of the last layer, the same for all words: shares of one dimension."""
    features, boxes = image
    kept: list[tuple[Tensor, Segments]] = []
    layer = model.image.layers[-1]
    assert isinstance(layer, TransformerLayer)
    handle = layer.attention.register_forward_pre_hook(lambda _, given: kept.append(given[:2]))
    with inference(model):
        (whole,) = model.image(features, boxes)
        handle.remove()
        weights = layer.attention.first_row_weights(*kept[0])
    return whole, weights[1:].mean(1, keepdim=True), boxes[0]


def one_window(_model: PretrainedModel, _signal: Signal, times: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """A share that is the same at all times."""
    return torch.ones(1), torch.ones(len(times), 1)


def score(
    model: PretrainedModel,
    corpus: Corpus,
    objects: Sequence[NamedObject],
    windows: Windows,
    regions: Regions,
) -> str:
    """Return the accuracy of a way with its interval, in percent."""
    with patch.multiple(evaluate, window_shares=windows, region_shares=regions):
        found = evaluate.evaluate(model, corpus, objects)[0].accuracy
    return f"{100 * found.value:5.1f}  ({100 * found.low:.1f} to {100 * found.high:.1f})"


def faded(fade: float) -> Regions:
    """The change of the embedding with the features of a region, in a picture that has faded."""

    def shares(model: PretrainedModel, image: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        with patch.object(localise, "FADE", fade):
            return localise.region_shares(model, image)

    return shares


def silent(seconds: float) -> Windows:
    """What the embedding loses if so many seconds are silent; computed once for each sound."""
    found: dict[bytes, tuple[Tensor, Tensor]] = {}

    def shares(model: PretrainedModel, signal: Signal, times: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        key = signal.tobytes()
        if key not in found:
            with patch.object(localise, "WINDOW", seconds):
                found[key] = localise.window_shares(model, signal, times)
        return found[key]

    return shares


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--split", default="validation")
    arguments = parser.parse_args()
    model = vgsplus.load(arguments.run)
    corpus = Corpus.open(arguments.corpus or load_config(arguments.run / CONFIG_FILE).corpus)
    captions = {caption.id: caption for caption in corpus.captions(arguments.split)}
    objects = read_named_objects(corpus.root / f"{arguments.split}.boxes", captions)
    chosen = silent(0.3)
    ways: list[tuple[str, Windows, Regions]] = [
        ("attention of the CLS token", one_window, attended_regions),
        ("silent 0.3 s, gradient x input", chosen, gradient_regions),
        ("silent 0.3 s, region left out", chosen, left_out_regions),
        *((f"silent 0.3 s, faded by {fade:g}", chosen, faded(fade)) for fade in FADES),
        *((f"silent {seconds:g} s, faded by 0.5", silent(seconds), faded(0.5)) for seconds in WINDOWS),
        ("gradient x input of both", gradient_windows, gradient_regions),
    ]
    for name, windows, regions in ways:
        print(f"{name:34}", score(model, corpus, objects, windows, regions), flush=True)


if __name__ == "__main__":
    main()
