import pytest
import torch
import torch.nn.functional as F

from vgsplus.models import segments as module
from vgsplus.models.segments import Segments

CPU = torch.device("cpu")
LENGTHS = [5, 5, 4, 9, 1, 9, 8, 3]


@pytest.fixture(params=[1, 12, 1000])
def segments(request, monkeypatch):
    monkeypatch.setitem(module.GROUP_ROWS, "cpu", request.param)
    monkeypatch.setattr(module, "LENGTH_MULTIPLE", 1)
    return Segments(LENGTHS, CPU)


def test_groups_hold_every_sequence_in_order_and_little_padding(segments):
    x = torch.arange(sum(LENGTHS))
    parts = segments.split(x + 1, zero_padding=True)
    rows = [row[row > 0] - 1 for part in parts for row in part]
    assert torch.equal(torch.cat(rows), x)
    assert [len(row) for row in rows] == LENGTHS
    for part in parts:
        assert (part == 0).float().mean() <= module.MAX_PADDING
        assert len(part) == 1 or part.numel() <= module.GROUP_ROWS["cpu"]
    assert torch.equal(segments.join(parts), x + 1)
    assert segments.computed_rows == sum(part.numel() for part in parts)


def test_sizes_are_rounded_up_to_few():
    sizes = {module.round_up(rows) for rows in range(1000, 2000)}
    assert len(sizes) <= 64
    assert all(rows <= module.round_up(rows) <= rows * (1 + 1 / 32) for rows in range(3000))


def test_rows_beyond_the_sequences_are_ignored_and_come_back_as_zeros():
    lengths = [70, 75, 68]
    segments = Segments(lengths, CPU, rounded=True)
    x = torch.randn(segments.size, 2)
    assert segments.size == module.round_up(213) == 216
    parts = segments.split(x)
    assert all(part.shape[1] % module.LENGTH_MULTIPLE == 0 for part in parts if len(part) > 1)
    assert torch.equal(segments.join(parts), torch.cat([x[:213], torch.zeros(3, 2)]))
    padded = segments.pad(x)
    assert torch.equal(padded[2, :68], x[145:213])
    token = torch.randn(1, 2)
    together = segments.prepend(token, x)
    assert together.shape == (segments.with_token.size, 2)
    first, rest = segments.split_token(together)
    assert torch.equal(first, token.expand(3, 2))
    assert torch.equal(rest[:213], x[:213])
    selection = segments.select(torch.ones(3, 80, dtype=torch.bool))
    assert selection.rows.tolist() == [*range(213), 0, 0, 0]
    assert selection.segments.size == 216


def test_gradients_pass_through_groups_unchanged(segments):
    x = torch.randn(sum(LENGTHS), 3, dtype=torch.float64, requires_grad=True)
    for zero_padding in (False, True):
        y = segments.join(2 * part for part in segments.split(x, zero_padding=zero_padding))
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient, torch.full_like(x, 2))


def test_masks_are_those_of_valid_rows():
    whole = Segments(LENGTHS, CPU)
    for part, mask in zip(whole.split(torch.ones(sum(LENGTHS)), zero_padding=True), whole.masks, strict=True):
        assert mask is None or torch.equal(mask[:, 0, 0], part > 0)
    (mask,) = Segments([4, 4], CPU, valid=[4, 1], group_sizes=(2,)).masks
    assert mask[:, 0, 0].tolist() == [[True] * 4, [True, False, False, False]]


def test_padding_puts_each_sequence_in_a_row_of_its_own():
    x = torch.arange(1, sum(LENGTHS) + 1)
    padded = Segments(LENGTHS, CPU).pad(x, 11)
    assert padded.shape == (len(LENGTHS), 11)
    for row, part in zip(padded, x.split(LENGTHS), strict=True):
        assert torch.equal(row, F.pad(part, (0, 11 - len(part))))


@pytest.mark.parametrize("tokens", [1, len(LENGTHS)])
def test_a_token_comes_before_each_sequence_and_off_again(tokens):
    segments, x = Segments(LENGTHS, CPU), torch.randn(sum(LENGTHS), 2)
    token = torch.randn(tokens, 2)
    together = segments.prepend(token, x)
    for index, part in enumerate(together.split([n + 1 for n in LENGTHS])):
        assert torch.equal(part[0], token[index % tokens])
    first, rest = segments.split_token(together)
    assert torch.equal(first, token.expand(len(LENGTHS), -1))
    assert torch.equal(rest, x)


def test_selected_rows_are_those_of_the_mask():
    mask = torch.rand(len(LENGTHS), 12, generator=torch.Generator().manual_seed(0)) < 0.5
    x = torch.arange(sum(LENGTHS))
    selection = Segments(LENGTHS, CPU).select(mask)
    expected = [part[row[: len(part)]] for part, row in zip(x.split(LENGTHS), mask, strict=True)]
    assert torch.equal(x[selection.rows], torch.cat(expected))
    assert torch.equal(x[selection.mask], torch.cat(expected))
    assert selection.segments.lengths == tuple(map(len, expected))


@pytest.mark.parametrize("lengths", [[3, 0], [0, 3], [2, 0, 4]])
def test_a_sequence_may_be_empty(lengths):
    segments = Segments(lengths, CPU, group_sizes=(len(lengths),))
    x = torch.arange(sum(lengths))
    assert torch.equal(segments.join(segments.split(x)), x)


def test_a_mask_with_too_few_frames_is_refused():
    with pytest.raises(ValueError, match="the mask has 8 frames, the longest utterance 9"):
        Segments(LENGTHS, CPU).select(torch.ones(len(LENGTHS), 8, dtype=torch.bool))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 9])
def test_a_convolution_over_spaced_sequences_is_that_of_each_alone(kernel, stride):
    x = torch.randn(sum(LENGTHS), 2, dtype=torch.float64)
    weight = torch.randn(3, 2, kernel, dtype=torch.float64)
    size, positions, outputs = Segments(LENGTHS, CPU).space_out(kernel, stride)
    spaced = x.new_zeros(size, 2).index_copy(0, positions, x)
    found = F.conv1d(spaced.T, weight, stride=stride).T[outputs]
    alone = [F.conv1d(part.T, weight, stride=stride, padding=kernel // 2).T for part in x.split(LENGTHS)]
    torch.testing.assert_close(found, torch.cat(alone))
