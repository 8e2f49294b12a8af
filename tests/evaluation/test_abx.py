import math
import os
from collections import defaultdict
from fractions import Fraction
from itertools import product

import fastabx
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

import vgsplus
from vgsplus.corpora.format import ITEM_COLUMNS
from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.evaluation.abx import AbxScorer, score
from vgsplus.evaluation.abx_items import TokenFrames, frame_spans, read_items

# ---- ABX straight from the definition, in float64 and with loops ------------------------------------------

EQUAL = 1e-9  # distances that differ by less are ties


def oracle(features, rows, *, rate=50, condition="within", context="within", last_frame=True):
    """The error of items (file, onset, offset, phone, previous, following, speaker), times as text."""
    groups = defaultdict(lambda: defaultdict(list))
    for file, onset, offset, phone, previous, following, speaker in rows:
        centres = [(t + Fraction(1, 2)) / Fraction(rate) for t in range(len(features[file]))]
        inside = [t for t, centre in enumerate(centres) if Fraction(onset) <= centre <= Fraction(offset)]
        frames = inside if last_frame else inside[:-1]
        around = (previous, following) if context == "within" else ()
        if frames:
            token = unit(np.asarray(features[file], np.float64)[frames])
            groups[around][speaker, phone].append(token)
    cells = defaultdict(lambda: defaultdict(list))
    for tokens in groups.values():
        for (speaker, a), (other, b) in product(tokens, repeat=2):
            if speaker != other or a == b:
                continue
            if condition == "within":
                triples = [(x, y) for x, y in product(range(len(tokens[speaker, a])), repeat=2) if x != y]
                pairs = [(tokens[speaker, a][x], tokens[speaker, a][y]) for x, y in triples]
                if pairs:
                    cells[a, b][speaker].append(wrong(pairs, tokens[speaker, b]))
                continue
            for third, phone in tokens:
                if phone == a and third != speaker:
                    pairs = list(product(tokens[third, a], tokens[speaker, a]))
                    cells[a, b][speaker].append(wrong(pairs, tokens[speaker, b]))
    by_pair = [np.mean([np.mean(found) for found in speakers.values()]) for speakers in cells.values()]
    return float(np.mean(by_pair))


def unit(frames):
    return frames / np.linalg.norm(frames, axis=1, keepdims=True)


def wrong(pairs, others):
    """The share of (X, A) with each B in which X is nearer to B, ties counting half."""
    to_b = {id(x): [warped(x, b) for b in others] for x, _ in pairs}
    gaps = [far - near for x, a in pairs for near in [warped(x, a)] for far in to_b[id(x)]]
    return float(np.mean([0.5 if abs(gap) < EQUAL else float(gap < 0) for gap in gaps]))


def warped(x, y):
    """Mean angle along the path of least sum; where sums are equal, both sides advance."""
    angles = np.arccos(np.clip(x @ y.T, -1, 1)) / math.pi
    angles[angles < 1e-7] = 0  # equal frames: the arc cosine makes 1e-8 of a rounding error
    best = {}
    for i, j in np.ndindex(angles.shape):
        before = [best[step] for step in ((i - 1, j - 1), (i, j - 1), (i - 1, j)) if step in best]
        total, length = min(before, key=lambda found: round(found[0], 9)) if before else (0.0, 0)
        best[i, j] = total + angles[i, j], length + 1
    total, length = best[angles.shape[0] - 1, angles.shape[1] - 1]
    return total / length


# ---- cases ------------------------------------------------------------------------------------------------

CONDITIONS = ("within", "across")


def write(path, rows, header=ITEM_COLUMNS):
    path.write_text("\n".join(" ".join(row) for row in [header, *rows]) + "\n", encoding="utf-8")
    return path


