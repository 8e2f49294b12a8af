"""The numbers of the paper: Khorrami, Cruz Blandón, Virtanen, Räsänen, EUSIPCO 2023, Tables I and II.

SpokenCOCO, 5,000 test pictures with 25,000 captions; LibriSpeech dev-clean for ABX.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperScores:
    """A row of Table I (recalls, %) and of Table II (best ABX error, %, and its layer, from 1)."""

    speech_to_image: dict[int, float]
    image_to_speech: dict[int, float]
    abx_within: tuple[float, int]
    abx_across: tuple[float, int]


def _row(
    speech: tuple[float, float],
    image: tuple[float, float],
    within: tuple[float, int],
    across: tuple[float, int],
) -> PaperScores:
    return PaperScores(
        speech_to_image=dict(zip((1, 10), speech, strict=True)),
        image_to_speech=dict(zip((1, 10), image, strict=True)),
        abx_within=within,
        abx_across=across,
    )


# In the paper's order and spelling.
PAPER: dict[str, PaperScores] = {
    "W2V2": _row((0.0, 0.2), (0.0, 0.2), (7.05, 3), (9.53, 4)),
    "VGS": _row((28.4, 69.4), (40.1, 81.5), (4.82, 4), (6.44, 4)),
    "VGS+": _row((29.0, 70.1), (40.1, 81.8), (5.09, 8), (6.81, 8)),
    "(W2V2, VGS+)": _row((32.0, 74.7), (44.4, 85.0), (6.95, 2), (8.72, 5)),
    "(VGS, VGS+)": _row((27.9, 68.8), (39.3, 81.3), (5.49, 7), (7.55, 8)),
    "(W2V2, VGS)": _row((32.3, 74.9), (44.8, 84.8), (6.74, 2), (8.75, 2)),
    "(VGS, W2V2)": _row((0.0, 0.2), (0.0, 0.2), (8.4, 1), (11.54, 2)),
    "(VGS+, W2V2)": _row((14.5, 52.0), (7.5, 32.5), (6.23, 8), (8.35, 8)),
    "(VGS+, VGS)": _row((28.8, 70.0), (39.8, 81.5), (4.50, 9), (6.02, 9)),
}
VARIANTS: tuple[str, ...] = tuple(PAPER)


def phases_of(name: str) -> tuple[str, str]:
    """First and last phase of a variant by its name; those of a base model are the same."""
    parts = name.strip("()").split(", ")
    return parts[0], parts[-1]
