import math

import pytest
import torch

from vgsplus.losses.masking import draw_negatives, span_mask, trim_to_shortest


def draw(lengths, *, seed=0, frames=None):
    torch.manual_seed(seed)
    lengths = torch.tensor(lengths)
    return span_mask(lengths, frames or int(lengths.max()), probability=0.65, span=10)


def test_only_real_frames_are_masked_and_every_utterance_has_some():
    lengths = [200, 15, 60, 8, 3]
    for seed in range(20):
        mask = draw(lengths, seed=seed, frames=230)
        for row, length in zip(mask, lengths, strict=True):
            assert row[:length].any()
            assert not row[length:].any()


def test_masked_frames_stand_in_whole_spans():
    mask = draw([400] * 50)
    edges = torch.nn.functional.pad(mask.int(), (1, 1)).diff(dim=-1)
    begins, ends = (edges == 1).nonzero()[:, 1], (edges == -1).nonzero()[:, 1]
    assert int((ends - begins).min()) >= 10


def test_about_as_much_is_masked_as_distinct_random_starts_cover():
    share = draw([400] * 200).float().mean()
    # 26 distinct starts among 390 places: a frame stays clear if no place that reaches it is a start.
    reach = [min(frame + 1, 10, 399 - frame) for frame in range(400)]
    clear = sum(math.comb(390 - places, 26) / math.comb(390, 26) for places in reach) / 400
    assert float(share) == pytest.approx(1 - clear, abs=0.01)


def test_trimmed_masks_have_as_many_masked_frames_as_the_fewest():
    mask = draw([400, 90, 230])
    trimmed = trim_to_shortest(mask)
    assert (trimmed.sum(-1) == mask.sum(-1).min()).all()
    assert not (trimmed & ~mask).any()


def test_negatives_are_other_masked_frames_drawn_evenly():
    torch.manual_seed(0)
    negatives = draw_negatives(torch.tensor([12, 5]), 12, 3000)
    own = torch.arange(12)[None, :, None]
    assert not (negatives == own)[0].any()
    assert int(negatives[1, :5].max()) < 5
    assert not (negatives == own)[1, :5].any()
    counts = torch.stack([(negatives[0, 4] == frame).sum() for frame in range(12) if frame != 4]).double()
    expected = 3000 / 11
    assert float(((counts - expected) ** 2 / expected).sum()) < 29.6  # χ² of 10 degrees at 0.1 %
