"""Find the words of sounds by every layer of a model, and compare them with those of alignments."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch

from vgsplus import audio
from vgsplus.corpora.alignments.abx import SILENCES
from vgsplus.corpora.alignments.folder import Aligned, read_alignments
from vgsplus.corpora.alignments.segments import Segment
from vgsplus.corpora.alignments.textgrid import textgrid_text
from vgsplus.corpora.items import TIME_TOLERANCE
from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.evaluation.hidden_states import check_audio, check_finite, map_files
from vgsplus.evaluation.segmentation.boundaries import (
    ALL_HEADS,
    Boundaries,
    attention_boundaries,
    attention_modules,
    energy_boundaries,
    frame_centres,
    head_groups,
    layer_outputs,
    min_cut_boundaries,
    number_of_words,
    uniform_boundaries,
)
from vgsplus.evaluation.segmentation.scores import SegmentationCounts, compare
from vgsplus.files import write_file
from vgsplus.functional import gather_objects, own_share
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.progress import SILENT, Progress

COLLAR = 0.05
THRESHOLD = 0.7
"""Share of the frames that a head does not attend to, of VG-HuBERT's best boundaries (README of its code)."""
TEXTGRID_DECIMALS = 4

type Method = Literal["uniform", "energy", "attention", "min cut"]


@dataclass(frozen=True, slots=True)
class Segmentation:
    """A way to find words: a baseline, attention by all heads of a layer or one, from 1, or its minimum cut.

    `layer` is the number of a transformer layer from 1, or "speech head".
    """

    method: Method
    layer: str = ""
    heads: str = ""

    @property
    def tier(self) -> str:
        """The name of the words found in a TextGrid."""
        return " ".join(
            filter(None, (_layer_name(self.layer), self.method if self.method != "attention" else ""))
        )


@dataclass(frozen=True, slots=True)
class SegmentationRow:
    """What one way to find words found in all sounds."""

    segmentation: Segmentation
    counts: SegmentationCounts


def _layer_name(layer: str) -> str:
    return f"layer {layer}" if layer.isdecimal() else layer


def read_words(
    root: Path, *, audio_root: Path | None = None, tier: str | None = None, progress: Progress = SILENT
) -> list[Aligned]:
    """Read the words of alignments, or of an item file, without silence and noise.

    Arguments are those of `read_alignments`.

    Raises:
        CorpusError: all faults of the alignments (see `read_alignments`), of which are also a sound without a
            word, one with several tiers or channels of words, and no sound with two words.
    """
    quiet = {"", *SILENCES}
    references = [
        replace(aligned, segments=tuple(s for s in aligned.segments if s.label.casefold() not in quiet))
        for aligned in read_alignments(root, words=True, tier=tier, audio_root=audio_root, progress=progress)
    ]
    faults = [
        f"{aligned.path}: holds no word of {aligned.file}, only silence or noise. Remove it."
        for aligned in references
        if not aligned.segments
    ]
    times = Counter(aligned.file for aligned in references)
    faults += [
        f"{aligned.path}: holds {times.pop(aligned.file)} tiers or channels of words of {aligned.file}. Name "
        "one tier by --tier, or remove the others."
        for aligned in references
        if times[aligned.file] > 1
    ]
    if not references:
        faults.append(f"{root}: holds no words.")
    elif not faults and all(len(aligned.segments) == 1 for aligned in references):
        faults.append(f"{root}: every sound has one word, so that there is no boundary to find.")
    if faults:
        raise CorpusError(faults)
    return references


def check_model(model: VGSPlus) -> None:
    """Raise VgsplusError if no layer of the model has a CLS token."""
    if not attention_modules(model):
        raise VgsplusError(
            "The model has no CLS token, as it has no grounding modules. Evaluate a model that was trained "
            "with `grounded: true`."
        )


