"""The order of packages: a module imports only packages that come before its own."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vgsplus

SOURCE = Path(vgsplus.__file__).parent
ORDER = (
    *(("errors",), ("remote",), ("files",), ("progress",), ("audio_files",)),
    ("parallel", "validation", "audio", "tensor_files", "functional", "draws"),
    *(("schedule",), ("losses",), ("models",), ("config",), ("fetching", "regions"), ("corpora",)),
    *(
        ("training", "evaluation"),
        ("interop",),
        ("report",),
        ("experiments",),
        ("search",),
        ("doctor",),
        ("cli",),
    ),
    ("__main__",),
)
RANK = {package: rank for rank, packages in enumerate(ORDER) for package in packages}
TORCH_ONLY = {"functional", "draws", "losses", "models"}


def imports(path):
    """The modules that a file imports, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "vgsplus":
            yield from (f"vgsplus.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def package_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_every_module_has_its_place_in_the_order():
    assert {package_of(path) for path in SOURCE.rglob("*.py")} - {"__init__"} <= RANK.keys()


def test_no_module_imports_a_package_after_its_own():
    back = [
        f"{path.relative_to(SOURCE)} imports {name}"
        for path in sorted(SOURCE.rglob("*.py"))
        if (package := package_of(path)) != "__init__"
        for name in imports(path)
        if name.startswith("vgsplus.")
        if (other := name.split(".")[1]) != package and RANK[other] >= RANK[package]
    ]
    assert not back


def test_no_modules_import_each_other():
    files = {path.relative_to(SOURCE.parent).with_suffix(""): path for path in SOURCE.rglob("*.py")}
    files = {".".join(name.parts).removesuffix(".__init__"): path for name, path in files.items()}
    graph = {name: set() for name in files}
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in files:
                members = (f"{node.module}.{alias.name}" for alias in node.names)
                graph[name] |= {member if member in files else node.module for member in members} - {name}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_models_and_losses_import_torch_and_the_standard_library_alone():
    allowed = {"torch", "vgsplus", "collections", "contextlib", "contextvars", "dataclasses", "functools"}
    allowed |= {"itertools", "math", "typing"}
    others = {
        f"{path.relative_to(SOURCE)} imports {name}"
        for path in SOURCE.rglob("*.py")
        if package_of(path) in TORCH_ONLY
        for name in imports(path)
        if name.split(".")[0] not in allowed
    }
    assert not others


def test_no_folder_is_crowded_and_no_file_long():
    folders = {path.parent for path in SOURCE.rglob("*.py")}
    assert all(sum(1 for _ in folder.glob("*.py")) <= 14 for folder in folders)
    assert all(len(path.read_text().splitlines()) <= 400 for path in SOURCE.rglob("*.py"))


SLOW = {
    "fastabx",
    "gradio",
    "h5py",
    "lightning",
    "matplotlib",
    "numba",
    "pandas",
    "polars",
    "scipy",
    "tensorboard",
}
SLOW |= {"transformers", "vgsplus.config"}
EVERY_HELP = """
from contextlib import suppress
from typer.main import get_command
from vgsplus.cli import app, main
found = [([], get_command(app))]
for names, command in found:
    with suppress(SystemExit):
        main([*names, "--help"])
    found += [([*names, name], child) for name, child in getattr(command, "commands", {}).items()]
"""


@pytest.mark.parametrize(
    ("script", "slow"),
    [
        ("import vgsplus", SLOW | {"numpy", "torch"}),
        (EVERY_HELP, SLOW | {"torch"}),
        ("import vgsplus; vgsplus.load", SLOW),
    ],
    ids=["the package", "every --help", "load"],
)
def test_a_start_imports_nothing_that_is_slow(script, slow):
    script += f"\nimport sys; print('\\n', *sorted({slow} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == []
