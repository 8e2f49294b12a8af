import dataclasses
import multiprocessing
import pickle

import numpy as np
import pytest
import torch

from vgsplus.corpora import Corpus
from vgsplus.errors import AudioError
from vgsplus.schedule import Alpha, Phase, Schedule
from vgsplus.training.data import (
    SpeechImageDataset,
    caption_sizes,
    load_batches,
    plan_steps,
    training_batches,
)
from vgsplus.training.runtime import RandomStream
from vgsplus.training.sampler import WHOLE, BatchIndices, BatchSampler, CaptionSizes, Part, epoch_order


def phase_steps(epochs=3.0, alpha=0.5, num=13, batch_size=4, phase=0):
    phases = [Phase(name=str(i), alpha=Alpha.parse(alpha), epochs=epochs) for i in range(phase + 1)]
    return Schedule(tuple(phases)).plan(lambda _: CaptionSizes.equal(num, batch_size).batches)[phase]


def sampler(start_step=0, seed=1, num=13, batch_size=4, **plan):
    phase = phase_steps(num=num, batch_size=batch_size, **plan)
    return BatchSampler(
        captions=CaptionSizes.equal(num, batch_size),
        seed=seed,
        steps=range(start_step, phase.steps),
        phase=phase.index,
        with_images=lambda step: phase.alpha(step) > 0,
    )


def extra_sampler(start_step=0, seed=1, steps=12, phase=0):
    """Of additional speech: 7 clips in batches of 2."""
    return BatchSampler(
        captions=CaptionSizes.equal(7, 2),
        seed=seed,
        steps=range(start_step, steps),
        phase=phase,
        stream=RandomStream.EXTRA_ORDER,
        random_crops=True,
    )


@pytest.fixture
def dataset(corpus_root):
    corpus = Corpus.open(corpus_root)
    return SpeechImageDataset(corpus=corpus, captions=corpus.captions("train"), max_samples=8000)


