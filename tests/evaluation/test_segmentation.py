import math
from itertools import combinations, groupby, pairwise

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import torch.nn.functional as F
from praatio import textgrid
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from vgsplus.audio import normalise
from vgsplus.cli import main
from vgsplus.corpora.alignments.textgrid import read_textgrid
from vgsplus.evaluation.hidden_states import hidden_states, inference, pad_signals
from vgsplus.evaluation.segmentation.boundaries import (
    attention_boundaries,
    attention_modules,
    energy_boundaries,
    frame_centres,
    layer_outputs,
    min_cut_boundaries,
    uniform_boundaries,
)
from vgsplus.evaluation.segmentation.evaluate import Segmentation, evaluate, read_words
from vgsplus.evaluation.segmentation.scores import Counts, compare, count_hits

COLLAR, GAP = 0.05, 0.01


# ---- scores ------------------------------------------------------------------------------------------------


def raesaenen(hits, reference, found):
    """Scores in percent by the equations of Räsänen, Laine and Altosaar (2009)."""
    hit_rate = hits / reference * 100
    over_segmentation = (found / reference - 1) * 100
    precision = hits / found * 100
    r1 = math.sqrt((100 - hit_rate) ** 2 + over_segmentation**2)
    r2 = (-over_segmentation + hit_rate - 100) / math.sqrt(2)
    f1 = 2 * precision * hit_rate / (precision + hit_rate)
    return precision, hit_rate, f1, over_segmentation, (1 - (abs(r1) + abs(r2)) / 200) * 100


def scores(counts):
    values = (counts.precision, counts.recall, counts.f1, counts.over_segmentation, counts.r_value)
    return tuple(100 * value for value in values)


def most_pairs(reference, found):
    """The size of the largest matching of rows within the collar."""
    near = (np.abs(reference[:, None] - found[None]) <= COLLAR).all(axis=2)
    return int((maximum_bipartite_matching(csr_array(near)) >= 0).sum())


def test_scores_are_those_of_the_literature_with_the_largest_matching():
    rng = np.random.default_rng(0)
    total, expected = Counts(), np.zeros(3)
    for _ in range(200):
        times = [np.sort(rng.uniform(0, 2, rng.integers(4, 30))) for _ in range(2)]
        for rows in (
            [sequence[:, None] for sequence in times],
            [np.stack([sequence[:-1], sequence[1:]], axis=1) for sequence in times],
        ):
            counts = count_hits(*rows, COLLAR)
            assert counts == Counts(len(rows[0]), len(rows[1]), most_pairs(*rows))
        total += counts
        expected += (counts.hits, counts.reference, counts.found)
    assert scores(total) == pytest.approx(raesaenen(*expected))


def test_a_perfect_segmentation_and_an_empty_one():
    words = [(0.1, 0.4), (0.4, 0.9), (1.2, 1.5)]
    perfect = compare(words, [0.1, 0.4, 0.9, 1.2, 1.5], COLLAR, GAP)
    assert scores(perfect.boundaries) == pytest.approx((100, 100, 100, 0, 100))
    # A pause has two boundaries, so that its interval counts as a word.
    assert perfect.words == Counts(3, 4, 3)
    for empty in ([], [0.0], [0.0, 1.6]):
        counts = compare(words, empty, COLLAR, GAP)
        assert counts.boundaries == Counts(3, 0, 0)
        assert scores(counts.boundaries) == pytest.approx((0, 0, 0, -100, 100 - 50 * math.sqrt(2)))
        assert counts.words.hits == 0


@pytest.mark.parametrize(("found", "hits"), [(0.35, 1), (0.25, 1), (0.3501, 0), (0.2499, 0)])
def test_a_boundary_on_the_edge_of_the_collar_is_found(found, hits):
    counts = compare([(0, 0.3), (0.3, 0.6)], [0, found, 0.6], COLLAR, GAP)
    assert counts.boundaries == Counts(1, 1, hits)
    assert counts.words == Counts(2, 2, 2 * hits)


