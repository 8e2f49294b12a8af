import hashlib
import json
import shutil
import unicodedata
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
from helpers import captions_of, open_valid
from PIL import Image

from vgsplus.audio import SAMPLE_RATE, read
from vgsplus.corpora import Corpus, sounds, validate
from vgsplus.corpora.packing import pack
from vgsplus.corpora.sources.table import prepare_table
from vgsplus.errors import CorpusError


def tone(path: Path, pitch: float = 300, seconds: float = 0.5, rate: int = 16_000, channels: int = 1, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    signal = 0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)
    soundfile.write(path, np.repeat(signal[:, None], channels, axis=1), rate, **how)


def picture(path: Path, seed: int):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def mine(tmp_path):
    """A folder of 20 recordings of 20 pictures."""
    for number in range(20):
        tone(tmp_path / f"mine/clips/c{number}.wav", 200 + 10 * number)
        picture(tmp_path / f"mine/pictures/p{number}.png", number)
    return tmp_path / "mine"


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "my.csv"
    path.write_bytes(text.encode(encoding))
    return path


def rows(count: int = 20, separator: str = ",") -> str:
    return "".join(f"clips/c{n}.wav{separator}pictures/p{n}.png\n" for n in range(count))


def faults(path: Path) -> list[str]:
    with pytest.raises(CorpusError) as error:
        prepare_table(path, path.parent.parent / "out")
    left = {entry.name for entry in path.parent.parent.iterdir()}
    assert left == {path.parent.name}, "nothing may be written"
    return [fault.removeprefix(f"{path}:") for fault in error.value.faults]


def split_of(corpus: Corpus) -> dict[str, str]:
    return {caption.id: split for split in corpus.splits for caption in corpus.captions(split)}


def test_a_table_of_two_columns_becomes_a_sound_corpus(mine, tmp_path):
    summary = prepare_table(write(mine, "audio,image\n" + rows()), tmp_path / "out")
    corpus = open_valid(tmp_path / "out")
    assert captions_of(summary) == {"train": 16, "validation": 2, "test": 2}
    caption = corpus.captions("train")[0]
    assert (caption.speaker, caption.language, caption.text) == ("unknown", "und", None)
    assert (corpus.num_regions, corpus.name) == (36, "my")


@pytest.mark.parametrize("table", ["audio\n", "audio,image\n"])
def test_recordings_without_pictures_are_a_corpus_of_speech_alone(mine, tmp_path, table):
    comma = "," * table.count(",")
    lines = [f"clips/c{number}.wav{comma}\n" for number in range(20)]
    dealt = []
    for seed in range(4):
        prepare_table(write(mine, table + "".join(lines)), tmp_path / "out", seed=seed, overwrite=True)
        corpus = Corpus.open(tmp_path / "out")
        assert [len(corpus.captions(split)) for split in ("train", "validation", "test")] == [16, 2, 2]
        assert all(caption.image is None for caption in corpus.captions("train"))
        dealt.append(tuple(sorted(split_of(corpus).items())))
    assert validate(tmp_path / "out") == []
    assert len(set(dealt)) > 1
    assert (corpus.num_regions, corpus.info["image_root"]) == (0, None)


def test_rows_without_a_picture_train_beside_those_that_have_one(mine, tmp_path):
    for number in range(6):
        tone(mine / f"more/m{number}.wav", 900 + number)
    more = "".join(f"more/m{number}.wav,\n" for number in range(6)) + "clips/c7.wav,\n"
    for seed in range(4):
        table = write(mine, "audio,image\n" + rows() + more)
        prepare_table(table, tmp_path / "out", seed=seed, overwrite=True)
        corpus = open_valid(tmp_path / "out")
        splits = split_of(corpus)
        assert all(splits[f"more/m{number}"] == "train" for number in range(6))
        assert splits["clips/c7-28"] == splits["clips/c7"]
        images = {one.id: one.image for split in corpus.splits for one in corpus.captions(split)}
        assert [name for name, image in images.items() if image is None].count("more/m0") == 1
        assert images["clips/c7"] == "pictures/p7.png"


