"""Statistics over real frames: the same as with the padding cut away, forwards and backwards."""

import pytest
import torch

from vgsplus.functional import lengths_to_mask
from vgsplus.models.masked_norm import MaskedBatchNorm, MaskedInstanceNorm
from vgsplus.models.transformer import attention

CHANNELS, FRAMES = 5, 13
LENGTHS = torch.tensor([13, 4, 9])


def padded_input(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(LENGTHS), CHANNELS, FRAMES, generator=generator, dtype=torch.float64)


def randomised(norm: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(1)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    return norm.double().train()


def gradients(output: torch.Tensor, norm: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    weights = torch.sin(torch.arange(output.numel(), dtype=torch.float64)).view_as(output)
    return list(torch.autograd.grad((output * weights).sum(), [x, *norm.parameters()], retain_graph=True))


def test_an_utterance_is_normalised_as_if_it_had_no_padding():
    norm = randomised(MaskedInstanceNorm(CHANNELS))
    x = padded_input().requires_grad_()
    y = norm(x, lengths_to_mask(LENGTHS, FRAMES))
    for row, length in enumerate(LENGTHS):
        alone = x[row : row + 1, :, :length].detach().requires_grad_()
        expected = norm(alone)
        torch.testing.assert_close(y[row : row + 1, :, :length], expected)
        whole = gradients(y[row : row + 1, :, :length], norm, x)
        apart = gradients(expected, norm, alone)
        torch.testing.assert_close(whole[0][row : row + 1, :, :length], apart[0])
        assert not whole[0][row, :, length:].any()
        torch.testing.assert_close(whole[1:], apart[1:])


def test_a_batch_is_normalised_as_its_real_frames_laid_end_to_end():
    norm, plain = randomised(MaskedBatchNorm(CHANNELS)), randomised(torch.nn.BatchNorm1d(CHANNELS))
    x, valid = padded_input().requires_grad_(), lengths_to_mask(LENGTHS, FRAMES)
    frames = x.transpose(1, 2)[valid].detach().requires_grad_()
    y, expected = norm(x, valid).transpose(1, 2)[valid], plain(frames)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(norm.state_dict(), plain.state_dict())
    ours, theirs = gradients(y, norm, x), gradients(expected, plain, frames)
    torch.testing.assert_close(ours[0].transpose(1, 2)[valid], theirs[0])
    torch.testing.assert_close(ours[1:], theirs[1:])


def test_gradients_hold_where_padding_counts_in_what_follows():
    norm, valid = randomised(MaskedInstanceNorm(CHANNELS)), lengths_to_mask(LENGTHS, FRAMES)
    assert torch.autograd.gradcheck(lambda x: norm(x, valid), padded_input().requires_grad_())


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bfloat16_follows_the_same_in_float32(masked):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 11, 16).unbind()
    mask = lengths_to_mask(torch.tensor([11, 6]), 11)[:, None, None] if masked else None
    rough = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask, 0.0)
    torch.testing.assert_close(rough.float(), attention(q, k, v, mask, 0.0), atol=0.03, rtol=0.03)
    assert rough.dtype == torch.bfloat16
