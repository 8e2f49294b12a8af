import copy
import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch

from vgsplus import config as settings
from vgsplus.corpora import Corpus
from vgsplus.errors import CheckpointError, ConfigError
from vgsplus.losses import PUBLISHED_TERMS
from vgsplus.schedule import AdditionalSpeech, Alpha, Schedule
from vgsplus.training.checkpoint import STATE_FILE
from vgsplus.training.checks import check_run
from vgsplus.training.data import (
    SpeechImageDataset,
    extra_batch_size,
    open_additional_speech,
    training_batches,
)
from vgsplus.training.log import ADDITIONAL
from vgsplus.training.optimizer import build_optimizer
from vgsplus.training.processes import Processes
from vgsplus.training.runtime import RandomStream, indexed_seed
from vgsplus.training.sampler import WHOLE, BatchIndices
from vgsplus.training.trainer import Trainer, train

WEIGHT, CLIPS, STEPS = 0.7, 3, 9


@pytest.fixture
def with_speech(make_config, speech_root):
    """The run of two phases, α = 0, then α from 0.2 to 0.8, with additional speech in both."""

    def make(*, phases=(0, 1), **changes):
        speech = {"corpus": str(speech_root), "weight": WEIGHT, "batch_size": CLIPS} | changes
        config = make_config(max_seconds=0.4)
        return dataclasses.replace(
            config,
            schedule=Schedule(
                tuple(
                    dataclasses.replace(phase, additional_speech=AdditionalSpeech(**speech))
                    if index in phases
                    else phase
                    for index, phase in enumerate(config.schedule.phases)
                )
            ),
        )

    return make


@pytest.fixture
def whole(runs, with_speech):
    return runs.finished(with_speech())


@pytest.fixture
def without(runs, make_config):
    """The same run without additional speech."""
    return runs.finished(make_config(max_seconds=0.4))


# ---- settings ---------------------------------------------------------------------------------------------


def test_settings_are_read_written_and_left_out_where_they_are_not_given(make_config, with_speech):
    config = with_speech(phases=(1,), batch_size=None)
    plain = settings.to_dict(config)
    assert "additional_speech" not in plain["schedule"][0]
    assert plain["schedule"][1]["additional_speech"]["weight"] == WEIGHT
    assert settings.from_dict(plain) == config
    assert "additional_speech" not in json.dumps(settings.to_dict(make_config()))


def test_a_variant_has_additional_speech_in_phases_with_self_supervision():
    speech = AdditionalSpeech(corpus="c", weight=0.5)
    found = {
        name: [phase.additional_speech for phase in Schedule.variant(name, additional_speech=speech).phases]
        for name in ("vgs", "vgs+", "w2v2,vgs")
    }
    assert found == {"vgs": [None], "vgs+": [speech], "w2v2,vgs": [speech, None]}
    chosen = ["schedule.additional_speech.corpus=c", "schedule.additional_speech.weight=0.5"]
    (phase,) = settings.load_config("smoke", chosen).schedule.phases
    assert phase.additional_speech == speech


