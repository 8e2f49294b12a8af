"""What training asks of the machine."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from vgsplus.training.runtime import native_precision

KEPT = """
import ctypes, torch
from vgsplus.training.runtime import disable_malloc_trim

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


KERNELS = """
import torch
from vgsplus.training.runtime import enlarge_onednn_cache

{call}
x, weight = torch.randn(16, 4, 1400), torch.randn(4, 4, 5)
for turn in ("first", "second"):
    print(turn, flush=True)
    for length in range(100, 1300):
        torch.nn.functional.conv1d(x[:, :, :length], weight)
"""


def kernels_prepared_again(call):
    """How often oneDNN prepares a kernel for shapes that it has met before, in a process of its own."""
    environment = {name: x for name, x in os.environ.items() if not name.startswith(("ONEDNN_", "DNNL_"))}
    done = subprocess.run(
        [sys.executable, "-c", KERNELS.format(call=call)],
        capture_output=True,
        text=True,
        check=True,
        env=environment | {"ONEDNN_VERBOSE": "profile_create"},
    )
    return done.stdout.partition("second")[2].count("cache_miss")


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
def test_a_step_meets_the_kernels_of_all_steps_before():
    assert kernels_prepared_again("") > 1000
    assert kernels_prepared_again("enlarge_onednn_cache()") == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tunes glibc's allocator")
def test_a_step_meets_the_memory_of_the_step_before():
    assert kept_bytes("") < 40_000_000 <= kept_bytes("disable_malloc_trim()")


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
