from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from fastabx import Dataset, Score, Task
from praatio import textgrid

from vgsplus.cli import main
from vgsplus.corpora.alignments.abx import write_items
from vgsplus.corpora.alignments.textgrid import read_textgrid
from vgsplus.evaluation.abx import score
from vgsplus.evaluation.abx_items import read_items

HEADER = "#file onset offset #phone prev-phone next-phone speaker\n"
PHONES = [
    *((0, 0.1, "sil"), (0.1, 0.2, "k"), (0.2, 0.31, "a"), (0.31, 0.4, "t"), (0.4, 0.5, "sp")),
    *((0.5, 0.6, "t"), (0.6, 0.72, "é"), (0.72, 0.8, "k"), (0.8, 1, "")),
]
WORDS = [(0, 0.1, ""), (0.1, 0.4, "cat"), (0.4, 0.5, ""), (0.5, 0.8, "tek"), (0.8, 1, "")]
TRIPHONES = "u1 0.1 0.4 a k t ann\nu1 0.5 0.8 é t k ann\n"
SINGLE = "u1 0.2 0.31 a k t ann\nu1 0.6 0.72 é t k ann\n"
SPOKEN = "#file onset offset #phone speaker\nu1 0.1 0.4 cat ann\nu1 0.5 0.8 tek ann\n"
UNALIGNED = "u0.wav"


def short_textgrid(tiers, kinds=("IntervalTier",) * 9):
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "0",
        "1",
        "<exists>",
        f"{len(tiers)}",
    ]
    for (name, segments), kind in zip(tiers.items(), kinds, strict=False):
        lines += [f'"{kind}"', f'"{name}"', "0", "1", f"{len(segments)}"]
        lines += [f'{start}\n{end}\n"{label}"' for start, end, label in segments]
    return "\n".join(lines) + "\n"


def long_textgrid(tiers):
    text = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0 \nxmax = 1 \n'
    text += f"tiers? <exists> \nsize = {len(tiers)} \nitem []: \n"
    for number, (name, segments) in enumerate(tiers.items(), start=1):
        text += f'    item [{number}]:\n        class = "IntervalTier" \n        name = "{name}" \n'
        text += f"        xmin = 0 \n        xmax = 1 \n        intervals: size = {len(segments)} \n"
        for index, (start, end, label) in enumerate(segments, start=1):
            text += f"        intervals [{index}]:\n            xmin = {start} \n            xmax = {end} \n"
            text += f'            text = "{label}" \n'
    return text


def ctm(segments, name="u1"):
    lines = (f"{name} 1 {start} {end - start:.2f} {label} 0.9\n" for start, end, label in segments if label)
    return ";; a comment\n" + "".join(lines)


def xlabel(segments):
    return "separator ;\nnfields 1\n#\n" + "".join(
        f"    {end}   125   {label}\n" for _, end, label in segments
    )


def timit(segments):
    lines = (
        f"{round(16_000 * start)} {round(16_000 * end)} {label}\n" for start, end, label in segments if label
    )
    return "".join(lines)


def librispeech(segments):
    words = ",".join(label for *_, label in segments)
    return f'u1 "{words}" "{",".join(str(end) for _, end, _ in segments)}"\n'


def put(folder, name, text, encoding="utf-8"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def put_sound(path, seconds=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, int(16_000 * seconds)), 16_000)


@pytest.fixture
def root(tmp_path):
    """A folder of a speaker with two sounds, of which u1.wav will be aligned."""
    put_sound(tmp_path / "ann" / "u1.wav")
    put_sound(tmp_path / "ann" / UNALIGNED)
    return tmp_path


def made(root, **options):
    write_items(root, root / "out" / "x.item", **options)
    return (root / "out" / "x.item").read_text(encoding="utf-8")


