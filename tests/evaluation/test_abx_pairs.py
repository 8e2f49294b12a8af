"""Distances and counts of triples, against fastabx with the same exact angles, where ties abound."""

import math
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from fastabx import Dataset, InMemoryAccessor, Score, Subsampler, Task
from torch.nn import functional as F
from torchdtw import dtw_batch

from vgsplus.corpora.items import Items, Token
from vgsplus.errors import VgsplusError
from vgsplus.evaluation import abx, abx_pairs
from vgsplus.evaluation.abx import CONDITIONS, AbxScorer
from vgsplus.evaluation.abx_items import TokenFrames
from vgsplus.evaluation.abx_pairs import token_distances

UNITS = 2.0**24


def exact_angles(x, y):
    """Angles as a distance of fastabx, in float64 and rounded."""
    left, right = (F.normalize(part.flatten(0, 1).double(), dim=1) for part in (x, y))
    cosines = left @ right.T
    cosines[cosines > 1 - 1e-12], cosines[cosines < -1 + 1e-12] = 1, -1
    turns = (cosines.acos() * UNITS / math.pi).round() / UNITS
    lattice = turns.view(*x.shape[:2], *y.shape[:2]).transpose(1, 2)
    return lattice.float() if lattice.shape[2:] == (1, 1) else lattice


def aligned(lattice, x, y, *, symmetric):
    return dtw_batch(lattice, x, y, symmetric=symmetric).float()


def draw_frames(rng, count, vectors):
    """Frames (count, 6), of `vectors` different ones, so that ties abound, or all different."""
    pool = rng.normal(size=(vectors or count, 6)).astype(np.float32)
    return torch.from_numpy(pool[rng.integers(len(pool), size=count)] if vectors else pool)


def draw_items(rng, tokens, *, speakers=4, phones=4, contexts=2, longest=9):
    """Tokens of unlike numbers for each speaker and phone, and their frames, some of which they share."""

    def skewed(count):
        return np.minimum(rng.geometric(0.4, tokens) - 1, count - 1)

    labels = np.stack([skewed(phones), skewed(contexts), skewed(contexts), skewed(speakers)], axis=1)
    starts = rng.integers(0, 3 * tokens, tokens)
    spans = np.stack([starts, starts + rng.integers(1, longest + 1, tokens)], axis=1)
    items = Items(
        path=Path("drawn.item"),
        tokens=tuple(
            Token(
                line=line,
                file="f",
                onset=Decimal(0),
                offset=Decimal(1),
                phone=phone,
                previous=previous,
                following=following,
                speaker=speaker,
            )
            for line, (phone, previous, following, speaker) in enumerate(labels.astype(str).tolist(), start=2)
        ),
    )
    return items, spans


def errors(items, spans, frames, conditions=CONDITIONS, **settings):
    tokens = TokenFrames(items, spans)
    chosen = frames[tokens.select("f", len(frames))]
    return AbxScorer(items, spans, conditions, **settings).errors(chosen, tokens)


def by_fastabx(items, spans, frames, conditions=CONDITIONS, *, context="within", as_published=False):
    """The errors of fastabx, with exact angles."""
    found = {}
    around = ["prev-phone", "next-phone"] if context == "within" else []
    used = [n for n, (start, end) in enumerate(spans) if end - start > as_published]
    columns = {"#phone": "phone", "prev-phone": "previous", "next-phone": "following", "speaker": "speaker"}
    labels = {column: [getattr(items.tokens[n], name) for n in used] for column, name in columns.items()}
    slices = {at: (int(spans[n, 0]), int(spans[n, 1]) - as_published) for at, n in enumerate(used)}
    for name in conditions:
        by, across = (around, ["speaker"]) if name == "across" else ([*around, "speaker"], None)
        data = Dataset(abx.pl.DataFrame(labels), InMemoryAccessor(slices, frames, frames.device))
        sampler = Subsampler(10, 5, 0) if as_published else None
        task = Task(data, on="#phone", by=by, across=across, subsampler=sampler)
        scored = Score(task, exact_angles, alignment=aligned, progress=False)
        found[name] = scored.collapse(levels=[*([tuple(around)] if around else []), "speaker"])
    return found


@pytest.fixture
def small(monkeypatch):
    """Tiles and blocks of few tokens."""
    monkeypatch.setattr(abx_pairs, "TILE", (20, 50))
    monkeypatch.setattr(abx_pairs, "DEVICE_TILE", (30, 40))
    monkeypatch.setattr(abx, "PART", 20)
    monkeypatch.setattr(abx, "BLOCK", 400)


