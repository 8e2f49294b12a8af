"""Sequences of different lengths, end to end in the rows of one tensor: no layer computes padding.

N rows of all sequences together, B sequences, T rows of the longest; b sequences of up to t rows in a group.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

GROUP_ROWS = {"cpu": 1024, "cuda": 1 << 14}
"""Largest b · t of a group of several sequences: a GPU needs many rows to be occupied, while a thousand occupy a CPU
and leave the attention scores in its cache."""

MAX_PADDING = 0.25
"""Largest share of padding in a group."""


class Segments:
    """Where B sequences lie in the rows of tensors (N, …), one after the other.

    Attention and convolutions over time run on groups of consecutive sequences of like length, each padded
    to the longest of its group (`split` and `join`); all other layers run on the rows. Sequences may have
    any order; sorted by length they make the fewest groups.

    Args:
        lengths: (B,) rows of each sequence.
        device: of the tensors.
        valid: (B,) how many rows of each sequence, from its first, are attended to; None: all.
        group_sizes: (groups,) sequences in each group; None: chosen by length.
    """

    def __init__(
        self,
        lengths: Iterable[int],
        device: torch.device,
        *,
        valid: Iterable[int] | None = None,
        group_sizes: tuple[int, ...] | None = None,
    ) -> None:
        self.lengths, self.device = tuple(lengths), device
        self.valid = self.lengths if valid is None else tuple(valid)
        self.group_sizes = group_sizes or tuple(_group_sizes(self.lengths, device))

    def with_lengths(self, lengths: Iterable[int], valid: Iterable[int] | None = None) -> "Segments":
        """Return the segments of the same sequences with other lengths, in the same groups."""
        return Segments(lengths, self.device, valid=valid, group_sizes=self.group_sizes)

    # ---- groups ----

    def split(self, x: Tensor, *, zero_padding: bool = False) -> list[Tensor]:
        """Split rows (N, …) into groups (b, t, …).

        Padding repeats other rows, or is zero with `zero_padding`, as convolutions require.
        """
        parts = []
        for group, rows in zip(self._groups, torch.split(x, [g.num_rows for g in self._groups]), strict=True):
            shape = (group.batch, group.longest, *x.shape[1:])
            if group.rows is None or group.padding is None:
                parts.append(rows.view(shape))
                continue
            part = rows.index_select(0, group.rows).view(shape)
            if zero_padding:
                part = part.masked_fill(group.padding.view(*shape[:2], *[1] * (x.dim() - 1)), 0)
            parts.append(part)
        return parts

    def join(self, parts: Iterable[Tensor]) -> Tensor:
        """Undo `split`: concatenate the rows of groups (b, t, …), without padding, to (N, …)."""
        rows = []
        for group, part in zip(self._groups, parts, strict=True):
            flat = part.flatten(0, 1)
            rows.append(flat if group.positions is None else flat.index_select(0, group.positions))
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    @property
    def masks(self) -> list[Tensor | None]:
        """The attention mask of each group, (b, 1, 1, t), True at keys that are attended to; None: all."""
        return [group.mask for group in self._groups]

    # ---- all sequences as one padded batch ----

    def pad(self, x: Tensor, longest: int | None = None) -> Tensor:
        """Pad rows (N, …) with zeros to (B, `longest` or T, …)."""
        longest = max(self.lengths) if longest is None else longest
        padded = x.new_zeros(len(self.lengths) * longest, *x.shape[1:])
        positions = self._move(self._positions(longest))
        return padded.index_copy(0, positions, x).view(len(self.lengths), longest, *x.shape[1:])

    def select(self, mask: Tensor) -> "Selection":
        """Find the rows that are True in mask (B, T'), T' ≥ T; a mask on the host is found without a wait."""
        chosen = mask.cpu().flatten()[self._positions(mask.shape[1])]
        counts = (int(part.sum()) for part in torch.split(chosen, list(self.lengths)))
        return Selection(self._move(chosen), self._move(chosen.nonzero()[:, 0]), self.with_lengths(counts))

    # ---- a token before each sequence ----

    @cached_property
    def with_token(self) -> "Segments":
        """The segments with one row more at the start of each sequence."""
        return self.with_lengths((n + 1 for n in self.lengths), (n + 1 for n in self.valid))

    def prepend(self, token: Tensor, x: Tensor) -> Tensor:
        """Insert tokens (1, D), or (B, D), before the sequences of x (N, D): (B + N, D)."""
        num_tokens, batch = len(token), len(self.lengths)
        first, others = self._token_rows
        order = torch.empty(batch + len(x), dtype=torch.int64)
        order[first] = torch.arange(batch) % num_tokens
        order[others] = torch.arange(len(x)) + num_tokens
        return torch.cat([token.to(x.dtype), x]).index_select(0, self._move(order))

    def split_token(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `prepend`: return the tokens (B, D) and the other rows (N, D) of x (B + N, D)."""
        first, others = self._token_rows
        return x.index_select(0, self._move(first)), x.index_select(0, self._move(others))

    @cached_property
    def _token_rows(self) -> tuple[Tensor, Tensor]:
        """Where tokens (B,) and other rows (N,) lie when each sequence begins with a token."""
        lengths = torch.tensor(self.lengths)
        sequence = torch.arange(len(lengths)).repeat_interleave(lengths)
        return _starts(lengths + 1), torch.arange(len(sequence)) + sequence + 1

    # ---- zeros between sequences ----

    def space_out(self, kernel: int, stride: int) -> tuple[int, Tensor, Tensor]:
        """Place the sequences so far apart that no window of a convolution over all rows reaches two of them.

        Args:
            kernel: odd; the convolution is padded by kernel // 2 on both sides of each sequence.
            stride: of the convolution.

        Returns:
            The number of rows, spaces included; the position (N,) of each row among them; and the rows (N',)
            of the output that belong to a sequence, ⌈length / stride⌉ each.
        """
        lengths, padding = torch.tensor(self.lengths), kernel // 2
        out_lengths = -(-lengths // stride)
        until_next = torch.maximum(
            out_lengths - 1 - (padding - kernel) // stride, -(-(padding + lengths) // stride)
        )
        first = _starts(until_next)  # the first output row of each sequence
        end = torch.maximum(stride * (out_lengths - 1) + kernel, padding + lengths)
        size = int((stride * first + end)[-1])
        positions = (padding + stride * first).repeat_interleave(lengths) + _ranges(lengths)
        outputs = first.repeat_interleave(out_lengths) + _ranges(out_lengths)
        return size, self._move(positions), self._move(outputs)

    # ---- indices ----

    @cached_property
    def _groups(self) -> list["_Group"]:
        lengths, valid = iter(self.lengths), iter(self.valid)
        return [
            self._group(torch.tensor(list(islice(lengths, size))), torch.tensor(list(islice(valid, size))))
            for size in self.group_sizes
        ]

    def _group(self, lengths: Tensor, valid: Tensor) -> "_Group":
        batch, longest = len(lengths), int(lengths.max())
        frames = torch.arange(longest)
        mask = None
        if int(valid.min()) < longest:
            mask = self._move(frames < valid[:, None]).view(batch, 1, 1, longest)
        if int(lengths.min()) == longest:
            return _Group(batch, longest, batch * longest, None, None, None, mask)
        # The positions of padding hold the last row of the sequence.
        rows = _starts(lengths)[:, None] + torch.minimum(frames, (lengths[:, None] - 1).clamp(min=0))
        padding = frames >= lengths[:, None]
        positions = (~padding).flatten().nonzero()[:, 0]
        indices = self._move(rows.flatten()), self._move(padding), self._move(positions)
        return _Group(batch, longest, len(positions), *indices, mask)

    def _positions(self, longest: int) -> Tensor:
        """Return the position (N,) of each row in B · longest."""
        lengths = torch.tensor(self.lengths)
        return (torch.arange(len(lengths)) * longest).repeat_interleave(lengths) + _ranges(lengths)

    def _move(self, index: Tensor) -> Tensor:
        if self.device.type == "cuda":  # only page-locked memory is copied without a wait
            index = index.pin_memory()
        return index.to(self.device, non_blocking=True)


class Selection(NamedTuple):
    """Some of the rows of `Segments`.

    Attributes:
        mask: (N,) bool, True at the selected rows.
        rows: (M,) int64, their indices, ascending.
        segments: of the M selected rows.
    """

    mask: Tensor
    rows: Tensor
    segments: Segments


class _Group(NamedTuple):
    """Consecutive sequences of like length that run as one padded batch.

    Attributes:
        batch: b.
        longest: t.
        num_rows: rows without padding.
        rows: (b · t,) int64, the row at each position, at padding one of the same sequence; None, as are the
            following two, if all lengths are equal.
        padding: (b, t) bool, True at padding.
        positions: (num_rows,) int64, the position of each row in b · t.
        mask: (b, 1, 1, t) bool, True at keys that are attended to; None if all are.
    """

    batch: int
    longest: int
    num_rows: int
    rows: Tensor | None
    padding: Tensor | None
    positions: Tensor | None
    mask: Tensor | None


def _starts(lengths: Tensor) -> Tensor:
    """Return the first row of each sequence of lengths (B,)."""
    return lengths.cumsum(0) - lengths


def _ranges(lengths: Tensor) -> Tensor:
    """Return 0, 1, … of each sequence of lengths (B,), end to end."""
    return torch.arange(int(lengths.sum())) - _starts(lengths).repeat_interleave(lengths)


def _group_sizes(lengths: Iterable[int], device: torch.device) -> Iterator[int]:
    """Yield how many consecutive sequences form each group."""
    limit = GROUP_ROWS.get(device.type, GROUP_ROWS["cuda"])
    size, longest, total = 0, 0, 0
    for length in lengths:
        area = (size + 1) * max(longest, length)
        if size and (area > limit or area - total - length > MAX_PADDING * area):
            yield size
            size, longest, total = 0, 0, 0
        size, longest, total = size + 1, max(longest, length), total + length
    yield size
