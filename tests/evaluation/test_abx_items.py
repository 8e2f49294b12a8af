from decimal import Decimal

import numpy as np
import pytest
import soundfile

from vgsplus.evaluation.abx_items import COLUMNS, ItemError, read_items

GOOD = (
    "f0 0 0.1 a k t s0",
    "f0 0.1 0.25 e k t s0",
    "f1 1e-1 0.3 a k t s1",
    "f1 0.3 0.5 e k t s1",
)
HEADER = " ".join(COLUMNS)


def write(path, *lines, header=HEADER):
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def sound(path, seconds=0.5, rate=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.sin(np.arange(int(seconds * rate))), rate)
    return path


def faults_of(*arguments, **settings):
    with pytest.raises(ItemError) as caught:
        read_items(*arguments, **settings)
    return caught.value.faults


def test_tokens_are_read_with_their_lines_and_exact_times(tmp_path):
    items = read_items(write(tmp_path / "a.item", *GOOD[:2], "", *GOOD[2:]))
    assert [token.line for token in items.tokens] == [2, 3, 5, 6]
    first, third = items.tokens[0], items.tokens[2]
    assert (first.file, first.phone, first.previous, first.following, first.speaker) == (
        "f0",
        "a",
        "k",
        "t",
        "s0",
    )
    assert (third.onset, third.offset) == (Decimal("0.1"), Decimal("0.3"))
    assert items.by_file() == {"f0": [0, 1], "f1": [2, 3]}


def test_tabs_windows_lines_a_byte_order_mark_and_more_columns_are_read(tmp_path):
    lines = [f"{HEADER} word", *(f"{line} x" for line in GOOD)]
    text = "\ufeff" + "\r\n".join(line.replace(" ", "\t") for line in lines)
    (tmp_path / "a.item").write_bytes(text.encode())
    assert read_items(tmp_path / "a.item").tokens == read_items(write(tmp_path / "b.item", *GOOD)).tokens


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("f0 0.1 0.2 a k t", "has 6 columns, the header names 7"),
        ("f0 0.1 0.2 a k t s0 more", "has 8 columns, the header names 7"),
        ("f0 zero 0.2 a k t s0", "must be numbers"),
        ("f0 0.1 nan a k t s0", "must be numbers"),
        ("f0 0.1 inf a k t s0", "must be numbers"),
        ("f0 -0.1 0.2 a k t s0", "onset -0.1 is negative"),
        ("f0 0.2 0.2 a k t s0", "offset 0.2 must be behind onset 0.2"),
        ("f0 0.2 0.1 a k t s0", "offset 0.1 must be behind onset 0.2"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    item = write(tmp_path / "a.item", *GOOD, line)
    (fault,) = faults_of(item)
    assert fault.startswith(f"{item}:6: ")
    assert said in fault


def test_all_faults_come_at_once(tmp_path):
    item = write(
        tmp_path / "a.item",
        "f0 0 0.1 a k t s0",
        "f0 x 0.1 a k t s0",
        "f1 0.1 0.9 a k t s0",
        "f1 0.3 0.2 a k t s0",
        "f2 0.3 0.4 a k t s0",
        "f2 0.4 0.5 a k t s0",
        "f3 0 0.1",
    )
    sound(tmp_path / "sounds" / "f0.wav")
    sound(tmp_path / "sounds" / "deep" / "er" / "f1.flac")
    faults = faults_of(item, audio_root=tmp_path / "sounds")
    assert [fault.removeprefix(f"{tmp_path}/a.item").split(": ")[0] for fault in faults] == [
        ":3",
        ":5",
        ":8",
        "",
        "",
        ":6",
        ":4",
    ]
    text = "\n".join(faults)
    for said in (
        "one phone only, 'a'",
        "one speaker only, 's0'",
        f"there is no sound f2 below {tmp_path}/sounds (2 lines).",
        "offset 0.9 is behind the end of f1, 0.500 s",
    ):
        assert said in text
    with pytest.raises(ItemError, match=r"a\.item:8: has 3 columns"):
        read_items(item, audio_root=tmp_path / "sounds")


def test_one_speaker_is_enough_within_speakers(tmp_path):
    item = write(tmp_path / "a.item", *GOOD[:2])
    assert len(read_items(item, conditions=["within"]).tokens) == 2
    (fault,) = faults_of(item, conditions=["across"])
    assert fault == f"{item}: holds one speaker only, 's0'; score it within speakers alone."


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty. Its first line must be: #file onset"),
        (b"\n \n", "is empty"),
        (HEADER.encode(), "holds no items, only a header"),
        (GOOD[0].encode(), ":1: the header must name #file, onset, offset, #phone"),
        (HEADER.replace("speaker", "voice").encode(), ":1: the header must name speaker once"),
        (f"{HEADER} onset".encode(), ":1: the header must name onset once"),
        (f"{HEADER} file".encode(), ":1: the header must name #file once"),
        (f"{HEADER} talker".encode(), ":1: the header must name speaker once"),
        (f"{HEADER} next-phone".encode(), ":1: the header must name next-phone once"),
        (HEADER.replace(" ", ",").encode(), "Expected: #file onset offset"),
        (HEADER.replace("#phone", "#phone\0").encode(), ":1: holds the character U+0000"),
        (f"{HEADER}\n{GOOD[0]}\n".encode("utf-16"), ":1: is not UTF-8 text"),
        (f"{HEADER}\n{GOOD[0]} \u00e9\n".encode("latin-1"), ":2: is not UTF-8 text"),
        (None, "there is no such item file"),
    ],
)
def test_what_is_no_item_file_is_refused(tmp_path, content, said):
    if content is not None:
        (tmp_path / "a.item").write_bytes(content)
    (fault,) = faults_of(tmp_path / "a.item")
    assert fault.startswith(f"{tmp_path}/a.item")
    assert said in fault


# ---- sound ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".FLAC"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_sound_is_found_at_any_depth(tmp_path, suffix, rate):
    place = sound(tmp_path / "dev" / "12" / f"f0{suffix}", rate=rate)
    other = sound(tmp_path / "dev" / "13" / "f1.wav")
    (tmp_path / "dev" / "12" / "f0.txt").write_text("a transcript")
    items = read_items(write(tmp_path / "a.item", *GOOD), audio_root=tmp_path)
    assert items.audio == {"f0": place, "f1": other}


def test_a_name_may_hold_folders_and_the_nearest_wins(tmp_path):
    lines = [line.replace("f0", "test/0").replace("f1", "test/1") for line in GOOD]
    item = write(tmp_path / "a.item", *lines)
    for name in ("test/0", "test/1", "train/0", "old/test/0"):
        sound(tmp_path / "sounds" / f"{name}.wav")
    items = read_items(item, audio_root=tmp_path / "sounds")
    assert items.audio == {name: tmp_path / "sounds" / f"{name}.wav" for name in ("test/0", "test/1")}


def test_a_name_of_two_sounds_is_refused(tmp_path):
    for name in ("a/f0.wav", "b/f0.flac", "f1.wav"):
        sound(tmp_path / name)
    (fault,) = faults_of(write(tmp_path / "a.item", *GOOD), audio_root=tmp_path)
    assert fault == (
        f"{tmp_path}/a.item:2: file f0 may be {tmp_path}/a/f0.wav and {tmp_path}/b/f0.flac. "
        "Name it by more of its path, or with its ending."
    )


def test_links_to_folders_are_followed(tmp_path):
    sound(tmp_path / "disk" / "f0.wav")
    sound(tmp_path / "disk" / "f1.wav")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "corpus").symlink_to(tmp_path / "disk")
    items = read_items(write(tmp_path / "a.item", *GOOD), audio_root=tmp_path / "here")
    assert items.audio["f0"] == tmp_path / "here" / "corpus" / "f0.wav"


def test_a_time_rounded_past_the_end_is_let_through(tmp_path):
    sound(tmp_path / "f0.wav", 0.249)
    sound(tmp_path / "f1.wav", 0.495)
    assert read_items(write(tmp_path / "a.item", *GOOD), audio_root=tmp_path).audio
    sound(tmp_path / "f1.wav", 0.48)
    (fault,) = faults_of(tmp_path / "a.item", audio_root=tmp_path)
    assert fault == f"{tmp_path}/a.item:5: offset 0.5 is behind the end of f1, 0.480 s."


def test_broken_sound_and_an_absent_folder_are_named(tmp_path):
    item = write(tmp_path / "a.item", *GOOD)
    (fault,) = faults_of(item, audio_root=tmp_path / "none")
    assert fault == f"{tmp_path}/none: there is no such folder of sounds."
    sound(tmp_path / "f0.wav")
    (tmp_path / "f1.wav").write_bytes(b"RIFF of something else")
    (fault,) = faults_of(item, audio_root=tmp_path)
    assert fault.startswith(f"{tmp_path}/a.item:4: {tmp_path}/f1.wav: cannot be read as sound")
