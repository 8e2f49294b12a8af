"""Results that look like a run's, and a small corpus for its gallery; both made here."""

import math

import numpy as np
import pytest
import soundfile
from PIL import Image, ImageDraw

from vgsplus.corpora import Caption
from vgsplus.evaluation.ranks import rank_matrix
from vgsplus.evaluation.retrieval import score
from vgsplus.report.paper import TITLES, phases_of
from vgsplus.report.results import (
    AbxBaseline,
    AbxPoint,
    AbxSummary,
    GalleryItem,
    LossPoint,
    PhaseResult,
    RecallPoint,
    Results,
    Variant,
)

NOUNS = [
    "red boat",
    "green kite",
    "blue clock",
    "old train",
    "small dog",
    "yellow bus",
    "white cup",
    "tall tree",
]
SKILL = {"W2V2": 0, "VGS": 1.5, "VGS+": 1.55, "(W2V2, VGS+)": 2.1, "(VGS, VGS+)": 1.45, "(W2V2, VGS)": 2.2,
         "(VGS, W2V2)": 0, "(VGS+, W2V2)": 0.7, "(VGS+, VGS)": 1.6}  # fmt: skip


class FakeCorpus:
    """Pictures drawn and tones sung in a folder; as much of a corpus as a report reads."""

    def __init__(self, root, pictures=8):
        self.root = root
        colours = ["#c0392b", "#27ae60", "#2471a3", "#6c3483", "#d68910", "#f4d03f", "#ecf0f1", "#117a65"]
        self._captions = []
        for n in range(pictures):
            image = Image.new("RGB", (96, 64 + 8 * n), "#dfe9ee")
            ImageDraw.Draw(image).ellipse((12 + 3 * n, 10, 70, 60), fill=colours[n % 8], outline="#333333")
            image.save(root / f"p{n}.png")
            wave = 0.3 * np.sin(np.arange(24_000) * (0.05 + 0.01 * n))
            soundfile.write(root / f"c{n}.wav", wave, 16_000, subtype="PCM_16")
            self._captions.append(
                Caption(
                    id=f"c{n}",
                    split="test",
                    audio=f"c{n}.wav",
                    num_samples=24_000,
                    speaker=f"speaker {n % 3}",
                    language="en",
                    image=f"p{n}.png",
                    text=f"There is a {NOUNS[n % 8]}.",
                )
            )

    def captions(self, split):  # noqa: ARG002
        return self._captions

    def audio_path(self, caption):
        return self.root / caption.audio

    def image_path(self, image):
        return self.root / image


def scores(skill, seed=0, pictures=120, each=3):
    rng = np.random.default_rng([seed, round(100 * skill)])
    spoken_of = np.repeat(np.arange(pictures), each)
    similarity = rng.standard_normal((pictures, pictures * each))
    similarity[spoken_of, np.arange(len(spoken_of))] += skill
    return score(rank_matrix(similarity, range(pictures), spoken_of.tolist()), replicates=300)


def phases(name, first=20, total=70):
    bases = list(dict.fromkeys(phases_of(name)))
    lengths = [total] if len(bases) == 1 else [first, total - first]
    return tuple(
        PhaseResult(name=base.lower(), epochs=length, steps=length * 40, seconds=length * 61.5,
                    shared=len(bases) == 2 and index == 0)
        for index, (base, length) in enumerate(zip(bases, lengths, strict=True))
    )  # fmt: skip


def losses(name):
    """Falling curves that start afresh in level at a switch, with the noise of their variant."""
    rng = np.random.default_rng(len(name))
    epoch = 0
    av, aud = 8.0, 6.2
    for index, phase in enumerate(phases(name)):
        for _ in range(phase.epochs):
            epoch += 1
            grounded, heard = phase.name != "w2v2", phase.name != "vgs"
            av = 0.9 + (av - 0.9) * (0.94 - 0.01 * SKILL[name]) if grounded else av
            aud = 2.4 + (aud - 2.4) * (0.95 if phase.name == "w2v2" else 0.965) if heard else aud
            for split, extra in (("train", 0.0), ("validation", 0.15)):
                noise = math.exp(0.015 * rng.standard_normal())
                terms = {"grounding": (av + extra) * noise} if grounded else {}
                terms |= {"ssl": (aud + extra) * noise} if heard else {}
                yield LossPoint(epoch=epoch, phase=index, step=epoch * 40, split=split, terms=terms)