def test_each_boundary_counts_once():
    assert count_hits([[0.30], [0.34]], [[0.32]], COLLAR).hits == 1
    assert count_hits([[0.32]], [[0.30], [0.34]], COLLAR).hits == 1


def test_words_with_a_short_gap_between_them_share_a_boundary():
    assert compare([(0, 0.30), (0.31, 0.6)], [0, 0.305, 0.6], 0, GAP).boundaries == Counts(1, 1, 1)
    assert compare([(0, 0.30), (0.32, 0.6)], [0, 0.300, 0.6], 0, GAP).boundaries == Counts(2, 1, 1)


# ---- boundaries --------------------------------------------------------------------------------------------


def published_boundaries(weights, threshold, centres, seconds):
    """Words as the README of VG-HuBERT's code describes them, frame by frame."""
    step = centres[1] - centres[0]
    attended = [
        frame
        for frame in range(weights.shape[1])
        if any(head[frame] >= np.quantile(head, threshold) for head in weights)
    ]
    runs = [
        [frame for _, frame in run] for _, run in groupby(enumerate(attended), lambda pair: pair[1] - pair[0])
    ]
    runs = [run for run in runs if len(run) > 1] or runs
    spans = [(centres[run[0]] - step / 2, centres[run[-1]] + step / 2) for run in runs]
    inner = [(before[1] + after[0]) / 2 for before, after in pairwise(spans)]
    return [spans[0][0] / 2, *inner, (spans[-1][1] + seconds) / 2]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_words_are_consecutive_frames_of_high_attention(threshold):
    rng = np.random.default_rng(0)
    for heads in (1, 4):
        weights = rng.random((heads, 60)).astype(np.float32)
        centres = 0.0125 + 0.02 * np.arange(60)
        expected = published_boundaries(weights, threshold, centres, 1.21)
        assert attention_boundaries(weights, threshold, centres, 1.21) == pytest.approx(expected)


def test_attention_by_hand():
    weights = np.array([[0.0, 5, 5, 0, 0, 0, 5, 5, 0, 5, 0, 0]])  # a single frame is no word
    centres = 0.05 + 0.1 * np.arange(12)
    assert attention_boundaries(weights, 0.6, centres, 1.2) == pytest.approx([0.05, 0.45, 1.0])
    assert attention_boundaries(weights[:, 8:], 0.7, centres[:4], 0.4) == pytest.approx([0.05, 0.3])


def cheapest_parts(states, words):
    """The ends of the parts with the lowest normalised cut, of all ways to divide the frames."""
    similarity = states @ states.T
    similarity = similarity - similarity.min() + 1e-7

    def cost(start, end):
        cut = similarity[start:end, :start].sum() + similarity[start:end, end:].sum()
        return cut / similarity[start:end].sum()

    ways = ([0, *inner, len(states)] for inner in combinations(range(1, len(states)), words - 1))
    return min(ways, key=lambda way: sum(cost(*part) for part in pairwise(way)))


def test_minimum_cuts_are_the_best_of_all():
    rng = np.random.default_rng(0)
    for words in (1, 2, 3, 4):
        states = rng.normal(size=(9, 4))
        centres = 0.5 + np.arange(9)  # so that a boundary before frame t is at t
        assert min_cut_boundaries(states, words, centres, 9) == pytest.approx(cheapest_parts(states, words))
    assert min_cut_boundaries(states, 20, centres, 9) == pytest.approx(range(10))


def test_long_gaps_are_filled():
    weights = np.zeros((1, 20))
    weights[0, [0, 1, 12, 13]] = 1
    centres = 0.05 + 0.1 * np.arange(20)
    # Words from 0 to 0.2 and from 1.2 to 1.4 s; in the gaps of 1 and 0.6 s, words of 0.2 s every 0.3 s.
    found = attention_boundaries(weights, 0.8, centres, 2.0, 0.6 - 1e-9)
    inserted = [0.5, 0.8, 1.7]
    spans = sorted([(0, 0.2), (1.2, 1.4), *((start, start + 0.2) for start in inserted)])
    expected = [0, *((before[1] + after[0]) / 2 for before, after in pairwise(spans)), 1.95]
    assert found == pytest.approx(expected)
    assert attention_boundaries(weights, 0.8, centres, 2.0, 1.01) == pytest.approx([0, 0.7, 1.7])


