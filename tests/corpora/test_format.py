import json
import pickle
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import h5py
import numpy as np
import pytest
import soundfile
from helpers import ABOUT, BOXES, CAPTION, FEATURES, put_sound

from vgsplus.audio import SAMPLE_RATE
from vgsplus.corpora import Corpus, CorpusWriter, validate
from vgsplus.errors import CorpusError
from vgsplus.evaluation.abx_items import read_items


def noise(num=4000):
    return np.random.default_rng(0).uniform(-0.5, 0.5, num).astype(np.float32)


@pytest.fixture
def corpus(tmp_path, tiny_corpus):
    """A copy to break."""
    return shutil.copytree(tiny_corpus, tmp_path / "copy")


def edit_info(root, **keys):
    path = root / "corpus.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def edit_line(root, number, change):
    path = root / "captions.jsonl"
    lines = path.read_text().splitlines()
    lines[number - 1] = change(lines[number - 1])
    path.write_text("\n".join(lines) + "\n")


def sound_of(root, row=0):
    corpus = Corpus.open(root)
    return corpus.audio_path(corpus.captions("train")[row])


# Reading


def test_a_sound_corpus_has_no_faults(tiny_corpus):
    assert validate(tiny_corpus) == []


def test_what_was_written_is_read(tmp_path):
    with CorpusWriter(tmp_path / "c", **ABOUT, image_root=None) as writer:
        put_sound(writer)
        for image_id, value in (("a/b.png", 1), ("c.png", 2)):
            writer.add_regions(image_id, FEATURES * value, BOXES)
        writer.add_caption(replace(CAPTION, image="c.png"))
        writer.set_info("shared_images", [])
        writer.skip("no sound", "u1")
        writer.skip("no sound", "u2")
    corpus = Corpus.open(tmp_path / "c")
    assert (corpus.name, corpus.splits, corpus.image_ids) == ("c", ("train",), ("a/b.png", "c.png"))
    assert (corpus.num_regions, corpus.feature_dim) == (3, 4)
    assert list(corpus.captions("train")) == [replace(CAPTION, image="c.png")]
    assert corpus.image_row("c.png") == 1
    assert corpus.info["provenance"] == {"source": "a test"}
    assert corpus.info["counts"] == {"train": {"captions": 1, "images": 1, "seconds": 0.25}}
    assert corpus.info["skipped"] == {"no sound": 2}
    skipped = [json.loads(line) for line in (tmp_path / "c" / "skipped.jsonl").read_text().splitlines()]
    assert [entry["what"] for entry in skipped] == ["u1", "u2"]
    with pytest.raises(CorpusError, match="without its pictures"):
        corpus.image_path("c.png")


def test_regions_come_in_the_order_asked_for_with_repeats(tiny_corpus):
    corpus = Corpus.open(tiny_corpus)
    asked = [corpus.image_ids[row] for row in (5, 0, 5, 2)]
    features, boxes = corpus.regions(asked)
    with h5py.File(tiny_corpus / "regions.h5") as file:
        np.testing.assert_array_equal(features, file["features"][:][[5, 0, 5, 2]])
        np.testing.assert_array_equal(boxes, file["boxes"][:][[5, 0, 5, 2]])
    assert features.dtype == boxes.dtype == np.float32


def test_half_precision_features_are_read_as_single(tmp_path):
    with CorpusWriter(tmp_path / "c", **ABOUT, image_root=None) as writer:
        put_sound(writer)
        writer.add_regions("a", FEATURES.astype(np.float16) / 3, BOXES)
        writer.add_caption(replace(CAPTION, image="a"))
    with h5py.File(tmp_path / "c" / "regions.h5") as file:
        assert file["features"].dtype == np.float16
    assert Corpus.open(tmp_path / "c").regions(["a"])[0].dtype == np.float32


