import re

import pytest

from vgsplus.config import from_dict, to_dict
from vgsplus.corpora import Corpus
from vgsplus.errors import CheckpointError, ConfigError, CorpusError
from vgsplus.schedule import Alpha, Phase, Schedule
from vgsplus.training.checks import check_run


def only(alpha, init=None):
    return Schedule((Phase(name="a", alpha=Alpha.parse(alpha), epochs=1, init=init),))


@pytest.fixture
def changed(corpus_root, edited_corpus):
    """A copy of the corpus in which the fields of a caption differ."""

    def change(caption_id, **values):
        return Corpus.open(
            edited_corpus(
                corpus_root,
                lambda caption: caption.update(values if caption["id"] == caption_id else {}) is None,
            )
        )

    return change


def test_a_run_that_fits_passes(make_config, corpus_root):
    check_run(make_config(), Corpus.open(corpus_root), None)


def test_speech_alone_is_enough_without_grounding(make_config, speech_root):
    check_run(make_config(schedule=only(0)), Corpus.open(speech_root), None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 14}, "batch_size: 14 is more than the 13 captions"),
        ({"batch_size": 1}, "at least 2"),
        ({"batch_seconds": 2.0}, "batch_seconds: 2 is less than max_seconds (8)"),
        ({"max_seconds": 1e-4}, "max_seconds: "),
        ({"validation_max_seconds": 1e-4}, "validation_max_seconds: "),
        ({"precision": "16-mixed"}, "precision: 16-mixed needs a CUDA device"),
        ({"schedule": only(0, init="/")}, "schedule.0.init: train was called without load_weights"),
    ],
)
def test_impossible_settings_are_named(make_config, corpus_root, changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_run(make_config(**changes), Corpus.open(corpus_root), None)


@pytest.mark.parametrize("name", ["/no/such/weights", "hf:a/b", "toy"])
def test_initial_weights_are_found_by_the_loader(make_config, corpus_root, name):
    def refuse(_model, name):
        raise CheckpointError(f"{name}: is refused")

    with pytest.raises(ConfigError, match=f"schedule.0.init: {name}: is refused"):
        check_run(make_config(schedule=only(0, init=name)), Corpus.open(corpus_root), refuse)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "batch_size: 4 is less than the 7 processes"),
        ({}, "captions of the split validation: 6 is less than the 7 processes"),
        ({"batch_seconds": 60.0}, "batch_seconds: must be at least 64"),
        ({"model": {"padding": "published"}}, "model.padding: published trains in one process, not in 7"),
    ],
)
def test_every_process_needs_a_caption_of_each_batch(make_config, corpus_root, changes, message):
    config = from_dict(to_dict(make_config()) | changes)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_run(config, Corpus.open(corpus_root), None, processes=7)


@pytest.mark.parametrize("alpha", [1.0, 0.5, {"linear": [0, 1]}])
def test_grounding_needs_a_corpus_with_images(make_config, speech_root, alpha):
    with pytest.raises(ConfigError, match="corpus of speech alone"):
        check_run(make_config(schedule=only(alpha)), Corpus.open(speech_root), None)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_grounding_needs_an_image_for_every_caption(make_config, changed, split):
    corpus = changed(f"{split}_2", image=None)
    with pytest.raises(ConfigError, match=f"1 of the split {split} have none, the first {split}_2"):
        check_run(make_config(), corpus, None)
    check_run(make_config(schedule=only(0)), corpus, None)


def test_features_must_be_those_of_the_model(make_config, corpus_root):
    corpus = Corpus.open(corpus_root)
    corpus.info["regions"]["dim"] = 2048
    with pytest.raises(ConfigError, match="have 2048 features"):
        check_run(make_config(), corpus, None)


def test_clips_shorter_than_a_frame_are_named(make_config, changed):
    corpus = changed("train_3", num_samples=5)
    with pytest.raises(ConfigError, match=r"1 captions .* the first train_3 with 5"):
        check_run(make_config(), corpus, None)


def test_a_moved_sound_file_is_noticed(make_config, corpus_root):
    corpus = Corpus.open(corpus_root)
    corpus.info["audio_root"] = "elsewhere"
    with pytest.raises(ConfigError, match="if the files were moved"):
        check_run(make_config(), corpus, None)


def test_a_missing_validation_split_matters_only_where_it_is_used(make_config, corpus_root):
    corpus = Corpus.open(corpus_root)
    del corpus._captions["validation"]
    with pytest.raises(CorpusError, match="no split 'validation'"):
        check_run(make_config(), corpus, None)
    check_run(make_config(validate_every=None), corpus, None)


def test_every_problem_is_named_at_once(make_config, speech_root):
    config = make_config(batch_size=14, precision="16-mixed")
    with pytest.raises(ConfigError) as error:
        check_run(config, Corpus.open(speech_root), None)
    assert str(error.value).count("\n- ") == 3
