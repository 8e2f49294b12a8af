import shutil

import pytest

from vgsplus.config import load_config
from vgsplus.experiments.reproduce import RUNS, SECONDS, variant_folder
from vgsplus.training.trainer import train

VARIANT = "w2v2,vgs"
SCORES = {"test/speech_to_image/R@10": 0.5, "test/image_to_speech/R@10": 0.25}


@pytest.fixture(scope="session")
def settings(tiny_corpus):
    """A run of two phases of 2 and 4 steps, far from the preset in settings of every kind."""
    return [
        f"corpus={tiny_corpus}",
        f"schedule.variant={VARIANT}",
        "schedule.pretraining_epochs=1",
        "schedule.epochs=3",
        "schedule.optimizer.lr=0.002",
        "accelerator=cpu",
        "model.feature_dim=12",
        "model.resdavenet_widths=[16, 32]",
        "validate_every=1",
        "seed=5",
    ]


@pytest.fixture(scope="session")
def trained(settings, tmp_path_factory):
    """A finished run; tests must not change it."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(load_config("smoke", settings), out, evaluate=lambda *_: SCORES)
    return out


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def reproduction(trained, tmp_path):
    """A reproduction with one finished variant and no report yet."""
    out = tmp_path / "out"
    shutil.copytree(trained, variant_folder(out, VARIANT, 0))
    (out / SECONDS).write_text("1.0\n")
    assert variant_folder(out, VARIANT, 0).parent == out / RUNS
    return out


@pytest.fixture
def corpus(tiny_corpus, tmp_path):
    """A copy of the tiny corpus."""
    return shutil.copytree(tiny_corpus, tmp_path / "corpus")


@pytest.fixture(scope="session")
def found():
    """The findings of one level, as (about, what and remedy in one text)."""

    def of(diagnosis, level):
        return [(f.about, f"{f.what}\n{f.remedy}") for f in diagnosis.findings if f.level == level]

    return of
