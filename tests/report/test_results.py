import dataclasses
import json

import pytest

from vgsplus.errors import VgsplusError
from vgsplus.report.results import Results


def test_results_come_back_as_they_were_saved(results, tmp_path):
    path = tmp_path / "results.json"
    results.save(path)
    assert Results.load(path) == results
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_a_loss_that_is_not_finite_is_saved_as_absent(partial, tmp_path):
    first = partial.variants[1]
    diverged = dataclasses.replace(
        first,
        losses=(dataclasses.replace(first.losses[0], terms={"grounding": float("nan")}), *first.losses[1:]),
    )
    path = tmp_path / "results.json"
    dataclasses.replace(partial, variants=(diverged,)).save(path)
    assert "NaN" not in path.read_text()
    assert Results.load(path).variants[0].losses[0].terms == {"grounding": None}


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


def test_losses_of_format_2_are_read(partial, tmp_path):
    path = tmp_path / "results.json"
    partial.save(path)
    data = json.loads(path.read_text())
    data["format"] = 2
    for variant in data["variants"]:
        for point in variant["losses"]:
            terms = point.pop("terms")
            point |= {"grounding": terms.get("grounding"), "ssl": terms.get("ssl"), "additional_ssl": 0.5}
    path.write_text(json.dumps(data))
    loaded = Results.load(path)
    assert loaded.format == 3
    for old, new in zip(partial.variants[2].losses, loaded.variants[2].losses, strict=True):
        assert new == dataclasses.replace(old, terms=old.terms | {"additional_speech/ssl": 0.5})


def test_a_failed_write_leaves_the_earlier_file(partial, tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    partial.save(path)
    earlier = path.read_bytes()

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        dataclasses.replace(partial, preset="later").save(path)
    assert path.read_bytes() == earlier
    assert list(tmp_path.iterdir()) == [path]
