import dataclasses

import numpy as np
import pandas as pd
import pytest
from helpers import CAPTION
from rich.console import Console

from vgsplus.cli import main
from vgsplus.config import load_config, save_config
from vgsplus.evaluation.ranks import Ranks
from vgsplus.evaluation.retrieval import breakdown, score
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.report.tables import part_table, part_terminal, retrieval_table, retrieval_terminal, write_csv
from vgsplus.training.run_folder import CONFIG_FILE


@pytest.fixture(scope="module")
def scored():
    """Scores, and those by speaker and by length."""
    rng = np.random.default_rng(0)
    found = Ranks(
        speech_to_image=rng.integers(1, 30, size=90),
        image_to_speech=rng.integers(1, 90, size=30),
        image_of_caption=np.arange(90) % 30,
    )
    captions = [
        dataclasses.replace(CAPTION, num_samples=8000 + 160 * number, speaker=f"speaker {number % 2}")
        for number in range(90)
    ]
    return score(found), breakdown(captions, found, "speaker"), breakdown(captions, found, "length")


def printed(table):
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_the_table_shows_recalls_and_median_ranks(scored):
    scores, _, _ = scored
    text = printed(retrieval_terminal(scores))
    assert "90 captions of 30 pictures" in text
    for side in (scores.speech_to_image, scores.image_to_speech):
        assert f" {side.median_rank:g} " in text
        for share in side.recall.values():
            assert f" {100 * share.value:.1f} " in text


def test_parts_fit_a_terminal_of_80_columns(scored):
    _, _, quarters = scored
    text = printed(part_terminal(quarters, "by length"))
    assert "…" not in text
    for part in quarters:
        line = next(line for line in text.splitlines() if part.name in line)
        assert f"{part.shortest:.2f}–{part.longest:.2f}" in line
        assert f"{100 * part.recall[10].value:.1f}" in line
        assert line.rstrip().endswith(f"{part.median_rank:g}")


def test_files_hold_what_was_found(scored, tmp_path):
    scores, speakers, quarters = scored
    file = tmp_path / "folder" / "scores.csv"
    write_csv(retrieval_table(scores), file)
    rows = pd.read_csv(file).set_index(["direction", "k"])
    for direction in ("speech_to_image", "image_to_speech"):
        side = scores.direction(direction)
        for k, share in side.recall.items():
            row = rows.loc[direction, k]
            assert (row["recall"], row["low"], row["high"]) == (share.value, share.low, share.high)
            assert (row["chance"], row["median rank"]) == (side.chance[k], side.median_rank)
    for heading, parts in (("speaker", speakers), ("length", quarters)):
        write_csv(part_table(parts, heading), file)
        table = pd.read_csv(file)
        assert table[heading].tolist() == [part.name for part in parts]
        assert table["captions"].sum() == 90
        assert table["R@5 high"].tolist() == [part.recall[5].high for part in parts]
        assert table["longest"].tolist() == [part.longest for part in parts]
    assert list(file.parent.iterdir()) == [file]


def test_a_file_that_cannot_be_written_is_reported(scored, tmp_path):
    (tmp_path / "scores.csv" / "full").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        write_csv(retrieval_table(scored[0]), tmp_path / "scores.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


# ---- the command ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tiny_corpus, tmp_path_factory, save_run):
    """A run whose model has random weights."""
    config = load_config("smoke", [f"corpus={tiny_corpus}", "accelerator=cpu", "model.feature_dim=12"])
    config = dataclasses.replace(config, precision="32-true")
    run = save_run(VGSPlus(config.model), tmp_path_factory.mktemp("runs") / "run")
    save_config(config, run / CONFIG_FILE)
    return run


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "retrieval", *map(str, arguments)])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.mark.parametrize(("by", "names"), [("speaker", ["ann", "bob", "cid"]), ("length", ["quarter 1"])])
def test_the_command_breaks_down(run_folder, capsys, by, names):
    code, out, err = command(capsys, run_folder, "--by", by)
    assert code == 0, err
    assert "8 captions of 4 pictures" in out
    assert "median" in out
    assert all(name in out for name in names)
    assert not list(run_folder.glob("*.csv"))


def test_the_command_writes_everything_and_prints_the_split(run_folder, tmp_path, capsys):
    code, out, err = command(capsys, run_folder, "--split", "validation", "--out", tmp_path / "a" / "b")
    assert code == 0, err
    assert "quarter" not in out
    written = {path.name: pd.read_csv(path) for path in (tmp_path / "a" / "b").iterdir()}
    assert written.keys() == {"retrieval.csv", "by_speaker.csv", "by_length.csv"}
    assert all(len(table) >= 3 for table in written.values())


def test_a_bad_folder_is_reported_before_anything_is_embedded(run_folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    code, _, err = command(capsys, run_folder, "--split", "absent", "--out", tmp_path / "file")
    assert code == 1
    assert "file: File exists" in err
