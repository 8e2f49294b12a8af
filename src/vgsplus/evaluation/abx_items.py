"""Read and check ABX item files (see `corpora.items`) for scoring, and find the frames of their tokens.

Shape letters: n tokens.
"""

import dataclasses
import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vgsplus import audio
from vgsplus.corpora.items import (
    TIME_TOLERANCE,
    Items,
    SoundIndex,
    label_faults,
    parse_items,
    repeat_faults,
    shown,
)
from vgsplus.errors import AudioError, CorpusError, VgsplusError
from vgsplus.files import as_on_disk, files_below
from vgsplus.parallel import parallel_map

HALF = Fraction(1, 2)
HIGHEST_RATE = 10**6
"""Frames per second; higher than the sampling rate of any sound, and far from overflow."""


def read_items(
    path: str | Path,
    *,
    conditions: Sequence[str] = ("within", "across"),
    audio_root: str | Path | None = None,
) -> Items:
    """Read an item file.

    Args:
        path: the item file.
        conditions: to be scored; "across" requires two speakers.
        audio_root: a folder with the sound of every file (a suffix of `audio.SUFFIXES`), at any depth; None
            if no sounds are needed.

    Raises:
        CorpusError: all faults, each with its line: an absent file, not text, a header or a line that lacks
            columns, times that are not numbers, negative, in the wrong order or after the end of the sound, a
            token listed twice, a label in two Unicode forms, a file without sound or with several, a single
            phone or speaker, or no items.
    """
    items, faults = parse_items(Path(path))
    path = items.path
    if not items.tokens and not faults:
        raise CorpusError(f"{path}: holds no items, only a header. Add a line for each phone token.")
    if len({token.phone for token in items.tokens}) == 1:
        phone = shown(items.tokens[0].phone)
        faults.append(f"{path}: holds one phone only, {phone!r}; ABX compares at least two.")
    if "across" in conditions and len({token.speaker for token in items.tokens}) == 1:
        speaker = shown(items.tokens[0].speaker)
        faults.append(f"{path}: holds one speaker only, {speaker!r}; score it within speakers only.")
    faults += label_faults(items)
    if audio_root is not None:
        items = dataclasses.replace(items, audio=_find_audio(items, as_on_disk(Path(audio_root)), faults))
        faults += _late_tokens(items)
    faults += repeat_faults(items, {file: sound.resolve() for file, sound in items.audio.items()})
    if faults:
        raise CorpusError(faults)
    return items


def _find_audio(items: Items, root: Path, faults: list[str]) -> dict[str, Path]:
    """Return the sound of each file below `root`; add a fault for each file with none or several."""
    if not root.is_dir():
        what = "is a file, not a folder of sounds" if root.exists() else "there is no such folder of sounds"
        faults.append(f"{root}: {what}.")
        return {}
    kinds = ", ".join(sorted(audio.SUFFIXES))
    sounds = [path for path in files_below(root) if path.suffix.lower() in audio.SUFFIXES]
    if not sounds:
        faults.append(f"{root}: holds no sound files ({kinds}).")
        return {}
    index = SoundIndex(root, sounds)
    found = {}
    for file, indices in items.by_file().items():
        places = index.find(file)
        if len(places) == 1:
            found[file] = places[0]
            continue
        first = items.where(items.tokens[indices[0]])
        if places:
            listed = " and ".join(str(place) for place in sorted(places)[:2])
            faults.append(
                f"{first}: file {shown(file)} may be {listed}. Name it by more of its path, or with its "
                "suffix."
            )
        else:
            many = f" ({len(indices)} lines)" if len(indices) > 1 else ""
            faults.append(f"{first}: there is no sound {shown(file)} below {root}{many}.")
    return found


def _late_tokens(items: Items) -> list[str]:
    """Return a fault for each token that ends after its sound, and for each sound that cannot be read."""
    indices = items.by_file()

    def faults_of(file: str) -> list[str]:
        try:
            seconds = audio.duration(items.audio[file])
        except AudioError as error:
            return [f"{items.where(items.tokens[indices[file][0]])}: {error}"]
        limit = Decimal(seconds) + TIME_TOLERANCE
        late = [token for token in map(items.tokens.__getitem__, indices[file]) if token.offset > limit]
        return [
            f"{items.where(token)}: offset {token.offset} is after the end of {file}, {seconds:.3f} s."
            for token in late
        ]

    return [fault for faults in parallel_map(faults_of, list(items.audio)) for fault in faults]


