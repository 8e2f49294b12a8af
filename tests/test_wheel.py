"""The wheel, built from the sdist, installed into an environment of its own and run outside the checkout."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_bytes
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src" / "vgsplus"
SCENES = """
from vgsplus.corpora.sources.toy.corpus import prepare_toy
prepare_toy("out/scenes", train_images=1, validation_images=1, test_images=10)
"""
TOY = SOURCES / "presets" / "toy" / "model.safetensors"
SDIST_FOLDERS = {"benchmarks", "docs", "examples", "src", "tests"}


def run(*command, cwd):
    """Run a command without the checkout on its path; return what it printed."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))
    }
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "dist", cwd=unpacked)
    (path,) = (folder / "dist").iterdir()
    return path


def test_the_sdist_holds_the_project_and_nothing_else(sdist):
    with tarfile.open(sdist) as archive:
        paths = [Path(*Path(name).parts[1:]) for name in archive.getnames()]
    assert {path.parts[0] for path in paths if len(path.parts) > 1} == SDIST_FOLDERS
    assert {path.suffix for path in paths} & {".pyc", ".wav", ".log"} == set()
    assert [path for path in paths if path.suffix == ".safetensors"] == [TOY.relative_to(ROOT)]
    assert {Path("LICENSE"), Path("README.md"), Path("CITATION.cff"), Path("requirements.lock")} <= set(paths)
    assert all(ROOT.joinpath(path).exists() for path in paths if path.name != "PKG-INFO")
    assert TOY.stat().st_size < 5_000_000
    assert sdist.stat().st_size < 10_000_000


def test_the_wheel_holds_the_files_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        about = message_from_bytes(archive.read(metadata))
    files = {path for path in SOURCES.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert names == {path.relative_to(SOURCES.parent).as_posix() for path in files}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert about["Version"] == project["version"]
    assert about["License-Expression"] == "MIT"
    assert "Typing :: Typed" in about.get_all("Classifier")
    assert (ROOT / "README.md").read_bytes() == about.get_payload(decode=True)


@pytest.mark.skipif(
    find_spec("ensurepip") is None, reason="this Python lacks ensurepip (Debian: python3-venv)"
)
def test_the_wheel_runs_outside_the_checkout(wheel, tiny_corpus, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python, command = (tmp_path / "venv" / "bin" / name for name in ("python", "vgsplus"))
    # The dependencies are those of the running environment. One of its .pth files names the checkout, but
    # Python reads only those in its own site-packages.
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)

    printed = run(
        python, "-c", "import sys, vgsplus; print(vgsplus.__file__, *sys.path, sep='\\n')", cwd=tmp_path
    )
    imported, *path = map(Path, printed.splitlines())
    assert imported == site / "vgsplus" / "__init__.py"
    assert not any(folder == ROOT or ROOT / "src" in (folder, *folder.parents) for folder in path)

    assert "reproduce" in run(command, "--help", cwd=tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert run(python, "-c", f"{SCENES}\n{example}\nprint(int(scores.argmax()))", cwd=tmp_path) == "4\n"
    settings = (f"corpus={tiny_corpus}", "model.feature_dim=12", "schedule.epochs=0.5")
    run(
        command, "train", "smoke", "--out", "run", *(f"--set={setting}" for setting in settings), cwd=tmp_path
    )
    run(command, "report", "run", cwd=tmp_path)
    page = (tmp_path / "run" / "report.html").read_text()
    assert (SOURCES / "report" / "page.css").read_text().strip().splitlines()[0] in page
