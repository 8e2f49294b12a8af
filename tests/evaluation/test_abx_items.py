import unicodedata
from decimal import Decimal

import numpy as np
import pytest
import soundfile

from vgsplus.corpora.format import ITEM_COLUMNS
from vgsplus.errors import CorpusError
from vgsplus.evaluation.abx_items import read_items

GOOD = (
    "f0 0 0.1 a k t s0",
    "f0 0.1 0.25 e k t s0",
    "f1 1e-1 0.3 a k t s1",
    "f1 0.3 0.5 e k t s1",
)
HEADER = " ".join(ITEM_COLUMNS)
DIFFERS = "f0 from 0.1 to 0.25 s is phone {} here and phone e in context k t by s0 in line 3"


def write(path, *lines, header=HEADER):
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def sound(path, seconds=0.5, rate=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.sin(np.arange(int(seconds * rate))), rate)
    return path


def faults_of(*arguments, **settings):
    with pytest.raises(CorpusError) as caught:
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


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n", "\n\n \t\n"])
def test_lines_may_end_as_on_any_system(tmp_path, end):
    (tmp_path / "a.item").write_bytes(end.join([HEADER, *GOOD]).encode())
    tokens = read_items(tmp_path / "a.item").tokens
    assert [(token.file, token.phone, token.speaker) for token in tokens] == [
        ("f0", "a", "s0"),
        ("f0", "e", "s0"),
        ("f1", "a", "s1"),
        ("f1", "e", "s1"),
    ]


@pytest.mark.parametrize(
    ("header", "line", "previous", "following", "has_contexts"),
    [
        ("file onset offset phone prev-phone next-phone speaker", "f{n} 0 {t} {p} k t s{n}", "k", "t", True),
        (
            "speaker #phone next-phone prev-phone offset onset #file",
            "s{n} {p} t k {t} 0 f{n}",
            "k",
            "t",
            True,
        ),
        ("#file onset offset #phone context talker", "f{n} 0 {t} {p} k_t s{n}", "k_t", "", True),
        ("#file onset offset #phone speaker", "f{n} 0 {t} {p} s{n}", "", "", False),
        ("#file onset offset #phone prev-phone speaker word", "f{n} 0 {t} {p} k s{n} w", "", "", False),
        (f"{HEADER} context", "f{n} 0 {t} {p} k t s{n} k_t", "k", "t", True),
    ],
)
def test_the_dialects_of_the_field_are_read(tmp_path, header, line, previous, following, has_contexts):
    lines = [line.format(n=n, t=t, p=p) for n in "01" for t, p in (("0.1", "a"), ("0.2", "e"))]
    items = read_items(write(tmp_path / "a.item", *lines, header=header))
    assert items.has_contexts == has_contexts
    assert [(token.file, token.offset, token.phone, token.speaker) for token in items.tokens] == [
        (f"f{n}", Decimal(t), p, f"s{n}") for n in "01" for t, p in (("0.1", "a"), ("0.2", "e"))
    ]
    assert {(token.previous, token.following) for token in items.tokens} == {(previous, following)}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("f0 0.1 0.2 a k t", "has 6 columns, the header names 7"),
        ("f0 0.1 0.2 a k t s0 more", "has 8 columns, the header names 7"),
        ("f0 zero 0.2 a k t s0", "must be numbers"),
        ("f0 0.1 nan a k t s0", "must be numbers"),
        ("f0 0.1 inf a k t s0", "must be numbers"),
        ("f0 0.1 1e400 a k t s0", "must be numbers"),
        ("f0 1E-999999999 0.2 a k t s0", "must be numbers"),
        ("f0 0.1 1E+999999999 a k t s0", "must be numbers"),
        ("f0 0.1 1e99 a k t s0", "must be seconds, less than"),
        (f"f0 0.1 {'9' * 5000} a k t s0", "offset 9999999999999999999999999999999999999999… must be numbers"),
        ("f0 0.1 1_0 a k t s0", "must be numbers"),
        ("f0 0.1 ٣ a k t s0", "must be numbers"),
        ("f0 0x1 1 a k t s0", "must be numbers"),
        ("f0 0,1 0,2 a k t s0", "onset 0,1 and offset 0,2 must be numbers, in seconds"),
        ("f0 0.3 0.4 a\0 k t s0", "holds the character U+0000"),
        ("f0 0.3 0.4 a k t\u2028s0", "holds the character U+2028"),
        ("f0 0.3 0.4 a k t\x85s0", "holds the character U+0085"),
        ("f0 0.3 0.4 a k\u00a0t s0", "holds the character U+00A0"),
        ("f0 -0.1 0.2 a k t s0", "onset -0.1 is negative"),
        ("f0 0.2 0.2 a k t s0", "offset 0.2 must be after onset 0.2"),
        ("f0 0.2 0.1 a k t s0", "offset 0.1 must be after onset 0.2"),
        (GOOD[1], "f0 from 0.1 to 0.25 s is in line 3 already and counts once. Remove one of the lines."),
        ("f0 1.0e-1 0.2500 e k t s0", "f0 from 0.10 to 0.2500 s is in line 3 already"),
        ("f0 0.10000000149 0.25 e k t s0", "f0 from 0.10000000149 to 0.25 s is in line 3 already"),
        ("f0 0.1 0.25 a k t s0", DIFFERS.format("a in context k t by s0")),
        ("f0 0.1 0.25 e k t s1", DIFFERS.format("e in context k t by s1")),
        ("f0 0.1 0.25 e k d s0", DIFFERS.format("e in context k d by s0")),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    item = write(tmp_path / "a.item", *GOOD, line)
    (fault,) = faults_of(item)
    assert fault.startswith(f"{item}:6: ")
    assert message in fault


def test_times_are_read_exactly_however_they_are_written(tmp_path):
    lines = ("f0 -0 +.1 a k t s0", "f0 2E-1 3. e k t s0", "f1 0.10 00.30 a k t s1")
    tokens = read_items(write(tmp_path / "a.item", *lines)).tokens
    assert [(token.onset, token.offset) for token in tokens] == [
        (Decimal(0), Decimal("0.1")),
        (Decimal("0.2"), Decimal(3)),
        (Decimal("0.1"), Decimal("0.3")),
    ]


def test_a_token_of_the_same_time_in_another_file_or_of_other_times_is_another(tmp_path):
    lines = ("f2 0 0.1 a k t s0", "f0 0 0.1001 a k t s0", "f0 0.0999 0.25 e k t s0")
    assert len(read_items(write(tmp_path / "a.item", *GOOD, *lines)).tokens) == 7


def test_a_token_twice_by_two_names_of_one_sound_is_refused(tmp_path):
    sound(tmp_path / "s" / "f0.wav")
    sound(tmp_path / "s" / "f1.wav")
    (tmp_path / "s" / "linked.wav").symlink_to("f1.wav")
    names = ("s/f0", "f0.wav", "./f0", str(tmp_path / "s" / "f0"))
    item = write(
        tmp_path / "a.item", *GOOD, *(f"{name} 0 0.1 a k t s0" for name in names), "linked 0.1 0.3 a k t s1"
    )
    faults = faults_of(item, audio_root=tmp_path / "s")
    assert [fault.split(" s is ")[1] for fault in faults] == [
        *["in line 2 already and counts once. Remove one of the lines."] * 4,
        "in line 4 already and counts once. Remove one of the lines.",
    ]
    assert [fault.split(":")[1] for fault in faults] == ["6", "7", "8", "9", "10"]


def test_a_label_in_two_unicode_forms_is_refused_once(tmp_path):
    lines = [f"f2 {n} {n}.5 a\u0303 k t s0" for n in range(3)]
    item = write(tmp_path / "a.item", *GOOD, "f2 4 4.5 ã k t s0", *lines)
    (fault,) = faults_of(item)
    assert fault.startswith(f"{item}:7: a\u0303 is written in another Unicode form than in line 6")
    assert len(read_items(write(tmp_path / "a.item", *GOOD, *lines)).tokens) == 7


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
    for message in (
        "one phone only, 'a'",
        "one speaker only, 's0'",
        f"there is no sound f2 below {tmp_path}/sounds (2 lines).",
        "offset 0.9 is after the end of f1, 0.500 s",
    ):
        assert message in text
    with pytest.raises(CorpusError, match=r"a\.item:8: has 3 columns"):
        read_items(item, audio_root=tmp_path / "sounds")


def test_one_speaker_is_enough_within_speakers(tmp_path):
    item = write(tmp_path / "a.item", *GOOD[:2])
    assert len(read_items(item, conditions=["within"]).tokens) == 2
    (fault,) = faults_of(item, conditions=["across"])
    assert fault == f"{item}: holds one speaker only, 's0'; score it within speakers only."


@pytest.mark.parametrize(
    ("content", "message"),
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
def test_what_is_not_an_item_file_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.item").write_bytes(content)
    (fault,) = faults_of(tmp_path / "a.item")
    assert fault.startswith(f"{tmp_path}/a.item")
    assert message in fault


# ---- sound ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".FLAC", ".mp3", ".aiff", ".au", ".caf", ".w64"])
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
        "Name it by more of its path, or with its suffix."
    )


