"""Check and time a GPU in a few minutes: right results, the speed of a step, and where its time goes.

First the losses and gradients on the device against float64 on the CPU, and a run of 20 steps against one
that stops after 10 and resumes; then steps of the paper's size with more and more captions at each α, with
the padding of the published code in the same run; a profile of the fastest; and the extraction of all layers.
`gpu.sh` installs what it needs and calls it.

    python benchmarks/gpu.py --out out/gpu
"""

import argparse
import copy
import itertools
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from loading import write_corpus
from peers import (
    ALPHAS,
    SAMPLE_RATE,
    Result,
    draw_num_samples,
    machine,
    make_batch,
    measure,
    open_systems,
    show,
    step,
    synchronise,
)
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from written import write_json

from vgsplus.config import load_config
from vgsplus.errors import Interrupted
from vgsplus.evaluation.hidden_states import inference
from vgsplus.models.published import build_model
from vgsplus.models.transformer import compile_layers
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.progress import Progress
from vgsplus.training import checkpoint
from vgsplus.training.checkpoint import MODEL_FILE, OPTIMIZER_FILE
from vgsplus.training.runtime import compiles
from vgsplus.training.trainer import train

STEPS = 20
KERNELS = 15
RUN_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far the device is from float64 on the CPU, relative to the largest value.

    Attributes:
        compiled: whether the layers were compiled.
        loss: of the total loss.
        gradient: norm of the difference of all gradients over the norm of the gradients.
    """

    size: str
    alpha: float
    precision: str
    compiled: bool
    loss: float
    gradient: float


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """The speed at which all layers are computed, without reading sound or writing them."""

    precision: str
    captions: int
    hours_per_hour: float


# ---- correctness ------------------------------------------------------------------------------------------


def agreements(sizes: Sequence[str], device: torch.device, captions: int) -> Iterator[Agreement]:
    """Compare losses and gradients of one batch, without dropout and noise, at each α."""
    for size in sizes:
        config = load_config(size, ["corpus=synthetic"]).model
        torch.manual_seed(0)
        reference = build_model(replace(config, dropout=0.0)).double().eval()
        model = build_model(replace(config, dropout=0.0)).to(device).eval()
        model.load_state_dict(reference.state_dict())
        models = {False: model}
        if compiles("auto", device.type):
            models[True] = copy.deepcopy(model)
            compile_layers(models[True])
        batch = make_batch(draw_num_samples(captions, 1) // 2, config.feature_dim, 1, torch.device("cpu"))
        for alpha in ALPHAS:
            expected, wanted = _loss_and_gradients(reference, batch, alpha)
            for precision, compiled in itertools.product(("fp32", "bf16"), models):
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    loss, gradients = _loss_and_gradients(models[compiled], batch, alpha)
                difference = torch.stack([(gradients[name] - g).norm() for name, g in wanted.items()]).norm()
                yield Agreement(
                    size=size,
                    alpha=alpha,
                    precision=precision,
                    compiled=compiled,
                    loss=abs(loss - expected) / abs(expected),
                    gradient=float(difference / torch.stack([g.norm() for g in wanted.values()]).norm()),
                )


def _loss_and_gradients(
    model: VGSPlus, batch: dict[str, Tensor], alpha: float
) -> tuple[float, dict[str, Tensor]]:
    """Compute the total loss and all gradients with given masks and negatives, in the dtype of the model."""
    weight = model.speech.project.weight
    num_samples = batch["num_samples"]
    frames = torch.arange(model.speech.num_frames(batch["waveforms"].shape[1]))
    shortest = int(model.speech.waveform.num_frames(num_samples).min())
    mask = ((frames % 3 == 1) & (frames < shortest)).expand(len(num_samples), -1)
    num_masked = int(mask[0].sum())
    torch.manual_seed(0)
    negatives = torch.randint(num_masked, (len(num_samples), num_masked * 10))
    negatives += num_masked * torch.arange(len(num_samples))[:, None]
    moved = {
        name: tensor.to(weight) if tensor.is_floating_point() else tensor for name, tensor in batch.items()
    }
    model.zero_grad()
    total = model.losses(moved, alpha, mask if alpha < 1 else None, negatives.to(weight.device)).total
    total.backward()  # type: ignore[no-untyped-call] # of torch
    gradients = {n: p.grad.double().cpu() for n, p in model.named_parameters() if p.grad is not None}
    return float(total.detach()), gradients


class _StopAt(Progress):
    """Interrupts a run after a step of its phase."""

    def __init__(self, last: int) -> None:
        self.last = last

    def update(self, stage: str, done: int, total: int | None = None, detail: str = "") -> None:
        """See `Progress.update`."""
        del stage, total
        if detail and done == self.last:
            signal.raise_signal(signal.SIGINT)


def resumes(device: torch.device, precision: str, size: str, captions: int) -> bool:
    """Whether 10 steps, a stop and 10 more end with the same bits as 20 steps."""
    with TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder) / "corpus", "wav", STEPS * captions, captions, 0)
        overrides = [
            f"corpus={corpus.root}",
            "schedule=[{name: mixed, epochs: 1, alpha: 0.5}]",
            f"batch_size={captions}",
            f"precision={precision}",
            f"accelerator={device.type}",
            f"model.feature_dim={corpus.feature_dim}",
            "validate_every=null",
            "evaluate_every=null",
            "workers=0",
        ]
        config = load_config(size, overrides)
        whole, parts = Path(folder) / "whole", Path(folder) / "parts"
        train(config, whole)
        try:
            train(config, parts, progress=_StopAt(STEPS // 2))
        except Interrupted:
            train(config, parts, resume=True)
        one, other = checkpoint.latest_path(whole), checkpoint.latest_path(parts)
        assert one is not None
        assert other is not None
        return all(
            (one / file).read_bytes() == (other / file).read_bytes() for file in (MODEL_FILE, OPTIMIZER_FILE)
        )


# ---- speed ------------------------------------------------------------------------------------------------


def speeds(
    size: str,
    batches: Sequence[int],
    precisions: Sequence[str],
    *,
    repeats: int,
    until: float,
    device: torch.device,
) -> Iterator[list[Result]]:
    """Time ours, eager and compiled, and the padding of the published code, with more and more captions."""
    compiled = ["compiled"] if compiles("auto", device.type) else []
    systems = open_systems(size, ["rectangle", *compiled], device)
    for captions in batches:
        for precision in precisions:
            for alpha in ALPHAS:
                if time.monotonic() > until:
                    return
                try:
                    yield measure(
                        systems, size, alpha, precision, captions, repeats=repeats, warmup=2, device=device
                    )
                except torch.cuda.OutOfMemoryError:
                    print(f"{captions} captions at α = {alpha:g} in {precision} do not fit", flush=True)
                    systems = [system for system in systems if system.name != "rectangle"]
                    torch.cuda.empty_cache()


def kernels(size: str, best: Result, device: torch.device) -> str:
    """Profile two steps of a setting and list the kernels that take longest."""
    *_, ours = open_systems(size, [best.system], device)
    batch = make_batch(
        draw_num_samples(best.captions, 0), load_config(size, ["corpus=x"]).model.feature_dim, 0, device
    )
    step(ours, batch, best.alpha, best.precision)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiled:
        for _ in range(2):
            step(ours, batch, best.alpha, best.precision)
    order = f"self_{device.type}_time_total"
    table: str = profiled.key_averages().table(sort_by=order, row_limit=KERNELS, max_name_column_width=70)
    return table


def extraction(size: str, captions: int, repeats: int, device: torch.device) -> Iterator[Extraction]:
    """Time the hidden states of all layers."""
    model = build_model(load_config(size, ["corpus=synthetic"]).model).to(device)
    batch = make_batch(draw_num_samples(captions, 0), 1, 0, device)
    for precision, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        times = []
        for _ in range(1 + repeats):
            start = time.perf_counter()
            with inference(model, device, dtype):
                model.speech_layers(batch["waveforms"], batch["num_samples"])
            synchronise(device)
            times.append(time.perf_counter() - start)
        seconds = float(batch["num_samples"].sum()) / SAMPLE_RATE
        yield Extraction(
            precision=precision, captions=captions, hours_per_hour=seconds / statistics.median(times[1:])
        )


# ---- command ----------------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where gpu.json is written")
    parser.add_argument("--device", default="cuda", help="of the measurements; cpu to try the script")
    parser.add_argument("--size", default="paper", help="preset of the model")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 128, 256, 512])
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each system")
    parser.add_argument("--minutes", type=float, default=6.5, help="when no further setting is begun")
    return parser.parse_args()


def main() -> None:
    """Run all parts, print tables and write gpu.json after each part, so that a stop loses little."""
    arguments = parse_arguments()
    device, size = torch.device(arguments.device), arguments.size
    until = time.monotonic() + 60 * arguments.minutes
    small = "smoke" if size == "paper" else size
    found: dict[str, object] = {"machine": machine(device)}

    def save(part: str, content: object) -> None:
        found[part] = content
        write_json(arguments.out / "gpu.json", **found)

    print(found["machine"], flush=True)
    agreed = []
    for agreement in agreements(tuple(dict.fromkeys((small, size))), device, captions=4):
        print(agreement, flush=True)
        agreed.append(agreement)
        save("agreement", agreed)
    resumed = {precision: resumes(device, name, small, 4) for precision, name in RUN_PRECISIONS.items()}
    print("resumed runs end with the same bits:", resumed, flush=True)
    save("resumed", resumed)
    results: list[Result] = []
    for part in speeds(
        size,
        arguments.batch_sizes,
        arguments.precisions,
        repeats=arguments.repeats,
        until=until,
        device=device,
    ):
        show(part)
        results += part
        save("speed", results)
    extracted = list(extraction(size, arguments.batch_sizes[0], arguments.repeats, device))
    print(*extracted, sep="\n", flush=True)
    save("extraction", extracted)
    best = max((r for r in results if r.system != "rectangle"), key=lambda r: r.hours_per_hour)
    table = kernels(size, best, device)
    print(table)
    save("kernels", {"setting": best, "table": table.splitlines()})


if __name__ == "__main__":
    main()
