"""The machine under a run: which device, how exactly it repeats itself, which versions.

PyTorch takes seconds to import, and only some functions need it: it is imported by these.
"""
# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def device_name(accelerator: str) -> str:
    """The device that "auto", "cpu" or "cuda" means here."""
    if accelerator == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return accelerator


def native_precision(accelerator: str) -> Literal["bf16-mixed", "32-true"]:
    """bfloat16 where the device has instructions for it, else float32; other devices only imitate it.

    A training step of the toy preset takes 8 to 10 times as long in bfloat16 as in float32 on an x86
    processor that has AVX2 alone.
    """
    import torch

    if device_name(accelerator) == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        abilities = torch.cpu.get_capabilities()
        native = any(abilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return "bf16-mixed" if native else "32-true"


def keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next one, for as long as this process lives.

    It gives blocks of 32 MB and more back to the system at once, and every step then waits for the same
    pages to be cleared again. Without glibc nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def keep_kernels() -> None:
    """Have oneDNN keep the kernels of all shapes that training meets, unless the environment sets how many.

    It prepares one for every shape and by default keeps 1,024, fewer than captions of many lengths take in
    bfloat16: every step would prepare most of its kernels. oneDNN reads this when it prepares its first.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Have a CUDA device repeat itself bit for bit; a CPU does anyway.

    What has no deterministic kernel warns and runs. PyTorch may then also leave the gradients of attention to
    a kernel that adds in any order: no GPU has been tried.
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
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn)


def versions() -> dict[str, str]:
    """The versions of what computes the weights."""
    packages = {
        name: importlib.metadata.version(name) for name in ("vgsplus", "torch", "lightning-fabric", "numpy")
    }
    return packages | {"python": platform.python_version()}