@pytest.mark.parametrize("layout", [{}, {"chunks": (1, 3, 4)}, {"chunks": (2, 3, 4), "compression": "gzip"}])
def test_regions_are_read_however_they_lie_in_the_file(tmp_path, layout):
    with CorpusWriter(tmp_path / "c", **ABOUT, image_root=None) as writer:
        put_sound(writer)
        for image in "abcd":
            writer.add_regions(image, FEATURES, BOXES)
        writer.add_caption(replace(CAPTION, image="a"))
    features = np.random.default_rng(1).normal(size=(4, 3, 4)).astype(np.float16)
    with h5py.File(tmp_path / "c" / "regions.h5", "r+") as file:
        del file["features"]
        file.create_dataset("features", data=features, **layout)
    corpus = Corpus.open(tmp_path / "c")
    np.testing.assert_array_equal(corpus.stored_regions("dbdaa")[0], features[[3, 1, 3, 0, 0]])
    np.testing.assert_array_equal(corpus.regions("ca")[0], features[[2, 0]].astype(np.float32))


def test_captions_are_a_sequence_that_goes_to_workers(tiny_corpus):
    captions = Corpus.open(tiny_corpus).captions("train")
    listed = list(captions)
    assert len(captions) == len(listed) == 16
    assert [captions[3], captions[-1]] == [listed[3], listed[-1]]
    assert captions[2:9:3] == listed[2:9:3]
    with pytest.raises(IndexError):
        captions[16]
    assert captions.num_samples.tolist() == [caption.num_samples for caption in listed]
    image_ids = Corpus.open(tiny_corpus).image_ids
    assert [image_ids[row] for row in captions.image_rows] == [caption.image for caption in listed]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(captions.__getitem__, 5).result() == listed[5]


def test_captions_of_no_image_have_no_row(tmp_path):
    with CorpusWriter(tmp_path / "c", **ABOUT) as writer:
        put_sound(writer)
        writer.add_caption(CAPTION)
    assert Corpus.open(tmp_path / "c").captions("train").image_rows.tolist() == [-1]


