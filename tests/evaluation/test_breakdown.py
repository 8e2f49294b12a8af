from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from helpers import CAPTION

from vgsplus.errors import VgsplusError
from vgsplus.evaluation.ranks import Ranks
from vgsplus.evaluation.retrieval import breakdown, score

KINDS = ("speaker", "length")


def caption(number, speaker, samples):
    return replace(CAPTION, id=f"c{number}", num_samples=int(samples), speaker=speaker)


def random_case(seed, pictures=40, captions=200):
    rng = np.random.default_rng(seed)
    rows = np.concatenate([np.arange(pictures), rng.integers(pictures, size=captions - pictures)])
    found = Ranks(
        speech_to_image=rng.integers(1, pictures + 1, size=captions),
        image_to_speech=rng.integers(1, captions + 1, size=pictures),
        image_of_caption=rows,
    )
    speakers = rng.choice(["ann", "bob", "cid"], size=captions, p=[0.5, 0.3, 0.2])
    lengths = rng.integers(8_000, 160_000, size=captions)
    return [caption(*row) for row in zip(range(captions), speakers, lengths, strict=True)], found


@pytest.mark.parametrize("by", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_parts_add_up_to_the_split(by, seed):
    captions, found = random_case(seed)
    parts = breakdown(captions, found, by, replicates=10)
    whole = score(found, replicates=10).speech_to_image
    assert sum(part.captions for part in parts) == len(captions)
    for k, share in whole.recall.items():
        hits = sum(part.captions * part.recall[k].value for part in parts)
        assert hits == pytest.approx(share.value * len(captions))
    assert min(part.median_rank for part in parts) <= whole.median_rank
    assert max(part.median_rank for part in parts) >= whole.median_rank


def test_speakers_are_scored_on_their_own_captions():
    captions, found = random_case(3)
    parts = breakdown(captions, found, "speaker", ks=(1, 7), replicates=10)
    assert [part.name for part in parts] == ["ann", "bob", "cid"], "most captions first"
    for part in parts:
        own = np.array([c.speaker == part.name for c in captions])
        assert part.captions == own.sum()
        assert part.images == len(set(found.image_of_caption[own]))
        assert part.median_rank == np.median(found.speech_to_image[own])
        assert list(part.recall) == [1, 7]
        assert part.recall[7].value == pytest.approx((found.speech_to_image[own] <= 7).mean())
        assert 0 <= part.recall[7].low <= part.recall[7].value <= part.recall[7].high <= 1
        lengths = [c.num_samples / 16_000 for c in captions if c.speaker == part.name]
        assert (part.shortest, part.longest) == (min(lengths), max(lengths))


def test_quarters_are_of_rising_length_and_like_size():
    captions, found = random_case(4)
    parts = breakdown(captions, found, "length", replicates=10)
    assert [part.name for part in parts] == [f"quarter {n}" for n in (1, 2, 3, 4)]
    assert {part.captions for part in parts} <= {49, 50, 51}
    for shorter, longer in pairwise(parts):
        assert shorter.shortest <= shorter.longest < longer.shortest


def test_captions_of_one_length_are_in_one_quarter():
    captions, found = random_case(5)
    alike = [caption(number, c.speaker, 32_000) for number, c in enumerate(captions)]
    (part,) = breakdown(alike, found, "length", replicates=10)
    assert (part.captions, part.shortest, part.longest) == (200, 2.0, 2.0)


def test_a_part_with_all_captions_has_its_intervals():
    captions, found = random_case(6)
    alike = [caption(number, "ann", c.num_samples) for number, c in enumerate(captions)]
    (part,) = breakdown(alike, found, "speaker", seed=9)
    assert part.recall == score(found, seed=9).speech_to_image.recall


@pytest.mark.parametrize("by", KINDS)
def test_impossible_ks_are_refused(by):
    captions, found = random_case(7)
    with pytest.raises(VgsplusError, match="at least 1"):
        breakdown(captions, found, by, ks=())
