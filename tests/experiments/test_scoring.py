import dataclasses

import pytest
import torch

from vgsplus.config import load_config
from vgsplus.corpora import Corpus
from vgsplus.errors import CorpusError
from vgsplus.evaluation.abx_layers import score_layers
from vgsplus.experiments import curves, scoring
from vgsplus.experiments.scoring import Scoring, abx_task, own_abx_task, recalls
from vgsplus.models.vgsplus import VGSPlus


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
    measure = Scoring(corpus, scoring.test_sets(corpus), own_abx_task(corpus, scoring.test_sets(corpus)))
    scores = measure(model, True, config=config)
    expected = recalls(model, config, corpus, ["test"])
    assert {name: scores[name] for name in expected} == expected
    errors = {name: value for name, value in scores.items() if name.startswith("abx")}
    assert len(errors) == 2 * 2 * 2
    assert all(0 <= error <= 1 for error in errors.values())
    within_a_phase = measure(model, False, config=config)
    assert within_a_phase == {name: s for name, s in scores.items() if curves.ABX_PUBLISHED not in name}


def test_a_new_measure_needs_one_entry(corpus, config, model, monkeypatch):
    new = scoring.Measure("wer", "phase end", higher_is_better=False, score=lambda *_: {"wer/test": 0.5})
    monkeypatch.setattr(scoring, "MEASURES", (*scoring.MEASURES, new))
    measure = Scoring(corpus, ("test",))
    assert "wer/test" not in measure(model, False, config=config)
    scores = measure(model, True, config=config)
    records = [{"kind": "evaluation", "epoch": 1.0, "scores": scores}]
    (point,) = curves.score_points(records, ["test"])
    assert point.scores == {"wer/test": 0.5}
    (recall,) = curves.recall_points(records, ["test"])
    assert recall.speech_to_image[1] == scores["test/speech_to_image/R@1"]


def test_a_log_gives_back_the_errors_of_its_layers(corpus, config, model):
    task = own_abx_task(corpus, ["test"])
    scores = Scoring(corpus, (), task)(model, True, config=config)
    records = [
        {"kind": "train", "epoch": 0.5},
        {"kind": "evaluation", "epoch": 0.5, "scores": {"test/speech_to_image/R@1": 0.25}},
        {"kind": "evaluation", "epoch": 1.0, "scores": scores},
    ]
    (point,) = curves.abx_points(records)
    assert point.epoch == 1.0
    for row in score_layers(model, task):
        found = point.published if row.as_published else point.errors
        assert {condition: found[condition][row.layer] for condition in row.errors} == row.errors


def test_a_log_gives_back_the_losses_of_additional_speech():
    where = {"phase_index": 0, "captions_per_second": 8.0}
    records = [
        {"kind": "train", "step": step, "epoch": step / 2, "ssl": 3.0, "additional_speech/ssl": loss} | where
        for step, loss in ((1, 2.0), (2, 1.0))
    ]
    records.append({"kind": "validation", "step": 2, "epoch": 1.0, "ssl": 3.5, "phase_index": 0})
    found = [(p.split, p.step, p.terms) for p in curves.losses(records, 1)]
    assert found == [
        ("validation", 2, {"ssl": 3.5}),
        ("train", 1, {"ssl": 3.0, "additional_speech/ssl": 2.0}),
        ("train", 2, {"ssl": 3.0, "additional_speech/ssl": 1.0}),
    ]


def test_a_corpus_without_items_asks_nothing(corpus):
    assert own_abx_task(corpus, ["train"]) is None


def test_items_of_absent_sounds_are_refused(corpus, tmp_path):
    with pytest.raises(CorpusError, match="holds no sound files"):
        abx_task(corpus.root / "test.item", tmp_path)
