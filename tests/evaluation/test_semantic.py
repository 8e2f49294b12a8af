import csv
import dataclasses

import numpy as np
import pytest
import scipy.stats
import soundfile
import torch
from helpers import TINY_MODEL
from PIL import Image

import vgsplus
from vgsplus.cli import main
from vgsplus.corpora.sources.toy.words import make_toy_words
from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.evaluation.semantic.scores import semantic_scores
from vgsplus.evaluation.semantic.word_pictures import check_files, read_word_pictures
from vgsplus.interop.pretrained import PretrainedModel
from vgsplus.regions.pixel_grid import PIXEL_GRID

HEADER = "word,category,sound,picture"


@pytest.fixture
def random_set():
    """Similarities of 60 recordings of 12 words with 40 pictures of 4 categories of different sizes."""
    rng = np.random.default_rng(0)
    word = rng.integers(12, size=60)
    shown = rng.choice(4, size=40, p=[0.1, 0.2, 0.3, 0.4])
    own = (word % 4)[:, None] == shown
    return rng.normal(size=(60, 40)) + own, own, [f"w{n}" for n in word]


@pytest.fixture
def folder(tmp_path):
    """Two words of two recordings, and three pictures."""
    for name in ("dog_1", "dog_2", "cat_1", "cat_2"):
        soundfile.write(
            tmp_path / f"{name}.wav", np.random.default_rng(len(name)).normal(0, 0.1, 8000), 16_000
        )
    for number, name in enumerate(("dog", "cat", "both")):
        Image.new("RGB", (12, 12), (80 * number, 0, 99)).save(tmp_path / f"{name}.png")
    return tmp_path


ROWS = (
    "dog,animal dog,dog_1.wav,dog.png",
    "dog,animal dog,dog_2.wav,both.png",
    "cat,cat,cat_1.wav,cat.png",
    "kitty,cat,cat_2.wav,",
    ",cat,,both.png",
)


def write(folder, *rows, header=HEADER):
    path = folder / "words.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def published_degrees(similarities, own):
    """Score a word as in semtest.py: for each own picture, its place from below among it and the others."""
    degrees = []
    for picture in np.flatnonzero(own):
        compared = [similarities[picture], *similarities[~own]]
        degrees.append(sorted(compared).index(compared[0]) / (len(own) - 1))
    return np.mean(degrees)


def test_scores_are_those_of_an_independent_computation(random_set):
    similarity, own, words = random_set
    scores = semantic_scores(similarity, own, words, replicates=1)
    for row, mask, score, rank, published in zip(
        similarity, own, scores.score, scores.rank, scores.published, strict=True
    ):
        inside, outside = row[mask], row[~mask]
        statistic = scipy.stats.mannwhitneyu(inside, outside).statistic
        assert score == pytest.approx(statistic / (len(inside) * len(outside)))
        assert published == pytest.approx(published_degrees(row, mask))
        assert rank == pytest.approx(np.mean([1 + np.sum(outside > value) for value in inside]))
    assert scores.mean.value == pytest.approx(scores.score.mean())
    assert scores.published_mean.value == pytest.approx(scores.published.mean())
    for word, estimate in scores.by_word.items():
        assert estimate.value == pytest.approx(np.mean(scores.score[[name == word for name in words]]))


def test_the_published_sizes_give_the_published_chance_and_maximum():
    own = np.repeat(np.repeat(np.eye(80, dtype=bool), 20, axis=1), 2, axis=0)
    words = [str(n // 2) for n in range(160)]
    perfect = semantic_scores(own.astype(float), own, words, replicates=1)
    assert perfect.published_mean.value == pytest.approx(1580 / 1599)
    assert perfect.published_chance == pytest.approx(1580 / 1599 / 2)
    assert (perfect.mean.value, perfect.rank.max()) == (1.0, 1.0)
    similarity = np.random.default_rng(0).normal(size=own.shape)
    random = semantic_scores(similarity, own, words, replicates=200)
    assert random.mean.low < 0.5 < random.mean.high
    assert random.published_mean.value == pytest.approx(perfect.published_chance, abs=0.01)


def test_ties_count_against_the_model(random_set):
    _, own, words = random_set
    scores = semantic_scores(np.ones(own.shape), own, words, replicates=1)
    assert (scores.mean.value, scores.published_mean.value) == (0.0, 0.0)
    assert np.array_equal(scores.rank, 1 + (~own).sum(axis=1))


def test_intervals_are_those_of_a_bootstrap_over_words(random_set):
    similarity, own, words = random_set
    found = semantic_scores(similarity, own, words, replicates=4000).mean
    scores = semantic_scores(similarity, own, words, replicates=1).score
    groups = [scores[[name == word for name in words]] for word in sorted(set(words))]
    expected = scipy.stats.bootstrap(
        (np.array([group.sum() for group in groups]), np.array([len(group) for group in groups])),
        lambda sums, numbers, axis: sums.sum(axis) / numbers.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.005)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda similarity, own: (similarity[:, 1:], own), "do not match"),
        (lambda similarity, own: (np.full_like(similarity, np.nan), own), "hold NaN"),
        (lambda similarity, own: (similarity, own & False), "needs pictures of its own and others"),
        (lambda similarity, own: (similarity, own | True), "needs pictures of its own and others"),
    ],
)
def test_what_cannot_be_scored_is_told(random_set, change, message):
    similarity, own, words = random_set
    with pytest.raises(VgsplusError, match=message):
        semantic_scores(*change(similarity, own), words)


def test_a_picture_may_be_of_several_categories_and_a_category_of_several_words(folder):
    table = read_word_pictures(write(folder, *ROWS))
    assert table.words == ("dog", "dog", "cat", "kitty")
    assert table.categories == ("animal dog", "animal dog", "cat", "cat")
    assert [path.name for path in table.pictures] == ["dog.png", "both.png", "cat.png"]
    dog, cat = [True, True, False], [False, True, True]
    assert table.own.tolist() == [dog, dog, cat, cat]


def test_a_column_of_words_or_categories_suffices(folder):
    rows = ["dog_1.wav;dog;dog.png", "cat_1.wav;cat;cat.png"]
    for name in ("word", "Category"):
        table = read_word_pictures(write(folder, *rows, header=f"sound;{name};picture"))
        assert (table.words, table.categories) == (("dog", "cat"), ("dog", "cat"))
        assert table.own.tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize(
    ("header", "rows", "expected"),
    [
        (HEADER, [*ROWS, "dog,cat,new.wav,"], [":7: {}/new.wav: there is no such sound."]),
        (HEADER, [*ROWS, "dog,cat,,new.png"], [":7: {}/new.png: there is no such picture."]),
        (HEADER, [*ROWS, "cat,cat,dog_1.wav,"], [":7: {}/dog_1.wav is in line 2 already. Remove one."]),
        (HEADER, [*ROWS, "cat,cat,,,"], [":7: has 5 cells, the header 4."]),
        (HEADER, [*ROWS, ",,cat.wav,", "a,b,,"], [":7: names no word", ":8: names no word"]),
        (
            HEADER,
            ["dog,dog,dog_1.wav,dog.png", "dog,cat,cat_1.wav,cat.png"],
            [":3: 'dog' is of 'cat' here and of 'dog' in line 2."],
        ),
        (
            HEADER,
            ["dog,,dog_1.wav,dog.png", "cat,,cat_1.wav,"],
            [":2: all pictures", ":3: there is no picture"],
        ),
        (HEADER, ["dog,,dog_1.wav,dog.png"], [":2: all pictures are of 'dog'."]),
        (HEADER, ["dog,,,dog.png"], [": names no sound."]),
        (HEADER, [], [": names no sound."]),
        ("sound,picture", ROWS, [":1: there is no column 'word' or 'category'"]),
        ("word,sound", ROWS, [":1: there is no column 'picture'"]),
        ("word,sound,picture,who", ROWS, [":1: column 'who' is unknown or repeated."]),
    ],
)
def test_faults_of_a_table_are_told_with_their_lines(folder, header, rows, expected):
    path = write(folder, *rows, header=header)
    with pytest.raises(CorpusError) as error:
        read_word_pictures(path)
    for fault, start in zip(error.value.faults, expected, strict=True):
        assert fault.startswith(f"{path}{start.format(folder)}")


