"""Sequences of different lengths, end to end in the rows of one tensor: no layer computes padding.

N rows of all sequences together, B sequences, T rows of the longest; b sequences of up to t rows in a group.
A tensor (N, …) may have a few more rows at the end, which belong to no sequence: see `round_up`.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from vgsplus.draws import fold, new_keys

GROUP_ROWS = {"cpu": 1024, "cuda": 1 << 14}
"""Largest b · t of a group of several sequences: a GPU needs many rows to be occupied, while a thousand
occupy a CPU and leave the attention scores in its cache."""

MAX_PADDING = 0.25
"""Largest share of padding in a group, before its length is rounded up."""

LENGTH_MULTIPLE = 8
"""Multiple of rows to which a padded group is rounded up, for the reason that `round_up` states."""


def round_up(rows: int) -> int:
    """Round a number of rows up to one of few sizes, by at most 1/32.

    Compilers of kernels, such as oneDNN's for bfloat16, start anew for every new shape of a product.
    """
    step = 1 << max(0, (rows // 32).bit_length() - 1)
    return -(-rows // step) * step


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
        rounded: whether the tensors have `round_up` rows.
        keys: (B,) int64 on the host, from which the random numbers of each sequence are drawn (see `draws`);
            None: drawn when they are needed.

    Attributes:
        num_rows: N.
        size: rows of the tensors.
    """

    def __init__(
        self,
        lengths: Iterable[int],
        device: torch.device,
        *,
        valid: Iterable[int] | None = None,
        group_sizes: tuple[int, ...] | None = None,
        rounded: bool = False,
        keys: Tensor | None = None,
    ) -> None:
        self.lengths, self.device, self._keys = tuple(lengths), device, keys
        self.valid = self.lengths if valid is None else tuple(valid)
        self.group_sizes = group_sizes or tuple(_group_sizes(self.lengths, device))
        self.num_rows = sum(self.lengths)
        self.size = round_up(self.num_rows) if rounded else self.num_rows

    def with_lengths(self, lengths: Iterable[int], valid: Iterable[int] | None = None) -> "Segments":
        """Return the segments of the same sequences with other lengths, in the same groups."""
        return Segments(lengths, self.device, valid=valid, group_sizes=self.group_sizes, keys=self._keys)

    @cached_property
    def row_keys(self) -> Tensor:
        """A key (size,) int64 for each row, a function of the key of its sequence and its index there."""
        keys = new_keys(len(self.lengths)) if self._keys is None else self._keys
        lengths = torch.tensor(self.lengths)
        rows = torch.zeros(self.size, dtype=torch.int64)
        rows[: self.num_rows] = fold(keys.repeat_interleave(lengths), _ranges(lengths))
        return self.move(rows)

    # ---- groups ----

    def split(self, x: Tensor, *, zero_padding: bool = False) -> list[Tensor]:
        """Split the rows of the sequences (N, …) into groups (b, t, …).

        Padding repeats other rows, or is zero with `zero_padding`, as convolutions require.
        """
        parts = []
        sizes = [group.num_rows for group in self._groups]
        *chunks, _ = torch.split(x, [*sizes, self.size - self.num_rows])
        for group, rows in zip(self._groups, chunks, strict=True):
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
        """Undo `split`: concatenate the rows of groups (b, t, …), without padding; rows beyond N are zero."""
        rows = []
        for group, part in zip(self._groups, parts, strict=True):
            flat = part.flatten(0, 1)
            rows.append(flat if group.positions is None else flat.index_select(0, group.positions))
        return rows[0] if len(rows) == 1 and self.size == self.num_rows else self.concatenate(rows)

    def concatenate(self, parts: Iterable[Tensor]) -> Tensor:
        """Concatenate rows (…) of consecutive sequences, and zeros up to `size` rows."""
        rows = list(parts)
        return torch.cat([*rows, rows[0].new_zeros(self.size - self.num_rows, *rows[0].shape[1:])])

    @property
    def masks(self) -> list[Tensor | None]:
        """The attention mask of each group, (b, 1, 1, t), True at keys that are attended to; None: all."""
        return [group.mask for group in self._groups]

    @property
    def computed_rows(self) -> int:
        """Rows of all groups, padding included."""
        lengths, rows = iter(self.lengths), 0
        for size in self.group_sizes:
            group = list(islice(lengths, size))
            multiple = 1 if min(group) == max(group) else LENGTH_MULTIPLE
            rows += size * -(-max(group) // multiple) * multiple
        return rows

    # ---- all sequences as one padded batch ----

    def pad(self, x: Tensor, longest: int | None = None) -> Tensor:
        """Pad rows (N, …) with zeros to (B, `longest` or T, …)."""
        longest = max(self.lengths) if longest is None else longest
        padded = x.new_zeros(len(self.lengths) * longest, *x.shape[1:])
        positions = self.move(self._positions(longest))
        return padded.index_copy(0, positions, x[: self.num_rows]).view(
            len(self.lengths), longest, *x.shape[1:]
        )

    def select(self, mask: Tensor) -> "Selection":
        """Find the rows that are True in a mask, without a wait for the device if the mask is on the host.

        Args:
            mask: (B, T') bool, T' ≥ T.

        Raises:
            ValueError: the mask has fewer columns than the longest sequence has rows.
        """
        if mask.shape[1] < max(self.lengths):
            raise ValueError(
                f"the mask has {mask.shape[1]} frames, the longest utterance {max(self.lengths)}"
            )
        chosen = torch.zeros(self.size, dtype=torch.bool)
        chosen[: self.num_rows] = mask.cpu().flatten()[self._positions(mask.shape[1])]
        counts = (int(part.sum()) for part in torch.split(chosen[: self.num_rows], list(self.lengths)))
        segments = Segments(counts, self.device, group_sizes=self.group_sizes, rounded=True, keys=self._keys)
        rows = torch.zeros(segments.size, dtype=torch.int64)
        rows[: segments.num_rows] = chosen.nonzero()[:, 0]
        return Selection(self.move(chosen), self.move(rows), segments)

    # ---- a token before each sequence ----

    @cached_property
    def with_token(self) -> "Segments":
        """The segments with one row more at the start of each sequence."""
        lengths, valid = (n + 1 for n in self.lengths), (n + 1 for n in self.valid)
        return Segments(
            lengths, self.device, valid=valid, group_sizes=self.group_sizes, rounded=True, keys=self._keys
        )

    def prepend(self, token: Tensor, x: Tensor) -> Tensor:
        """Insert tokens (1, D), or (B, D), before the sequences of x (N, D): (B + N, D), rounded up."""
        num_tokens, batch = len(token), len(self.lengths)
        first, others = self._token_rows
        order = torch.zeros(self.with_token.size, dtype=torch.int64)
        order[first] = torch.arange(batch) % num_tokens
        order[others] = torch.arange(self.num_rows) + num_tokens
        return torch.cat([token.to(x.dtype), x]).index_select(0, self.move(order))

    def split_token(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `prepend`: return the tokens (B, D) and the other rows (N, D) of x (B + N, D)."""
        first, others = self._token_rows
        rest = torch.zeros(self.size, dtype=torch.int64)
        rest[: self.num_rows] = others
        return x.index_select(0, self.move(first)), x.index_select(0, self.move(rest))

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
            The number of rows, spaces included, rounded up; the position (N,) of each row among them; and the
            rows (N',) of the output that belong to a sequence, ⌈length / stride⌉ each.
        """
        lengths, padding = torch.tensor(self.lengths), kernel // 2
        out_lengths = -(-lengths // stride)
        until_next = torch.maximum(
            out_lengths - 1 - (padding - kernel) // stride, -(-(padding + lengths) // stride)
        )
        # Outputs until those of the next sequence: its first window begins after the last row of this one,
        # and the last window of this one ends before its first row.
        first = _starts(until_next)
        end = torch.maximum(stride * (out_lengths - 1) + kernel, padding + lengths)
        size = int((stride * first + end)[-1])
        positions = (padding + stride * first).repeat_interleave(lengths) + _ranges(lengths)
        outputs = first.repeat_interleave(out_lengths) + _ranges(out_lengths)
        return round_up(size), self.move(positions), self.move(outputs)

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
            mask = self.move(frames < valid[:, None]).view(batch, 1, 1, longest)
        if int(lengths.min()) == longest:
            return _Group(batch, longest, batch * longest, None, None, None, mask)
        longest = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        frames = torch.arange(longest)
        mask = self.move(frames < valid[:, None]).view(batch, 1, 1, longest)
        # Padding holds the last row of its sequence, or of the one before an empty sequence; it is dropped.
        rows = _starts(lengths)[:, None] + torch.minimum(frames, lengths[:, None] - 1)
        rows = rows.clamp(min=0, max=int(lengths.sum()) - 1)
        padding = frames >= lengths[:, None]
        positions = (~padding).flatten().nonzero()[:, 0]
        indices = self.move(rows.flatten()), self.move(padding), self.move(positions)
        return _Group(batch, longest, len(positions), *indices, mask)

    def _positions(self, longest: int) -> Tensor:
        """Return the position (N,) of each row in B · longest."""
        lengths = torch.tensor(self.lengths)
        return (torch.arange(len(lengths)) * longest).repeat_interleave(lengths) + _ranges(lengths)

    def move(self, index: Tensor) -> Tensor:
        """Copy a tensor on the host to the device, without a wait."""
        if self.device.type == "cuda":  # only page-locked memory is copied without a wait
            index = index.pin_memory()
        return index.to(self.device, non_blocking=True)


class Selection(NamedTuple):
    """Some of the rows of `Segments`.

    Attributes:
        mask: (N,) bool, True at the selected rows.
        rows: (M,) int64, their indices, ascending; row 0 as often as rounding up requires.
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
        rows: (b · t,) int64, the row at each position, at padding any row; None, as are the following two, if
            all lengths are equal.
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
