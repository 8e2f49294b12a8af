"""The data of a report, saved next to it so that the report can be written again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, JsonValue, TypeAdapter, ValidationError

from vgsplus.errors import VgsplusError
from vgsplus.evaluation.retrieval import RetrievalScores
from vgsplus.files import write_file
from vgsplus.report.paper import TITLES

FORMAT: Literal[3] = 3
_LOSSES_OF_FORMAT_2 = {
    "grounding": "grounding",
    "ssl": "ssl",
    "additional_ssl": "additional_speech/ssl",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseResult:
    """One phase of a variant. `shared` phases of the same name are one run that several variants share."""

    name: str
    epochs: float
    steps: int
    seconds: float
    shared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPoint:
    """The terms of the loss at a point of a variant's training.

    Attributes:
        epoch: epochs since the start of the variant's first phase.
        phase: index of the phase, from 0.
        step: updates since the start of the variant's first phase.
        split: whether the values are from training or validation batches.
        terms: {name: value, or None if it was not finite}.
    """

    epoch: float
    phase: int
    step: int
    split: Literal["train", "validation"]
    terms: dict[str, float | None]


def _upgrade(point: object) -> object:
    """Convert a LossPoint of format 2, which has one field per loss."""
    if not isinstance(point, dict) or "terms" in point:
        return point
    terms = {new: point.get(old) for old, new in _LOSSES_OF_FORMAT_2.items() if point.get(old) is not None}
    return {key: value for key, value in point.items() if key not in _LOSSES_OF_FORMAT_2} | {"terms": terms}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallPoint:
    """Recall {k: share} during training on `test_set`; `epoch` as in LossPoint."""

    epoch: float
    test_set: str
    speech_to_image: dict[int, float]
    image_to_speech: dict[int, float]


type AbxErrors = dict[str, dict[int, float]]
"""{"within" or "across": {layer from 1: error in [0, 1]}}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbxPoint:
    """ABX errors of every layer during training, corrected and, at the end of a phase, as published.

    `epoch` as in LossPoint.
    """

    epoch: float
    errors: AbxErrors
    published: AbxErrors


@dataclass(frozen=True, slots=True, kw_only=True)
class AbxBaseline:
    """ABX errors {condition: error} of untrained features; `layer` is None if they have no layers."""

    features: str
    layer: int | None
    errors: dict[str, float]
    published: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class AbxSummary:
    """The ABX test of all variants: item file, number of tokens, and errors of untrained features."""

    item: str
    tokens: int
    baselines: tuple[AbxBaseline, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorePoint:
    """Scores of further measures during training, by flat name as in the log; `epoch` as in LossPoint."""

    epoch: float
    scores: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One of the nine variants: `key` as in settings ("w2v2,vgs+"), `name` as in the paper ("(W2V2, VGS+)").

    The last points of `abx` and of `scores` are those of the finished model.
    """

    key: str
    name: str
    phases: tuple[PhaseResult, ...]
    parameters: int
    retrieval: dict[str, RetrievalScores]
    losses: tuple[Annotated[LossPoint, BeforeValidator(_upgrade)], ...]
    recalls: tuple[RecallPoint, ...]
    abx: tuple[AbxPoint, ...] = ()
    scores: tuple[ScorePoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """The variants trained again from another seed."""

    seed: int
    variants: tuple[Variant, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryItem:
    """A test caption (its id), its image, and the images that `variant` retrieved, best first."""

    test_set: str
    variant: str
    caption: str
    image: str
    retrieved: tuple[str, ...]
    text: str | None
    speaker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The outcome of `vgsplus reproduce`, complete or partial.

    Attributes:
        created: time in ISO format.
        versions: versions of packages; the page shows them without change, as it does `machine`, `corpus` and
            `settings`.
        variants: variants of the first seed, which tables and curves show.
        repeats: variants of the other seeds, which the verdicts on the claims also use.
        abx: None if ABX was not measured.
        lower_is_better: prefixes of the names in `Variant.scores` whose lowest value is the best.
        seconds: total wall time, including evaluation.
    """

    format: Annotated[Literal[3], BeforeValidator(lambda found: FORMAT if found == 2 else found)] = FORMAT
    preset: str
    created: str
    versions: dict[str, str]
    machine: dict[str, JsonValue]
    corpus: dict[str, JsonValue]
    settings: dict[str, JsonValue]
    test_sets: tuple[str, ...]
    variants: tuple[Variant, ...]
    repeats: tuple[Repeat, ...] = ()
    abx: AbxSummary | None = None
    lower_is_better: tuple[str, ...] = ()
    gallery: tuple[GalleryItem, ...]
    seconds: float

    def save(self, path: Path) -> None:
        """Write JSON to `path` atomically."""
        write_file(path, TypeAdapter(Results).dump_json(self, indent=1) + b"\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file written by `save`, of format 2 or 3.

        Raises:
            VgsplusError: the file is missing or has other contents.
        """
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except OSError as error:
            raise VgsplusError(f"{path}: cannot be read ({error.strerror}). Is the run finished?") from None
        except ValidationError as error:
            shown = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()[:3]]
            raise VgsplusError(f"{path}: does not hold the results of a run ({'; '.join(shown)}).") from None


def ordered(results: Results) -> tuple[Variant, ...]:
    """Return the variants: those of the paper in its order, then any others."""
    rank = {name: index for index, name in enumerate(TITLES)}
    return tuple(sorted(results.variants, key=lambda variant: rank.get(variant.name, len(rank))))