def test_files_that_cannot_be_decoded_are_told_together(folder, make_model):
    (folder / "dog_1.wav").write_text("no sound")
    (folder / "cat.png").write_text("no picture")
    with pytest.raises(CorpusError) as error:
        check_files(read_word_pictures(write(folder, *ROWS)), make_model())
    starts = (
        f"{folder}/dog_1.wav: cannot be read as sound",
        f"{folder}/cat.png: cannot be read as a picture",
    )
    for fault, start in zip(error.value.faults, starts, strict=True):
        assert fault.startswith(start)


def test_the_command_scores_the_similarities_of_a_model(folder, tmp_path, capsys):
    torch.manual_seed(0)
    model = PretrainedModel(dataclasses.replace(TINY_MODEL, feature_dim=224)).eval()
    model.about = {"regions": PIXEL_GRID}
    model.save_pretrained(tmp_path / "model")
    table = write(folder, *ROWS)
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", "semantic", str(tmp_path / "model"), str(table), "--out", str(tmp_path / "out")])
    assert "4 recordings of 3 words, 3 pictures" in capsys.readouterr().out
    found = list(csv.DictReader((tmp_path / "out/semantic.csv").open()))
    words = {row["word"]: row for row in csv.DictReader((tmp_path / "out/semantic_words.csv").open())}
    loaded = vgsplus.load(tmp_path / "model")
    for row in found:
        speech = loaded.encode_speech(row["sound"])
        one, two, other = (
            float(loaded.similarity(speech, loaded.encode_image(folder / f"{name}.png")))
            for name in (["dog", "both", "cat"] if row["category"] != "cat" else ["cat", "both", "dog"])
        )
        assert float(row["score"]) == ((one > other) + (two > other)) / 2
    assert words.keys() == {"dog", "cat", "kitty"}
    assert float(words["cat"]["score"]) == float(found[2]["score"])
    with pytest.raises(SystemExit, match="1"):
        main(["evaluate", "semantic", str(tmp_path / "model"), str(tmp_path / "none.csv")])


def test_pictures_that_cannot_be_described_are_told_before_a_file_is_read(folder, capsys):
    PretrainedModel(dataclasses.replace(TINY_MODEL, feature_dim=224)).save_pretrained(folder / "model")
    (folder / "dog_1.wav").write_text("no sound")
    with pytest.raises(SystemExit, match="1"):
        main(["evaluate", "semantic", str(folder / "model"), str(write(folder, *ROWS))])
    told = capsys.readouterr().err
    assert "is not recorded. Use a model of the pixel grid" in told
    assert "dog_1.wav" not in told


def test_a_model_without_a_folder_needs_one_for_its_results(folder, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["evaluate", "semantic", "toy", str(write(folder, *ROWS))])
    assert "toy: has no folder for the results on this machine. Name one by --out" in capsys.readouterr().err


def test_the_toy_words_are_a_set_and_always_the_same(tmp_path):
    roots = [tmp_path / name for name in "ab"]
    for root in roots:
        assert make_toy_words(root) == (280, 192)
    files = [path.relative_to(roots[0]) for path in sorted(roots[0].rglob("*")) if path.is_file()]
    assert len(files) == 473
    assert all((roots[0] / name).read_bytes() == (roots[1] / name).read_bytes() for name in files)
    table = read_word_pictures(roots[0] / "words.csv")
    assert len(set(table.words)) == 20
    names = [path.stem for path in table.pictures]
    assert np.array_equal(table.own, [[word in name.split("_") for name in names] for word in table.words])
    with pytest.raises(VgsplusError, match="exists already"):
        make_toy_words(roots[0])
