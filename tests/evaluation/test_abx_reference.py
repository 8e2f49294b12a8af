"""Compare ABX errors with those of fastabx, used as in its documentation.

Nothing is shared with ours: fastabx reads the item file (`Dataset.from_item` on files of features), makes the
cells, and takes angles in float32.
Tokens here share no frame, so that no two distances tie and rounding decides nothing.
"""

import numpy as np
import pytest
import torch
from fastabx import Dataset, Score, Task

from vgsplus.corpora.format import ITEM_COLUMNS
from vgsplus.evaluation.abx import score

FILES, SECONDS = 4, 6
CONTEXTS = [("k", "t"), ("s", "n"), ("t", "k")]


def write_case(folder, seed, rate, width):
    """An item file, features {file: (T, width)}, and the folder where these lie as files, one a speaker.

    Tokens of 20 to 200 ms follow each other with gaps, on no grid of frames.
    """
    rng = np.random.default_rng(seed)
    root = folder / "features"
    root.mkdir()
    features = {}
    rows = []
    for speaker in range(FILES):
        name = f"f{speaker}"
        features[name] = rng.normal(size=(SECONDS * rate, width)).astype(np.float32)
        torch.save(torch.from_numpy(features[name]), root / f"{name}.pt")
        onset = 0.0123
        while (offset := onset + rng.uniform(0.0201, 0.2)) < SECONDS - 0.05:
            context = CONTEXTS[rng.integers(len(CONTEXTS))]
            times = (f"{onset:.4f}", f"{offset:.4f}")
            rows.append((name, *times, rng.choice(["a", "e", "o"]), *context, f"s{speaker}"))
            onset = offset + rng.uniform(0.0001, 0.05)
    item = folder / "a.item"
    item.write_text("\n".join(" ".join(row) for row in [ITEM_COLUMNS, *rows]) + "\n", encoding="utf-8")
    return item, features, root


def documented(item, root, rate, by, across, levels):
    dataset = Dataset.from_item(item, root, rate, device="cpu", progress=False)
    task = Task(dataset, on="#phone", by=by, across=across)
    return Score(task, "angular", progress=False).collapse(levels=levels)


@pytest.mark.parametrize(("rate", "width"), [(50, 16), (100, 768)])
@pytest.mark.parametrize("seed", range(2))
def test_errors_are_those_of_the_documented_pipeline(tmp_path, monkeypatch, rate, width, seed):
    item, features, root = write_case(tmp_path, seed, rate, width)
    monkeypatch.setenv("FASTABX_WITH_LIBRILIGHT_BUG", "0")
    around = ["next-phone", "prev-phone"]
    levels = {"within": [tuple(around), "speaker"], "any": ["speaker"]}
    for context, neighbours in (("within", around), ("any", [])):
        ours = score(features, item, rate, context=context)
        theirs = {
            "within": documented(item, root, rate, ["speaker", *neighbours], None, levels[context]),
            "across": documented(item, root, rate, neighbours or None, ["speaker"], levels[context]),
        }
        assert ours == pytest.approx(theirs, abs=1e-4)
