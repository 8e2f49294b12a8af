import base64

import h5py
import numpy as np
import pytest

from vgsplus.regions.published import COLUMNS

REGIONS, DIM = 3, 5


def _record(image, seed):
    """A picture of 200 x 100 pixels whose regions are not in the order of their confidence."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 45, (REGIONS, 2))
    return {
        "img_id": image,
        "img_h": 100,
        "img_w": 200,
        "objects_id": np.arange(REGIONS, dtype=np.int64),
        "objects_conf": np.float32([0.2, 0.9, 0.5]),
        "attrs_id": np.arange(REGIONS, dtype=np.int64),
        "attrs_conf": np.full(REGIONS, 0.5, np.float32),
        "num_boxes": REGIONS,
        "boxes": np.hstack([low, low + 50]).astype(np.float32),
        "features": rng.random((REGIONS, DIM)).astype(np.float32),
    }


class Detected:
    """Regions of pictures by name, written as an obj36 TSV or as the published store."""

    def __init__(self, images):
        self.records = {image: _record(image, seed) for seed, image in enumerate(images)}

    def write_tsv(self, path):
        lines = []
        for record in self.records.values():
            cells = [record[name] for name in COLUMNS]
            texts = [base64.b64encode(c).decode() if isinstance(c, np.ndarray) else str(c) for c in cells]
            lines.append("\t".join(texts) + "\r\n")
        path.write_bytes("".join(lines).encode())

    def write_store(self, path):
        """As the published code does, which keeps 27 bytes of a name."""
        kind = h5py.string_dtype("utf-8", 27)
        with h5py.File(path, "w") as file:
            names = file.create_dataset("img_id", (len(self.records),), dtype=kind)
            for row, name in enumerate(self.records):
                names[row] = np.array(name.encode(), dtype=kind)
            for name in set(COLUMNS) - {"img_id", "num_boxes"}:
                file[name] = np.stack([record[name] for record in self.records.values()])

    def sorted_features(self, image):
        return self.records[image]["features"][[1, 2, 0]]


@pytest.fixture
def detected():
    return Detected