def random_case(seed, *, tokens=45, rate=50, vectors=None, longest=0.19):
    """Features (T, 5) of three files and tokens of three phones in two contexts by three speakers.

    With `vectors`, frames are drawn from that many, so that ties are everywhere. At up to 90 tokens, no
    speaker has more than ten of a phone, so that the published protocol leaves none out.
    """
    rng = np.random.default_rng(seed)
    seconds, width = 2.0, 5
    frames = int(seconds * rate)
    pool = rng.normal(size=(vectors or 3 * frames, width)).astype(np.float32)
    drawn = rng.integers(len(pool), size=(3, frames)) if vectors else np.arange(3 * frames).reshape(3, frames)
    features = {f"f{n}": pool[drawn[n]] for n in range(3)}
    rows = []
    for number in range(tokens):
        onset = rng.uniform(0, seconds - 0.25)
        offset = onset + rng.uniform(1.05 / rate, longest)
        phone, speaker = "aeo"[number % 3], number // 3 % 3
        around = ("k", "t") if rng.random() < 0.6 else ("s", "n")
        rows.append((f"f{speaker}", f"{onset:.4f}", f"{offset:.4f}", phone, *around, f"s{speaker}"))
    return features, rows


# ---- the errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("vectors", [None, 3])
@pytest.mark.parametrize("context", ["within", "any"])
@pytest.mark.parametrize("as_published", [False, True])
def test_score_agrees_with_the_definition(tmp_path, seed, vectors, context, as_published):
    features, rows = random_case(seed, vectors=vectors, tokens=45 if context == "within" else 26)
    item = write(tmp_path / "a.item", rows)
    got = score(features, item, context=context, as_published=as_published)
    for condition in CONDITIONS:
        expected = oracle(features, rows, condition=condition, context=context, last_frame=not as_published)
        assert got[condition] == pytest.approx(expected, abs=1e-6)


def test_the_cases_hold_ties_and_single_frames():
    features, rows = random_case(0, vectors=3)
    lengths = [float(offset) - float(onset) for _, onset, offset, *_ in rows]
    assert min(lengths) < 2 / 50 < 0.1 < max(lengths)
    assert len(np.unique(np.concatenate(list(features.values())), axis=0)) == 3


@pytest.mark.parametrize("rate", [25, 100, 66.5, Fraction(16000, 240)])
def test_any_frame_rate(tmp_path, rate):
    features, rows = random_case(5, rate=float(rate))
    got = score(features, write(tmp_path / "a.item", rows), rate)
    exact = rate if isinstance(rate, Fraction) else Fraction(str(rate))
    for condition in CONDITIONS:
        expected = oracle(features, rows, rate=exact, condition=condition)
        assert got[condition] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "convert", [torch.from_numpy, lambda a: torch.from_numpy(a).requires_grad_(), np.float64]
)
def test_tensors_and_other_dtypes(tmp_path, convert):
    features, rows = random_case(6)
    item = write(tmp_path / "a.item", rows)
    assert score({name: convert(array) for name, array in features.items()}, item) == score(features, item)


def test_one_condition_alone(tmp_path):
    features, rows = random_case(7)
    item = write(tmp_path / "a.item", rows)
    both = score(features, item)
    assert score(features, item, conditions=["across"]) == {"across": both["across"]}
    assert list(both) == ["within", "across"]


def test_the_order_of_lines_and_columns_changes_nothing(tmp_path):
    features, rows = random_case(8)
    expected = score(features, write(tmp_path / "a.item", rows))
    rng = np.random.default_rng(0)
    moved = [rows[index] for index in rng.permutation(len(rows))]
    assert score(features, write(tmp_path / "b.item", moved)) == pytest.approx(expected, abs=1e-7)
    order = rng.permutation(7)
    moved = [[row[index] for index in order] for row in moved]
    item = write(tmp_path / "c.item", moved, [ITEM_COLUMNS[index] for index in order])
    assert score(features, item) == pytest.approx(expected, abs=1e-7)


