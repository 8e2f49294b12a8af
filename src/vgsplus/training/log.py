"""The training log: RUN/log.jsonl, one JSON object per line; its numbers also go to TensorBoard or W&B.

Each line has kind, step (updates of the whole run so far), phase, phase_index, phase_step and epoch.
    "train"       after every update: alpha, lr, total and the terms of `Losses` by name (published terms that
                  α omits are null), grad_norm, and grad_norm/PART for each part of the model that has a
                  gradient, captions (in the batch), captions_per_second, audio_seconds_per_second (hours of
                  sound in an hour), moved_crops (fraction of clips whose crop was silent and was moved),
                  loader_wait (share of the time in which data was waited for), padding_share (share of the
                  rows in attention that are no speech), matrix_share (share of the time that its products
                  would take at the rate of a large one), gpu_gigabytes (largest memory so far), and, with
                  α > 0 or α < 1 only,
                      speech_embedding_std, image_embedding_std   see `losses.grounding.embedding_std`
                      similarity_std   standard deviation of the similarities of the batch
                      temperature      of the Gumbel softmax
                      masked_share     masked frames among those of speech
                  With additional speech also its terms, under names such as
                  "additional_speech/contrastive", weighted into total
    "validation"  alpha, moved_crops, and total and the terms averaged over the validation split (those of
                  additional speech over its own)
    "evaluation"  scores, as the evaluation returned them
    "warning"     rule, what and remedy: see `watch`
    "stopped"     not_finite: the names of what was infinite or not a number in the next update, which ended
                  the run
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from vgsplus.audio import SAMPLE_RATE
from vgsplus.config import RunConfig, to_dict
from vgsplus.errors import VgsplusError
from vgsplus.files import atomic_file
from vgsplus.losses import METRICS, Losses
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.schedule import PhaseSteps
from vgsplus.training.data import Batch
from vgsplus.training.watch import TrainingWarning, Watch

LOG_FILE = "log.jsonl"
TENSORBOARD = "tensorboard"
POSITION_KEYS = ("kind", "step", "phase", "phase_index", "phase_step", "epoch")

ADDITIONAL = "additional_speech/"
"""Prefix of the names of the terms of additional speech."""
MOVED_CROPS = "moved_crops"
GRADIENTS = "grad_norm/"
"""Prefix of the gradient norms of parts of the model."""
_NOT_LOSSES = frozenset(
    {*POSITION_KEYS, *METRICS, "alpha", "lr", "grad_norm", MOVED_CROPS}
    | {"captions_per_second", "audio_seconds_per_second", "loader_wait", "padding_share"}
    | {"matrix_share", "gpu_gigabytes"}
)

_HIDDEN = ("ssl", "feature_penalty", "prob_perplexity", "code_perplexity")
"""Terms that the progress display omits."""

type Record = dict[str, Any]


# ---- records ----------------------------------------------------------------------------------------------


def log_record(kind: str, phase: PhaseSteps, done: int) -> Record:
    """Return a record that has only the position after `done` steps of a phase."""
    return {
        "kind": kind,
        "step": phase.first_step + done,
        "phase": phase.name,
        "phase_index": phase.index,
        "phase_step": done,
        "epoch": phase.epoch(done),
    }


def loss_terms(losses: Losses) -> dict[str, Tensor]:
    """Return total and all terms by name, scalars."""
    return {"total": losses.total, **losses.terms}


def merge_terms[Value: (float, Tensor)](
    captions: dict[str, Value], additional: dict[str, Value], weight: float
) -> dict[str, Value]:
    """Merge the terms of captions and of additional speech; total = captions' + weight · additional total."""
    renamed = {f"{ADDITIONAL}{name}": value for name, value in additional.items() if name != "total"}
    return captions | renamed | {"total": captions["total"] + weight * additional["total"]}


def losses_in(record: Record) -> dict[str, float]:
    """Return total and the terms that a "train" or "validation" record has, by name."""
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, float)
        and name.removeprefix(ADDITIONAL) not in _NOT_LOSSES
        and not name.startswith(GRADIENTS)
    }


def summary(record: Record) -> str:
    """Return the most important losses of a "train" record, and the speed, for the progress display."""
    hidden = {f"{prefix}{name}" for prefix in ("", ADDITIONAL) for name in _HIDDEN}
    shown = [f"{name} {value:.3f}" for name, value in losses_in(record).items() if name not in hidden]
    return "  ".join([*shown, f"{record['captions_per_second']:.1f} captions/s"])


