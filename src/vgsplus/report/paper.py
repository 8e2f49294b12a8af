"""The numbers of the paper: Khorrami, Cruz Blandón, Virtanen, Räsänen, EUSIPCO 2023, Tables I and II.

Recalls are on SpokenCOCO (5,000 test images with 25,000 captions), ABX errors on LibriSpeech dev-clean.
"""

import pandas as pd

from vgsplus.schedule import variant_title

PAPER = pd.DataFrame.from_dict(
    {
        "w2v2": (0.0, 0.2, 0.0, 0.2, 7.05, 3, 9.53, 4),
        "vgs": (28.4, 69.4, 40.1, 81.5, 4.82, 4, 6.44, 4),
        "vgs+": (29.0, 70.1, 40.1, 81.8, 5.09, 8, 6.81, 8),
        "w2v2,vgs+": (32.0, 74.7, 44.4, 85.0, 6.95, 2, 8.72, 5),
        "vgs,vgs+": (27.9, 68.8, 39.3, 81.3, 5.49, 7, 7.55, 8),
        "w2v2,vgs": (32.3, 74.9, 44.8, 84.8, 6.74, 2, 8.75, 2),
        "vgs,w2v2": (0.0, 0.2, 0.0, 0.2, 8.4, 1, 11.54, 2),
        "vgs+,w2v2": (14.5, 52.0, 7.5, 32.5, 6.23, 8, 8.35, 8),
        "vgs+,vgs": (28.8, 70.0, 39.8, 81.5, 4.50, 9, 6.02, 9),
    },
    orient="index",
    columns=[
        *("speech_to_image R@1", "speech_to_image R@10", "image_to_speech R@1", "image_to_speech R@10"),
        *("within", "within layer", "across", "across layer"),
    ],
).rename(index=variant_title)
"""Recalls (%), and the lowest ABX errors (%) with their layers (from 1), by name of the variant."""
PAPER_KS = (1, 10)
TITLES: tuple[str, ...] = tuple(PAPER.index)
"""The variants in the paper's order and spelling."""


def phases_of(name: str) -> tuple[str, str]:
    """Return the first and the last phase in the name of a variant; they are equal for one phase."""
    parts = name.strip("()").split(", ")
    return parts[0], parts[-1]