def evaluate(
    model: VGSPlus,
    references: Sequence[Aligned],
    *,
    threshold: float = THRESHOLD,
    insert_threshold: float = math.inf,
    collar: float = COLLAR,
    textgrids: Path | None = None,
    batch_seconds: float = 60.0,
    device: torch.device | str = "cpu",
    progress: Progress = SILENT,
) -> list[SegmentationRow]:
    """Find the words of sounds by baselines and by every layer and head, and count those that are right.

    Baselines and minimum cuts know how many words there are in a second of all sounds together. Several
    processes share the sounds, and must all call this.

    Args:
        model: a model on `device`; its train/eval modes are restored.
        references: as from `read_words`.
        threshold: see `attention_boundaries`.
        insert_threshold: see `attention_boundaries`.
        collar: see `scores`.
        textgrids: folder for a TextGrid of each sound, with a tier for each row but those of single heads.
        batch_seconds: see `iterate_hidden_states`.
        device: where the batches are moved.
        progress: stages "checking" and "segmenting".

    Returns:
        A row for each baseline, for each layer with all heads and with each alone, and for its minimum cut.

    Raises:
        VgsplusError: the model has no CLS token, attention is not finite, or `textgrids` is not empty.
        CorpusError: sounds that cannot be read, are silent or too short for one frame.
    """
    check_model(model)
    if (
        textgrids is not None
        and textgrids.exists()
        and not (textgrids.is_dir() and not any(textgrids.iterdir()))
    ):
        raise VgsplusError(f"{textgrids}: exists and is no empty folder. Name another one for the TextGrids.")
    lengths, faults = check_audio([reference.sound for reference in references], model, progress=progress)
    if faults:
        raise CorpusError(faults)
    gather_objects(None)  # no process writes a TextGrid before all have looked for them
    words = sum(len(reference.segments) for reference in references)
    rate = words * audio.SAMPLE_RATE / sum(lengths)
    own = {reference.file: reference for reference in own_share(references)}
    sounds = {name: reference.sound for name, reference in own.items()}
    counts: dict[Segmentation, SegmentationCounts] = {}
    found = map_files(
        model, partial(layer_outputs, model), sounds, device=device, batch_seconds=batch_seconds
    )
    for done, (name, outputs) in enumerate(found, start=1):
        reference = own[name]
        spans = [(float(segment.start), float(segment.end)) for segment in reference.segments]
        boundaries = dict(_segment(model, reference.sound, *outputs, threshold, insert_threshold, rate))
        for segmentation, times in boundaries.items():
            compared = compare(spans, times, collar, gap=float(TIME_TOLERANCE))
            counts[segmentation] = counts.get(segmentation, SegmentationCounts()) + compared
        if textgrids is not None:
            path = textgrids / f"{name}.TextGrid"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, _textgrid(reference, boundaries))
        progress.update("segmenting", done, len(own))
    total: dict[Segmentation, SegmentationCounts] = {}
    for part in gather_objects(counts):
        for segmentation, numbers in part.items():
            total[segmentation] = total.get(segmentation, SegmentationCounts()) + numbers
    return [SegmentationRow(segmentation, numbers) for segmentation, numbers in total.items()]


def _segment(
    model: VGSPlus,
    sound: Path,
    weights: Mapping[str, torch.Tensor],
    states: Mapping[str, torch.Tensor],
    threshold: float,
    insert_threshold: float,
    rate: float,
) -> Iterator[tuple[Segmentation, Boundaries]]:
    """Yield the boundaries of a sound by each way to find them; `rate` is that of `number_of_words`."""
    signal = audio.load_any(sound)
    seconds = len(signal) / audio.SAMPLE_RATE
    number = number_of_words(seconds, rate)
    yield Segmentation("uniform"), uniform_boundaries(seconds, number)
    yield Segmentation("energy"), energy_boundaries(signal, number)
    for layer, of_heads in weights.items():
        values = check_finite(of_heads, f"Attention weights of {sound}, {_layer_name(layer)},").numpy()
        centres = frame_centres(model, layer, values.shape[1])
        for group, heads in head_groups(len(values)).items():
            boundaries = attention_boundaries(
                values[list(heads)], threshold, centres, seconds, insert_threshold
            )
            yield Segmentation("attention", layer, group), boundaries
    for layer, of_frames in states.items():
        frames = check_finite(of_frames, f"Features of {sound}, {_layer_name(layer)},").numpy()
        centres = frame_centres(model, layer, len(frames))
        yield Segmentation("min cut", layer), min_cut_boundaries(frames, number, centres, seconds)


def _textgrid(reference: Aligned, found: Mapping[Segmentation, Boundaries]) -> str:
    """Return the words of the reference, and those found, but for those of single heads."""
    tiers = {"reference": list(reference.segments)}
    for segmentation, boundaries in found.items():
        if segmentation.heads in ("", ALL_HEADS):
            times = [Decimal(f"{time:.{TEXTGRID_DECIMALS}f}") for time in boundaries]
            spans = enumerate(pairwise(times), start=1)
            tiers[segmentation.tier] = [Segment(0, start, end, str(number)) for number, (start, end) in spans]
    end = max(segments[-1].end for segments in tiers.values())
    return textgrid_text(tiers, end)
