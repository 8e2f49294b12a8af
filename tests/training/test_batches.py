import multiprocessing
import pickle

import numpy as np
import pytest
import torch

from vgsplus.corpora import Corpus
from vgsplus.errors import AudioError
from vgsplus.models.speech_encoder import LENGTH_MULTIPLE
from vgsplus.schedule import Alpha, Phase, Schedule
from vgsplus.training.batches import (
    BatchReader,
    BatchRequest,
    TrainingOrder,
    batches_per_epoch,
    epoch_order,
    read_batches,
    validation_order,
)


def planned(epochs=3.0, alpha=0.5, num=13, batch_size=4, phase=0):
    phases = [Phase(name=str(i), alpha=Alpha.parse(alpha), epochs=epochs) for i in range(phase + 1)]
    return Schedule(tuple(phases)).plan(batches_per_epoch(num, batch_size))[phase]


def order(first_step=0, seed=1, num=13, batch_size=4, **plan):
    return TrainingOrder(
        num=num,
        batch_size=batch_size,
        seed=seed,
        planned=planned(num=num, batch_size=batch_size, **plan),
        first_step=first_step,
    )


@pytest.fixture
def reader(corpus_root):
    corpus = Corpus.open(corpus_root)
    return BatchReader(corpus=corpus, captions=corpus.captions("train"), max_samples=8000)


def test_an_epochs_order_is_a_permutation_that_depends_on_every_index():
    orders = [epoch_order(100, *index) for index in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    assert all(sorted(one) == list(range(100)) for one in orders)
    assert len({tuple(one) for one in orders}) == 4
    assert np.array_equal(orders[0], epoch_order(100, 0, 0))


def test_an_epoch_takes_no_caption_twice_and_leaves_out_less_than_a_batch():
    requests = list(order())
    assert len(requests) == len(order()) == 9
    for epoch in range(3):
        captions = [c for request in requests[3 * epoch : 3 * epoch + 3] for c in request.captions]
        assert len(set(captions)) == len(captions) == 12
    assert len({frozenset(r.captions) for r in requests}) == 9, "epochs differ"


def test_a_single_partial_batch_is_kept():
    assert batches_per_epoch(3, 4) == 1
    assert [sorted(request.captions) for request in order(num=3, epochs=1)] == [[0, 1, 2]]
    assert [len(request.captions) for request in validation_order(6, 4, images=False)] == [4]


@pytest.mark.parametrize("first_step", range(10))
def test_any_step_is_reached_without_those_before(first_step):
    assert list(order(first_step)) == list(order())[first_step:]


def test_phases_are_ordered_apart():
    assert list(order(phase=0)) != list(order(phase=1))


def test_images_are_asked_for_only_where_alpha_is_above_0():
    steps = order(alpha={"steps": [[0.0, 0.0], [0.5, 1.0]]})
    assert [request.images for request in steps] == [False] * 5 + [True] * 4


def test_batches_are_padded_to_few_lengths(corpus_root):
    corpus = Corpus.open(corpus_root)
    captions = corpus.captions("train")
    reader = BatchReader(corpus=corpus, captions=captions, max_samples=10 * 16000)
    for index, caption in enumerate(captions):
        length = reader.read(BatchRequest((index,), images=False))["waveforms"].shape[1]
        assert length % LENGTH_MULTIPLE == 0
        assert caption.num_samples <= length < caption.num_samples + LENGTH_MULTIPLE


def test_a_batch_is_cropped_normalised_and_padded_to_its_longest(reader):
    batch = reader.read(BatchRequest((0, 5, 7), images=True))
    lengths = batch["num_samples"]
    assert lengths.tolist() == [min(8000, reader.captions[i].num_samples) for i in (0, 5, 7)]
    assert batch["waveforms"].shape == (3, 8000)
    for row, length in zip(batch["waveforms"], lengths, strict=True):
        assert row[:length].mean().abs() < 1e-5
        assert row[:length].std(correction=0) == pytest.approx(1.0, abs=1e-4)
        assert not row[length:].any()
    features, boxes = reader.corpus.regions([reader.captions[i].image for i in (0, 5, 7)])
    assert torch.equal(batch["features"], torch.from_numpy(features))
    assert torch.equal(batch["boxes"], torch.from_numpy(boxes))
    assert batch["image_ids"].tolist() == [
        reader.corpus.image_row(reader.captions[i].image) for i in (0, 5, 7)
    ]
    assert {name: t.dtype for name, t in batch.items()} == {
        "waveforms": torch.float32,
        "num_samples": torch.int64,
        "moved_crops": torch.bool,
        "features": torch.float32,
        "boxes": torch.float32,
        "image_ids": torch.int64,
    }


def test_published_padding_reaches_the_crop_length(corpus_root):
    corpus = Corpus.open(corpus_root)
    reader = BatchReader(corpus=corpus, captions=corpus.captions("train"), max_samples=16000, pad_to_max=True)
    assert reader.read(BatchRequest((0, 1), images=False))["waveforms"].shape == (2, 16000)


def test_batches_without_grounding_never_touch_images(reader, monkeypatch):
    monkeypatch.setattr(Corpus, "stored_regions", lambda *_: pytest.fail("images were read"))
    monkeypatch.setattr(Corpus, "image_row", lambda *_: pytest.fail("images were looked up"))
    assert reader.read(BatchRequest((0, 1), images=False)).keys() == {
        "waveforms",
        "num_samples",
        "moved_crops",
    }


def test_workers_read_the_same_batches_in_the_same_order(reader):
    requests = list(order())
    reader.read(requests[0])  # the file of regions is open before the workers fork
    alone = list(read_batches(reader, requests))
    helped = list(read_batches(reader, requests, workers=2))
    assert len(alone) == len(helped) == 9
    for one, other in zip(alone, helped, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_reader_survives_pickling_after_it_has_read(reader):
    request = BatchRequest((0, 1), images=True)
    batch = reader.read(request)
    again = pickle.loads(pickle.dumps(reader)).read(request)
    assert all(torch.equal(batch[name], again[name]) for name in batch)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_sound_file_is_named_without_a_workers_traceback(reader, workers):
    broken = BatchReader(
        corpus=reader.corpus,
        captions=[*reader.captions[:1], _renamed(reader.captions[1])],
        max_samples=8000,
    )
    with pytest.raises(AudioError) as error:
        list(read_batches(broken, [BatchRequest((0, 1), images=False)], workers=workers))
    assert "gone.wav" in str(error.value)
    assert "Traceback" not in str(error.value)
    assert not multiprocessing.active_children()


def _renamed(caption):
    return type(caption)(
        **{name: getattr(caption, name) for name in caption.__slots__} | {"audio": "gone.wav"}
    )
