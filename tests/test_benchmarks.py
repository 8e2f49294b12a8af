import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"


def test_the_script_for_a_gpu_runs_on_a_cpu(tmp_path):
    arguments = ("--device", "cpu", "--size", "smoke", "--batch-sizes", "2", "--repeats", "1")
    environment = os.environ | {"PYTHON": sys.executable}
    subprocess.run([SCRIPT, tmp_path, *arguments], check=True, env=environment, capture_output=True)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["resumed"] == {"fp32": True, "bf16": True}
    exact = [a for a in found["agreement"] if a["precision"] == "fp32"]
    assert {a["alpha"] for a in exact} == {0.0, 0.5, 1.0}
    assert all(a["loss"] < 1e-5 and a["gradient"] < 1e-4 for a in exact)
    assert {r["system"] for r in found["speed"]} == {"vgsplus", "rectangle"}
    assert found["kernels"]["table"]
    assert "resumed runs end with the same bits" in (tmp_path / "gpu.txt").read_text()


def test_killed_runs_end_with_the_weights_of_undisturbed_ones():
    script = SCRIPT.with_name("kills.py")
    done = subprocess.run(
        [sys.executable, script, "--kills", "3"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills in 1 process(es), 0 runs differ" in done.stdout
    assert "1 kills in 2 process(es), 0 runs differ" in done.stdout