def test_uniform_words_are_equally_long():
    assert uniform_boundaries(1.5, 3) == pytest.approx([0, 0.5, 1, 1.5])
    words = [(0, 0.5), (0.5, 1), (1, 1.5)]
    assert scores(compare(words, uniform_boundaries(1.5, 3), 0, GAP).boundaries)[4] == pytest.approx(100)


def test_energy_finds_the_deepest_valleys():
    samples = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    for time, level in ((0.3, 0.01), (0.5, 0.3), (0.75, 0.02)):
        samples[int(16_000 * time) - 400 : int(16_000 * time) + 400] *= level
    found = energy_boundaries(samples, 3)
    assert [found[0], found[-1]] == [0, 1]
    assert found[1:-1] == pytest.approx([0.3, 0.75], abs=0.02)
    assert energy_boundaries(samples, 1) == [0, 1]


# ---- attention ---------------------------------------------------------------------------------------------


def attention_by_torch(model, waveform):
    """Attention of the CLS token of one sound, by PyTorch's own function: {layer: (H, T)}."""
    layers = [*model.speech.layers, model.speech_head.layer]
    inputs = {}
    for layer, name in zip(layers, attention_modules(model), strict=True):
        layer.register_forward_pre_hook(lambda _, given, name=name: inputs.setdefault(name, given[:2]))
    samples = torch.tensor([len(waveform)])
    with inference(model):
        model.speech_layers(waveform[None], samples)
        model.embed_speech(waveform[None], samples)
    expected = {}
    for layer, (name, (x, segments)) in zip(layers, inputs.items(), strict=True):
        own = layer.attention_norm(x) if layer.layer_norm_first else x
        own, own_attention = own[: segments.num_rows, None], layer.attention
        _, weights = F.multi_head_attention_forward(
            *(own, own, own, x.shape[1], own_attention.heads),
            *(own_attention.qkv.weight, own_attention.qkv.bias, None, None, False, 0.0),
            *(own_attention.out.weight, own_attention.out.bias),
            training=False,
            key_padding_mask=torch.arange(segments.lengths[0])[None] >= segments.valid[0],
            average_attn_weights=False,
        )
        expected[name] = weights[0, :, 0, 1 : segments.valid[0]].detach()
    return expected


@pytest.mark.parametrize(
    "changes",
    [{}, {"layer_norm_first": True}, {"padding": "published"}],
    ids=["exact", "pre-norm", "published"],
)
def test_attention_of_the_cls_token_is_that_of_torch(make_model, changes):
    rng = np.random.default_rng(0)
    signals = [normalise(rng.normal(size=size).astype(np.float32)) for size in (9000, 6000, 8970)]
    alone = "padding" in changes
    waveforms, num_samples = pad_signals(signals[:1] if alone else signals)
    model = make_model(**changes)
    with inference(model):
        found = list(layer_outputs(model, waveforms, num_samples))
    assert len(found) == (1 if alone else 3)
    for signal, (weights, states) in zip(signals, found, strict=False):
        expected = attention_by_torch(make_model(**changes), torch.from_numpy(signal))
        assert list(weights) == ["1", "2", "3", "speech head"]
        with inference(model):
            (outputs,) = hidden_states(model, [1, 2, 3], *pad_signals([signal]))
        for found_states, frames in zip(states.values(), outputs, strict=True):
            torch.testing.assert_close(found_states, frames, atol=1e-5, rtol=1e-4)
        for name, values in expected.items():
            torch.testing.assert_close(weights[name], values, atol=1e-6, rtol=1e-4)