@pytest.mark.parametrize(
    ("speech", "message"),
    [
        (
            {"corpus": "c", "weight": -1},
            "speech.weight: input should be greater than or equal to 0, not -1",
        ),
        (
            {"corpus": "c", "weight": 1, "batch_size": 0},
            "speech.batch_size: input should be greater than or",
        ),
        (
            {"corpus": "", "weight": 1},
            "schedule.additional_speech.corpus: string should have at least 1",
        ),
        ({"corpus": "c"}, "schedule.additional_speech.weight: is missing"),
        ({"corpus": "c", "wieght": 1, "weight": 1}, "wieght: there is no such key; the nearest is 'weight'"),
    ],
)
def test_impossible_settings_are_refused_with_their_path(speech, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        settings.from_dict({"corpus": "x", "schedule": {"variant": "vgs+", "additional_speech": speech}})


def test_an_infinite_weight_is_refused():
    with pytest.raises(ConfigError, match="weight"):
        AdditionalSpeech(corpus="c", weight=float("inf"))


# ---- the batches of a step ---------------------------------------------------------------------------------


def test_a_crop_lies_where_it_is_asked_for(speech_root):
    corpus = Corpus.open(speech_root)
    captions = corpus.captions("train")
    whole = SpeechImageDataset(corpus=corpus, captions=captions, max_samples=16000)
    short = SpeechImageDataset(corpus=corpus, captions=captions, max_samples=4000)
    (signal_,) = whole[BatchIndices((2,))]["waveforms"]
    signal_ = signal_[: captions[2].num_samples]
    for crop in (0.0, 0.3, np.nextafter(1.0, 0.0)):
        start = int(crop * (len(signal_) - 4000 + 1))
        part = signal_[start : start + 4000]
        (read,) = short[BatchIndices((2,), crop_positions=(crop,))]["waveforms"]
        expected = (part - part.mean()) / part.std(correction=0)
        torch.testing.assert_close(read[:4000], expected, rtol=1e-3, atol=1e-3)
    assert start == len(signal_) - 4000, "the last crop ends with the clip"


@pytest.mark.parametrize(("batch_size", "expected"), [(None, 4), (2, 2)])
def test_by_default_an_epoch_of_captions_takes_the_corpus_once(with_speech, batch_size, expected):
    config = with_speech(batch_size=batch_size)
    assert (
        extra_batch_size(config, config.schedule.plan(lambda _: 4)[0], 13) == expected
    )  # 13 clips in 4 steps
    assert extra_batch_size(config, config.schedule.plan(lambda _: 1)[0], 13) == (batch_size or 4)


# ---- the total and its gradient ---------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_total_and_gradient_are_the_weighted_sum_worked_out_by_hand(with_speech, tmp_path, alpha):
    """In float64, on the batches of a real step; the Gumbel temperature moves on once."""
    config = with_speech()
    phase = dataclasses.replace(config.schedule.phases[0], alpha=Alpha.parse(alpha))
    config = dataclasses.replace(config, schedule=Schedule((phase,)), gradient_clip=1e9)
    corpus, additional = Corpus.open(config.corpus), open_additional_speech(config.schedule)
    processes = Processes()
    trainer = Trainer(config, tmp_path, corpus, additional, processes)
    model = trainer.model.double().train()
    twin = copy.deepcopy(model)
    steps = trainer.plan[0]
    batches = next(training_batches(config, steps, corpus, additional["w2v2"], WHOLE, 0))
    captions, speech = (doubled(batch) for batch in batches)
    optimizer = processes.fabric.setup_optimizers(build_optimizer(model, phase.optimizer))
    _, losses = trainer.step.update(steps, 0, optimizer, captions, speech)
    record = losses.read()
    assert len(speech["num_samples"]) == CLIPS
    assert "features" not in speech
    own = twin(captions, alpha, seed=indexed_seed(config.seed, RandomStream.STEP, 0, 0))
    twin.quantizer.updates.zero_()
    extra = twin(speech, 0.0, seed=indexed_seed(config.seed, RandomStream.EXTRA_STEP, 0, 0))
    total = WEIGHT * extra.ssl
    if alpha > 0:
        total = total + alpha * own.grounding
    if alpha < 1:
        total = total + (1 - alpha) * own.ssl
    total.backward()
    for (name, p), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (expected.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, expected.grad, rtol=1e-9, atol=1e-12, msg=name)
    assert record["total"] == pytest.approx(total.item(), rel=1e-6)
    assert record["additional_speech/contrastive"] == pytest.approx(extra.contrastive.item(), rel=1e-6)
    assert model.quantizer.updates == 1


def doubled(batch):
    return {name: t.double() if t.is_floating_point() else t for name, t in batch.items()}


# ---- runs -------------------------------------------------------------------------------------------------


def test_log_and_validation_tell_its_losses_apart_and_count_them_in_the_total(runs, whole):
    lines, validations = runs.log(whole), runs.log(whole, "validation")
    assert len(lines) == STEPS
    assert [line["step"] for line in validations] == [3, 5, 8, 9]
    for line in [*lines, *validations]:
        own = {name for name in line if name.startswith("additional_speech/")}
        terms = {f"{ADDITIONAL}{name}" for name in PUBLISHED_TERMS if name != "grounding"}
        metrics = {f"{ADDITIONAL}{name}" for name in ("moved_crops", "masked_share", "temperature")}
        assert own - metrics == terms
        own = (1 - line["alpha"]) * line["ssl"] + line["alpha"] * (line.get("grounding") or 0.0)
        assert line["total"] == pytest.approx(own + WEIGHT * line["additional_speech/ssl"], rel=1e-5)
    assert runs.tensors(whole)["quantizer.updates"] == STEPS, "the temperature moves on once an update"


def test_with_weight_0_the_run_is_the_one_without(with_speech, runs, without, tmp_path):
    train(with_speech(weight=0.0, corpus="/nowhere"), tmp_path)
    runs.assert_same(tmp_path, without, "validation")
    assert set(runs.log(without)[0]) >= {"total", *PUBLISHED_TERMS}
    assert not [name for name in runs.log(without)[0] if name.startswith("additional")]


@pytest.mark.parametrize(("step", "workers"), [(2, 0), (5, 0), (7, 2)])
def test_a_run_stopped_and_resumed_is_the_run_that_was_not(with_speech, runs, whole, tmp_path, step, workers):
    config = dataclasses.replace(with_speech(), workers=workers)
    runs.stop(step, config, tmp_path)
    train(config, tmp_path, resume=True)
    runs.assert_same(tmp_path, whole, "validation")


def test_a_first_phase_without_it_is_shared_and_the_corpus_may_move(
    with_speech, runs, without, tmp_path, speech_root
):
    whole = runs.finished(with_speech(phases=(1,)))
    start = shutil.copytree(without, tmp_path / "without") / "checkpoints" / "step-00000005-end-of-w2v2"
    moved = shutil.copytree(speech_root, tmp_path / "moved")
    state = json.loads((start / STATE_FILE).read_text())
    del state["additional_speech"]  # as written before there was such a setting
    (start / STATE_FILE).write_text(json.dumps(state))
    runs.stop(7, with_speech(phases=(1,)), tmp_path / "run", start=start)
    train(with_speech(phases=(1,), corpus=str(moved)), tmp_path / "run", resume=True)
    runs.assert_same(tmp_path / "run", whole)
    with pytest.raises(CheckpointError, match="additional_speech"):
        train(with_speech(), tmp_path / "other", start=start)
    (moved / "captions.jsonl").write_text(
        "".join(reversed((moved / "captions.jsonl").read_text().splitlines(keepends=True)))
    )
    unfinished = tmp_path / "run" / "checkpoints" / "step-00000009-end-of-mixed"
    shutil.rmtree(unfinished)
    with pytest.raises(CheckpointError, match=r"another corpus:\n- additional_speech\.mixed\.captions"):
        train(with_speech(phases=(1,), corpus=str(moved)), tmp_path / "run", resume=True)


def test_its_images_are_never_read(with_speech, corpus_root, monkeypatch, tmp_path):
    monkeypatch.setattr(Corpus, "stored_regions", lambda *_: pytest.fail("images were read"))
    config = with_speech(corpus=str(corpus_root))
    phase = dataclasses.replace(config.schedule.phases[0], epochs=1 / 3)
    train(dataclasses.replace(config, schedule=Schedule((phase,))), tmp_path / "run")


# ---- checks before the first step -------------------------------------------------------------------------


def problems(config):
    with pytest.raises(ConfigError) as error:
        check_run(config, Corpus.open(config.corpus), None)
    return str(error.value)


def test_a_run_that_fits_passes(with_speech):
    config = with_speech()
    check_run(config, Corpus.open(config.corpus), None)


def test_what_its_corpus_lacks_is_named_with_the_setting(with_speech, speech_root, edited_corpus):
    assert "- schedule.1.additional_speech.corpus: /nowhere: there is no such folder" in problems(
        with_speech(corpus="/nowhere")
    )
    assert "schedule.0.additional_speech.batch_size: 14 is more than the 13 captions" in problems(
        with_speech(batch_size=14)
    )
    for split in ("train", "validation"):
        root = edited_corpus(speech_root, lambda caption, split=split: caption["split"] != split, split)
        assert f"schedule.0.additional_speech.corpus: {root}: the split '{split}' is empty" in problems(
            with_speech(corpus=str(root))
        )
    check_run(
        dataclasses.replace(with_speech(corpus=str(root)), validate_every=None),
        Corpus.open(with_speech().corpus),
        None,
    )


def test_its_clips_that_are_too_short_or_gone_are_named(with_speech, speech_root, edited_corpus):
    root = edited_corpus(speech_root, lambda caption: caption.update(num_samples=5, audio="gone.wav") is None)
    message = problems(with_speech(corpus=str(root)))
    assert "schedule.0.additional_speech.corpus: 13 captions of the split train are shorter" in message
    assert "schedule.0.additional_speech.corpus: the sound file" in message