def recalls(name):
    for epoch in range(5, 71, 5):
        grown = 1 - math.exp(-epoch / 25)
        share = 0.06 + min(0.9, 0.33 * SKILL[name] * grown)
        yield RecallPoint(epoch=epoch, test_set="validation", speech_to_image={1: share / 3, 10: share},
                          image_to_speech={1: share / 2.5, 10: min(1.0, share * 1.08)})  # fmt: skip


def abx(name):
    """Errors that fall with training, lowest in the second of three layers; one half more as published."""
    for epoch in (20, 45, 70):
        lowest = 0.05 + 0.1 * math.exp(-epoch / 30) + 0.002 * TITLES.index(name)
        errors = {
            condition: {layer: extra * lowest + 0.01 * abs(layer - 2) for layer in (1, 2, 3)}
            for condition, extra in (("within", 1.0), ("across", 1.5))
        }
        published = {c: {layer: 1.5 * error for layer, error in e.items()} for c, e in errors.items()}
        yield AbxPoint(epoch=epoch, errors=errors, published=published)


BASELINES = (
    AbxBaseline(features="untrained", layer=1, errors={"within": 0.21, "across": 0.26}, published={}),
    AbxBaseline(features="untrained", layer=2, errors={"within": 0.2, "across": 0.27}, published={}),
    AbxBaseline(features="log-Mel", layer=None, errors={"within": 0.1, "across": 0.2}, published={}),
)


def variant(name, test_sets=("test",)):
    return Variant(
        key=name.strip("()").replace(" ", "").lower(),
        name=name,
        phases=phases(name),
        parameters=4_213_504,
        retrieval={test_set: scores(SKILL[name], seed) for seed, test_set in enumerate(test_sets)},
        losses=tuple(losses(name)),
        recalls=tuple(recalls(name)),
        abx=tuple(abx(name)),
    )


def gallery_item(n, test_set):
    """Found first, found second, and missed take turns."""
    shifts = ([0, 1, 2, 3, 4], [3, 0, 1, 5, 4], [1, 2, 3, 4, 5])[n % 3]
    return GalleryItem(
        test_set=test_set,
        variant="w2v2,vgs",
        caption=f"c{n}",
        image=f"p{n}.png",
        retrieved=tuple(f"p{(n + shift) % 8}.png" for shift in shifts),
        text=f"There is a {NOUNS[n]}.",
        speaker=f"speaker {n % 3}",
    )


def make_results(names=TITLES, test_sets=("test",), gallery=6):
    return Results(
        preset="demo",
        created="2025-11-23T14:05:00+00:00",
        versions={"python": "3.12.3", "torch": "2.14.0", "vgsplus": "0.1.0"},
        machine={"cpus": 2, "memory_gib": 15.6, "device": "cpu", "system": "Linux"},
        corpus={"name": "toy", "version": "1", "counts": {"train": {"captions": 3000, "images": 1000}}},
        settings={
            "seed": 0,
            "model": {"dim": 96, "layers": 4, "speech_layers": 3, "conv": [[10, 5], [3, 2]], "dropout": 0.1},
            "optimizer": {"name": "bertadam", "lr": 1e-4, "betas": [0.9, 0.999]},
            "schedule": [{"name": "w2v2", "alpha": 0.0}, {"name": "vgs+", "alpha": 0.5}],
            "note": None,
        },
        test_sets=test_sets,
        variants=tuple(variant(name, test_sets) for name in names),
        abx=AbxSummary(item="test.item", tokens=4321, baselines=BASELINES),
        gallery=tuple(gallery_item(n, test_sets[0]) for n in range(gallery)),
        seconds=21_000.0,
    )  # fmt: skip


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "corpus"
    root.mkdir()
    return FakeCorpus(root)


@pytest.fixture(scope="session")
def results():
    return make_results()


@pytest.fixture(scope="session")
def partial():
    return make_results(("W2V2", "VGS+", "(W2V2, VGS+)"), gallery=2)


@pytest.fixture(scope="session")
def two_test_sets():
    return make_results(("VGS", "(W2V2, VGS)"), ("test_recordings", "test_images"), gallery=0)