class PendingScalars:
    """Scalar tensors by name on their way to the host, for which the device need not be waited for."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        self._names = tuple(values)
        self.stacked = torch.stack([value.detach().float().reshape(()) for value in values.values()])
        self._on_host = self.stacked.to("cpu", non_blocking=True)
        self._copied: torch.cuda.Event | None = None
        if self.stacked.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call] # of torch
            self._copied.record()

    def read(self) -> dict[str, float]:
        """Return the numbers; waits until the work that they depend on is done."""
        if self._copied is not None:
            self._copied.synchronize()
        return dict(zip(self._names, self._on_host.tolist(), strict=True))


def with_waits[Item](items: Iterable[Item]) -> Iterator[tuple[Item, float]]:
    """Yield each item, and the seconds in which it was waited for."""
    iterator, started = iter(items), time.perf_counter()
    for item in iterator:
        yield item, time.perf_counter() - started
        started = time.perf_counter()


class BatchCounts(NamedTuple):
    """What the batches of a step hold; clips are captions and additional speech.

    `frames` are those of speech, `rows` those and the padding that attention computes, `waited` the seconds
    in which the batches were waited for, `products` those that the products would take at the matrix rate.
    """

    captions: float
    clips: float
    samples: float
    moved_crops: float
    frames: float
    rows: float
    waited: float
    products: float
    processes: float

    @classmethod
    def of(cls, batches: tuple[Batch, ...], model: VGSPlus, waited: float, products: float) -> Self:
        """Count the batches of a step of this process, of which the first holds captions."""
        frames, rows = zip(*(model.count_rows(batch) for batch in batches), strict=True)
        return cls(
            len(batches[0]["num_samples"]),
            sum(len(batch["num_samples"]) for batch in batches),
            sum(int(batch["num_samples"].sum()) for batch in batches),
            sum(int(batch[MOVED_CROPS].sum()) for batch in batches),
            sum(frames),
            sum(rows),
            waited,
            products,
            1,
        )


def throughput(counts: BatchCounts, seconds: float) -> Record:
    """Return the speed of a step of `seconds`, reading included, and what it was spent on."""
    used = torch.cuda.max_memory_allocated()
    memory = {"gpu_gigabytes": used / 1e9} if used else {}
    return memory | {
        "captions": int(counts.captions),
        "captions_per_second": counts.captions / seconds,
        "audio_seconds_per_second": counts.samples / SAMPLE_RATE / seconds,
        "loader_wait": min(1.0, counts.waited / counts.processes / seconds),
        "padding_share": 1 - counts.frames / counts.rows,
        "matrix_share": counts.products / counts.processes / seconds,
        MOVED_CROPS: counts.moved_crops / counts.clips,
    }


# ---- the file ---------------------------------------------------------------------------------------------


def read_log(run: Path, kind: str | None = None) -> Iterator[Record]:
    """Yield the records of a run, or those of one kind, in order; an incomplete last line is ignored.

    Raises:
        VgsplusError: a line is not JSON or not a record (file:line).
    """
    path = run / LOG_FILE
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError as error:
                raise VgsplusError(
                    f"{path}:{number}: is not JSON ({error}); fix or remove the line"
                ) from None
            if not isinstance(record, dict) or not record.keys() >= set(POSITION_KEYS):
                raise VgsplusError(f"{path}:{number}: is not a record of a run; fix or remove the line")
            if kind is None or record["kind"] == kind:
                yield record


def copy_log(source: Path, target: Path, last_step: int) -> set[tuple[str, int]]:
    """Write the records of run `source` up to `last_step` as the log of run `target`, which may be `source`.

    Returns:
        (kind, step) of all copied records except kind "train".
    """
    copied = set()
    with atomic_file(target / LOG_FILE) as file:
        for record in read_log(source):
            if record["step"] <= last_step:
                file.write(_line(record).encode())
                if record["kind"] != "train":
                    copied.add((record["kind"], record["step"]))
    return copied


class RunLog:
    """Append-only log of a run. On resume, records after `last_step` are discarded.

    The same scalars go to TensorBoard, or to Weights & Biases: there each start of the run is a run of the
    group that has the name of the folder.
    """

    def __init__(self, run: Path, last_step: int, config: RunConfig) -> None:
        self._run = run
        self._events = copy_log(run, run, last_step)
        self._watch = Watch(config.model)
        for record in read_log(run, "train"):
            self._watch.add(record)
        self._file = (run / LOG_FILE).open("a", encoding="utf-8")
        open_logger = _weights_and_biases if config.logger == "wandb" else _tensorboard
        self._add_scalars, self._flush, self._close = open_logger(run, last_step, config)

    def write(self, record: Record) -> list[TrainingWarning]:
        """Append a record, which is kept if the process is killed, and the warnings that follow from it.

        Returns:
            The warnings.

        Raises:
            VgsplusError: the file cannot be written.
        """
        with _writing(Path(self._file.name)):
            self._file.write(_line(record))
            self._file.flush()
        scalars = {
            f"{record['kind']}/{name}": value
            for name, value in record.get("scores", record).items()
            if isinstance(value, int | float) and name not in POSITION_KEYS
        }
        with _writing(self._run):  # TensorBoard, whose thread may have failed before
            self._add_scalars(scalars, record["step"])
        if record["kind"] != "train":
            self._events.add((record["kind"], record["step"]))
            return []
        warnings = self._watch.add(record)
        position = {key: record[key] for key in POSITION_KEYS}
        for warning in warnings:
            self.write(position | {"kind": "warning"} | warning._asdict())
        return warnings

    def has(self, kind: str, step: int) -> bool:
        """Whether there is a record of this kind, which must not be "train", at `step`."""
        return (kind, step) in self._events

    def sync(self) -> None:
        """Flush everything written to disk."""
        with _writing(self._run):
            os.fsync(self._file.fileno())
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a full disk was reported when it was written to
            self._file.close()
            self._close()


type _Logger = tuple[Callable[[Mapping[str, float], int], object], Callable[[], object], Callable[[], object]]
"""Functions that add the scalars of a step, flush and close."""


def _tensorboard(run: Path, last_step: int, _: RunConfig) -> _Logger:
    writer = SummaryWriter(run / TENSORBOARD, purge_step=last_step + 1)

    def add(scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)

    return add, writer.flush, writer.close


def _weights_and_biases(run: Path, last_step: int, config: RunConfig) -> _Logger:
    import wandb  # noqa: PLC0415 - of the extra of this name

    name = run.resolve().name
    opened = wandb.init(
        project="vgsplus",
        group=name,
        name=f"{name} from step {last_step}",
        dir=run,
        config=to_dict(config),
        settings=wandb.Settings(console="off", silent=True),
    )
    return opened.log, lambda: None, opened.finish


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VgsplusError(
            f"{path}: could not be written ({error.strerror}). Free disk space, then resume."
        ) from error


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