def test_splits_of_rows_without_pictures_are_checked_too(mine):
    text = "audio,split,image\nclips/c0.wav,train,\nclips/c0.wav,train,\nclips/c0.wav,test,pictures/p0.png\n"
    found = faults(write(mine, text + "clips/c1.wav,,\n,train,\nclips/absent.wav,train,\n"))
    expected = [
        "3: repeats line 2",
        "4: audio c0.wav is in 'test'",
        "5: the cell under 'split'",
        "6: the cell under 'audio'",
        "7: ",
    ]
    assert len(found) == len(expected)
    for fault, start in zip(found, expected, strict=True):
        assert fault.startswith(start)


def test_prepared_sounds_and_pictures_stay_where_they_are(mine, tmp_path):
    tone(mine / "clips/c3.flac", 330)
    prepare_table(write(mine, "audio,image\nclips/c3.flac,pictures/p0.png\n" + rows()), tmp_path / "out")
    corpus = Corpus.open(tmp_path / "out")
    for split in corpus.splits:
        for caption in corpus.captions(split):
            assert corpus.audio_path(caption).parent == mine / "clips"
            assert corpus.image_path(caption.image).parent == mine / "pictures"
            assert caption.image.startswith("pictures/")
    assert not (tmp_path / "out/audio").exists()


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("high.wav", {"rate": 44_100}),
        ("low.wav", {"rate": 8_000}),
        ("stereo.flac", {"channels": 2}),
        ("float.wav", {"subtype": "FLOAT"}),
        ("vorbis.ogg", {}),
    ],
)
def test_other_sounds_are_converted(mine, tmp_path, name, how):
    tone(mine / name, 440, **how)
    prepare_table(write(mine, f"audio,image\n{name},pictures/p0.png\n" + rows()), tmp_path / "out")
    corpus = Corpus.open(tmp_path / "out")
    caption = next(
        one for split in corpus.splits for one in corpus.captions(split) if one.id == Path(name).stem
    )
    assert corpus.audio_path(caption) == tmp_path / "out/audio" / f"{Path(name).stem}.wav"
    signal = read(corpus.audio_path(caption))
    assert caption.num_samples == len(signal) == pytest.approx(SAMPLE_RATE // 2, abs=100)
    assert np.argmax(np.abs(np.fft.rfft(signal))) * SAMPLE_RATE / len(signal) == pytest.approx(440, abs=4)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_any_order_separator_and_byte_order_mark(mine, tmp_path, separator, encoding):
    header = ["Text", "image", "LANGUAGE ", "audio", "split", "speaker"]
    lines = [
        ["Жаба, «зелена»", f"pictures/p{n}.png", "bg", f"clips/c{n}.wav", split, "Anna Maria"]
        for n, split in enumerate(["train", "validation", "test", "test_far"])
    ]
    quoted = ([f'"{cell}"' for cell in line] for line in lines)
    table = "\r\n".join(separator.join(line) for line in (header, *quoted))
    prepare_table(write(mine, table, encoding), tmp_path / "out")
    corpus = Corpus.open(tmp_path / "out")
    assert corpus.splits == ("train", "validation", "test", "test_far")
    caption = corpus.captions("train")[0]
    assert (caption.text, caption.language) == ("Жаба, «зелена»", "bg")
    assert caption.speaker == "Anna_Maria"


def test_pictures_are_dealt_by_the_seed_and_copies_stay_together(mine, tmp_path):
    (mine / "pictures/copy.png").write_bytes((mine / "pictures/p0.png").read_bytes())
    tone(mine / "clips/again.wav", 700)
    extra = "clips/again.wav,pictures/copy.png\nclips/c5.wav,pictures/p6.png\n"
    table = write(mine, "audio,image\n" + rows() + extra)
    dealt = []
    for seed in range(8):
        prepare_table(table, tmp_path / "out", seed=seed, overwrite=True)
        corpus = Corpus.open(tmp_path / "out")
        splits = split_of(corpus)
        assert splits["clips/again"] == splits["clips/c0"]
        assert splits["clips/c5"] == splits["clips/c5-23"] == splits["clips/c6"]
        dealt.append(tuple(sorted(splits.items())))
    assert len(set(dealt)) > 1
    prepare_table(table, tmp_path / "again", seed=7)
    assert tuple(sorted(split_of(Corpus.open(tmp_path / "again")).items())) == dealt[-1]


def test_pictures_outside_the_tables_folder_keep_an_absolute_root(mine, tmp_path):
    picture(tmp_path / "elsewhere/far.png", 77)
    table = write(mine, f"audio,image\nclips/c0.wav,{tmp_path}/elsewhere/far.png\n" + rows())
    prepare_table(table, tmp_path / "out")
    corpus = Corpus.open(tmp_path / "out")
    assert "elsewhere/far.png" in corpus.image_ids
    assert corpus.image_path("elsewhere/far.png").is_file()


def test_every_fault_is_reported_at_once_with_its_line(mine):
    soundfile.write(mine / "silent.wav", np.zeros(8000), 16_000)
    soundfile.write(mine / "none.wav", np.zeros(0), 16_000)
    tone(mine / "short.wav", seconds=0.1)
    (mine / "broken.wav").write_bytes(b"RIFF but no sound")
    (mine / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    found = faults(
        write(
            mine,
            "audio,image,split,text\n"
            "clips/c0.wav,pictures/p0.png,train,good\n"
            "clips/absent.wav,pictures/absent.png,train,\n"
            ",pictures/p1.png,train,no audio\n"
            'clips/c2.wav,pictures/p2.png,,"no split,\nover two lines"\n'
            "clips/c0.wav,./pictures/../pictures/p0.png,train,again\n"
            "clips/c3.wav,pictures/p0.png,test,in two splits\n"
            "\n"
            "clips/c4.wav,pictures/p4.png,val,unknown split\n"
            "clips/c5.wav,pictures/p5.png,train,a comma, unquoted\n"
            "silent.wav,pictures/p6.png,train,\n"
            "none.wav,pictures/p7.png,train,\n"
            "short.wav,pictures/p8.png,train,\n"
            "broken.wav,broken.png,train,\n"
            "clips/c0.wav,pictures/p9.png,validation,\n",
        )
    )
    expected = [
        ("3", "there is no such sound file"),
        ("3", "there is no such picture"),
        ("4", "'audio' is empty"),
        ("5", "'split' is empty"),
        ("7", "repeats line 2"),
        ("8", "p0.png is in 'test' here and in 'train' in line 2"),
        ("10", "Did you mean 'validation'?"),
        ("11", "has 5 cells, the header 4"),
        ("12", "silent"),
        ("13", "no samples"),
        ("14", "shorter than 0.25 s (0.10 s)"),
        ("15", "cannot be read as sound"),
        ("15", "cannot be read as a picture"),
        ("16", "audio c0.wav is in 'validation' here and in 'train' in line 2"),
    ]
    assert len(found) == len(expected)
    for line, part in expected:
        assert any(fault.startswith(f"{line}: ") and part in fault for fault in found), (line, part)
    lines = [int(fault.split(":")[0]) for fault in found]
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("audio,image,speakr", "unknown column 'speakr'. Did you mean 'speaker'?"),
        ("wav,image,text", "unknown column 'wav'. Did you mean 'audio'?"),
        ("audio,image,colour", "unknown column 'colour'. The columns are"),
        ("image,text,split", "there is no column 'audio'"),
        ("audio,picture,text", "unknown column 'picture'. Did you mean 'image'?"),
        ("audio,image,audio", "two columns are named 'audio'"),
        ("clips/c0.wav,pictures/p0.png,a frog", "the header is missing"),
    ],
)
def test_faults_of_the_header_name_the_mend(mine, header, expected):
    found = faults(write(mine, f"{header}\nclips/c1.wav,pictures/p1.png,x\n"))
    assert any(fault.startswith("1: ") and expected in fault for fault in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1: the table is empty"),
        ("\n\n", "1: the table is empty"),
        ("audio,image\n", "1: no row follows the header"),
        ('audio,image\nclips/c0.wav,pictures/p0.png\n"clips/c1.wav,x\n', "3: cannot be split into cells"),
        ("audio,image,split\nclips/c0.wav,pictures/p0.png,test\n", "no row has the split 'train'"),
        ("audio,image\n" + rows(2), "2 picture(s) cannot be split"),
        ("audio,image\n" + rows(2) + "clips/c3.wav,\n", "2 picture(s) cannot be split"),
        ("audio\nclips/c0.wav\nclips/c1.wav\n", "2 recording(s) cannot be split"),
    ],
)
def test_tables_that_say_too_little_are_refused(mine, text, expected):
    assert any(expected in fault for fault in faults(write(mine, text)))


