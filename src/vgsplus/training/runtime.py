"""Device, memory, signals and seeds of a training process, and the package versions it runs on.

PyTorch takes seconds to import, so only the functions that need it import it.
"""
# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import signal
import threading
import time
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType, TracebackType

    import torch

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


# ---- device -----------------------------------------------------------------------------------------------


def device_name(accelerator: str) -> str:
    """Return "cuda" or "cpu"; "auto" means CUDA if PyTorch finds a device."""
    if accelerator == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return accelerator


def native_precision(accelerator: str) -> Literal["bf16-mixed", "32-true"]:
    """Return "bf16-mixed" if the device has bfloat16 instructions, else "32-true".

    Without them bfloat16 is emulated: a training step of the toy preset then takes 8 to 10 times as long as
    in float32 on an x86 processor with AVX2.
    """
    import torch

    if device_name(accelerator) == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return "bf16-mixed" if native else "32-true"


def compiles(setting: Literal["auto"] | bool, device: str) -> bool:
    """Whether layers are compiled; "auto" means on CUDA with Triton, which comes with PyTorch on Linux."""
    if setting == "auto":
        return device == "cuda" and importlib.util.find_spec("triton") is not None
    return setting


def tune_process() -> None:
    """Configure the memory and kernels of this process for training steps, before the first one.

    - glibc keeps freed memory for the rest of the process. By default it returns blocks of 32 MB and more to
      the system, and every step waits for the same pages to be zeroed again.
    - The capacity of oneDNN's kernel cache is 8,192, unless the environment sets it. oneDNN compiles a kernel
      for each new shape, and its default of 1,024 is less than captions of many lengths need in bfloat16, so
      that every step would compile most of its kernels.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
    with suppress(AttributeError, OSError, TypeError):  # without glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Measure the floating-point operations per second of a large product on a device ("cpu", "cuda")."""
    import torch

    size = 8192 if device == "cuda" else 2048
    a = torch.ones(size, size, device=device, dtype=dtype)
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds = []
    for _ in range(3):
        wait()
        started = time.perf_counter()
        torch.mm(a, a)
        wait()
        seconds.append(time.perf_counter() - started)
    return float(2 * size**3 / min(seconds))


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Use deterministic algorithms on a CUDA device; a CPU is deterministic anyway.

    Operations without a deterministic kernel warn and run. PyTorch may also compute the gradients of
    attention with a non-deterministic summation order; not tested on a GPU.
    """
    if device.type != "cuda":
        yield
        return
    import torch

    # Read when cuBLAS starts; without it, it may split sums differently from call to call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    mode, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    memory: Any = torch.utils.deterministic  # its attribute has no type
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # every element is written before it is read
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn)
        memory.fill_uninitialized_memory = filled


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute the weights."""
    packages = {
        name: importlib.metadata.version(name) for name in ("vgsplus", "torch", "lightning-fabric", "numpy")
    }
    return packages | {"python": platform.python_version()}


# ---- seeds ------------------------------------------------------------------------------------------------


class RandomStream(IntEnum):
    """Independent random streams; the same index in two streams gives unrelated seeds."""

    MODEL = 0
    ORDER = 1
    STEP = 2
    VALIDATION = 3
    EXTRA_ORDER = 4
    EXTRA_STEP = 5
    EXTRA_VALIDATION = 6


def indexed_seed(seed: int, stream: RandomStream, *index: int) -> int:
    """Return a 64-bit seed for torch.manual_seed, a function of the run's seed, the stream and an index.

    Indices such as (phase, step) let a resumed run draw the same numbers without replaying earlier steps.
    """
    return int(np.random.SeedSequence([seed, stream, *index]).generate_state(1, np.uint64)[0])


# ---- signals ----------------------------------------------------------------------------------------------


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that stop a run: Ctrl-C, the end of a session or job, and SLURM's warning before a time limit."""


class StopRequest:
    """Context manager in which the first of `STOP_SIGNALS` sets `requested`; another SIGINT interrupts.

    Signals are handled in the main thread of a program only; in another thread this does nothing. Forked
    processes ignore them.
    """

    def __init__(self) -> None:
        self.requested = False
        self._process = 0
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._request) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _request(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        # SLURM sends SIGUSR1, and then SIGTERM while the run may still be saving.
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