def test_a_name_with_its_ending_is_the_file_of_that_name(tmp_path):
    # As in a copy of TIMIT with sounds converted beside the published ones.
    places = {
        name: sound(tmp_path / "s" / "DR1" / name) for name in ("SA1.WAV", "SA1.WAV.wav", "x.flac", "x.wav")
    }
    meant = {
        "SA1": "SA1.WAV",
        "DR1/SA1.WAV": "SA1.WAV",
        "SA1.WAV.wav": "SA1.WAV.wav",
        "x.wav": "x.wav",
        "s/DR1/x.flac": "x.flac",
    }
    for number, (name, file) in enumerate(meant.items()):
        item = write(tmp_path / f"{number}.item", *(line.replace("f0", name) for line in GOOD[:2]))
        items = read_items(item, conditions=["within"], audio_root=tmp_path / "s")
        assert items.audio == {name: places[file]}


def test_names_with_dots_are_complete(tmp_path):
    places = {name: sound(tmp_path / f"{name}.wav") for name in ("clip.v1", "clip.v2", "clip")}
    lines = [f"{name} 0 0.{n} {p} k t s{n}" for n, name in enumerate(places, 1) for p in "a"]
    item = write(tmp_path / "a.item", *lines, "clip 0.3 0.4 e k t s1")
    assert read_items(item, audio_root=tmp_path).audio == places


@pytest.mark.parametrize(("listed", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_in_another_unicode_form_is_found(tmp_path, listed, stored):
    def form(kind):
        return unicodedata.normalize(kind, "ü/f0")

    place = sound(tmp_path / form(stored) / f"{form(stored)}.wav")
    lines = [line.replace("f0", form(listed)) for line in GOOD[:2]]
    item = write(tmp_path / f"{form(stored).replace('/', '_')}.item", *lines)
    root = tmp_path / unicodedata.normalize(listed, "ü")
    listed_item = tmp_path / f"{form(listed).replace('/', '_')}.item"
    items = read_items(listed_item, conditions=["within"], audio_root=root)
    assert items.path == item
    assert items.audio == {form(listed): place}


@pytest.mark.parametrize("file", [".", "/", "..", "../f0", "f0/", "wav", ".wav", "0", "*", "F0"])
def test_a_name_of_no_sound_is_no_other(tmp_path, file):
    sound(tmp_path / "s" / "f0.wav")
    item = write(tmp_path / "a.item", *(line.replace("f0", file) for line in GOOD[:2]))
    if file == "f0/":
        assert read_items(item, conditions=["within"], audio_root=tmp_path / "s").audio
        return
    (fault,) = faults_of(item, conditions=["within"], audio_root=tmp_path / "s")
    assert fault == f"{item}:2: there is no sound {file} below {tmp_path}/s (2 lines)."


def test_what_is_no_sound_is_passed_over(tmp_path):
    place = sound(tmp_path / "s" / "f0.wav")
    (tmp_path / "s" / "._f0.wav").write_bytes(b"\0\5\x16\7 of a Mac")
    (tmp_path / "s" / "loop").symlink_to(tmp_path / "s")
    (tmp_path / "s" / "f0.lab").write_text("a e")
    item = write(tmp_path / "a.item", *GOOD[:2])
    assert read_items(item, conditions=["within"], audio_root=tmp_path / "s").audio == {"f0": place}


def test_a_root_without_sounds_is_reported_once(tmp_path):
    item = write(tmp_path / "a.item", *GOOD)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "f0.m4a").write_text("of a telephone")
    (fault,) = faults_of(item, audio_root=tmp_path / "s")
    assert fault.startswith(f"{tmp_path}/s: holds no sound files (.aif, ")
    (fault,) = faults_of(item, audio_root=item)
    assert fault == f"{item}: is a file, not a folder of sounds."


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
    assert fault == f"{tmp_path}/a.item:5: offset 0.5 is after the end of f1, 0.480 s."


def test_broken_sound_and_an_absent_folder_are_named(tmp_path):
    item = write(tmp_path / "a.item", *GOOD)
    (fault,) = faults_of(item, audio_root=tmp_path / "none")
    assert fault == f"{tmp_path}/none: there is no such folder of sounds."
    sound(tmp_path / "f0.wav")
    (tmp_path / "f1.wav").write_bytes(b"RIFF of something else")
    (fault,) = faults_of(item, audio_root=tmp_path)
    assert fault.startswith(f"{tmp_path}/a.item:4: {tmp_path}/f1.wav: cannot be read as sound")
