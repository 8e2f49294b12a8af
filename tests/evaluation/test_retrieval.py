import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers import CAPTION, TINY_MODEL

from vgsplus.errors import VgsplusError
from vgsplus.evaluation import ranks, retrieval
from vgsplus.evaluation.embeddings import embed_split
from vgsplus.evaluation.ranks import Ranks, rank_matrix
from vgsplus.evaluation.retrieval import bootstrap, chance, evaluate, recall, score

PUBLISHED = Path(__file__).parents[1] / "data" / "published_retrieval.npz"
IMAGES = ["a", "b", "c"]
CAPTIONS = ["a", "b", "b", "c"]


def random_case(seed, pictures=17, extra=30, levels=6):
    """Scores of few levels, so that ties are everywhere; every picture has a caption."""
    rng = np.random.default_rng(seed)
    spoken_of = rng.permutation(np.concatenate([np.arange(pictures), rng.integers(pictures, size=extra)]))
    scores = rng.integers(levels, size=(pictures, len(spoken_of))).astype(np.float32)
    return scores, [f"i{n}" for n in range(pictures)], [f"i{n}" for n in spoken_of]


def brute_force(scores, images, spoken_of, k):
    """Sorts every query's answers in Python, the wrong ones first where scores tie."""
    speech = []
    for column, picture in enumerate(spoken_of):
        order = sorted(range(len(images)), key=lambda r: (-scores[r, column], images[r] == picture))
        speech.append(picture in [images[r] for r in order[:k]])
    image = []
    for row, picture in enumerate(images):
        order = sorted(range(len(spoken_of)), key=lambda c: (-scores[row, c], spoken_of[c] == picture))
        image.append(picture in [spoken_of[c] for c in order[:k]])
    return {"speech_to_image": np.mean(speech), "image_to_speech": np.mean(image)}


def test_published_case_comes_out_exactly():
    case = np.load(PUBLISHED)
    got = recall(case["similarity"], case["image_ids"], case["caption_image_ids"])
    for k in (1, 5, 10):
        assert got["image_to_speech"][k] == case[f"A_r{k}"]
        assert got["speech_to_image"][k] == case[f"I_r{k}"]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("block", [1, 200, 1 << 22])
def test_recall_agrees_with_brute_force_under_ties(seed, block, monkeypatch):
    monkeypatch.setattr(ranks, "TILE_SCORES", block)
    scores, images, spoken_of = random_case(seed)
    got = recall(scores, images, spoken_of, ks=(1, 2, 3, 7))
    for k in (1, 2, 3, 7):
        for direction, expected in brute_force(scores, images, spoken_of, k).items():
            assert got[direction][k] == pytest.approx(expected, abs=1e-12)


def test_a_model_that_ties_everything_finds_nothing():
    got = recall(np.zeros((3, 4)), IMAGES, CAPTIONS, ks=(1, 2))
    assert got == {d: {1: 0.0, 2: 0.0} for d in retrieval.DIRECTIONS}


def test_any_caption_of_the_picture_counts():
    scores = np.array([[9, 0, 1, 2], [3, 0, 8, 2], [1, 4, 2, 9.0]])
    assert recall(scores, IMAGES, CAPTIONS, ks=[1]) == {
        "speech_to_image": {1: 0.75},
        "image_to_speech": {1: 1.0},
    }


def test_order_of_rows_and_columns_does_not_matter():
    scores, images, spoken_of = random_case(3)
    rng = np.random.default_rng(1)
    rows, columns = rng.permutation(len(images)), rng.permutation(len(spoken_of))
    moved = recall(scores[rows][:, columns], [images[r] for r in rows], [spoken_of[c] for c in columns])
    assert moved == recall(scores, images, spoken_of)


