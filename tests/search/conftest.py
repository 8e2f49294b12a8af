import shutil

import pytest

from vgsplus.corpora import Corpus
from vgsplus.interop.pretrained import load
from vgsplus.search.index import open_index


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VGSPLUS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "search"


@pytest.fixture(scope="session")
def make_run(make_model, save_run, tmp_path_factory):
    """A function that saves a tiny model for the tiny corpus as a run, by default, and returns its folder."""

    def make(**changes):
        model = make_model(**{"feature_dim": 12} | changes)
        return save_run(model, tmp_path_factory.mktemp("runs") / "run")

    return make


@pytest.fixture
def corpus(tiny_corpus, tmp_path):
    """A copy of the tiny corpus, to be changed."""
    shutil.copytree(tiny_corpus, tmp_path / "corpus", copy_function=shutil.copy2)
    return tmp_path / "corpus"


@pytest.fixture
def index(make_run, corpus):
    return open_index(load(make_run()), Corpus.open(corpus), "test")