def test_a_table_in_another_encoding_is_refused_with_its_line(mine):
    found = faults(write(mine, "audio,image,text\nclips/c0.wav,pictures/p0.png,caf\u00e9\n", "latin-1"))
    assert found == [
        "2: the table is not UTF-8, but perhaps in the encoding of Windows. Save it as CSV UTF-8."
    ]


def test_copies_of_one_picture_in_two_splits_are_refused(mine):
    (mine / "pictures/p1.png").write_bytes((mine / "pictures/p0.png").read_bytes())
    table = "audio,image,split\nclips/c0.wav,pictures/p0.png,train\nclips/c1.wav,pictures/p1.png,test\n"
    assert faults(write(mine, table)) == [
        "3: p1.png in 'test' is a copy of p0.png in 'train' (line 2). Keep both in one split."
    ]


def test_an_absent_table_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"absent\.csv: there is no such table"):
        prepare_table(tmp_path / "absent.csv", tmp_path / "out")


def regions_file(path: Path, pictures, dim: int = 5):
    """A file of regions, a picture's features all its number, known by the contents of the pictures."""
    with h5py.File(path, "w") as file:
        numbers = np.arange(len(pictures), dtype=np.float16)
        file["features"] = np.broadcast_to(numbers[:, None, None], (len(pictures), 3, dim))
        file["boxes"] = np.tile(np.float32([0, 0, 1, 1]), (len(pictures), 3, 1))
        text = h5py.string_dtype("utf-8")
        file.create_dataset("image_ids", data=[f"other/{one.name}" for one in pictures], dtype=text)
        digests = [hashlib.sha256(one.read_bytes()).hexdigest() for one in pictures]
        file.create_dataset("sha256", data=digests, dtype=text)
        file.attrs["provenance"] = json.dumps({"model": "counting"})