def test_frames_are_timed_at_their_receptive_fields(make_model):
    model = make_model()
    assert frame_centres(model, "1", 3) == pytest.approx([0.0125, 0.0325, 0.0525])
    assert frame_centres(model, "speech head", 2) == pytest.approx([0.0125, 0.0525])


# ---- the command -------------------------------------------------------------------------------------------

CTM = (
    "ann 1 0.05 0.15 a",
    "ann 1 0.20 0.15 red",
    "ann 1 0.35 0.10 sil",
    "ann 1 0.45 0.14 star",
    "ben 1 0.00 0.25 a",
    "ben 1 0.25 0.30 moon",
)


@pytest.fixture
def work(tmp_path):
    """A folder with two sounds and the alignment of their words."""
    (tmp_path / "sounds").mkdir()
    for seed, name in enumerate(("ann", "ben")):
        noise = np.random.default_rng(seed).normal(0, 0.1, 9600)
        soundfile.write(tmp_path / "sounds" / f"{name}.wav", noise, 16_000)
    write(*CTM)(tmp_path)
    return tmp_path


def write(*lines, name="x.ctm"):
    return lambda root: (root / name).write_text("\n".join(lines) + "\n")


def items(*lines):
    return write("#file onset offset #phone speaker", *lines, name="x.item")


def test_words_of_items_are_those_of_the_alignment_and_files_have_no_order(model, work):
    aligned = read_words(work / "x.ctm")
    assert [[segment.label for segment in words.segments] for words in aligned] == [
        ["a", "red", "star"],
        ["a", "moon"],
    ]
    items(
        *("ben 0.25 0.55 moon b", "ann 0.45 0.59 star a", "ann 0.05 0.20 a a"),
        *("ann 0.20 0.35 red a", "ben 0 0.25 a b"),
    )(work)
    other = read_words(work / "x.item", audio_root=work / "sounds")
    assert [words.file for words in other] == ["ben", "ann"]
    one, two = (
        {row.segmentation: row.counts for row in evaluate(model, references)}
        for references in (aligned, other)
    )
    assert one == two
    assert one[Segmentation("uniform")].boundaries.reference == 4
    assert all(counts.words.reference == 5 for counts in one.values())


def test_the_command_writes_scores_and_textgrids_that_others_read(run, work, capsys):
    arguments = ["evaluate", "segmentation", run, work / "x.ctm", "--out", work / "out", "--textgrids"]
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in (*arguments, work / "grids", "--collar", 0.04)])
    assert ended.value.code == 0
    assert "the collar is 40 ms" in " ".join(capsys.readouterr().out.split())
    table = pd.read_csv(work / "out" / "segmentation.csv", dtype={"layer": str, "heads": str})
    layers = ["1", "2", "3", "speech head"]
    assert table["method"].tolist() == ["uniform", "energy", *["attention"] * 12, *["min cut"] * 3]
    assert table["layer"].tolist()[2:] == [*(layer for layer in layers for _ in range(3)), *layers[:3]]
    assert table["heads"].tolist()[2:14] == ["all", "1", "2"] * 4
    assert table[["precision", "recall", "f1", "word_f1"]].apply(lambda c: c.between(0, 1)).all(axis=None)
    assert (table["collar"] == 0.04).all()
    tiers = ["reference", "uniform", "energy", "layer 1", "layer 2", "layer 3", "speech head"]
    tiers += ["layer 1 min cut", "layer 2 min cut", "layer 3 min cut"]
    for name in ("ann", "ben"):
        path = work / "grids" / f"{name}.TextGrid"
        grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False)
        assert list(grid.tierNames) == tiers
        for tier in tiers:
            (track,) = read_textgrid(path, tier, faults := [])
            assert not faults
            ours = [(float(s.start), float(s.end), s.label) for s in track.segments if s.label]
            assert ours == [tuple(entry) for entry in grid.getTier(tier).entries]
    (reference,) = read_textgrid(work / "grids" / "ann.TextGrid", "reference", [])
    assert [segment.label for segment in reference.segments] == ["", "a", "red", "", "star", ""]