def test_recall_grows_with_k_and_ends_at_one():
    scores, images, spoken_of = random_case(4)
    ks = (*range(1, 18), 1000)
    for shares in recall(scores, images, spoken_of, ks).values():
        values = [shares[k] for k in ks]
        assert values == sorted(values)
        assert values[-1] == 1.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_tensors_of_scores_and_ids_do_as_well(dtype):
    scores, images, spoken_of = random_case(5)
    number = {image: n for n, image in enumerate(images)}
    got = recall(
        torch.tensor(scores, dtype=dtype).requires_grad_(dtype.is_floating_point),
        torch.arange(len(images)),
        torch.tensor([number[i] for i in spoken_of]),
    )
    assert got == recall(scores, images, spoken_of)


@pytest.mark.parametrize(
    ("scores", "images", "captions", "says"),
    [
        (np.zeros((3, 5)), IMAGES, CAPTIONS, "3 pictures and 4 captions"),
        (np.zeros(12), IMAGES, CAPTIONS, r"\(12,\)"),
        (np.zeros((0, 0)), [], [], "nothing to rank"),
        (np.zeros((3, 4)), IMAGES, ["a", "b", "c", "d"], "'d'"),
        (np.zeros((3, 4)), IMAGES, ["a", "b", "b", "b"], "no caption.*'c'"),
        (np.zeros((3, 4)), ["a", "b", "b"], ["a", "b", "b", "b"], "'b' has several rows"),
        (np.full((3, 4), np.nan), IMAGES, CAPTIONS, "NaN"),
        (np.where(np.arange(12) == 6, np.nan, 0).reshape(3, 4), IMAGES, CAPTIONS, "NaN"),
    ],
)
def test_bad_input_is_refused(scores, images, captions, says):
    with pytest.raises(VgsplusError, match=says):
        recall(scores, images, captions)


@pytest.mark.parametrize("ks", [(), (0, 1)])
def test_impossible_ks_are_refused(ks):
    with pytest.raises(VgsplusError, match="at least 1"):
        recall(np.eye(3, 4), IMAGES, CAPTIONS, ks)


def test_median_rank():
    scores = np.array([[5, 1, 1, 1], [4, 9, 2, 1], [3, 1, 9, 0.0]])
    found = score(rank_matrix(scores, IMAGES, CAPTIONS))
    assert (found.speech_to_image.median_rank, found.image_to_speech.median_rank) == (1.5, 1.0)


def test_chance_is_what_random_scores_reach_on_average():
    scores, images, spoken_of = random_case(7)
    expected = chance(rank_matrix(scores, images, spoken_of), ks=(1, 5, 10))
    rng = np.random.default_rng(0)
    rounds = [
        recall(rng.random((len(images), len(spoken_of))), images, spoken_of, ks=(1, 5, 10))
        for _ in range(600)
    ]
    for direction, shares in expected.items():
        for k, share in shares.items():
            assert np.mean([r[direction][k] for r in rounds]) == pytest.approx(share, abs=0.01)


def test_chance_at_the_papers_size():
    rows = np.repeat(np.arange(5000), 5)
    found = Ranks(speech_to_image=rows, image_to_speech=np.arange(5000), image_of_caption=rows)
    got = chance(found, ks=(1, 10, 10**6))
    assert got["speech_to_image"] == {1: 1 / 5000, 10: 10 / 5000, 10**6: 1.0}
    assert got["image_to_speech"][1] == pytest.approx(5 / 25000)
    missed = math.prod((24995 - i) / (25000 - i) for i in range(10))
    assert got["image_to_speech"][10] == pytest.approx(1 - missed, rel=1e-9)
    assert got["image_to_speech"][10**6] == 1.0


def test_bootstrap_value_is_the_recall_and_lies_inside():
    scores, images, spoken_of = random_case(8, pictures=60, extra=100, levels=40)
    got = bootstrap(rank_matrix(scores, images, spoken_of))
    for direction, shares in recall(scores, images, spoken_of).items():
        for k, share in shares.items():
            estimate = got[direction][k]
            assert estimate.value == pytest.approx(share)
            assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_bootstrap_interval_has_the_width_of_a_share_of_independent_pictures():
    rng = np.random.default_rng(2)
    n = 2000
    found = Ranks(
        speech_to_image=rng.integers(1, 3, size=n),
        image_to_speech=np.full(n, 2),
        image_of_caption=np.arange(n),
    )
    got = bootstrap(found, ks=(1, 2))
    estimate = got["speech_to_image"][1]
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / n), rel=0.1)
    assert (got["image_to_speech"][1].high, got["image_to_speech"][2].low) == (0.0, 1.0)


