"""Everything a report shows, as data that is saved beside it, so that a report can be drawn again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import JsonValue, TypeAdapter, ValidationError

from vgsplus.errors import VgsplusError
from vgsplus.evaluation.retrieval import RetrievalScores
from vgsplus.files import whole_file

FORMAT: Literal[2] = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseResult:
    """One phase of a schedule. `shared` phases of equal name are one run that several variants start from."""

    name: str
    epochs: float
    steps: int
    seconds: float
    shared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPoint:
    """Losses at a point of a variant's training; None where not computed (or not finite, once saved).

    `epoch` and `step` count from the start of the variant's first phase on, through all of its phases;
    `phase` is the index of the phase, from 0. `grounding` is L_AV, `ssl` is L_AUD, `additional_ssl` that of
    additional speech.
    """

    epoch: float
    phase: int
    step: int
    split: Literal["train", "validation"]
    grounding: float | None
    ssl: float | None
    additional_ssl: float | None = None


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
    """ABX errors of every layer during training, corrected, and as published where a phase ended.

    `epoch` as in LossPoint.
    """

    epoch: float
    errors: AbxErrors
    published: AbxErrors


@dataclass(frozen=True, slots=True, kw_only=True)
class AbxBaseline:
    """ABX errors {condition: error} of untrained features; `layer` is None where there are no layers."""

    features: str
    layer: int | None
    errors: dict[str, float]
    published: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class AbxTask:
    """What ABX was measured on: the item file's name, its tokens, and what untrained features make of it."""

    item: str
    tokens: int
    baselines: tuple[AbxBaseline, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One of the nine: `key` as in settings ("w2v2,vgs+"), `name` as in the paper ("(W2V2, VGS+)").

    The last of `abx` is that of the finished model.
    """

    key: str
    name: str
    phases: tuple[PhaseResult, ...]
    parameters: int
    retrieval: dict[str, RetrievalScores]
    losses: tuple[LossPoint, ...]
    recalls: tuple[RecallPoint, ...]
    abx: tuple[AbxPoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """The variants trained again from another seed."""

    seed: int
    variants: tuple[Variant, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryItem:
    """A test caption (by id), the picture it speaks of, and those that `variant` retrieved, best first."""

    test_set: str
    variant: str
    caption: str
    image: str
    retrieved: tuple[str, ...]
    text: str | None
    speaker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The outcome of `vgsplus reproduce`, whole or partial.

    `created` is an ISO time, `seconds` the wall time of everything, evaluations included; `corpus`,
    `settings`, `versions` and `machine` are shown as they are. `variants` are those of the first seed, which
    tables and curves show; `repeats` are those of the others, with which the claims are judged. `abx` is None
    where ABX was not measured.
    """

    format: Literal[2] = FORMAT
    preset: str
    created: str
    versions: dict[str, str]
    machine: dict[str, JsonValue]
    corpus: dict[str, JsonValue]
    settings: dict[str, JsonValue]
    test_sets: tuple[str, ...]
    variants: tuple[Variant, ...]
    repeats: tuple[Repeat, ...] = ()
    abx: AbxTask | None = None
    gallery: tuple[GalleryItem, ...]
    seconds: float

    def save(self, path: Path) -> None:
        """Write JSON to `path`, whole or not at all."""
        write_whole(path, TypeAdapter(Results).dump_json(self, indent=1) + b"\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            VgsplusError: the file is absent or holds something else; names the first fields at fault.
        """
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except OSError as error:
            raise VgsplusError(f"{path}: cannot be read ({error.strerror}). Is the run finished?") from None
        except ValidationError as error:
            shown = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()[:3]]
            raise VgsplusError(f"{path}: does not hold the results of a run ({'; '.join(shown)}).") from None


def write_whole(path: Path, content: bytes) -> None:
    """Write content so that `path` never holds half of it (see `files.whole_file`)."""
    with whole_file(path) as file:
        file.write(content)
