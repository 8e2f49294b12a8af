"""Span masks and negatives, drawn for a batch at once, follow the distributions of transformers' loops."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices

from vgsplus.losses.masking import draw_negatives, span_mask

SPAN, PROBABILITY = 10, 0.65


def ours(length, batch, seed):
    torch.manual_seed(seed)
    lengths = torch.full((batch,), length)
    return span_mask(lengths, length, probability=PROBABILITY, span=SPAN).numpy()


def theirs(length, batch, seed):
    """fairseq draws starts from one place fewer than transformers: the last frame is never masked.

    So ours on T frames is theirs on T - 1 with as many spans, and a frame that stays.
    """
    np.random.seed(seed)  # noqa: NPY002 - they draw from it
    share = PROBABILITY * length / (length - 1)
    rows = [_compute_mask_indices((1, length - 1), share, SPAN, min_masks=2)[0] for _ in range(batch)]
    return np.pad(np.array(rows), ((0, 0), (0, 1)))


@pytest.mark.parametrize("length", [40, 99, 219])
def test_masked_frames_of_an_utterance_are_distributed_as_theirs(length):
    a, b = ours(length, 4000, 0), theirs(length, 4000, 1)
    assert not a[:, -1].any()
    # How many frames are masked, and how many runs they form.
    assert stats.ks_2samp(a.sum(1), b.sum(1)).pvalue > 0.01
    runs = [(np.diff(mask.astype(int), prepend=0, axis=1) == 1).sum(1) for mask in (a, b)]
    assert stats.ks_2samp(*runs).pvalue > 0.01
    # Which frames are masked: no frame differs by more than chance allows the most extreme of some 200.
    share = (a.mean(0) + b.mean(0))[:-1] / 2
    deviation = (a.mean(0) - b.mean(0))[:-1] / np.sqrt(share * (1 - share) * 2 / len(a))
    assert np.abs(deviation).max() < 4.5


def test_the_number_of_spans_is_exact():
    """At a length that the span divides and no overlap to hide one, 0.1 · 200 / 10 = 2 spans every time."""
    torch.manual_seed(2)
    masks = span_mask(torch.full((500,), 200), 200, probability=0.1, span=SPAN).sum(1)
    assert int(masks.max()) == 2 * SPAN
    assert bool((masks > SPAN).all())
    # Two starts among 190 places, fewer than a span apart with a known chance.
    overlap = sum(2 * (190 - gap) for gap in range(1, SPAN)) / (190 * 189)
    assert stats.binomtest(int((masks < 2 * SPAN).sum()), 500, overlap).pvalue > 0.01


def test_negatives_are_distributed_as_theirs():
    counts, negatives, batch = [7, 12], 50, 400
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - they draw from it
    for count in counts:
        drawn = draw_negatives(torch.full((batch,), count), count, negatives).numpy()
        mask = np.ones((1, count), dtype=bool)
        peer = np.concatenate([_sample_negative_indices((1, count), negatives, mask) for _ in range(batch)])
        own = np.arange(count)[:, None]
        assert not (drawn == own).any()
        assert not (peer == own).any()
        for position in range(count):
            table = [np.bincount(x[:, position].ravel(), minlength=count) for x in (drawn, peer)]
            seen = np.delete(np.stack(table), position, axis=1)
            # Of `count` tests at once, none may be beyond chance.
            assert stats.chi2_contingency(seen).pvalue > 0.01 / count


def test_utterances_of_a_batch_draw_their_negatives_from_their_own_frames():
    counts = torch.tensor([3, 9, 6])
    drawn = draw_negatives(counts, 9, 40)
    for row, count in enumerate(counts.tolist()):
        assert int(drawn[row, :count].max()) == count - 1
        assert int(drawn[row, :count].min()) == 0