# ---- frames of tokens --------------------------------------------------------------------------------------


def frame_spans(items: Items, frame_rate: float | Fraction) -> NDArray[np.int64]:
    """Return the frames (n, 2) as [start, end) of each token: those centred between its onset and offset.

    Frame t is centred at (t + 1/2) / frame_rate seconds. Times are computed as fractions, so that no rounding
    moves a frame on an edge.

    Raises:
        VgsplusError: the rate is not a positive number, or too high.
        CorpusError: tokens too short to hold the centre of a frame, with their lines.
    """
    if not (math.isfinite(frame_rate) and 0 < frame_rate <= HIGHEST_RATE):
        raise VgsplusError(
            f"The frame rate must be a positive number of frames a second, {HIGHEST_RATE:,} at most, not "
            f"{frame_rate}."
        )
    rate = frame_rate if isinstance(frame_rate, Fraction) else Fraction(str(frame_rate))
    spans = np.array(
        [
            (
                math.ceil(Fraction(token.onset) * rate - HALF),
                math.floor(Fraction(token.offset) * rate - HALF) + 1,
            )
            for token in items.tokens
        ]
    )
    short = [items.tokens[index] for index in np.flatnonzero(spans[:, 1] <= spans[:, 0])]
    if short:
        raise CorpusError(
            [
                f"{items.where(token)}: {token.onset} to {token.offset} s holds the centre of no frame at "
                f"{float(rate):g} frames a second. Remove the line."
                for token in short
            ]
        )
    return spans


class TokenFrames:
    """Select the frames of each file that tokens need, once each, and locate the tokens among them.

    Args:
        items: the item file.
        spans: its `frame_spans`.
        frame_shift: number of frames to subtract from `spans` (see `receptive_field_shift`).
        tolerance: number of frames that may be missing at the end of a file; tokens there are truncated.

    Attributes:
        files: the files of the items, in their order.
        slices: (n, 2) int64, [start, end) of each token among the selected frames; valid once `select` was
            called for every file.
        truncated: (n,) bool, whether a token lost frames at the end of its file.
    """

    def __init__(
        self, items: Items, spans: NDArray[np.int64], *, frame_shift: int = 0, tolerance: int = 1
    ) -> None:
        self.items, self.tolerance = items, tolerance
        self.slices = np.zeros_like(spans)
        self.truncated = np.zeros(len(spans), dtype=np.bool_)
        self._spans = spans - frame_shift
        self._tokens_of = items.by_file()
        self.files = tuple(self._tokens_of)
        self._selected = 0

    def select(self, file: str, num_frames: int) -> NDArray[np.int64]:
        """Return the indices of the frames, of `num_frames`, that the tokens of a file need.

        Call it once per file; `slices` refers to the selected frames in the order of the calls.

        Raises:
            VgsplusError: a token ends after the frames.
        """
        indices = np.array(self._tokens_of[file])
        starts, ends = self._spans[indices].T
        # An encoder without padding has no frames centred near the edges of a sound.
        starts, clipped = np.maximum(starts, 0), np.minimum(ends, num_frames)
        wrong = (ends - num_frames > self.tolerance) | (clipped <= starts)
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            token = self.items.tokens[indices[first]]
            raise VgsplusError(
                f"{self.items.where(token)}: {token.onset} to {token.offset} s needs frames "
                f"{starts[first]} to {ends[first] - 1} of {file}, but there are features for {num_frames}. "
                "Check the frame rate, and that the features are of this complete sound."
            )
        needed = np.zeros(num_frames, dtype=np.bool_)
        for start, end in zip(starts, clipped, strict=True):
            needed[start:end] = True
        order = np.cumsum(needed) - 1 + self._selected
        self.slices[indices, 0], self.slices[indices, 1] = order[starts], order[clipped - 1] + 1
        self.truncated[indices] = ends > num_frames
        self._selected += int(needed.sum())
        return np.flatnonzero(needed)