def test_pictures_may_be_described_by_a_file_of_regions(mine, tmp_path):
    pictures = [mine / f"pictures/p{number}.png" for number in range(20)]
    regions_file(tmp_path / "regions.h5", pictures)
    table = write(mine, "audio,image\n" + rows())
    prepare_table(table, tmp_path / "out", regions=tmp_path / "regions.h5")
    corpus = open_valid(tmp_path / "out")
    assert (corpus.num_regions, corpus.feature_dim) == (3, 5)
    features, _ = corpus.regions(["pictures/p7.png", "pictures/p12.png"])
    assert features[:, 0, 0].tolist() == [7, 12]
    assert corpus.info["provenance"]["regions"] == {"model": "counting"}


def test_pictures_that_a_file_of_regions_lacks_are_told_with_their_lines(mine, tmp_path):
    regions_file(tmp_path / "regions.h5", [mine / f"pictures/p{number}.png" for number in range(18)])
    table = write(mine, "audio,image\n" + rows())
    with pytest.raises(CorpusError) as told:
        prepare_table(table, tmp_path / "out", regions=tmp_path / "regions.h5")
    assert [fault.split(": ")[0] for fault in told.value.faults] == [f"{table}:20", f"{table}:21"]
    assert "vgsplus data regions" in str(told.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(CorpusError, match=r"absent\.h5: is missing\. Make it again"):
        prepare_table(table, tmp_path / "out", regions=tmp_path / "absent.h5")


# ---- what people's programs write -------------------------------------------------------------------------

HEAD = "audio,image,speaker\n"


def four(mine, change=lambda text: text, encoding="utf-8", header=HEAD):
    """A table of four recordings, changed; its captions' ids and speakers."""
    lines = "".join(f"clips/c{n}.wav,pictures/p{n}.png,anna\n" for n in range(4))
    prepare_table(write(mine, change(header + lines), encoding), mine.parent / "out")
    corpus = Corpus.open(mine.parent / "out")
    captions = (caption for split in corpus.splits for caption in corpus.captions(split))
    return sorted((caption.id, caption.speaker) for caption in captions)


def numbered(text):
    """A table as pandas writes it, with a column without a name that numbers the rows."""
    header, *lines = text.splitlines(keepends=True)
    return f",{header}" + "".join(f"{number},{line}" for number, line in enumerate(lines))


@pytest.mark.parametrize(
    ("change", "encoding"),
    [
        (lambda text: text.replace(",", "\t"), "utf-16"),
        (lambda text: "\ufeff" + text, "utf-8"),
        (lambda text: "sep=;\r\n" + text.replace(",", ";").replace("\n", "\r\n"), "utf-8"),
        (lambda text: text.replace("\n", "\r"), "utf-8"),
        (lambda text: text.replace("\n", ",,\n"), "utf-8"),
        (lambda text: text + "\x1a", "utf-8"),
        (lambda text: text + "\0\0\0", "utf-8"),
        (lambda text: text.replace(",", ", "), "utf-8"),
        (lambda text: text.replace("audio,image", "Audio,IMAGE"), "utf-8"),
        (lambda text: text.replace("/", "\\"), "utf-8"),
        (lambda text: text.replace("c3.wav", "c3.wav\xa0"), "utf-8"),
        (lambda text: text.replace("clips/c3", "\u200bclips/c3"), "utf-8"),
        (numbered, "utf-8"),
    ],
)
def test_tables_as_other_programs_write_them_are_the_same_corpus(mine, change, encoding):
    assert four(mine, change, encoding) == [(f"clips/c{n}", "anna") for n in range(4)]


def test_a_file_may_be_named_by_its_address_on_this_machine(mine):
    address = (mine / "clips/c3.wav").as_uri()
    assert len(four(mine, lambda text: text.replace("clips/c3.wav", address))) == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://example.org/a.wav", "is an address. Download the file"),
        ("C:\\daten\\a.wav", "is a Windows path"),
        ("clips/C1.WAV", "There is c1.wav: correct upper and lower case"),
        ("~nobody-of-this-name/a.wav", "there is no such sound file"),
        ("a" * 5000 + ".wav", "there is no such sound file"),
    ],
)
def test_a_name_without_a_file_leads_to_the_one_that_is_meant(mine, name, message):
    (fault,) = faults(write(mine, "audio,split\nclips/c0.wav,train\n" + f"{name},train\n"))
    assert fault.startswith("3: ")
    assert message in fault