def test_bootstrap_keeps_the_captions_of_a_picture_together():
    rng = np.random.default_rng(3)
    n, each = 300, 5
    alike = np.repeat(rng.integers(1, 3, size=n), each)
    common = {"image_to_speech": np.ones(n, dtype=int), "image_of_caption": np.repeat(np.arange(n), each)}
    together = bootstrap(Ranks(speech_to_image=alike, **common))["speech_to_image"][1]
    apart = bootstrap(Ranks(speech_to_image=rng.permutation(alike), **common))["speech_to_image"][1]
    assert together.high - together.low > 1.7 * (apart.high - apart.low)


def test_bootstrap_is_a_function_of_its_seed_and_not_of_the_block_size(monkeypatch):
    found = rank_matrix(*random_case(9))
    first = bootstrap(found, seed=1)
    monkeypatch.setattr("vgsplus.evaluation.retrieval.BLOCK_DRAWS", 50)
    assert bootstrap(found, seed=1) == first
    assert bootstrap(found, seed=2) != first


def test_top_images_put_the_right_one_last_among_ties():
    scores = np.array([[1, 3], [1, 2], [1, 1.0]])
    assert retrieval.top_images(scores, np.array([0, 2]), count=2).tolist() == [[1, 2], [0, 1]]


class FakeCorpus:
    """Picture n has the features n; a caption of picture n is a tone whose pitch says n."""

    def __init__(self, root, pictures=6):
        rng = np.random.default_rng(0)
        self.root, self.name = root, "fake"
        self.crops = []
        self._captions = []
        for n in [*range(pictures), 0, 1]:
            samples = int(rng.integers(4000, 9000)) if n else 170_000
            wave = np.sin(np.arange(samples) * (0.05 + 0.05 * n)).astype(np.float32)
            name = f"{len(self._captions)}.wav"
            soundfile.write(root / name, wave * 0.5, 16_000, subtype="PCM_16")
            self._captions.append(
                dataclasses.replace(
                    CAPTION, id=name, split="test", audio=name, num_samples=samples, image=f"p{n}"
                )
            )

    def captions(self, split):
        assert split == "test"
        return self._captions

    def audio_path(self, caption):
        return self.root / caption.audio

    def regions(self, image_ids):
        features = np.array([[[float(i[1:])]] for i in image_ids], dtype=np.float32)
        return features, np.zeros((len(image_ids), 1, 4), dtype=np.float32)


class PitchModel(torch.nn.Module):
    """Knows the answer: maps a tone's pitch and a picture's number to the same one-hot vector."""

    config = TINY_MODEL

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Linear(1, 1)
        self.frozen = torch.nn.Dropout(0.5).eval()
        self.lengths, self.widths = [], []
        self.sign = 1.0

    def embed_speech(self, waveforms, num_samples):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.lengths.append(num_samples.tolist())
        self.widths.append(waveforms.shape[1])
        vectors = []
        for wave, samples in zip(waveforms, num_samples, strict=True):
            crop = wave[:samples]
            assert not wave[samples:].any()
            assert abs(float(crop.mean())) < 1e-3
            assert float(crop.std()) == pytest.approx(1, abs=1e-3)
            crossings = (crop[1:] * crop[:-1] < 0).sum() / samples * torch.pi
            vectors.append(round((float(crossings) - 0.05) / 0.05))
        return self.sign * torch.nn.functional.one_hot(torch.tensor(vectors), 8).float()

    def embed_image(self, features, boxes):
        assert boxes.shape == (len(features), 1, 4)
        return torch.nn.functional.one_hot(features[:, 0, 0].long(), 8).float()


