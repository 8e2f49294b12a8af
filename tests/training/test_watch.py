import math

import pytest

from vgsplus.models.config import ModelConfig
from vgsplus.training.watch import WINDOW, Watch, warnings_in

MODEL = ModelConfig()
CODES = MODEL.quantizer_groups * MODEL.quantizer_codes
CONTRASTIVE = math.log(1 + MODEL.num_negatives)
GROUNDING = 2 * math.log(1 + 63 * math.e)
WARMUP = 4 * WINDOW


def records(steps=12 * WINDOW, *, phase=0, **changes):
    """The log of a healthy phase, with values, or functions of the step (from 1), of some names changed."""
    for step in range(1, steps + 1):
        values = {
            "kind": "train",
            "step": phase * steps + step,
            "phase_index": phase,
            "phase_step": step,
            "lr": min(step / WARMUP, 1.25 - step / WARMUP / 4),
            "captions": 64,
            "grounding": GROUNDING - step / WINDOW,
            "contrastive": CONTRASTIVE - step / WINDOW / 4,
            "code_perplexity": CODES / 4,
            "speech_embedding_std": 0.5,
            "image_embedding_std": 0.5,
            "similarity_std": 2.0,
            "loader_wait": 0.1,
        }
        yield values | {name: value(step) if callable(value) else value for name, value in changes.items()}


def found(lines, model=MODEL):
    return [(warning.rule, warning.step) for warning in warnings_in(lines, model)]


def test_a_healthy_run_and_an_older_log_raise_nothing():
    assert found(records()) == []
    assert found(records(grounding=None, speech_embedding_std=None)) == []
    known = ("kind", "step", "phase_index", "phase_step", "lr", "grounding", "contrastive")
    assert found({key: record[key] for key in known} for record in records(grounding=GROUNDING)) == []


@pytest.mark.parametrize(
    ("changes", "rule", "step"),
    [
        (
            {"code_perplexity": lambda step: CODES / 2 if step <= WINDOW else CODES / 40},
            "codebook",
            3 * WINDOW,
        ),
        ({"code_perplexity": 2.0}, "codebook", WARMUP + 2 * WINDOW),
        ({"speech_embedding_std": 1e-3}, "embeddings", WINDOW),
        ({"image_embedding_std": 0.0}, "embeddings", WINDOW),
        ({"grounding": lambda step: 40.0 if step > WINDOW else 8.0}, "similarity", 2 * WINDOW),
        ({"contrastive": CONTRASTIVE - 1e-3}, "contrastive", WARMUP + 4 * WINDOW),
        ({"grounding": GROUNDING + 1e-2}, "grounding", WARMUP + 4 * WINDOW),
        ({"loader_wait": 0.8}, "loader", 4 * WINDOW),
    ],
)
def test_each_collapse_is_named_once(changes, rule, step):
    assert found(records(**changes)) == [(rule, step)]


def test_single_steps_and_the_warm_up_raise_nothing():
    assert found(records(grounding=lambda step: 99.0 if step % 3 == 0 else 8.0)) == []
    assert found(records(WARMUP, grounding=GROUNDING, contrastive=CONTRASTIVE, code_perplexity=2.0)) == []


def test_a_warning_comes_again_in_the_next_phase_only():
    flickering = {"image_embedding_std": lambda step: step // WINDOW % 2}
    lines = [*records(**flickering), *records(phase=1, **flickering)]
    assert found(lines) == [("embeddings", WINDOW), ("embeddings", 13 * WINDOW)]


@pytest.mark.parametrize("before", [1, WINDOW - 1, 3 * WINDOW, 4 * WINDOW + 3])
def test_a_resumed_run_warns_as_the_one_that_was_not(before):
    lines = list(records(loader_wait=0.9, image_embedding_std=0.0))
    resumed = Watch(MODEL)
    for line in lines[:before]:
        resumed.add(line)
    later = [warning for line in lines[before:] for warning in resumed.add(line)]
    assert later == [warning for warning in warnings_in(lines, MODEL) if warning.step > before]


def test_a_gap_in_the_log_is_no_window():
    assert found(line for line in records(WINDOW, image_embedding_std=0.0) if line["step"] != 3) == []
