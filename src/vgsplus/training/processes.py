"""The processes that train one model together: by torchrun, srun, or started by the first of them.

Each computes a part of every batch. The first writes, prints and decides; the others follow.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from vgsplus.errors import ConfigError, VgsplusError
from vgsplus.functional import alone
from vgsplus.parallel import process_count
from vgsplus.training.runtime import device_name

PATIENCE = timedelta(days=7)
"""How long a process waits for the others, which may be evaluating or writing. A process that ended closes
its connections, which ends the wait with an error."""

BUCKET_ELEMENTS = 1 << 24
"""Elements of gradients that are averaged together."""


class Processes:
    """This process among those of a run.

    Attributes:
        fabric: the device and the precision of this process.
        precision: plugin of the fabric.
        count: number of processes.
        rank: number of this process, from 0.
    """

    def __init__(
        self,
        devices: int = 1,
        num_nodes: int = 1,
        *,
        accelerator: str = "auto",
        precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
    ) -> None:
        """Start or join the processes of a run.

        Args:
            devices: processes on each node, unless torchrun started this one.
            num_nodes: nodes, unless torchrun started this process.
            accelerator: as in `RunConfig`.
            precision: as in `RunConfig`, after `resolve_precision`.

        Raises:
            ConfigError: the number of processes does not fit what started this one.
        """
        device = device_name(accelerator)
        self.precision = Precision() if precision == "32-true" else MixedPrecision(precision, device)
        devices, nodes = _started_by_torchrun() or (devices, num_nodes)
        self.count = devices * nodes
        options: dict[str, Any] = {"strategy": DDPStrategy(timeout=PATIENCE)} if self.count > 1 else {}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The `srun` command is available")
                self.fabric = Fabric(
                    accelerator=device, devices=devices, num_nodes=nodes, plugins=self.precision, **options
                )
            if self.count > 1:
                self.fabric.launch()
        except (ValueError, RuntimeError) as error:
            if self.count == 1:
                raise
            raise ConfigError(f"{self.count} processes cannot start ({error})") from error
        self.rank = self.fabric.global_rank
        if self.count > 1:
            os.environ.setdefault("RANK", str(self.rank))  # for `process_rank` on several nodes
        # Decisions are exchanged between hosts, so that no device is waited for.
        gpu = self.count > 1 and self.fabric.device.type == "cuda"
        self._hosts: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if gpu else None

    @property
    def first(self) -> bool:
        """Whether this process writes, prints and decides."""
        return self.rank == 0

    def sum(self, values: Iterable[float]) -> list[float]:
        """Add up numbers of all processes, which all must call this together."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(total, group=self._hosts)
        added: list[float] = total.tolist()
        return added

    def on_first[Value](self, function: Callable[[], Value]) -> Value:
        """Call a function in the first process alone, and return its value, which is pickled, in all.

        Raises:
            VgsplusError: the function raised it; in all processes. Others have its `reported` set.
        """
        if self.count == 1:
            return function()
        answer: list[Any] = [None, None]
        if self.first:
            try:
                with alone():
                    answer[0] = function()
            except VgsplusError as error:
                dist.broadcast_object_list([None, error], group=self._hosts)
                raise
        dist.broadcast_object_list(answer, group=self._hosts)
        value, raised = answer
        if raised is not None:
            raised.reported = True
            raise raised
        return value  # type: ignore[no-any-return]

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """Replace the errors of connections to a process that ended by a message.

        Raises:
            VgsplusError: another process ended.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            raise VgsplusError(
                "another process of this run ended. Its message tells why; resume the run by --resume."
            ) from error

    def average_gradients(self, model: nn.Module) -> None:
        """Average the gradients of the processes; all must have gradients of the same parameters."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        for bucket in _buckets(gradients):
            joined = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(joined)
            joined /= self.count
            parts = torch.split(joined, [gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


def join_processes() -> Processes:
    """Join the processes that torchrun or srun started for the same command; raises as `Processes`."""
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    return Processes(process_count() // nodes, nodes)


def _started_by_torchrun() -> tuple[int, int] | None:
    """Return (processes on this node, nodes), or None."""
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return None
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return local, int(os.environ["WORLD_SIZE"]) // local


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield consecutive gradients of at most `BUCKET_ELEMENTS` elements together, but at least one."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and size + gradient.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket
