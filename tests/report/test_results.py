import dataclasses
import json

import pytest

from vgsplus.errors import VgsplusError
from vgsplus.report.results import Results, write_whole


def test_results_come_back_as_they_were_saved(results, tmp_path):
    path = tmp_path / "results.json"
    results.save(path)
    assert Results.load(path) == results
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_a_loss_that_is_not_finite_is_saved_as_absent(partial, tmp_path):
    first = partial.variants[1]
    diverged = dataclasses.replace(
        first, losses=(dataclasses.replace(first.losses[0], grounding=float("nan")), *first.losses[1:])
    )
    path = tmp_path / "results.json"
    dataclasses.replace(partial, variants=(diverged,)).save(path)
    assert "NaN" not in path.read_text()
    assert Results.load(path).variants[0].losses[0].grounding is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.update(format=99), "format"),
        (lambda data: data.pop("preset"), "preset"),
        (lambda data: data["variants"][0].update(parameters="many"), "variants.0.parameters"),
    ],
)
def test_a_file_of_something_else_is_refused_with_the_field(partial, tmp_path, change, says):
    path = tmp_path / "results.json"
    partial.save(path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(VgsplusError, match=says):
        Results.load(path)


@pytest.mark.parametrize("content", [None, b"", b"{half", b"[]"])
def test_an_absent_or_broken_file_is_refused(tmp_path, content):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VgsplusError, match=r"results\.json"):
        Results.load(path)


def test_a_failed_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"earlier")

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, b"later")
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]