PHONE_FILES = {
    "a long TextGrid": ("ann/u1.TextGrid", long_textgrid({"words": WORDS, "phones": PHONES}), "utf-8"),
    "a short TextGrid": ("ann/u1.TextGrid", short_textgrid({"words": WORDS, "Phones": PHONES}), "utf-8"),
    "UTF-16": ("ann/u1.TextGrid", long_textgrid({"phones": PHONES}), "utf-16"),
    "an older header": (
        "ann/u1.TextGrid",
        short_textgrid({"phones": PHONES})
        .replace("ooTextFile", "ooTextFile short")
        .replace("Object class = ", ""),
        "utf-8",
    ),
    "lines of Windows": (
        "ann/u1.TextGrid",
        long_textgrid({"phones": PHONES}).replace("\n", "\r\n"),
        "utf-16",
    ),
    "a byte-order mark": ("ann/u1.textgrid", short_textgrid({"phones": PHONES}), "utf-8-sig"),
    "a tier of a speaker": (
        "u1.TextGrid",
        long_textgrid({"ann - words": WORDS, "ann - phones": PHONES}),
        "utf-8",
    ),
    "CTM": ("all.ctm", ctm(PHONES), "utf-8"),
    "CTM with names of sounds": ("all.ctm", ctm(PHONES, "ann/u1"), "utf-8"),
    "xlabel": ("ann/lab/u1.lab", xlabel(PHONES), "utf-8"),
    "TIMIT": ("ann/u1.PHN", timit(PHONES), "utf-8"),
}
WORD_FILES = {
    "a TextGrid": ("ann/u1.TextGrid", long_textgrid({"words": WORDS, "phones": PHONES})),
    "CTM": ("all.ctm", ctm(WORDS)),
    "TIMIT": ("ann/u1.WRD", timit(WORDS)),
    "xlabel": ("ann/wrd/u1.wrd", xlabel(WORDS)),
    "LibriSpeech": ("ann/ann.alignment.txt", librispeech([*WORDS, (1, 1, "")])),
}


@pytest.mark.parametrize("file", PHONE_FILES)
def test_phones_of_every_format_become_the_items_made_by_hand(root, file):
    put(root, *PHONE_FILES[file])
    assert made(root) == HEADER + TRIPHONES
    assert made(root, unit="phone", overwrite=True) == HEADER + SINGLE


@pytest.mark.parametrize("file", WORD_FILES)
def test_words_of_every_format_become_the_items_made_by_hand(root, file):
    put(root, *WORD_FILES[file])
    assert made(root, unit="word") == SPOKEN
    items = read_items(root / "out/x.item", conditions=("within",), audio_root=root)
    assert not items.has_contexts


def test_textgrids_are_read_as_praatio_writes_them(tmp_path):
    rng = np.random.default_rng(3)
    labels = ["a", 'quo"te', "é", "<p:>", "!", "7", "[1]:", "=", ""]
    for case in range(20):
        times = np.sort(rng.uniform(0, 5, 9)).round(int(rng.integers(2, 12)))
        pairs = [(float(s), float(e), str(rng.choice(labels))) for s, e in pairwise(times)]
        grid = textgrid.Textgrid()
        grid.addTier(textgrid.PointTier("points", [(0.5, "x")], 0, 5))
        grid.addTier(textgrid.IntervalTier("phones", [pair for pair in pairs if pair[0] < pair[1]], 0, 5))
        path = tmp_path / f"{case}.TextGrid"
        kind = "short_textgrid" if case % 2 else "long_textgrid"
        grid.save(str(path), kind, includeBlankSpaces=True)
        theirs = textgrid.openTextgrid(str(path), includeEmptyIntervals=True).getTier("phones").entries
        (track,) = read_textgrid(path, "phones", faults := [])
        assert not faults
        assert [(float(s.start), float(s.end), s.label) for s in track.segments] == [tuple(e) for e in theirs]


