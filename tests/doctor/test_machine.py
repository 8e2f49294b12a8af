import importlib.util
import subprocess
import sys
from collections import namedtuple

import pytest
import soundfile
import torch

from vgsplus.doctor import examine, machine
from vgsplus.errors import VgsplusError
from vgsplus.training.runtime import native_precision


def of(about):
    return next(finding for finding in examine("machine").findings if finding.about == about)


def test_this_machine_is_ok_and_reported():
    diagnosis = examine("machine")
    assert diagnosis.ok
    reported = {finding.about: finding.what for finding in diagnosis.findings}
    assert f"torch {torch.__version__.split('+')[0]}" in reported["versions"]
    assert "FLAC, OGG, MP3" in reported["libsndfile"]
    assert "free" in reported["disk"]
    assert reported["precision"].startswith("auto chooses ")
    assert "core" in reported["processor"]


def test_what_it_says_of_precision_is_what_training_chooses():
    assert f"auto chooses {native_precision('auto')}:" in of("precision").what


@pytest.mark.skipif(machine._may_have_gpu(), reason="a GPU is asked about through PyTorch")
def test_pytorch_is_not_imported_where_there_is_no_gpu():
    script = (
        "import sys; from vgsplus.doctor import examine; examine('machine'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_speech_that_does_not_start_is_a_fault(monkeypatch):
    def refuse(_):
        raise VgsplusError("no voice")

    monkeypatch.setattr("vgsplus.corpora.sources.toy.espeak.speak", refuse)
    assert not examine("machine").ok
    assert "no voice" in of("eSpeak NG").what


@pytest.mark.parametrize(("broken", "level"), [("MP3", "hint"), ("FLAC", "fault")])
def test_a_format_that_does_not_decode_is_named(monkeypatch, broken, level):
    write = soundfile.write

    def refuse(file, data, rate, **options):
        if options["format"] == broken:
            raise soundfile.LibsndfileError(1)
        write(file, data, rate, **options)

    monkeypatch.setattr(soundfile, "write", refuse)
    finding = of("libsndfile")
    assert finding.level == level
    assert broken in finding.what
    assert "OGG" not in finding.what


def test_little_room_is_a_hint(monkeypatch):
    usage = namedtuple("usage", "total used free")  # noqa: PYI024
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(10, 9, 1))
    monkeypatch.setattr(machine, "_free_memory", lambda: 1)
    assert of("disk").level == of("memory").level == "hint"


def test_threads_held_down_by_a_setting_are_a_hint(monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(512)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "OMP_NUM_THREADS" in of("processor").remedy


def test_the_extra_of_the_search_is_reported():
    installed = importlib.util.find_spec("gradio") is not None
    assert of("extra demo").level == ("ok" if installed else "hint")
    assert "gradio" in of("extra demo").what


def test_an_extra_that_is_missing_is_a_hint_with_its_command(monkeypatch):
    monkeypatch.setattr(machine, "EXTRAS", {"mteb": ("no-such-package",), "dev": ("pytest",)})
    assert of("extra mteb").level == "hint"
    assert "vgsplus[mteb]" in of("extra mteb").remedy
    assert of("extra dev").level == "ok"


def test_a_gpu_without_kernels_is_a_fault(monkeypatch):
    properties = namedtuple("properties", "name total_memory major minor")  # noqa: PYI024
    monkeypatch.setattr(machine, "_may_have_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90a", "sm_120", "compute_120"])
    capabilities = {"old": (7, 5), "new": (8, 6), "newer": (9, 0), "newest": (12, 0)}
    kinds = [properties(name, 80 * 10**9, *capability) for name, capability in capabilities.items()]
    monkeypatch.setattr(torch.cuda, "get_device_properties", kinds.__getitem__)
    first, second, *later = machine._gpus()
    assert [found.level for found in (first, second, *later)] == ["fault", "ok", "ok", "ok"]
    assert "new, 80.0 GB, compute capability 8.6" in second.what