@pytest.mark.parametrize(
    ("column", "meant"),
    [
        ("path", "audio"),
        ("file_name", "audio"),
        ("sentence", "text"),
        ("client_id", "speaker"),
        ("locale", "language"),
    ],
)
def test_columns_of_other_corpora_are_translated(mine, column, meant):
    assert f"1: unknown column '{column}'. Did you mean '{meant}'?" in faults(
        write(mine, f"{column},audio\nx,clips/c0.wav\n")
    )


def test_an_unnamed_column_that_says_something_is_a_fault(mine):
    (fault,) = faults(write(mine, "audio,image,\n" + rows(4).replace("\n", ",yes\n")))
    assert fault == "1: column 3 has no name, but holds 'yes'. Name or remove it."


def test_a_folder_is_told_as_one(mine):
    (fault,) = faults(write(mine, "audio,split\nclips,train\n"))
    assert fault == f"2: {mine}/clips: is a folder, not a sound file."


def test_a_nul_inside_a_table_is_a_fault(mine):
    (fault,) = faults(write(mine, "audio\nclips/c0.wav\0x\n"))
    assert fault == "2: holds a NUL character. Save it as CSV UTF-8."


@pytest.mark.parametrize(("stored", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_files_are_found_under_either_unicode_form(mine, stored, asked):
    name = unicodedata.normalize(stored, "größe")
    tone(mine / f"{name}.wav")
    picture(mine / f"{name}.png", 99)
    row = unicodedata.normalize(asked, "größe.wav,größe.png\n")
    summary = prepare_table(write(mine, "audio,image\n" + rows(4) + row), mine.parent / "out")
    assert sum(count.captions for count in summary.kept.values()) == 5


# ---- what counts once -------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["./clips/c0.wav", "clips/../clips/c0.wav", "link.wav", "hard.wav"])
def test_a_recording_listed_twice_under_two_names_is_a_fault(mine, other):
    (mine / "link.wav").symlink_to(mine / "clips/c0.wav")
    (mine / "hard.wav").hardlink_to(mine / "clips/c0.wav")
    (fault,) = faults(write(mine, f"audio,split\nclips/c0.wav,train\n{other},train\n"))
    assert fault == "3: repeats line 2 (the same audio). Remove one."


def test_a_copy_of_a_recording_in_another_split_is_a_fault(mine):
    shutil.copy(mine / "clips/c0.wav", mine / "copy.wav")
    (fault,) = faults(write(mine, "audio,split\nclips/c0.wav,train\ncopy.wav,test\n"))
    assert fault == "3: copy.wav in 'test' is a copy of c0.wav in 'train' (line 2). Keep both in one split."


def test_copies_are_dealt_to_one_split(mine):
    for number in range(5):
        shutil.copy(mine / "clips/c0.wav", mine / f"copy{number}.wav")
    names = [f"clips/c{n}.wav" for n in range(8)] + [f"copy{n}.wav" for n in range(5)]
    for seed in range(5):
        table = write(mine, "audio\n" + "".join(f"{name}\n" for name in names))
        prepare_table(table, mine.parent / "out", seed=seed, overwrite=True)
        splits = split_of(Corpus.open(mine.parent / "out"))
        assert len({splits[name] for name in ["clips/c0", *(f"copy{n}" for n in range(5))]}) == 1


def test_ids_never_collide(mine):
    for name in ("x.wav", "x.flac", "x-3.wav", "x-3-1.flac", "x.aiff"):
        tone(mine / name, 200 + 7 * len(name))
    names = ("x.wav", "x.flac", "x-3.wav", "x.aiff", "x-3-1.flac")
    table = write(mine, "audio,split\n" + "".join(f"{name},train\n" for name in names))
    prepare_table(table, mine.parent / "out")
    captions = Corpus.open(mine.parent / "out").captions("train")
    assert [caption.id for caption in captions] == ["x", "x-3-2", "x-3", "x-5", "x-3-1"]


# ---- levels and codecs ------------------------------------------------------------------------------------


def test_a_loud_recording_is_scaled_and_counted(mine):
    noise = np.random.default_rng(0).normal(0, 4000, 8000).astype(np.float32)
    soundfile.write(mine / "loud.wav", noise, SAMPLE_RATE, subtype="FLOAT")
    summary = prepare_table(
        write(mine, "audio,split\nloud.wav,train\nclips/c0.wav,train\n"), mine.parent / "out"
    )
    assert summary.changed == {"scaled to use the range of 16 bits": 1}
    assert json.loads((mine.parent / "out/corpus.json").read_text())["changed"] == summary.changed
    stored = read(mine.parent / "out/audio/loud.wav")
    assert np.corrcoef(stored, noise)[0, 1] > 0.99999


@pytest.mark.parametrize("subtype", ["GSM610", "NMS_ADPCM_32", "G721_32"])
def test_a_codec_of_telephones_is_converted_and_other_faults_are_told(mine, subtype):
    tone(mine / "call.wav", rate=8000, subtype=subtype)
    (fault,) = faults(write(mine, "audio,split\ncall.wav,train\ngone.wav,train\n"))
    assert fault.startswith("3: ")
    prepare_table(write(mine, "audio,split\ncall.wav,train\n"), mine.parent / "out")
    assert len(read(mine.parent / "out/audio/call.wav")) >= 8000


# ---- pieces of long recordings ----------------------------------------------------------------------------


@pytest.fixture
def long(mine):
    """Recordings of 4 s, prepared and not."""
    ramp = (np.linspace(0.1, 0.9, 64_000) * np.sin(np.arange(64_000) / 3)).astype(np.float32)
    soundfile.write(mine / "long.wav", ramp, SAMPLE_RATE, subtype="PCM_16")
    soundfile.write(mine / "long.mp3", ramp, SAMPLE_RATE)
    return mine


def test_pieces_of_a_prepared_recording_are_used_where_they_are(long):
    table = "audio,start,end,split\nlong.wav,0.5,1.25,train\nlong.wav,1.25,,train\nlong.wav,,0.5,test\n"
    prepare_table(write(long, table), long.parent / "out")
    corpus = Corpus.open(long.parent / "out")
    first, second = corpus.captions("train")
    assert (first.id, second.id) == ("long-0000500-0001250", "long-0001250-end")
    assert first.audio == f"{long}/long.wav:8000:12000"
    whole = read(long / "long.wav")
    np.testing.assert_array_equal(read(corpus.audio_path(first)), whole[8000:20_000])
    np.testing.assert_array_equal(read(corpus.audio_path(second)), whole[20_000:])
    assert [caption.num_samples for caption in corpus.captions("test")] == [8000]
    assert validate(long.parent / "out") == []


def test_pieces_of_other_recordings_are_cut_out_of_one_decoding(long, monkeypatch):
    decoded = []
    load = sounds.load_any
    monkeypatch.setattr(sounds, "load_any", lambda path: decoded.append(path) or load(path))
    seconds = [f"{n / 2}".replace(".", ",") for n in range(9)]
    pieces = "".join(f"long.mp3;{seconds[n]};{seconds[n + 1]}\n" for n in range(8))
    table = write(long, f"audio;start;end\n{pieces}clips/c0.wav;;\nclips/c1.wav;;\n")
    summary = prepare_table(table, long.parent / "out")
    assert decoded.count(long / "long.mp3") == 1
    assert sum(count.captions for count in summary.kept.values()) == 10
    piece = read(long.parent / "out/audio/long-0001500-0002000.wav")
    np.testing.assert_allclose(piece, load(long / "long.mp3")[24_000:32_000], atol=1e-4)
    splits = split_of(Corpus.open(long.parent / "out"))
    assert len({split for name, split in splits.items() if name.startswith("long")}) == 1


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ("2,1", "end 1 must be after start 2"),
        ("1,1", "end 1 must be after start 1"),
        ("x,1", "start 'x' must be a number of seconds"),
        ("-1,1", "start '-1' must be a number of seconds"),
        ("nan,1", "start 'nan' must be a number of seconds"),
        ("1_0,2", "start '1_0' must be a number of seconds"),
        ("0,1e999", "end '1e999' must be a number of seconds"),
        ("1,5", "5 s is after its end, 4.000 s"),
        ("9,", "9 s is after its end, 4.000 s"),
        ("1,1.1", "shorter than 0.25 s"),
    ],
)
def test_times_that_make_no_piece_are_faults(long, times, message):
    for name in ("long.wav", "long.mp3"):
        (fault,) = faults(write(long, f"audio,start,end,split\n{name},{times},train\n{name},0,1,train\n"))
        assert fault.startswith("2: ")
        assert message in fault