def test_every_fault_is_told_with_its_line(corpus):
    lines = (corpus / "captions.jsonl").read_text().splitlines()
    whole = Corpus.open(corpus).captions("train")[:]
    broken = {
        2: "{",
        5: "[]",
        6: f"{lines[5]}, {lines[5]}",
        7: "",
        11: lines[10].replace("speaker", "talker"),
    }
    for number, line in broken.items():
        edit_line(corpus, number, lambda _, line=line: line)
    with pytest.raises(CorpusError) as error:
        Corpus.open(corpus)
    told = [re.search(r"jsonl:(\d+): is not (?:valid JSON|a caption)", fault) for fault in error.value.faults]
    assert [int(found[1]) for found in told] == list(broken)
    (corpus / "captions.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert Corpus.open(corpus).captions("train")[:] == whole


def test_a_length_that_is_no_number_is_a_fault_of_its_caption(corpus):
    edit_line(corpus, 3, lambda line: re.sub(r'"num_samples": \d+', '"num_samples": "many"', line))
    with pytest.raises(CorpusError, match=r"^\S*captions.jsonl: caption train-001-0: num_samples is 'many'$"):
        Corpus.open(corpus)


def test_captions_that_change_under_an_open_corpus_are_refused(corpus):
    captions = Corpus.open(corpus).captions("train")
    (corpus / "captions.jsonl").write_text("\n" * 40)
    with pytest.raises(CorpusError, match="has changed since"):
        captions[3]


def test_paths_lead_to_files(tiny_corpus):
    corpus = Corpus.open(tiny_corpus)
    for split in corpus.splits:
        for caption in corpus.captions(split):
            assert corpus.audio_path(caption).is_file()
            assert corpus.image_path(caption.image).is_file()


def first_feature(corpus):
    return float(corpus.regions([corpus.image_ids[3]])[0][0, 0, 0])


def test_an_open_corpus_goes_to_worker_processes(tiny_corpus):
    corpus = Corpus.open(tiny_corpus)
    expected = first_feature(corpus)
    assert first_feature(pickle.loads(pickle.dumps(corpus))) == expected
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for features, _ in pool.map(corpus.regions, [[corpus.image_ids[3]]] * 4):
            assert features[0, 0, 0] == expected


def test_unknown_and_empty_splits_name_those_there_are(corpus):
    with pytest.raises(
        CorpusError, match=r"no split 'dev'.*train \(16 captions\), validation \(8 captions\)"
    ):
        Corpus.open(corpus).captions("dev")
    counts = json.loads((corpus / "corpus.json").read_text())["counts"]
    edit_info(corpus, counts=counts | {"extra": {"captions": 0, "images": 0, "seconds": 0}})
    with pytest.raises(CorpusError, match="'extra' is empty"):
        Corpus.open(corpus).captions("extra")
    assert any("the split 'extra' is empty" in fault for fault in validate(corpus))


def test_an_unknown_image_is_named(tiny_corpus):
    with pytest.raises(CorpusError, match=r"no image 'nowhere\.png'"):
        Corpus.open(tiny_corpus).regions(["nowhere.png"])


# Opening what is broken


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda root: (root / "corpus.json").unlink(), "is not a corpus"),
        (lambda root: (root / "corpus.json").write_text("{"), "corpus.json: is not valid JSON"),
        (lambda root: (root / "corpus.json").write_text("[]"), "corpus.json: is not a corpus"),
        (lambda root: edit_info(root, format=99), "is not a corpus of format 1"),
        (lambda root: (root / "captions.jsonl").unlink(), "captions.jsonl: is missing"),
        (lambda root: (root / "captions.jsonl").write_text(""), "holds no captions"),
        (lambda root: (root / "regions.h5").unlink(), "regions.h5: is missing"),
        (lambda root: (root / "regions.h5").write_text("no HDF5"), "regions.h5: cannot be read as HDF5"),
        (lambda root: edit_line(root, 3, lambda line: line[:-4]), r"captions.jsonl:3: is not valid JSON"),
        (lambda root: edit_line(root, 2, lambda _: "[1]"), r"captions.jsonl:2: is not a caption"),
        (
            lambda root: edit_line(root, 2, lambda _: "{}"),
            r"captions.jsonl:2: is not a caption \(missing .*'id'",
        ),
        (
            lambda root: edit_line(root, 5, lambda line: line.replace('"image": "', '"image": "x')),
            "train-002-0 names the unknown image xtrain/002.png",
        ),
    ],
)
def test_opening_and_validating_say_what_is_broken(corpus, damage, message):
    damage(corpus)
    with pytest.raises(CorpusError, match=message):
        Corpus.open(corpus)
    assert validate(corpus)


def test_the_message_shows_twenty_faults_and_how_many_more():
    error = CorpusError([f"fault {number}" for number in range(25)])
    assert "fault 19" in str(error)
    assert "fault 20" not in str(error)
    assert "5 more faults" in str(error)
    assert len(error.faults) == len(pickle.loads(pickle.dumps(error)).faults) == 25


# Validating


def rewrite_sound(root, samples, rate=SAMPLE_RATE, **options):
    soundfile.write(sound_of(root), samples, rate, **options)


def rewrite_constant(root, value):
    caption = Corpus.open(root).captions("train")[0]
    rewrite_sound(root, np.full(caption.num_samples, value), subtype="FLOAT")


def set_region(root, name, value):
    with h5py.File(root / "regions.h5", "r+") as file:
        file[name][2, 1, 0] = value


