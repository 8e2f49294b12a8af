import numpy as np
import pytest

from vgsplus.evaluation.lexical import evaluate
from vgsplus.report import lexical as report

NAMES = ["a_1", "a_2", "bb_1", "bb_2", "bb_3", "c_1", "c_2"]


@pytest.fixture
def result():
    return evaluate(NAMES, np.random.default_rng(0).normal(size=(len(NAMES), 2)))


def test_files_hold_every_number(result, tmp_path):
    report.write_lexical(result, tmp_path / "new" / "folder")
    scores = (tmp_path / "new" / "folder" / "scores.csv").read_text().splitlines()
    assert scores[0] == "word,tokens,score"
    rows = [line.split(",") for line in scores[1:]]
    assert [row[0] for row in rows] == list(result.words)
    weighted = sum(int(tokens) * float(score) for _, tokens, score in rows)
    assert weighted / len(NAMES) == pytest.approx(result.score)
    confusion = (tmp_path / "new" / "folder" / "confusion.csv").read_text().splitlines()
    assert confusion[0] == ",".join(["word", *result.words])
    for line, word, row in zip(confusion[1:], result.words, result.confusion, strict=True):
        assert line == ",".join([word, *map(str, row)])
    assert (tmp_path / "new" / "folder" / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_many_words_is_drawn_without_names():
    count = report.LABELLED + 1
    names = [f"w{w}_{i}" for w in range(count) for i in range(2)]
    result = evaluate(names, np.random.default_rng(0).normal(size=(2 * count, 2)))
    assert report.confusion_png(result).startswith(b"\x89PNG")


def test_a_file_that_cannot_be_written_is_an_error(result, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        report.write_lexical(result, tmp_path / "file")
    (tmp_path / report.SCORES).mkdir()
    with pytest.raises(IsADirectoryError):
        report.write_lexical(result, tmp_path)