def test_a_piece_listed_twice_and_pieces_that_overlap_in_two_splits_are_faults(long):
    twice = "audio,start,end,split\nlong.wav,0,1,train\nlong.wav,0.0,1.0,train\n"
    assert faults(write(long, twice)) == ["3: repeats line 2 (the same audio). Remove one."]
    (fault,) = faults(write(long, "audio,start,end,split\nlong.wav,0,1,train\nlong.wav,0.5,2,test\n"))
    assert fault.startswith("3: audio long.wav is in 'test' here and in 'train' in line 2")


def test_a_silent_piece_is_a_fault_of_its_line(mine):
    soundfile.write(mine / "half.wav", np.r_[np.zeros(16_000), 0.3 * np.sin(np.arange(16_000))], SAMPLE_RATE)
    soundfile.write(mine / "half.aiff", np.r_[np.zeros(16_000), 0.3 * np.sin(np.arange(16_000))], SAMPLE_RATE)
    for name in ("half.wav", "half.aiff"):
        (fault,) = faults(write(mine, f"audio,start,end,split\n{name},1,2,train\n{name},0,1,train\n"))
        assert fault.startswith("3: ")
        assert "silent" in fault


def test_a_packed_corpus_holds_the_pieces(long):
    prepare_table(write(long, "audio,start,end,split\nlong.wav,0.5,1.25,train\n"), long.parent / "out")
    pack(long.parent / "out", long.parent / "packed")
    corpus = Corpus.open(long.parent / "packed")
    (caption,) = corpus.captions("train")
    np.testing.assert_array_equal(read(corpus.audio_path(caption)), read(long / "long.wav")[8000:20_000])