@pytest.mark.parametrize("vectors", [None, 3, 1])
@pytest.mark.parametrize("longest", [1, 12])
@pytest.mark.usefixtures("small")
def test_distances_are_those_of_torchdtw_in_both_directions(vectors, longest):
    rng = np.random.default_rng(longest)
    frames = draw_frames(rng, 200, vectors)
    starts = rng.integers(0, 200 - longest, 75)
    tokens = np.stack([starts, starts + rng.integers(1, longest + 1, 75)], axis=1)

    def expected(rows, columns):
        out = np.empty((len(rows), len(columns)), np.float32)
        for row, column in np.ndindex(out.shape):
            lattice = exact_angles(*(frames[slice(*t)][None] for t in (rows[row], columns[column])))
            lengths = [torch.tensor([size]) for size in lattice.shape[2:]]
            out[row, column] = aligned(lattice.double(), *lengths, symmetric=False).item()
        return out

    rows, columns = tokens[:35], tokens[35:]
    there, back = token_distances(frames, rows, columns)
    np.testing.assert_array_equal(there, expected(rows, columns))
    np.testing.assert_array_equal(back, expected(columns, rows))
    np.testing.assert_array_equal(token_distances(frames, rows)[0], expected(rows, rows))
    on_device = np.empty_like(there)
    abx_pairs._align_on_device(frames, rows, columns, on_device)
    np.testing.assert_array_equal(on_device, there)


CASES = [
    {},
    {"vectors": 3},
    {"vectors": 3, "longest": 1},
    {"vectors": 20, "phones": 8, "speakers": 9},
    {"speakers": 2},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("context", ["within", "any"])
@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.usefixtures("small")
def test_errors_are_those_of_fastabx(case, context, as_published):
    rng = np.random.default_rng(len(str(case)))
    sizes = {name: value for name, value in case.items() if name != "vectors"}
    if as_published:  # with more speakers, fastabx's samples differ from call to call
        sizes |= {"speakers": min(sizes.get("speakers", 4), 6), "longest": max(sizes.get("longest", 9), 2)}
    items, spans = draw_items(rng, 250, **sizes)
    frames = draw_frames(rng, 800, case.get("vectors"))
    settings = {"context": context, "as_published": as_published}
    found = errors(items, spans, frames, **settings)
    assert found == pytest.approx(by_fastabx(items, spans, frames, **settings), abs=1e-6)
    for condition in CONDITIONS:
        assert errors(items, spans, frames, [condition], **settings) == pytest.approx(
            {condition: found[condition]}, abs=1e-12
        )


@pytest.mark.usefixtures("small")
def test_one_speaker():
    rng = np.random.default_rng(0)
    items, spans = draw_items(rng, 200, speakers=1)
    frames = draw_frames(rng, 700, 5)
    found = errors(items, spans, frames, ["within"], context="any")
    assert found == pytest.approx(by_fastabx(items, spans, frames, ["within"], context="any"), abs=1e-6)
    with pytest.raises(VgsplusError, match="nothing to compare across speakers"):
        errors(items, spans, frames)


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("context", ["within", "any"])
def test_sizes_of_chunks_and_threads_change_nothing(monkeypatch, as_published, context):
    rng = np.random.default_rng(1)
    items, spans = draw_items(rng, 300)
    frames, settings = draw_frames(rng, 1000, 10), {"context": context, "as_published": as_published}
    expected = errors(items, spans, frames, **settings)
    for part, block, tile in ((300, 300**2, (7, 9)), (60, 60**2, (64, 64)), (1, 30, (512, 2048))):
        monkeypatch.setattr(abx, "PART", part)
        monkeypatch.setattr(abx, "BLOCK", block)
        monkeypatch.setattr(abx_pairs, "TILE", tile)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
        assert errors(items, spans, frames, **settings) == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("small")
def test_all_pairs_are_reported():
    rng = np.random.default_rng(2)
    items, spans = draw_items(rng, 150)
    for context in ("within", "any"):
        scorer, tokens, done = AbxScorer(items, spans, context=context), TokenFrames(items, spans), []
        scorer.errors(draw_frames(rng, 600, None)[tokens.select("f", 600)], tokens, done.append)
        assert sum(done) == scorer.pairs
        assert len(done) > 1


def test_the_order_of_tokens_changes_nothing():
    rng = np.random.default_rng(3)
    items, spans = draw_items(rng, 200)
    frames = draw_frames(rng, 700, 10)
    order = rng.permutation(200)
    moved = Items(path=items.path, tokens=tuple(items.tokens[n] for n in order))
    assert errors(moved, spans[order], frames) == pytest.approx(errors(items, spans, frames), abs=1e-12)


def test_samples_of_the_published_protocol_are_always_the_same():
    items, spans = draw_items(np.random.default_rng(4), 400, speakers=12, phones=8)
    first, second = (AbxScorer(items, spans, as_published=True)._sampled for _ in range(2))
    for one, other in zip(first["across"], second["across"], strict=True):
        np.testing.assert_array_equal(one, other)
