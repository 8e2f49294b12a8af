"""Random numbers that are a function of a key and an index, not of what was drawn before.

PyTorch's generators draw one number after the other, so that the draws of an utterance would depend on the
batch, the process and the device that it is in. A key (int64) with an index always gives the same number:
counter-based generation, as by `jax.random.fold_in` (Salmon et al., 2011).
"""

import torch
from torch import Tensor

# Odd constants of Weyl sequences and of a 64-bit mixing function, as signed numbers.
_INCREMENT = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIER = 0xD6E8FEB86659FD93 - 2**64


def new_keys(count: int) -> Tensor:
    """Draw keys (count,) int64 from the global generator of the CPU."""
    return torch.randint(-(2**63), 2**63 - 1, (count,))


def key_of(seed: int) -> Tensor:
    """Return the key (1,) of a seed in [0, 2⁶⁴)."""
    return torch.tensor([seed], dtype=torch.uint64).view(torch.int64)


def fold(keys: Tensor, index: Tensor | int) -> Tensor:
    """Derive a key for each key and index, which broadcast: int64."""
    return _mix(keys + (torch.as_tensor(index) + 1) * _INCREMENT)


def random_bits(keys: Tensor, count: int) -> Tensor:
    """Return (…, count) int64 of 64 random bits for keys (…)."""
    return fold(keys[..., None], torch.arange(count, device=keys.device))


def uniform(keys: Tensor, count: int) -> Tensor:
    """Return (…, count) float32 in (0, 1) for keys (…): odd multiples of 2⁻²⁴, which are exact."""
    return ((random_bits(keys, count) >> 41).float() + (2**22 + 0.5)) * 2.0**-23


def integers(keys: Tensor, count: int, below: Tensor) -> Tensor:
    """Return (…, count) int64 in [0, below) for keys (…) and `below` (…), less than 2³¹."""
    return (_high(random_bits(keys, count)) * below[..., None]) >> 32


def _mix(x: Tensor) -> Tensor:
    """Mix the bits of x in place: every bit of the input changes half of the bits of the output."""
    x.bitwise_xor_(_high(x)).mul_(_MULTIPLIER)
    x.bitwise_xor_(_high(x)).mul_(_MULTIPLIER)
    return x.bitwise_xor_(_high(x))


def _high(x: Tensor) -> Tensor:
    """Return the upper half of the bits, a number in [0, 2³²)."""
    return (x >> 32).bitwise_and_(2**32 - 1)