DIALECTS = {
    "context and talker": (
        ["#file", "onset", "offset", "#phone", "context", "talker"],
        lambda file, onset, offset, phone, before, behind, by: [
            file,
            onset,
            offset,
            phone,
            f"{before}_{behind}",
            by,
        ],
    ),
    "without signs, and with a word": (
        ["file", "onset", "offset", "phone", "prev-phone", "next-phone", "speaker", "word"],
        lambda *row: [*row, "word"],
    ),
    "without contexts": (
        ["#file", "onset", "offset", "#phone", "speaker"],
        lambda *row: [*row[:4], row[6]],
    ),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("context", ["within", "any"])
def test_every_dialect_has_the_score_of_the_definition(tmp_path, dialect, context):
    features, rows = random_case(8)
    header, change = DIALECTS[dialect]
    item = write(tmp_path / "a.item", [change(*row) for row in rows], header)
    if (dialect, context) == ("without contexts", "within"):
        with pytest.raises(
            CorpusError, match=r"names no contexts.*columns prev-phone and next-phone, or context"
        ):
            score(features, item)
        return
    got = score(features, item, context=context)
    for condition in CONDITIONS:
        assert got[condition] == pytest.approx(
            oracle(features, rows, condition=condition, context=context), abs=1e-6
        )


def test_features_are_found_under_another_unicode_form(tmp_path):
    features, rows = random_case(9)
    expected = score(features, write(tmp_path / "a.item", rows))
    composed = write(tmp_path / "b.item", [(f"ü{row[0]}", *row[1:]) for row in rows])
    assert score({f"u\u0308{name}": array for name, array in features.items()}, composed) == expected


def test_features_that_name_the_phone_make_no_error(tmp_path):
    rows = [
        (f"f{speaker}", f"{0.1 * n:.2f}", f"{0.1 * n + 0.08:.2f}", "aeo"[n % 3], "k", "t", f"s{speaker}")
        for speaker in range(2)
        for n in range(12)
    ]
    frames = np.repeat([np.eye(3)[n % 3] for n in range(12)], 5, axis=0)
    got = score({"f0": frames, "f1": 2 * frames}, write(tmp_path / "a.item", rows))
    assert got == {"within": 0.0, "across": 0.0}


@pytest.mark.parametrize("width", [1, 2, 3, 5, 39, 128, 768, 1024])
@pytest.mark.parametrize("as_published", [False, True])
def test_features_that_say_nothing_err_half_the_time(tmp_path, width, as_published):
    _, rows = random_case(9)
    item = write(tmp_path / "a.item", rows)
    for vector in (np.ones(width), np.random.default_rng(width).normal(size=width), np.zeros(width)):
        features = {f"f{n}": np.tile(vector, (100, 1)) for n in range(3)}
        assert score(features, item, as_published=as_published) == {"within": 0.5, "across": 0.5}


# ---- the published protocol, and fastabx's own ------------------------------------------------------------


def feature_files(folder, features):
    folder.mkdir()
    for name, array in features.items():
        torch.save(torch.from_numpy(array), folder / f"{name}.pt")
    return folder


def fastabx_score(item, root, condition, context, limits):
    size, speakers = limits
    return fastabx.zerospeech_abx(
        item,
        root,
        max_size_group=size,
        max_x_across=speakers,
        speaker=condition,
        context=context,
        device="cpu",
        progress=False,
    )


@pytest.mark.parametrize("context", ["within", "any"])
@pytest.mark.parametrize("as_published", [False, True])
def test_score_is_what_fastabx_gives(tmp_path, monkeypatch, context, as_published):
    features, rows = random_case(10, tokens=90)
    if as_published:  # fastabx refuses tokens that lose their only frame
        rows = [row for row in rows if float(row[2]) - float(row[1]) > 0.0601]
    item, root = write(tmp_path / "a.item", rows), feature_files(tmp_path / "features", features)
    ours = score(features, item, context=context, as_published=as_published)
    monkeypatch.setenv("FASTABX_WITH_LIBRILIGHT_BUG", "1" if as_published else "0")
    for condition in CONDITIONS:
        limits = (10, 5) if as_published else (None, None)
        theirs = fastabx_score(item, root, condition, context, limits)
        assert ours[condition] == pytest.approx(theirs, abs=1e-5)


def test_the_switch_of_fastabx_is_neither_read_nor_touched(tmp_path, monkeypatch):
    features, rows = random_case(11)
    item = write(tmp_path / "a.item", rows)
    plain, published = score(features, item), score(features, item, as_published=True)
    assert plain != published
    for value in ("0", "1"):
        monkeypatch.setenv("FASTABX_WITH_LIBRILIGHT_BUG", value)
        assert score(features, item) == plain
        assert score(features, item, as_published=True) == published
        assert os.environ["FASTABX_WITH_LIBRILIGHT_BUG"] == value


def test_as_published_limits_tokens_and_speakers(tmp_path):
    rows = [
        (f"f{speaker}", f"{0.1 * n:.1f}", f"{0.1 * n + 0.06:.2f}", "ae"[n % 2], "k", "t", f"s{speaker}")
        for speaker in range(8)
        for n in range(26)
    ]
    items = read_items(write(tmp_path / "a.item", rows))
    spans = frame_spans(items, 50)
    for as_published, tokens, others in ((False, 13, 7), (True, 10, 5)):
        scorer = AbxScorer(items, spans, as_published=as_published)
        assert np.unique(scorer._cells["across"]).tolist() == [0, others]
        if as_published:
            assert np.unique(np.diff(scorer._sampled["across"].a_start)).tolist() == [tokens]


# ---- frames -----------------------------------------------------------------------------------------------


def test_frames_are_those_whose_centres_lie_in_the_token(tmp_path):
    times = [("0.01", "0.03"), ("0.0101", "0.0301"), ("0", "0.02"), ("0.10", "0.25"), ("0.3", "0.51")]
    rows = [("f", *pair, "ae"[n % 2], "k", "t", f"s{n}") for n, pair in enumerate(times)]
    items = read_items(write(tmp_path / "a.item", rows))
    assert_array_equal(frame_spans(items, 50), [[0, 2], [1, 2], [0, 1], [5, 13], [15, 26]])
    labels = fastabx.dataset.read_labels(tmp_path / "a.item", "#file", "onset", "offset")
    theirs = labels.select(*fastabx.dataset.item_frontiers(50, "onset", "offset")[:2])
    assert_array_equal(frame_spans(items, 50), theirs.to_numpy())


def test_frames_are_kept_once_and_found_again(tmp_path):
    features, rows = random_case(12)
    items = read_items(write(tmp_path / "a.item", rows))
    spans = frame_spans(items, 50)
    tokens = TokenFrames(items, spans)
    kept = np.concatenate([features[file][tokens.select(file, 100)] for file in tokens.files])
    assert len(kept) < np.diff(spans).sum()
    assert len(np.unique(kept, axis=0)) == len(kept)
    for token, (start, end), (left, right) in zip(items.tokens, spans, tokens.slices, strict=True):
        assert_array_equal(kept[left:right], features[token.file][start:end])
    assert not tokens.truncated.any()


def test_a_lead_reads_earlier_frames(tmp_path):
    features, rows = random_case(13)
    rows = [row for row in rows if float(row[1]) > 0.05]
    item = write(tmp_path / "a.item", rows)
    items = read_items(item)
    spans = frame_spans(items, 50)
    early = {name: array[2:] for name, array in features.items()}
    tokens = TokenFrames(items, spans, frame_shift=2)
    kept = torch.cat([torch.from_numpy(early[f][tokens.select(f, 98)]) for f in tokens.files])
    assert AbxScorer(items, spans).errors(kept, tokens) == score(features, item)


@pytest.mark.parametrize("as_published", [False, True])
def test_a_frame_missing_at_the_end_is_done_without(tmp_path, as_published):
    features, rows = random_case(14)
    rows += [("f0", f"1.8{n}", "2.00", phone, "k", "t", "s0") for n, phone in enumerate("ae")]
    item = write(tmp_path / "a.item", rows)
    shorter = {name: array[:-1] for name, array in features.items()}
    got = score(shorter, item, as_published=as_published)
    if as_published:  # which needs no last frame
        assert got == score(features, item, as_published=True)
    for condition in CONDITIONS:
        frames = features if as_published else shorter
        expected = oracle(frames, rows, condition=condition, last_frame=not as_published)
        assert got[condition] == pytest.approx(expected, abs=1e-6)


# ---- errors -----------------------------------------------------------------------------------------------


def test_names_are_reachable():
    assert vgsplus.evaluation.abx.score is score
    assert issubclass(CorpusError, VgsplusError)
    assert issubclass(VgsplusError, VgsplusError)
    with pytest.raises(AttributeError, match="nothing"):
        vgsplus.evaluation.nothing  # noqa: B018 - what it does is raise


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"f1": np.zeros((100, 4))}, "differ in width: 4, 5"),
        ({"f1": np.zeros(100)}, r"f1 must be \(T, D\)"),
        ({"f1": np.zeros((100, 0))}, r"f1 must be \(T, D\)"),
        ({"f1": np.full((100, 5), "x")}, "f1 must be real numbers"),
        ({"f1": [[1.0, 2.0], [3.0]]}, "f1 must be real numbers"),
        ({"f1": None}, "f1 must be real numbers"),
        ({"f1": np.ones((100, 5), dtype=complex)}, "f1 must be real numbers, not complex"),
        ({"f1": np.full((100, 5), np.nan)}, "f1 are not finite"),
        ({"f1": np.ones((50, 5))}, r"a\.item:\d+: .* of f1, but there are features for 50.*frame rate"),
    ],
)
def test_features_that_do_not_fit_are_refused(tmp_path, change, message):
    features, rows = random_case(15)
    with pytest.raises(VgsplusError, match=message):
        score(features | change, write(tmp_path / "a.item", rows))