def test_evaluate_scores_a_perfect_model(tmp_path):
    model = PitchModel().train()
    model.frozen.eval()
    result = evaluate(embed_split(model, FakeCorpus(tmp_path), "test", batch_size=3))
    scores = result.scores
    assert (result.split, scores.images, scores.captions) == ("test", 6, 8)
    for direction in (scores.speech_to_image, scores.image_to_speech):
        assert [e.value for e in direction.recall.values()] == [1, 1, 1]
        assert direction.median_rank == 1
    assert scores.speech_to_image.chance == {1: 1 / 6, 5: 5 / 6, 10: 1.0}
    assert {caption: top[0] for caption, top in result.retrieved.items()} == {
        c.id: c.image for c in FakeCorpus(tmp_path).captions("test")
    }
    assert {len(top) for top in result.retrieved.values()} == {5}
    assert model.training
    assert not model.frozen.training
    assert model.lengths[0][0] == 160_000, "cropped to 10 s"
    lengths = [length for batch in model.lengths for length in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert [len(batch) for batch in model.lengths] == [3, 3, 2]


def test_captions_are_padded_to_the_longest_or_to_the_maximum(tmp_path):
    model = PitchModel()
    embed_split(model, FakeCorpus(tmp_path), "test", batch_size=3)
    assert model.widths == [lengths[0] for lengths in model.lengths]
    assert model.widths[-1] < 160_000
    model.widths.clear()
    embed_split(model, FakeCorpus(tmp_path), "test", batch_size=3, pad_to_max=True)
    assert set(model.widths) == {160_000}


def test_evaluate_scores_a_perfectly_wrong_model(tmp_path):
    model = PitchModel()
    model.sign = -1.0
    scores = evaluate(embed_split(model, FakeCorpus(tmp_path), "test"), ks=(1, 6)).scores
    assert scores.speech_to_image.recall[1].value == 0
    assert scores.speech_to_image.median_rank == 6


def test_the_gallery_is_bounded_and_drawn_by_the_seed(tmp_path):
    embedded = embed_split(PitchModel(), FakeCorpus(tmp_path), "test")
    drawn = [set(evaluate(embedded, gallery=3, seed=s).retrieved) for s in range(5)]
    assert {len(ids) for ids in drawn} == {3}
    assert any(ids != drawn[0] for ids in drawn)
    assert set(evaluate(embedded, gallery=3, seed=0).retrieved) == drawn[0]


def test_modes_come_back_after_a_failure(tmp_path):
    model = PitchModel().train()
    model.sign = math.nan
    with pytest.raises(VgsplusError, match=r"Speech embeddings.*not finite"):
        embed_split(model, FakeCorpus(tmp_path), "test")
    assert model.training


def test_a_caption_without_a_picture_is_refused_before_anything_is_embedded(tmp_path):
    corpus = FakeCorpus(tmp_path)
    corpus._captions[3] = dataclasses.replace(corpus._captions[3], image=None)
    model = PitchModel()
    with pytest.raises(VgsplusError, match=r"3\.wav.*no picture"):
        embed_split(model, corpus, "test")
    assert not model.lengths


def test_a_caption_that_begins_with_silence_is_taken_from_where_there_is_sound(tmp_path, caplog):
    corpus = FakeCorpus(tmp_path)
    first = corpus.captions("test")[0]
    samples, rate = soundfile.read(corpus.audio_path(first), dtype="float32")
    soundfile.write(corpus.audio_path(first), np.concatenate([np.zeros(200_000, np.float32), samples]), rate)
    corpus._captions[0] = dataclasses.replace(first, num_samples=len(samples) + 200_000)
    scores = evaluate(embed_split(PitchModel(), corpus, "test", batch_size=3)).scores
    assert scores.speech_to_image.recall[1].value == 1
    assert "1 captions are silent for their first 10 s" in caplog.text
