import math
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch

from vgsplus.errors import VgsplusError
from vgsplus.evaluation import lexical
from vgsplus.evaluation.lexical import cdi_word, coco_word, evaluate, separability
from vgsplus.progress import Progress

LEXTEST = Path(__file__).parents[2].parent / "shared" / "lextest"
published = pytest.mark.skipif(not LEXTEST.is_dir(), reason=f"the published embeddings are not in {LEXTEST}")
NAMES = ["cat_1", "cat_2", "dog_1", "dog_2"]
TEN = "abcdefghij"


def cosine_distance(a, b):
    """Rounded, as ties are."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return round(1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)), 10)


def path_cost(a, b):
    """Compute the cost of the path without frames that contain NaN."""
    a, b = ([frame for frame in np.asarray(x, dtype=float) if not np.isnan(frame).any()] for x in (a, b))
    return helpers.path_cost(a, b)


def oracle(names, embeddings, distance, word_of=coco_word):
    """{query: neighbours} by the definition, every distance computed anew."""
    order = sorted(range(len(names)), key=lambda i: names[i])
    word = [word_of(name) for name in names]
    fold = {i: [j for j in order if word[j] == word[i]].index(i) for i in order}
    found = {}
    for query in order:
        others = [i for i in order if fold[i] != fold[query]]
        others.sort(
            key=lambda i: (distance(embeddings[query], embeddings[i]), word[i] == word[query], names[i])
        )
        found[query] = others[: word.count(word[query]) - 1]
    return found


def check(names, embeddings, distance):
    """The result agrees with the oracle in every number."""
    found = oracle(names, embeddings, distance)
    word = [coco_word(name) for name in names]
    words = sorted(set(word))
    shares = {query: np.mean([word[i] == word[query] for i in near]) for query, near in found.items()}
    confusion = np.zeros((len(words), len(words)), dtype=int)
    for query, near in found.items():
        for i in near:
            confusion[words.index(word[query]), words.index(word[i])] += 1
    got = evaluate(names, embeddings)
    assert got.score == pytest.approx(np.mean(list(shares.values())), abs=1e-12)
    assert got.words == tuple(words)
    assert got.tokens.tolist() == [word.count(w) for w in words]
    assert got.confusion.tolist() == confusion.tolist()
    for w, score in zip(words, got.word_scores, strict=True):
        assert score == pytest.approx(np.mean([s for q, s in shares.items() if word[q] == w]), abs=1e-12)
    return got


def random_names(rng, words=5, fewest=2, most=6):
    """Words with different numbers of tokens, in no order; ten tokens and more sort as text: 1, 10, 2."""
    names = [
        f"{TEN[w]}{'x' * w}_{i + 1}" for w in range(words) for i in range(rng.integers(fewest, most + 1))
    ]
    return [names[i] for i in rng.permutation(len(names))]


def random_vectors(rng, names, levels=None, dim=3):
    vectors = rng.normal(size=(len(names), dim))
    return vectors if levels is None else rng.integers(levels, size=(len(names), dim)) + np.eye(1, dim)


def random_frames(rng, names, levels=None, dim=3, longest=7):
    found = []
    for _ in names:
        size = (int(rng.integers(1, longest + 1)), dim)
        found.append(
            rng.normal(size=size) if levels is None else rng.integers(levels, size=size).astype(float)
        )
    return found


# ---- against the definition -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [None, 2])
def test_vectors_agree_with_the_definition(seed, levels):
    rng = np.random.default_rng(seed)
    names = random_names(rng)
    got = check(names, random_vectors(rng, names, levels), cosine_distance)
    assert got.mode == "utterance"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [None, 2])
def test_frames_agree_with_the_definition(seed, levels):
    rng = np.random.default_rng(seed)
    names = random_names(rng, words=4, most=4)
    frames = random_frames(rng, names, levels, dim=1 + seed)
    for index in range(0, len(frames), 3):
        broken = np.full((2, frames[index].shape[1]), 0.5)
        broken[:, -1] = np.nan
        frames[index] = np.insert(frames[index], [0, len(frames[index])], broken, axis=0)
    got = check(names, frames, path_cost)
    assert got.mode == "frame"


def test_with_equal_counts_every_twentieth_token_is_a_query_of_the_same_fold():
    rng = np.random.default_rng(3)
    names = sorted(f"{word}_{i}" for word in ("ab", "a", "b") for i in range(1, 21))
    vectors = rng.normal(size=(60, 4)) + np.repeat(np.eye(3, 4), 20, axis=0)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    shares = []
    for fold in range(20):
        rest = np.setdiff1d(np.arange(60), np.arange(fold, 60, 20))
        for query in range(fold, 60, 20):
            near = rest[np.argsort(-unit[rest] @ unit[query])[:19]]
            shares.append(np.mean(near // 20 == query // 20))
    assert separability(names, vectors) == pytest.approx(np.mean(shares), abs=1e-12)


def test_perfect_words_score_one_whatever_their_counts():
    names = ["a_1", "a_2", "b_1", "b_2", "b_3", "b_4", "c_1", "c_2", "c_3"]
    vectors = np.eye(3)[[0, 0, 1, 1, 1, 1, 2, 2, 2]] + 0.01
    assert separability(names, vectors) == 1
    assert separability(names, [np.tile(v, (n + 1, 1)) for n, v in enumerate(vectors)]) == 1


@pytest.mark.parametrize("same", [np.full((4, 3), 0.3), [np.ones((2, 3))] * 4])
def test_what_ties_everything_scores_zero(same):
    assert separability(NAMES, same) == 0


def test_chance_is_what_random_vectors_reach_on_average():
    rng = np.random.default_rng(0)
    names = random_names(rng)
    results = [evaluate(names, rng.normal(size=(len(names), 8))) for _ in range(400)]
    assert np.mean([result.score for result in results]) == pytest.approx(results[0].chance, abs=0.015)


# ---- properties -------------------------------------------------------------------------------------------


def test_the_order_of_the_input_does_not_matter():
    rng = np.random.default_rng(5)
    names = random_names(rng)
    vectors, frames = random_vectors(rng, names, levels=2), random_frames(rng, names, levels=2)
    moved = rng.permutation(len(names))
    for embeddings, others in (
        (vectors, vectors[moved]),
        (frames, [frames[i] for i in moved]),
    ):
        one, other = evaluate(names, embeddings), evaluate([names[i] for i in moved], others)
        assert one.score == other.score
        assert one.confusion.tolist() == other.confusion.tolist()


def test_the_length_of_vectors_does_not_matter_even_where_they_tie():
    rng = np.random.default_rng(6)
    names = random_names(rng)
    vectors = random_vectors(rng, names, levels=2)
    scaled = vectors * rng.choice([1e-200, 1e-3, 0.7, 3.1, 1e150], size=(len(names), 1))
    one, other = evaluate(names, vectors), evaluate(names, scaled)
    assert one.score == other.score
    assert one.confusion.tolist() == other.confusion.tolist()


def test_blocks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(7)
    names = random_names(rng)
    vectors = random_vectors(rng, names)
    whole = separability(names, vectors)
    monkeypatch.setattr(lexical, "BLOCK_COSINES", 1)
    assert separability(names, vectors) == whole


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_tensors_do_as_well_as_arrays(dtype):
    rng = np.random.default_rng(8)
    names = random_names(rng)
    vectors = torch.tensor(random_vectors(rng, names) * 9).to(dtype)
    frames = [torch.tensor(f * 9).to(dtype) for f in random_frames(rng, names)]
    wide = vectors.double().numpy()
    gradients = vectors.requires_grad_(dtype.is_floating_point)
    assert separability(names, gradients) == separability(names, wide)
    assert separability(np.array(names), frames) == separability(names, [f.double().numpy() for f in frames])


def test_padded_frames_and_arrays_of_arrays_are_sequences_too():
    rng = np.random.default_rng(9)
    frames = random_frames(rng, NAMES)
    padded = np.full((4, 9, 3), np.nan)
    ragged = np.empty(4, dtype=object)
    for index, array in enumerate(frames):
        padded[index, : len(array)] = array
        ragged[index] = array
    expected = separability(NAMES, frames)
    assert separability(NAMES, padded) == separability(NAMES, ragged) == expected


def test_frames_of_two_precisions_are_compared_in_the_finer():
    rng = np.random.default_rng(10)
    frames = random_frames(rng, NAMES)
    frames[1] = frames[1].astype(np.float32)
    assert separability(NAMES, frames) == separability(NAMES, [f.astype(np.float64) for f in frames])


def test_the_rules_find_the_words_of_the_published_sets():
    assert coco_word("teddy_12") == "teddy"
    assert coco_word("kite") == "kite"
    assert [cdi_word(name) for name in ("TV__Aq", "all_gone_Bs", "I_Jq")] == ["tv", "allgone", "i"]


def test_the_rule_decides_what_a_word_is():
    names = ["all_gone_Aq", "all_gone_As", "all_by_Aq", "all_by_As"]
    with pytest.raises(VgsplusError, match="nothing to compare"):
        separability(names, np.eye(4))
    assert separability(names, np.eye(2).repeat(2, axis=0) + 0.1, cdi_word) == 1


def test_a_word_in_two_unicode_forms_is_one():
    vectors = np.random.default_rng(4).normal(size=(8, 3))
    plain = [f"{word}_{take}" for word in ("ca", "da") for take in range(4)]
    mixed = [name.replace("ca", "çã" if index % 2 else "c\u0327a\u0303") for index, name in enumerate(plain)]
    assert evaluate(mixed, vectors).score == evaluate(plain, vectors).score
    with pytest.raises(VgsplusError, match="given more than once: 'çã_0'"):
        evaluate(["c\u0327a\u0303_0", *mixed[1:], "çã_0"], np.ones((9, 3)))


@pytest.mark.parametrize("kind", [random_vectors, random_frames])
def test_progress_ends_at_the_total(kind, recorded_progress):
    rng = np.random.default_rng(11)
    names = random_names(rng)
    evaluate(names, kind(rng, names), progress=recorded_progress)
    done, totals = zip(*recorded_progress.of("comparing"), strict=True)
    assert done[-1] == totals[-1]
    assert list(done) == sorted(done)
    assert len(set(totals)) == 1


def test_a_failing_progress_stops_the_comparison():
    rng = np.random.default_rng(12)
    names = random_names(rng)

    class Stop(Progress):
        def update(self, *_):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(names, random_frames(rng, names), progress=Stop())


# ---- bad input --------------------------------------------------------------------------------------------


def with_value(value, row=2):
    vectors = np.eye(4) + 1
    vectors[row, 0] = value
    return vectors


def with_frames(frames, row=2):
    return [frames if index == row else np.ones((3, 2)) for index in range(4)]


@pytest.mark.parametrize(
    ("names", "embeddings", "says"),
    [
        (NAMES, np.eye(3), "4 names and 3 embeddings"),
        (NAMES, [np.eye(2)] * 5, "4 names and 5 embeddings"),
        (["cat_1", "dog_1", "cat_1", "dog_2"], np.eye(4), "more than once: 'cat_1'"),
        (["_1", "_2", "dog_1", "dog_2"], np.eye(4), "No word is left of '_1', '_2'"),
        (["cat_1", "cat_2", "cat_3", "cat_4"], np.eye(4), r"4 token\(s\) of 1 word"),
        ([], np.zeros((0, 3)), r"0 token\(s\) of 0 word"),
        (["cat_1", "cat_2", "dog_1", "emu_1"], np.eye(4), "these have one: 'dog', 'emu'"),
        ([*"abcdefgh", "z_1", "z_2"], np.eye(10), "'e' and 3 more"),
        (NAMES, with_value(np.nan), "not finite: 'dog_1'"),
        (NAMES, with_value(np.inf), "not finite: 'dog_1'"),
        (NAMES, np.eye(4, 3), "vector of zeros .*: 'dog_2'"),
        (NAMES, np.zeros((4, 0)), "vector of zeros"),
        (NAMES, np.eye(4) * 1j, "real numbers, not complex128"),
        (NAMES, np.array([["1"] * 2] * 4), "real numbers, not <U1"),
        (NAMES, with_frames(np.full((3, 2), np.nan)), "No frame without NaN: 'dog_1'"),
        (NAMES, with_frames(np.ones((0, 2))), "No frame without NaN: 'dog_1'"),
        (NAMES, with_frames(np.full((3, 2), -np.inf)), "not finite: 'dog_1'"),
        (NAMES, with_frames(np.ones((3, 4))), r"'dog_1' is \(3, 4\), that of 'cat_1' \(3, 2\)"),
        (NAMES, with_frames(np.ones(3)), r"'dog_1' is \(3,\)"),
        (NAMES, [np.ones(3)] * 4, r"must be \(T, D\)"),
        (NAMES, [np.ones((3, 0))] * 4, r"\(3, 0\)"),
        (NAMES, np.ones(4), r"is \(\)"),
    ],
)
def test_bad_input_is_refused(names, embeddings, says):
    with pytest.raises(VgsplusError, match=says):
        separability(names, embeddings)
    assert issubclass(VgsplusError, VgsplusError)


# ---- published embeddings ---------------------------------------------------------------------------------


@published
def test_the_published_score_of_vectors_comes_out():
    with np.load(LEXTEST / "coco_utterance_embeddings.npz") as case:
        result = evaluate(case["names"], case["embeddings"])
    assert round(result.score, 3) == 0.208
    assert result.chance == pytest.approx(19 / 1520)
    assert set(result.tokens.tolist()) == {20}


@published
def test_published_frames_of_a_few_tokens_agree_with_the_definition():
    """All of them are compared by benchmarks/lexical.py."""
    with np.load(LEXTEST / "coco_frame_embeddings.npz") as case:
        names, frames = case["names"], np.split(case["frames"], np.cumsum(case["lengths"])[:-1])
    chosen = [i for i, name in enumerate(names) if name.split("_")[0] in {"bear", "bed", "boat", "book"}][
        ::10
    ]
    assert len(chosen) == 8
    got = check([str(names[i]) for i in chosen], [frames[i] for i in chosen], path_cost)
    assert got.score > got.chance