def test_absent_features_are_named_with_their_line(tmp_path):
    features, rows = random_case(16)
    del features["f0"], features["f2"]
    with pytest.raises(CorpusError) as caught:
        score(features, write(tmp_path / "a.item", rows))
    lines = {name: [row[0] for row in rows].index(name) + 2 for name in ("f0", "f2")}
    assert sorted(caught.value.faults) == sorted(
        f"{tmp_path}/a.item:{line}: there are no features of {name}." for name, line in lines.items()
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conditions": ["within", "between"]}, "Choose from within, across; got between"),
        ({"conditions": []}, "got nothing"),
        ({"context": "all"}, "Choose from within, any; got all"),
        ({"frame_rate": 0}, "positive number"),
        ({"frame_rate": math.nan}, "positive number"),
        ({"frame_rate": 1e300}, "1,000,000 at most, not 1e\\+300"),
    ],
)
def test_unknown_settings_are_refused(tmp_path, settings, message):
    features, rows = random_case(17)
    with pytest.raises(VgsplusError, match=message):
        score(features, write(tmp_path / "a.item", rows), **settings)


def test_tokens_without_a_frame_are_named_all_at_once(tmp_path):
    features, rows = random_case(18)
    rows[3] = ("f0", "0.011", "0.029", *rows[3][3:])
    rows[7] = ("f0", "0.511", "0.529", *rows[7][3:])
    with pytest.raises(CorpusError) as caught:
        score(features, write(tmp_path / "a.item", rows))
    assert [fault.split(": ")[0] for fault in caught.value.faults] == [
        f"{tmp_path}/a.item:5",
        f"{tmp_path}/a.item:9",
    ]
    assert "no frame at 50 frames a second" in str(caught.value)


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("within", [("f", "0", "1", "a", "k", "t", "s"), ("f", "1", "2", "e", "k", "t", "s")]),
        ("within", [("f", f"0.{n}", "1", "ae"[n % 2], "kx"[n % 2], "t", "s") for n in range(4)]),
        ("across", [("f", "0", "1", "a", "k", "t", "s"), ("f", "1", "2", "e", "k", "t", "r")]),
    ],
)
def test_items_without_a_comparison_are_refused(tmp_path, condition, rows):
    with pytest.raises(VgsplusError, match=f"nothing to compare {condition} speakers: no speaker says two"):
        score({"f": np.ones((100, 2))}, write(tmp_path / "a.item", rows), conditions=[condition])


def test_items_of_single_frames_cannot_be_scored_as_published(tmp_path):
    rows = [("f", f"0.{n}", f"0.{n}2", "ae"[n % 2], "k", "t", "s") for n in range(8)]
    item = write(tmp_path / "a.item", rows)
    features = {"f": np.ones((100, 2))}
    assert score(features, item, conditions=["within"]) == {"within": 0.5}
    with pytest.raises(VgsplusError, match="every token has a single frame"):
        score(features, item, conditions=["within"], as_published=True)
