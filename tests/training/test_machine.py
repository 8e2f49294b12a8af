"""What training asks of the machine."""

import platform
import subprocess
import sys

import pytest
import torch

from vgsplus.training.machine import native_precision

KEPT = """
import ctypes, torch
from vgsplus.training.machine import keep_freed_memory

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
        "keepcost",
    )]

{call}
torch.ones(10_000_000)
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
print(mallinfo().fordblks)
"""


def kept_bytes(call: str) -> int:
    """Free bytes that the allocator keeps after 40 MB were given back, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", KEPT.format(call=call)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tunes glibc's allocator")
def test_a_step_meets_the_memory_of_the_step_before():
    assert kept_bytes("") < 40_000_000 <= kept_bytes("keep_freed_memory()")


@pytest.mark.parametrize(
    ("abilities", "expected"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "32-true"),
        ({"avx2": True, "avx512_bf16": True}, "bf16-mixed"),
        ({"amx_bf16": True}, "bf16-mixed"),
        ({"neon": True}, "32-true"),
    ],
)
def test_a_processor_without_bfloat16_trains_in_32_bits(monkeypatch, abilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    assert native_precision("cpu") == expected