def test_contexts_are_neighbours_without_silence_noise_or_gap_between(root):
    segments = [(0.1 * k, 0.1 * k + 0.1, label) for k, label in enumerate(["a", "b", "c", "SPN", "d", "e"])]
    segments += [(0.65, 0.75, "f"), (0.75, 0.85, "g"), (0.855, 0.9, "h")]
    put(
        root,
        "x.ctm",
        "".join(f"u1 1 {start:.3f} {end - start:.3f} {label}\n" for start, end, label in segments),
    )
    assert made(root, unit="phone") == HEADER + "u1 0.1 0.2 b a c ann\nu1 0.75 0.85 g f h ann\n"


def test_silences_stress_and_short_tokens_follow_the_options(root):
    segments = [
        (0, 0.2, "AH0_B"),
        (0.2, 0.215, "K_I"),
        (0.215, 0.4, "AH1_I"),
        (0.4, 0.5, "T_I"),
        (0.5, 0.6, "x_E"),
    ]
    put(root, "ann/u1.TextGrid", long_textgrid({"phones": segments}))
    tokens = "u1 0.2 0.5 AH K T ann\nu1 0.215 0.6 T AH x ann\n"
    assert made(root, strip="[0-2]?_[BIES]$") == f"{HEADER}u1 0 0.4 K AH AH ann\n{tokens}"
    options = {"strip": "[0-2]?_[BIES]$", "unit": "phone", "overwrite": True}
    kept = "u1 0.215 0.4 AH K T ann\n"
    assert made(root, **options) == f"{HEADER}{kept}u1 0.4 0.5 T AH x ann\n"
    assert made(root, **options, silences=["X"]) == HEADER + kept
    assert made(root, **options, min_seconds=0.11) == HEADER + kept
    assert "u1 0.2 0.215 K AH AH ann" in made(root, **options, min_seconds=0)


@pytest.mark.parametrize(
    ("sound", "file", "speaker"),
    [
        ("dev/84/121123/84-121123-0000.wav", "dev/84/121123/84-121123-0000.TextGrid", "84"),
        ("TEST/DR1/FAKS0/SA1.WAV", "TEST/DR1/FAKS0/SA1.PHN", "FAKS0"),
        ("cmu_us_slt/wav/a1.wav", "cmu_us_slt/lab/a1.lab", "cmu_us_slt"),
        ("dev/84/121123/84-121123-0000.wav", "all.ctm", "84"),
        ("flat/a b/x.wav", "grids/a b/x.TextGrid", "a_b"),
    ],
)
def test_the_speaker_is_that_of_the_folders(tmp_path, sound, file, speaker):
    put_sound(tmp_path / sound)
    name = sound.rpartition("/")[2].rpartition(".")[0]
    texts = {
        "TextGrid": short_textgrid({"phones": PHONES}),
        "PHN": timit(PHONES),
        "lab": xlabel(PHONES),
        "ctm": ctm(PHONES, name),
    }
    put(tmp_path, file, texts[file.rpartition(".")[2]])
    lines = made(tmp_path).splitlines()[1:]
    assert {line.split()[-1] for line in lines} == {speaker}
    assert {line.split()[0] for line in lines} == {name}


def test_a_table_names_speakers_and_a_tier_each_of_its_own(root):
    put(root, "u1.TextGrid", long_textgrid({"bob - phones": PHONES, "cid - phones": PHONES[:4]}))
    assert made(root) == HEADER + TRIPHONES.replace("ann", "bob") + "u1 0.1 0.4 a k t cid\n"
    put(root, "ann/u0.lab", xlabel(PHONES))
    table = put(root, "utt2spk", "u0 dora\nu1 emil\n")
    assert {line.split()[-1] for line in made(root, speakers=table, overwrite=True).splitlines()[1:]} == {
        "dora",
        "emil",
    }


def test_sounds_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for speaker in ("bdl", "slt"):
        put_sound(tmp_path / speaker / "wav" / "a1.wav")
        put(tmp_path, f"{speaker}/lab/a1.lab", xlabel(PHONES))
    lines = made(tmp_path).splitlines()[1:]
    assert [(line.split()[0], line.split()[-1]) for line in lines[::2]] == [
        ("bdl/wav/a1", "bdl"),
        ("slt/wav/a1", "slt"),
    ]
    assert len(read_items(tmp_path / "out/x.item", audio_root=tmp_path).audio) == 2


@pytest.mark.parametrize("unit", ["phone", "word"])
def test_a_sample_has_whole_contexts_and_depends_on_the_seed_alone(tmp_path, unit):
    rng = np.random.default_rng(0)
    suffix = "PHN" if unit == "phone" else "WRD"
    for number in range(4):
        put_sound(tmp_path / "ann" / f"u{number}.wav", seconds=5)
        labels = rng.choice(list("abc"), 80)
        put(
            tmp_path,
            f"ann/u{number}.{suffix}",
            timit([(k / 20, k / 20 + 0.05, x) for k, x in enumerate(labels)]),
        )
    everything = made(tmp_path, unit=unit).splitlines()
    drawn = [made(tmp_path, unit=unit, size=200, seed=seed, overwrite=True) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1

    def group(line):
        cells = line.split()
        return cells[3] if unit == "word" else tuple(cells[4:6])

    for text in drawn:
        lines = text.splitlines()
        assert 100 < len(lines) <= 201
        chosen = {group(line) for line in lines}
        assert lines == [line for line in everything if group(line) in chosen]


def test_errors_on_such_items_are_those_of_fastabx(tmp_path, monkeypatch):
    """fastabx, used as in its documentation, reads the items and cuts the tokens from files of features."""
    rng, rate = np.random.default_rng(5), 50
    monkeypatch.setenv("FASTABX_WITH_LIBRILIGHT_BUG", "0")
    features = {}
    for name in ("ann", "bob"):
        put_sound(tmp_path / name / f"{name}1.wav", seconds=12)
        bounds = np.cumsum(rng.uniform(0.0301, 0.09, 190)) + 0.0123
        segments = [(f"{s:.4f}", f"{e:.4f}") for s, e in pairwise(bounds) if e < 11.9]
        labels = rng.choice(["a", "e", "k", "sil"], len(segments), p=[0.3, 0.3, 0.3, 0.1])
        tier = [(*times, label) for times, label in zip(segments, labels, strict=True)]
        put(tmp_path, f"{name}/{name}1.TextGrid", short_textgrid({"phones": tier}))
        features[f"{name}1"] = rng.normal(size=(12 * rate, 16)).astype(np.float32)
        put(tmp_path, f"features/{name}1.pt", "")
        torch.save(torch.from_numpy(features[f"{name}1"]), tmp_path / "features" / f"{name}1.pt")
    made(tmp_path, unit="phone")
    item = tmp_path / "out" / "x.item"
    dataset = Dataset.from_item(item, tmp_path / "features", rate, device="cpu", progress=False)
    around = ["next-phone", "prev-phone"]
    within = Task(dataset, on="#phone", by=["speaker", *around])
    across = Task(dataset, on="#phone", by=around, across=["speaker"])
    levels = [tuple(around), "speaker"]
    theirs = {
        condition: Score(task, "angular", progress=False).collapse(levels=levels)
        for condition, task in (("within", within), ("across", across))
    }
    assert score(features, item, rate) == pytest.approx(theirs, abs=1e-4)


def test_the_command_tells_what_it_made_and_left_out(root, capsys):
    put(root, "ann/u1.lab", xlabel(PHONES))
    with pytest.raises(SystemExit) as ended:
        main(["data", "items", str(root), "--out", str(root / "x.item"), "--unit", "phone"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == (
        f"{root}/x.item: 2 tokens of 2 phones in 2 contexts, by 1 speaker(s) in 1 sound(s)\n"
        "left out: 3 silence or noise\nleft out: 4 next to silence, a gap or the end\n"
    )
