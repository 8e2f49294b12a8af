"""Region features of pictures in folders: how often the nearest neighbour is in the same folder.

Features are averaged over the regions of a picture, centred and compared by their cosine. Copies of a picture
do not count as neighbours, and folders with one picture are left out. The share of the variance that lies in
the first principal component shows whether the features differ in few directions only.

    vgsplus data regions PICTURES dinov2.h5 --model dinov2-small
    vgsplus data regions PICTURES layer8.h5 --model dinov2-small --layer 8
    python benchmarks/neighbours.py PICTURES dinov2.h5 layer8.h5      # and the pixel grid
"""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from vgsplus.regions.images import open_image
from vgsplus.regions.pixel_grid import grid_regions
from vgsplus.regions.store import RegionStore

type Array = npt.NDArray[np.float32]

SAME = 0.9999
"""Cosine from which two pictures are copies."""


def score(ids: list[str], read: Callable[[list[str]], Array]) -> tuple[float, float, float]:
    """Return three shares in %.

    Pictures whose nearest neighbour is of their folder, chance, and the variance of the first principal
    component.
    """
    folders = [str(PurePosixPath(image).parent) for image in ids]
    sizes = Counter(folders)
    kept = [place for place, folder in enumerate(folders) if sizes[folder] > 1]
    labels = np.array(folders)[kept]
    x = read([ids[place] for place in kept])
    x = x - x.mean(axis=0)
    variances = np.linalg.svd(x, compute_uv=False) ** 2
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    similarity = x @ x.T
    similarity[similarity > SAME] = -np.inf
    hits = labels[similarity.argmax(axis=1)] == labels
    chance = np.mean([(sizes[label] - 1) / (len(labels) - 1) for label in labels])
    return 100 * float(hits.mean()), 100 * float(chance), 100 * float(variances[0] / variances.sum())


def main() -> None:
    """Print the share of every file, and that of the pixel grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("regions", type=Path, nargs="+")
    arguments = parser.parse_args()
    for path in arguments.regions:
        with RegionStore(path) as store:
            rows = {image: row for row, image in enumerate(store.image_ids)}

            def stored(ids: list[str], store: RegionStore = store, rows: dict[str, int] = rows) -> Array:
                return store.read([rows[image] for image in ids])[0].astype(np.float32).mean(axis=1)

            ids = list(rows)
            share, chance, first = score(ids, stored)
        print(f"{path.name}: {share:.1f} % (chance {chance:.1f} %); first component {first:.1f} %")

    def pixels(ids: list[str]) -> Array:
        return np.stack(
            [grid_regions(open_image(arguments.pictures / image))[0].mean(axis=0) for image in ids]
        )

    share, chance, first = score(ids, pixels)
    print(f"pixel grid: {share:.1f} % (chance {chance:.1f} %); first component {first:.1f} %")


if __name__ == "__main__":
    main()
