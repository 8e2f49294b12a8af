"""What training asks of the machine."""

import platform
import subprocess
import sys

import pytest
import torch

from vgsplus.training.machine import native_precision

FAULTS = """
import resource, torch
from vgsplus.training.machine import keep_freed_memory
{call}
for step in range(12):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(call=call)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tunes glibc's allocator")
def test_a_step_meets_the_memory_of_the_step_before():
    assert faults("keep_freed_memory()") < faults("") / 2


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