def drop_first_caption(root):
    path = root / "captions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def add_item(root, row):
    path = root / "test.item"
    path.write_text(path.read_text() + row + "\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: sound_of(root).unlink(), "caption train-000-0: .*no such sound file"),
        (lambda root: sound_of(root).write_text("x"), "caption train-000-0: .*cannot be read as sound"),
        (lambda root: rewrite_sound(root, noise(), 8000), "train-000-0: .*8000 Hz"),
        (lambda root: rewrite_sound(root, np.stack([noise()] * 2, 1)), "train-000-0: .*2 channel"),
        (lambda root: rewrite_sound(root, noise(9)), "train-000-0: .*has 9 samples"),
        (lambda root: rewrite_sound(root, noise(0)), "train-000-0: .*no samples"),
        (lambda root: rewrite_constant(root, 0.0), "train-000-0: .*silent"),
        (lambda root: rewrite_constant(root, np.nan), "train-000-0: .*not finite"),
        (lambda root: (root / "images/test/001.png").unlink(), "test/001.png: the picture is missing"),
        (
            lambda root: (root / "images/test/001.png").write_text("x"),
            "test/001.png: cannot be read as a pic",
        ),
        (lambda root: set_region(root, "features", np.nan), "image train/002.png: .*not finite"),
        (lambda root: set_region(root, "boxes", 1.5), r"image train/002.png: .*outside \[0, 1\]"),
        (lambda root: set_region(root, "boxes", 1.0), "image train/002.png: .*end lies before its start"),
        (
            lambda root: edit_line(root, 2, lambda line: line.replace("0-1", "0-0", 1)),
            "2 captions have the id",
        ),
        (
            lambda root: edit_line(root, 2, lambda line: line.replace('"en"', "3")),
            "language must be",
        ),
        (
            lambda root: edit_line(root, 2, lambda line: line.replace('"train"', '"test"', 1)),
            "splits 'train' and 'test' share 1 images, the first is train/000.png",
        ),
        (drop_first_caption, "split 'train' should hold 16 captions, holds 15"),
        (
            lambda root: add_item(root, "test-000-0 0.1 0.2 a b c"),
            "test.item:34: has 6 columns, the header names 7",
        ),
        (lambda root: add_item(root, "u 0 1 a b c s"), "test.item:34: there is no caption u"),
        (
            lambda root: add_item(root, "test-000-0 0.02 0.120 a k t ann"),
            "test.item:34: test-000-0 from 0.02 to 0.120 s is in line 2 already and counts once",
        ),
        (
            lambda root: add_item(root, "test-000-0.wav 0.02 0.12 b k t ann"),
            "test.item:34: .* is phone b in context k t by ann here and phone a .* by ann in line 2",
        ),
        (
            lambda root: (root / "test.item").write_bytes(b"#file\xff"),
            "test.item:1: is not UTF-8 text",
        ),
        (lambda root: (root / "test.item").write_text(""), "test.item: is empty"),
        (lambda root: add_item(root, "test-000-0 0 1e999 a k t ann"), "test.item:34: .* must be numbers"),
        (lambda root: add_item(root, "test-000-0 0 9 a b c s"), "test.item:34: 0 to 9 s exceeds"),
        (
            lambda root: add_item(root, "test-000-0 0 x a b c s"),
            "test.item:34: onset 0 and offset x must be numbers",
        ),
    ],
)
def test_validation_names_the_fault(corpus, damage, message):
    damage(corpus)
    assert re.search(message, "\n".join(validate(corpus)))


def test_items_are_read_as_evaluation_reads_them(corpus):
    rows = [line.split() for line in (corpus / "test.item").read_text().splitlines()[1:]]
    lines = [
        "\ufeffspeaker phone file onset offset word",
        *(f"{r[6]} {r[3]} {r[0]}.wav {r[1]} {r[2]} x" for r in rows),
    ]
    (corpus / "test.item").write_text("\r\n".join(lines))
    assert validate(corpus) == []
    items = read_items(corpus / "test.item", audio_root=corpus / "audio")
    assert [(token.file, token.phone) for token in items.tokens] == [
        (f"{row[0]}.wav", row[3]) for row in rows
    ]


def test_splits_may_share_images_where_the_corpus_says_so(corpus):
    edit_line(corpus, 2, lambda line: line.replace('"train"', '"test"', 1))
    edit_info(corpus, shared_images=[["test", "train"]])
    assert not any("share 1 images" in fault for fault in validate(corpus))