def test_an_epochs_order_is_a_permutation_that_depends_on_every_index():
    orders = [epoch_order(100, *index)[0] for index in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    assert all(sorted(one) == list(range(100)) for one in orders)
    assert len({tuple(one) for one in orders}) == 4
    assert np.array_equal(orders[0], epoch_order(100, 0, 0)[0])


def test_an_epoch_takes_no_caption_twice_and_leaves_out_less_than_a_batch():
    requests = list(sampler())
    assert len(requests) == len(sampler()) == 9
    for epoch in range(3):
        captions = [c for request in requests[3 * epoch : 3 * epoch + 3] for c in request.captions]
        assert len(set(captions)) == len(captions) == 12
    assert len({frozenset(r.captions) for r in requests}) == 9, "epochs differ"


def test_a_single_partial_batch_is_kept():
    assert [sorted(request.captions) for request in sampler(num=3, epochs=1)] == [[0, 1, 2]]
    assert [len(request.captions) for request in sampler(num=6, epochs=1)] == [4]


@pytest.mark.parametrize("seed", range(5))
def test_batches_by_length_have_the_same_length_on_average_and_number_in_every_order(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(400, 8001, 500)
    captions = CaptionSizes(lengths, 20_000)
    for epoch in range(3):
        order, _ = epoch_order(500, seed, epoch)
        batches = captions.split(order)
        assert len(batches) == captions.batches == lengths.sum() // 20_000
        assert np.array_equal(np.concatenate([order[batch] for batch in batches]), order[: batches[-1].stop])
        totals = np.array([lengths[order[batch]].sum() for batch in batches])
        assert np.abs(totals - 20_000).max() < 8000, "off by less than the longest caption"
        assert np.abs(totals.mean() - 20_000) < 8000 / len(batches)


def test_a_batch_has_room_for_one_caption_of_its_length():
    captions = CaptionSizes(np.full(7, 8000), 8000)
    assert [batch.stop - batch.start for batch in captions.split(np.arange(7))] == [1] * 7


def test_only_phases_without_grounding_form_batches_by_length(corpus_root, make_config):
    corpus = Corpus.open(corpus_root)
    captions = corpus.captions("train")
    config = make_config(batch_seconds=1.0, max_seconds=0.5)
    alone, mixed = (caption_sizes(config, phase, captions) for phase in config.schedule.phases)
    assert alone.batch_size == 16000
    assert alone.sizes.tolist() == np.minimum(captions.num_samples, 8000).tolist()
    assert mixed.batch_size == config.batch_size
    assert mixed.sizes.tolist() == [1] * len(captions)
    assert [phase.steps_per_epoch for phase in plan_steps(config, corpus)] == [alone.batches, mixed.batches]


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_every_batch_by_length(corpus_root, processes):
    corpus = Corpus.open(corpus_root)
    captions = corpus.captions("train")
    lengths = captions.num_samples
    parts = [
        dataclasses.replace(sampler(), part=Part(rank, processes), lengths=lengths)
        for rank in range(processes)
    ]
    for whole, *shares in zip(sampler(), *parts, strict=True):
        ordered = sorted(whole.captions, key=lambda caption: lengths[caption])
        assert [share.batch_size for share in shares] == [4] * processes
        places = [place for share in shares for place in share.places]
        assert sorted(places) == list(range(4))
        assert [c for share in shares for c in share.captions] == [ordered[place] for place in places]
    dataset = SpeechImageDataset(corpus=corpus, captions=captions, max_samples=8000)
    batch = dataset[shares[0]]
    assert batch["places"].tolist() == list(shares[0].places)
    assert batch["batch_size"] == 4


@pytest.mark.parametrize("build", [sampler, extra_sampler])
def test_any_step_is_reached_without_those_before(build):
    requests = list(build())
    for step in range(len(requests) + 1):
        assert list(build(step)) == requests[step:]


@pytest.mark.parametrize("build", [sampler, extra_sampler])
def test_the_order_depends_on_seed_and_phase(build):
    assert list(build(phase=0)) != list(build(phase=1))
    assert list(build(seed=1)) != list(build(seed=2))


def test_an_epoch_of_additional_speech_takes_no_clip_twice_and_epochs_differ():
    requests = list(extra_sampler())
    epochs = [[c for one in requests[3 * e : 3 * e + 3] for c in one.captions] for e in range(4)]
    assert all(len(set(epoch)) == 6 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    positions = [position for one in requests for position in one.crop_positions]
    assert len(set(positions)) == len(positions) == 24
    assert all(0 <= position < 1 for position in positions)


def test_additional_speech_has_an_order_of_its_own_whatever_the_length_of_the_phase():
    requests = list(extra_sampler())
    assert list(extra_sampler(steps=6)) == requests[:6]
    captions = BatchSampler(captions=CaptionSizes.equal(7, 2), seed=1, steps=range(9))
    assert [one.captions for one in captions] != [one.captions for one in requests[:9]]


def test_images_are_asked_for_only_where_alpha_is_above_0():
    steps = sampler(alpha={"steps": [[0.0, 0.0], [0.5, 1.0]]})
    assert [request.with_images for request in steps] == [False] * 5 + [True] * 4


def test_a_batch_is_in_the_order_of_lengths(corpus_root):
    corpus = Corpus.open(corpus_root)
    captions = corpus.captions("train")
    dataset = SpeechImageDataset(corpus=corpus, captions=captions, max_samples=10 * 16000)
    batch = dataset[BatchIndices((6, 2, 7, 0, 3), with_images=True)]
    order = sorted((captions[index] for index in (6, 2, 7, 0, 3)), key=lambda caption: caption.num_samples)
    assert batch["num_samples"].tolist() == [caption.num_samples for caption in order]
    assert batch["image_ids"].tolist() == [corpus.image_row(caption.image) for caption in order]
    assert batch["waveforms"].shape[1] == order[-1].num_samples


def test_a_batch_is_cropped_normalised_and_padded_to_its_longest(dataset):
    batch = dataset[BatchIndices((0, 5, 7), with_images=True)]
    order = sorted((dataset.captions[i] for i in (0, 5, 7)), key=lambda caption: caption.num_samples)
    lengths = batch["num_samples"]
    assert lengths.tolist() == [min(8000, caption.num_samples) for caption in order]
    assert batch["waveforms"].shape == (3, 8000)
    for row, length in zip(batch["waveforms"], lengths, strict=True):
        assert row[:length].mean().abs() < 1e-5
        assert row[:length].std(correction=0) == pytest.approx(1.0, abs=1e-4)
        assert not row[length:].any()
    features, boxes = dataset.corpus.regions([caption.image for caption in order])
    assert torch.equal(batch["features"], torch.from_numpy(features))
    assert torch.equal(batch["boxes"], torch.from_numpy(boxes))
    assert batch["image_ids"].tolist() == [dataset.corpus.image_row(caption.image) for caption in order]
    assert {name: t.dtype for name, t in batch.items()} == {
        "waveforms": torch.float32,
        "num_samples": torch.int64,
        "moved_crops": torch.bool,
        "features": torch.float32,
        "boxes": torch.float32,
        "image_ids": torch.int64,
    }


@pytest.mark.parametrize("images", [True, False])
def test_captions_are_cropped_at_the_start_and_speech_without_pictures_anywhere(
    images, make_config, corpus_root, speech_root
):
    root = corpus_root if images else speech_root
    phase = Phase(name="w2v2", alpha=Alpha.parse(0.0), epochs=40)
    config = make_config(corpus=str(root), schedule=Schedule((phase,)), max_seconds=0.1)
    corpus = Corpus.open(root)
    captions = corpus.captions("train")
    (phase_steps,) = plan_steps(config, corpus)
    read = torch.cat(
        [batch["waveforms"] for (batch,) in training_batches(config, phase_steps, corpus, None, WHOLE, 0)]
    )
    starts = SpeechImageDataset(corpus=corpus, captions=captions, max_samples=1600)[
        BatchIndices(tuple(range(len(captions))))
    ]["waveforms"]
    at_start = (read[:, None] == starts).all(-1).any(-1)
    assert min(captions.num_samples) > 1600
    assert at_start.all() if images else at_start.sum() < 0.1 * len(read)


def test_published_padding_reaches_the_crop_length(corpus_root):
    corpus = Corpus.open(corpus_root)
    dataset = SpeechImageDataset(
        corpus=corpus, captions=corpus.captions("train"), max_samples=16000, pad_to_max=True
    )
    assert dataset[BatchIndices((0, 1))]["waveforms"].shape == (2, 16000)


def test_batches_without_grounding_never_touch_images(dataset, monkeypatch):
    monkeypatch.setattr(Corpus, "stored_regions", lambda *_: pytest.fail("images were read"))
    monkeypatch.setattr(Corpus, "image_row", lambda *_: pytest.fail("images were looked up"))
    assert dataset[BatchIndices((0, 1))].keys() == {
        "waveforms",
        "num_samples",
        "moved_crops",
    }


def test_workers_read_the_same_batches_in_the_same_order(dataset):
    requests = list(sampler())
    dataset[requests[0]]  # the file of regions is open before the workers fork
    alone = list(load_batches((dataset, requests)))
    helped = list(load_batches((dataset, requests), workers=2))
    assert len(alone) == len(helped) == 9
    for (one,), (other,) in zip(alone, helped, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_dataset_survives_pickling_after_it_has_read(dataset):
    indices = BatchIndices((0, 1), with_images=True)
    batch = dataset[indices]
    again = pickle.loads(pickle.dumps(dataset))[indices]
    assert all(torch.equal(batch[name], again[name]) for name in batch)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_sound_file_is_named_without_a_workers_traceback(dataset, workers):
    broken = SpeechImageDataset(
        corpus=dataset.corpus,
        captions=[*dataset.captions[:1], _renamed(dataset.captions[1])],
        max_samples=8000,
    )
    with pytest.raises(AudioError) as error:
        list(load_batches((broken, [BatchIndices((0, 1))]), workers=workers))
    assert "gone.wav" in str(error.value)
    assert "Traceback" not in str(error.value)
    assert not multiprocessing.active_children()


def _renamed(caption):
    return type(caption)(
        **{name: getattr(caption, name) for name in caption.__slots__} | {"audio": "gone.wav"}
    )
