"""The lexical test on saved embeddings: its score, and how long it takes.

Reads .npz files of names (n,) with embeddings (n, D), or with frames (sum of T, D) and their lengths (n,).

    python benchmarks/lexical.py coco_utterance_embeddings.npz coco_frame_embeddings.npz
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vgsplus.evaluation import dtw, lexical


def main(arguments: Sequence[str] | None = None) -> None:
    """Print score, chance, wall and processor seconds for each file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rule", choices=lexical.RULES, default="coco")
    options = parser.parse_args(arguments)
    for path in options.files:
        with np.load(path) as case:
            names = case["names"].tolist()
            if "frames" in case:
                embeddings = np.split(case["frames"], np.cumsum(case["lengths"])[:-1])
                dtw.costs(embeddings[:2], np.arange(2))  # compiles
            else:
                embeddings = case["embeddings"]
        wall, processor = time.perf_counter(), time.process_time()
        result = lexical.evaluate(names, embeddings, lexical.RULES[options.rule])
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        print(
            f"{path.name}: score {result.score:.6f}, chance {result.chance:.6f}; {wall:.1f} s, "
            f"{processor:.1f} s of processor time, {torch.get_num_threads()} threads"
        )


if __name__ == "__main__":
    main()
