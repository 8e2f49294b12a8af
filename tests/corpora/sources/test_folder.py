import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import captions_of, open_valid
from PIL import Image
from typer.testing import CliRunner

from vgsplus.cli import app
from vgsplus.corpora.sources.folder import prepare_folder
from vgsplus.corpora.sources.table import prepare_table
from vgsplus.errors import CorpusError


def put(folder: Path, *names: str) -> None:
    """Write sounds, pictures and other files, each with its own contents."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(list(name.encode()))
        if path.suffix in (".wav", ".flac"):
            soundfile.write(path, 0.1 * rng.standard_normal(8000), 16_000)
        elif path.suffix in (".jpg", ".png"):
            Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(path)
        else:
            path.write_text(f"the text of\n{path.stem}\n")


@pytest.fixture
def mine(tmp_path):
    return tmp_path / "mine"


def captions(corpus):
    return {one.id: one for split in corpus.splits for one in corpus.captions(split)}


def faults(folder, **options):
    with pytest.raises(CorpusError) as error:
        prepare_folder(folder, folder.parent / "out", **options)
    assert not (folder.parent / "out").exists()
    return [fault.removeprefix(f"{folder}/") for fault in error.value.faults]


def test_a_folder_becomes_the_corpus_of_the_table_of_its_pairs(mine, tmp_path):
    names = [f"p{number}" for number in range(20)]
    put(mine, *(f"{name}.wav" for name in names), *(f"{name}.jpg" for name in names))
    summary = prepare_folder(mine, tmp_path / "out", seed=3)
    assert captions_of(summary) == {"train": 16, "validation": 2, "test": 2}
    table = mine / "mine.csv"
    table.write_text("audio,image\n" + "".join(f"{name}.wav,{name}.jpg\n" for name in sorted(names)))
    prepare_table(table, tmp_path / "other", seed=3)
    assert captions(open_valid(tmp_path / "out")) == captions(open_valid(tmp_path / "other"))
    regions = [(tmp_path / name / "regions.h5").read_bytes() for name in ("out", "other")]
    assert regions[0] == regions[1]


def test_recordings_of_a_picture_are_numbered_and_pictures_may_be_above(mine, tmp_path):
    put(mine, "dog.jpg", "dog.wav", "dog.txt", "anna/dog_1.wav", "anna/dog-2.flac", "anna/b c/dog_10.wav")
    put(mine, "pier_7.png", "ben/pier_7.wav", "ben/pier_7_1.wav", "dog_3.jpg", "dog_3.wav")
    put(mine, "Big Sur.jpg", "Ben B/Big Sur.wav", "Ben B/Big Sur.png", "README.txt")
    Path(mine / "Big Sur.jpg").unlink()
    prepare_folder(mine, tmp_path / "out")
    found = captions(open_valid(tmp_path / "out"))
    assert {name: (one.image, one.speaker) for name, one in found.items()} == {
        "dog": ("dog.jpg", "unknown"),
        "dog_3": ("dog_3.jpg", "unknown"),  # the complete name comes before the one without number
        "anna/dog_1": ("dog.jpg", "anna"),
        "anna/dog-2": ("dog.jpg", "anna"),
        "anna/b_c/dog_10": ("dog.jpg", "anna"),
        "ben/pier_7": ("pier_7.png", "ben"),
        "ben/pier_7_1": ("pier_7.png", "ben"),
        "Ben_B/Big_Sur": ("Ben B/Big Sur.png", "Ben_B"),
    }
    assert found["dog"].text == "the text of dog"
    assert found["dog_3"].text is None
    splits = {one.split for name, one in found.items() if one.image == "dog.jpg"}
    assert len(splits) == 1


def test_the_nearest_picture_counts(mine, tmp_path):
    put(mine, "a.jpg", "a.wav", "b.jpg", "b.wav", "c.jpg", "c.wav", "x/a.jpg", "x/a.wav", "x/y/a_1.wav")
    prepare_folder(mine, tmp_path / "out")
    found = captions(open_valid(tmp_path / "out"))
    assert (found["a"].image, found["x/y/a_1"].image) == ("a.jpg", "x/a.jpg")


def test_folders_of_splits_are_used(mine, tmp_path):
    put(mine, "train/a.jpg", "train/anna/a_1.wav", "train/b.jpg", "train/b.wav")
    put(mine, "validation/c.jpg", "validation/c.wav", "test_new/d.jpg", "test_new/ben/d.wav")
    summary = prepare_folder(mine, tmp_path / "out")
    assert captions_of(summary) == {"train": 2, "validation": 1, "test_new": 1}
    found = captions(open_valid(tmp_path / "out"))
    assert [found[name].speaker for name in ("train/anna/a_1", "train/b", "test_new/ben/d")] == [
        "anna",
        "unknown",
        "ben",
    ]


def test_speakers_may_be_a_table(mine, tmp_path):
    put(mine, "a.jpg", "a_1.wav", "b.jpg", "x/b.wav", "c.jpg", "c.wav")
    speakers = tmp_path / "speakers.txt"
    speakers.write_text("a_1 Anna\nx/b Ben B\n")
    assert faults(mine, speakers=speakers) == [f"{speakers}: names no speaker of c. Add a line: c SPEAKER"]
    speakers.write_text("a_1 Anna\nb Ben B\nc Anna\n")
    prepare_folder(mine, tmp_path / "out", speakers=speakers)
    found = captions(open_valid(tmp_path / "out"))
    assert {name: one.speaker for name, one in found.items()} == {"a_1": "Anna", "x/b": "Ben_B", "c": "Anna"}


def test_faults_of_names_are_found_together_before_a_file_is_read(mine):
    put(mine, "a.jpg", "a.wav", "b.wav", "c.jpg", "d.jpg", "d.png", "d.wav", "e.jpg", "e.wav", "e.flac")
    put(mine, "F.jpg", "f_1.wav", "g.jpg", "g.m4a", "h h.jpg", "h h.wav", "h_h.wav", "h_h.jpg")
    (mine / "a.wav").write_text("no sound")
    case = "There is F.jpg: correct upper and lower case."
    assert faults(mine) == [
        "d.png: d.jpg has the same name. Keep one of them.",
        "e.wav: e.flac has the same name. Keep one of them, or number both: e_1 and e_2.",
        f"h_h.wav: has the name of {mine}/h h.wav, as blanks are read as '_'. Rename one of them.",
        "b.wav: there is no picture b beside or above it. Add it, or remove this file.",
        f"f_1.wav: there is no picture f_1 or f beside or above it. {case}",
        "F.jpg: there is no sound of this picture. Add it, or remove this file.",
        "c.jpg: there is no sound of this picture. Add it, or remove this file.",
        "g.jpg: there is no sound of this picture. There is g.m4a, whose format is not read: convert it.",
    ]


def test_files_that_cannot_be_read_are_found_together(mine):
    put(mine, *(f"{name}{suffix}" for name in "abcd" for suffix in (".jpg", ".wav")))
    (mine / "a.wav").write_text("no sound")
    (mine / "b.jpg").write_text("no picture")
    soundfile.write(mine / "c.wav", np.zeros(8000), 16_000)
    found = faults(mine)
    for fault, start in zip(
        found, ("a.wav: cannot be read", "c.wav: is silent", "b.jpg: cannot be read"), strict=True
    ):
        assert fault.removeprefix(f"{mine}: {mine}/").startswith(start)
    (mine / "d.txt").write_bytes(b"caf\xe9")
    assert faults(mine) == ["d.txt:1: is not UTF-8 text. Save it as UTF-8."]


def test_links_out_of_the_folder_and_second_names_of_a_file_are_faults(mine, tmp_path):
    put(mine, "a.jpg", "a.wav", "b.jpg")
    put(tmp_path / "elsewhere", "b.wav")
    (mine / "b.wav").symlink_to(tmp_path / "elsewhere/b.wav")
    (mine / "a_1.wav").symlink_to(mine / "a.wav")
    (mine / "round").symlink_to(mine)
    assert faults(mine) == [
        f"a_1.wav: is the same file as {mine}/a.wav, through a link. Remove one of them.",
        f"b.wav: is a link to {tmp_path}/elsewhere/b.wav, outside the folder. Copy the file instead.",
    ]


def test_faults_of_splits(mine):
    put(mine, "train/a.jpg", "train/a.wav", "val/b.jpg", "val/b.wav", "c.wav", "c.jpg")
    assert [fault.split(". ")[0] for fault in faults(mine)] == [
        "val: is no split by its name",
        "c.wav: is in none of the splits train",
        "val/b.wav: is in none of the splits train",
        "c.jpg: is in none of the splits train",
        "val/b.jpg: is in none of the splits train",
    ]


def test_copies_in_two_splits_and_too_few_pictures_are_faults(mine):
    put(mine, "train/a.jpg", "train/a.wav", "test/b.wav")
    (mine / "test/b.jpg").write_bytes((mine / "train/a.jpg").read_bytes())
    expected = "b.jpg in 'test' is a copy of a.jpg in 'train'. Keep both in one split."
    assert expected in faults(mine)[0] or "a.jpg in 'train' is a copy of b.jpg in 'test'" in faults(mine)[0]
    few = mine / "train"
    (fault,) = faults(few)
    assert fault.startswith(f"{few}: 1 picture(s) cannot be split into train, validation and test.")
    assert fault.endswith("or arrange them in the folders train, validation and test.")


def test_folders_without_recordings_are_faults(mine):
    assert faults(mine) == [f"{mine}: there is no such folder."]
    mine.mkdir()
    assert faults(mine)[0].startswith(f"{mine}: holds no sounds (.aif")
    put(mine, "a.wav")
    with pytest.raises(CorpusError, match="is inside"):
        prepare_folder(mine, mine / "corpus")


def test_a_folder_without_pictures_is_speech_alone(mine, tmp_path):
    put(mine, *(f"anna/{number}.wav" for number in range(10)), "anna/3.txt", "anna/3.TextGrid")
    assert captions_of(prepare_folder(mine, tmp_path / "speech")) == {"train": 8, "validation": 1, "test": 1}
    found = captions(open_valid(tmp_path / "speech"))
    assert {caption.speaker for caption in found.values()} == {"anna"}
    assert {caption.image for caption in found.values()} == {None}
    assert found["anna/3"].text == "the text of 3"
    expected = f"{tmp_path / 'regions.h5'}: describes pictures, but {mine} has none. Leave it out."
    assert faults(mine, regions=tmp_path / "regions.h5") == [expected]


def test_the_command(mine, tmp_path):
    put(mine, *(f"{name}{suffix}" for name in "abcd" for suffix in (".jpg", ".wav")))
    result = CliRunner().invoke(app, ["data", "folder", str(mine), str(tmp_path / "out"), "--seed", "1"])
    assert result.exit_code == 0, result.output
    info = json.loads((tmp_path / "out/corpus.json").read_text())
    assert info["provenance"]["source"] == "folder"
    assert info["image_root"] == str(mine)
