"""Tensor functions that models and losses share, and those over the processes of a training run.

B batch, T frames.

Every process computes the losses of the whole batch, from sums and rows of all processes. The backward pass
of these collectives adds up the gradients of all processes, so that the gradient of a loss is the mean of
those that the processes find. In a single process they compute nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather, all_reduce


def lengths_to_mask(lengths: Tensor, num_frames: int) -> Tensor:
    """Return the mask (B, `num_frames`) that is True at the first `lengths` (B,) frames of each row."""
    return torch.arange(num_frames, device=lengths.device) < lengths[:, None]


def upcast(x: Tensor) -> Tensor:
    """Convert half-precision tensors of any shape to float32; leave float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# ---- the processes of a run --------------------------------------------------------------------------------


_ALONE = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Compute the block in this process, without the others: `num_processes` is 1 in it."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def num_processes() -> int:
    """Return the number of processes that train together."""
    if _ALONE.get():
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_batch(total: Tensor, count: Tensor | int) -> Tensor:
    """Return the sum of `total` (…) over all processes, divided by the sum of `count`, a scalar."""
    if num_processes() == 1:
        return total / count
    counts = torch.as_tensor(count, dtype=total.dtype, device=total.device).view(1)
    reduced: Tensor = all_reduce(torch.cat([total.reshape(-1), counts]))  # type: ignore[no-untyped-call] # of torch
    return (reduced[:-1] / reduced[-1]).view_as(total)


def gather_batch(x: Tensor, batch_size: int) -> Tensor:
    """Concatenate the rows (B', …) of all processes: (B, …), the same in each.

    Args:
        x: one row for each caption of this process, ⌈B / processes⌉ or one less.
        batch_size: B.
    """
    processes = num_processes()
    if processes == 1:
        return x
    most = -(-batch_size // processes)
    padded = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])
    gathered: tuple[Tensor, ...] = all_gather(padded)  # type: ignore[no-untyped-call] # of torch
    counts = (len(range(rank, batch_size, processes)) for rank in range(processes))
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


def own_share[T](items: Sequence[T]) -> Sequence[T]:
    """Return every n-th item, those of this one of n processes, all of which must call this."""
    return items if num_processes() == 1 else items[dist.get_rank() :: num_processes()]


def gather_objects[T](own: T) -> list[T]:
    """Return an object of every process, pickled if there are several.

    Raises:
        Stopped: a process left its work, see `stopping_together`.
    """
    if num_processes() == 1:
        return [own]
    gathered = _gather(own)
    if any(isinstance(part, Stopped) for part in gathered):
        raise Stopped(told=True)
    return cast("list[T]", gathered)


def _gather(own: object) -> list[object]:
    gathered: list[object] = [None] * num_processes()
    dist.all_gather_object(gathered, own)
    return gathered


class Stopped(Exception):  # noqa: N818 - no error
    """Work that processes share was left; `told`: all of them know."""

    def __init__(self, *, told: bool = False) -> None:
        self.told = told
        super().__init__()


_STOP_REQUESTED: ContextVar[Callable[[], bool]] = ContextVar("stop_requested", default=lambda: False)


def check_stop() -> None:
    """Leave the block of `stopping_together` if it was asked for; called before each part of a share.

    Raises:
        Stopped: it was.
    """
    if _STOP_REQUESTED.get()():
        raise Stopped


@contextmanager
def stopping_together(requested: Callable[[], bool]) -> Iterator[None]:
    """Leave the block in all processes soon after `requested` is true in one of them.

    They leave it where they call `check_stop` or `gather_objects`, of which the latter must come after the
    former in every process.
    """
    token = _STOP_REQUESTED.set(requested)
    try:
        yield
    except Stopped as stopped:
        if not stopped.told and num_processes() > 1:
            _gather(stopped)  # the others wait in `gather_objects`, or come to it
    finally:
        _STOP_REQUESTED.reset(token)
