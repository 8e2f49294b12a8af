"""What training asks of the machine."""

import os
import platform
import re
import subprocess
import sys

import pytest
import torch

from vgsplus.training.runtime import compiles, native_precision

SCRIPT = """
import ctypes, torch
from vgsplus.training.runtime import tune_process

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
        "keepcost",
    )]

{calls}
torch.ones(10_000_000)
try:
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Info
    print("kept", mallinfo().fordblks)
except AttributeError:
    print("kept no glibc")
x, weight = torch.randn(16, 4, 1400), torch.randn(4, 4, 5)
for turn in ("first", "second"):
    print(turn, flush=True)
    for length in range(100, 1300):
        torch.nn.functional.conv1d(x[:, :, :length], weight)
"""


@pytest.fixture(scope="module", params=[False, True])
def tuned(request):
    """Whether a process of its own was tuned, and its output with a line for each kernel that oneDNN made."""
    calls = "tune_process()" if request.param else ""
    environment = {name: x for name, x in os.environ.items() if not name.startswith(("ONEDNN_", "DNNL_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(calls=calls)],
        capture_output=True,
        text=True,
        check=True,
        env=environment | {"ONEDNN_VERBOSE": "profile_create"},
    )
    return request.param, done.stdout


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
def test_a_step_meets_the_kernels_of_all_steps_before(tuned):
    enlarged, printed = tuned
    made_again = printed.partition("second")[2].count("cache_miss")
    assert made_again == 0 if enlarged else made_again > 1000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tunes glibc's allocator")
def test_a_step_meets_the_memory_of_the_step_before(tuned):
    """The allocator keeps 40 MB that were given back."""
    kept = int(re.search(r"^kept (\d+)$", tuned[1], re.MULTILINE)[1])
    assert (kept >= 40_000_000) is tuned[0]


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


@pytest.mark.parametrize(
    ("setting", "device", "expected"),
    [
        ("auto", "cpu", False),
        (True, "cpu", True),
        (False, "cuda", False),
    ],
)
def test_layers_are_compiled_where_it_is_asked_for(setting, device, expected):
    assert compiles(setting, device) is expected


@pytest.mark.parametrize("found", [True, False])
def test_a_gpu_compiles_layers_by_itself_where_the_compiler_has_triton(monkeypatch, found):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if found else None)
    assert compiles("auto", "cuda") is found
