"""The notebooks in examples/, cell by cell in one folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_cells(notebook):
    """Execute the cells of a notebook; lines of a cell that begins with "!" are a command of the shell."""
    names = {}
    for number, cell in enumerate(json.loads(notebook.read_text())["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            continue
        assert cell["outputs"] == []
        if source.startswith("!"):
            done = subprocess.run(source[1:], shell=True, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"cell {number}: {source}\n{done.stdout}{done.stderr}"
        else:
            exec(compile(source, f"{notebook.name}, cell {number}", "exec"), names)
    return names


def test_the_notebooks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MPLBACKEND", "agg")
    run_cells(EXAMPLES / "train_on_your_own_data.ipynb")
    names = run_cells(EXAMPLES / "use_a_trained_model.ipynb")
    scores = names["scores"]
    found = (scores.argmax(dim=1) == torch.arange(len(scores))).sum()
    assert found >= 5, "of ten pictures; chance is one"
    assert {path.name for path in Path("mine").iterdir()} >= {"config.json", "model.safetensors", "README.md"}
