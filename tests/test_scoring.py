import dataclasses

import pytest
import torch

from vgsplus import history, scoring
from vgsplus.config import load_config
from vgsplus.corpora.format import Corpus
from vgsplus.evaluation.abx_items import ItemError
from vgsplus.evaluation.abx_layers import score_layers
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.scoring import Scoring, abx_question, own_abx_question, recalls


@pytest.fixture
def corpus(tiny_corpus):
    return Corpus.open(tiny_corpus)


@pytest.fixture
def config(tiny_corpus):
    loaded = load_config("smoke", [f"corpus={tiny_corpus}", "model.feature_dim=12"])
    return dataclasses.replace(loaded, precision="32-true")


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    return VGSPlus(config.model).eval()


def test_every_score_is_there_by_its_flat_name(corpus, config, model):
    measure = Scoring(corpus, scoring.test_sets(corpus), own_abx_question(corpus, scoring.test_sets(corpus)))
    scores = measure(model, config)
    expected = recalls(model, config, corpus, ["test"])
    assert {name: scores[name] for name in expected} == expected
    errors = {name: value for name, value in scores.items() if name.startswith("abx")}
    assert len(errors) == 2 * 2 * 2
    assert all(0 <= error <= 1 for error in errors.values())


def test_a_log_gives_back_the_errors_of_its_layers(corpus, config, model):
    question = own_abx_question(corpus, ["test"])
    scores = Scoring(corpus, (), question)(model, config)
    records = [
        {"kind": "train", "epoch": 0.5},
        {"kind": "evaluation", "epoch": 0.5, "scores": {"test/speech_to_image/R@1": 0.25}},
        {"kind": "evaluation", "epoch": 1.0, "scores": scores},
    ]
    (point,) = history.abx_points(records)
    assert point.epoch == 1.0
    for row in score_layers(model, question):
        found = point.published if row.as_published else point.errors
        assert {condition: found[condition][row.layer] for condition in row.errors} == row.errors


def test_a_corpus_without_items_asks_nothing(corpus):
    assert own_abx_question(corpus, ["train"]) is None


def test_items_of_absent_sounds_are_refused(corpus, tmp_path):
    with pytest.raises(ItemError, match="there is no"):
        abx_question(corpus.root / "test.item", tmp_path)
