"""Digests of what the command line makes: weights of the nine variants, corpora of most sources, features.

    python benchmarks/unchanged.py digests.json                      # on the code before a change
    python benchmarks/unchanged.py after.json --against digests.json # on the code after it
    python benchmarks/unchanged.py after.json --against digests.json --only sources

A change of structure leaves every digest as it is. Weights and features are compared bit for bit, so both
runs need the same machine and libraries. HDF5 files are compared by their arrays.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import soundfile
from fuzz import load_fuzzing
from PIL import Image

FOLDER = Path(tempfile.gettempdir()) / "vgsplus-unchanged"
"""Corpora name absolute paths, so that both runs work in the same folder."""
VOLATILE = {"log.jsonl", "events", ".lock"}
"""Files that hold times."""


def vgsplus(*arguments: object) -> None:
    """Run a command; stop with its output if it fails."""
    command = [sys.executable, "-c", "from vgsplus.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def digest(path: Path) -> str:
    """The SHA-256 of a file, of an HDF5 file that of its names, types, shapes and values."""
    sha = hashlib.sha256()
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            for name in sorted(file):
                values = file[name][()]
                text = values.dtype.kind == "O"
                sha.update(f"{name} {values.shape} {'text' if text else values.dtype.str}".encode())
                sha.update("\n".join(map(str, values)).encode() if text else values.tobytes())
    else:
        sha.update(path.read_bytes())
    return sha.hexdigest()


def digests(name: str, folder: Path) -> dict[str, str]:
    """The digest of every file below a folder that does not hold times."""
    return {
        f"{name}/{path.relative_to(folder)}": digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(tuple(VOLATILE))
    }


def sources() -> dict[str, str]:
    """Corpora of every source, from small inputs."""
    fuzzing, found = load_fuzzing(), {}

    def make(name: str, inputs: str, *command: object) -> None:
        if inputs:
            fuzzing.put(FOLDER / "in" / name, getattr(fuzzing, inputs)())
        vgsplus("data", *command)
        if (FOLDER / "out" / name).is_dir():
            found.update(digests(name, FOLDER / "out" / name))

    folder, out = FOLDER / "in", FOLDER / "out"
    out.mkdir(parents=True)
    make("table", "table", "table", folder / "table/table.csv", out / "table")
    put_manifest(fuzzing, folder / "manifest")
    make("manifest", "", "manifest", "--train", folder / "manifest/train.tsv", out / "manifest")
    make("librispeech", "librispeech", "librispeech", "--root", folder / "librispeech", out / "librispeech")
    coco = folder / "spokencoco"
    lists = ("--train", coco / "SpokenCOCO_train.json", "--validation", coco / "SpokenCOCO_val.json")
    fuzzing.put(coco, fuzzing.spokencoco())
    for features in ("regions.tsv", "regions.h5"):
        target = out / f"spokencoco-{features}"
        which = (*lists, "--audio-root", coco, "--features", coco / features)
        make(target.name, "", "spokencoco", *which, target)
    flickr = folder / "flickr8k"
    where = ("--audio", flickr / "audio", "--text", flickr / "text", "--images", flickr / "images")
    make("flickr8k", "flickr8k", "flickr8k", *where, out / "flickr8k")
    places = folder / "places"
    images = ("--audio-root", places, "--images", places / "images")
    make("places", "places", "places", "--train", places / "train_2020.json", *images, out / "places")
    put_stamps(folder / "stamps")
    make("stamps", "", "stamps", "--root", folder / "stamps", out / "stamps")
    return found


def put_manifest(
    fuzzing: Any,  # noqa: ANN401 - a module
    folder: Path,
) -> None:
    """A manifest whose root is the folder that it lies in."""
    fuzzing.put(folder, fuzzing.manifest())
    path = folder / "train.tsv"
    path.write_text(path.read_text().replace(".\n", f"{folder}\n", 1))


def put_stamps(folder: Path) -> None:
    """Eight stamps with recordings in three languages."""
    folder.mkdir(parents=True)
    for number in range(8):
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 256, (12, 10, 4), dtype=np.uint8), "RGBA").save(
            folder / f"s{number}.png"
        )
        (folder / f"s{number}.txt").write_text(f"A thing {number}.\nbg.utf8=Nesto {number}\n")
        for ending in ("", "_bg", "_de"):
            noise = rng.normal(0, 0.1, 30_000)
            soundfile.write(folder / f"s{number}_desc{ending}.wav", noise, 44_100)


def study() -> dict[str, str]:
    """The nine variants of the smoke preset, and what is made of one of them."""
    run = FOLDER / "smoke"
    vgsplus("reproduce", "smoke", "--out", run)
    found = {
        str(path.relative_to(run)): digest(path)
        for pattern in ("**/*.safetensors", "corpus/**/*")
        for path in sorted(run.glob(pattern))
        if path.is_file()
    }
    trained = next(path for path in sorted(run.rglob("config.yaml")) if "vgs+" in str(path)).parent
    vgsplus("embed", trained, run / "corpus/audio", FOLDER / "features")
    found |= digests("features", FOLDER / "features")
    for name, command in {"packed": "pack", "manifests": "to-manifest"}.items():
        vgsplus("data", command, run / "corpus", FOLDER / name)
        found |= digests(name, FOLDER / name)
    vgsplus("convert", trained, FOLDER / "converted")
    found |= digests("converted", FOLDER / "converted")
    return found


def main() -> None:
    """Make everything, write its digests, and compare them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--against", type=Path, help="JSON file of an earlier run")
    parser.add_argument("--only", choices=("sources", "study"))
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[str, str] = {}
    for part in (sources, study):
        if options.only in (None, part.__name__):
            shutil.rmtree(FOLDER, ignore_errors=True)
            FOLDER.mkdir()
            found |= {f"{part.__name__}/{name}": value for name, value in part().items()}
    options.out.write_text(json.dumps(found, indent=1))
    print(f"{len(found)} files")
    if options.against:
        before = json.loads(options.against.read_text())
        if options.only:
            before = {name: value for name, value in before.items() if name.startswith(options.only)}
        if changed := sorted(n for n in before.keys() | found.keys() if before.get(n) != found.get(n)):
            sys.exit("changed:\n" + "\n".join(changed))
        print("unchanged")


if __name__ == "__main__":
    main()
