"""How fast a training step is, compared to other systems, on synthetic batches of noise.

Systems: `vgsplus`, ours; `compiled`, ours with compiled layers; `rectangle`, with the padding of the
published code, every caption to 8 s; and for α = 0, padded to the longest caption of the batch,
`transformers` (Wav2Vec2ForPreTraining) and, where they are installed, `minimal_hubert` and `spidr`, all of
the size of wav2vec 2.0 base. A step is forward, backward, clipping and the update of the optimiser; reading
and moving data is left out. Each repeat has another batch, on which all systems take turns, so that a machine
that slows down slows all of them.

    python benchmarks/peers.py --sizes paper --batch-sizes 6 16 --repeats 3 --json peers.json
"""

import argparse
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from written import write_json

from vgsplus.config import RunConfig, load_config
from vgsplus.functional import lengths_to_mask
from vgsplus.losses.masking import span_mask, trim_to_shortest
from vgsplus.models.published import build_model
from vgsplus.models.transformer import compile_layers
from vgsplus.training.optimizer import build_optimizer
from vgsplus.training.runtime import matrix_rate, tune_process

SAMPLE_RATE = 16_000
FIXED_SECONDS = 8.0
MEAN_SECONDS, DEVIATION_SECONDS, SHORTEST_SECONDS = 4.4, 1.3, 1.0
REGIONS = 36
HUBERT_CLUSTERS = 500

SIZES = ("toy", "paper")
ALPHAS = (0.0, 0.5, 1.0)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Result:
    """The speed of one system.

    Attributes:
        captions: in a batch.
        audio_seconds: of speech in a batch on average, padding not counted.
        step_seconds: median time of a step.
        captions_per_second: of all steps together.
        hours_per_hour: hours of speech in an hour, of all steps together.
        matrix_share: operations that our steps need, as a share of what the device computes in large products
            in the same time.
        gigabytes: peak memory of a step on a GPU, otherwise None.
        times_as_long: median over the repeats of the time of a step over that of ours.
    """

    size: str
    alpha: float
    precision: str
    system: str
    captions: int
    audio_seconds: float
    step_seconds: float
    captions_per_second: float
    hours_per_hour: float
    matrix_share: float
    gigabytes: float | None
    times_as_long: float


# ---- batches ----------------------------------------------------------------------------------------------


def draw_num_samples(captions: int, seed: int) -> Tensor:
    """Draw lengths (B,) int64 in samples, ascending: about 4.4 s on average and at most 8 s."""
    seconds = np.random.default_rng([seed, 0]).normal(MEAN_SECONDS, DEVIATION_SECONDS, captions)
    clipped = np.clip(seconds, SHORTEST_SECONDS, FIXED_SECONDS)
    return torch.from_numpy(np.sort(clipped * SAMPLE_RATE).astype(np.int64))


def make_batch(num_samples: Tensor, feature_dim: int, seed: int, device: torch.device) -> dict[str, Tensor]:
    """Make a batch of noise: waveforms (B, S), features (B, R, F), boxes (B, R, 4), as many images."""
    generator = torch.Generator().manual_seed(seed)
    captions, longest = len(num_samples), int(num_samples.max())
    waveforms = torch.randn(captions, longest, generator=generator)
    waveforms[torch.arange(longest) >= num_samples[:, None]] = 0.0
    low, high = torch.rand(2, captions, REGIONS, 2, generator=generator).sort(dim=0).values
    batch = {
        "waveforms": waveforms,
        "features": torch.randn(captions, REGIONS, feature_dim, generator=generator),
        "boxes": torch.cat([low, high], dim=-1),
        "image_ids": torch.arange(captions),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()} | {"num_samples": num_samples}


# ---- systems ----------------------------------------------------------------------------------------------


class System(Protocol):
    """What is timed."""

    name: str
    alphas: Sequence[float]

    def loss(self, batch: dict[str, Tensor], alpha: float) -> Tensor:
        """Return the loss of a batch."""
        ...

    def update(self) -> None:
        """Clip the gradients, update the weights and drop the gradients."""
        ...


class Ours:
    """Ours; with the same weights and optimiser also the rectangle of the published code, and compiled."""

    alphas: Sequence[float] = ALPHAS

    def __init__(
        self, name: str, config: RunConfig, device: torch.device, *, twin: "Ours | None" = None
    ) -> None:
        self.name = name
        self.model = build_model(config.model).to(device).train()
        self.clip = config.gradient_clip
        self.twin = twin
        if twin is None:
            self.optimizer = build_optimizer(self.model, config.schedule.phases[0].optimizer)
        else:
            self.model.load_state_dict(twin.model.state_dict(), assign=True)
        if name == "compiled":
            compile_layers(self.model)

    def loss(self, batch: dict[str, Tensor], alpha: float) -> Tensor:
        """See `System.loss`."""
        if self.name == "rectangle":
            missing = int(FIXED_SECONDS * SAMPLE_RATE) - batch["waveforms"].shape[1]
            batch = batch | {"waveforms": nn.functional.pad(batch["waveforms"], (0, missing))}
        total: Tensor = self.model(batch, alpha).total
        return total

    def update(self) -> None:
        """See `System.update`."""
        updated = self if self.twin is None else self.twin
        for ours, theirs in zip(updated.model.parameters(), self.model.parameters(), strict=True):
            ours.grad = theirs.grad
        nn.utils.clip_grad_norm_(updated.model.parameters(), self.clip)
        updated.optimizer.step()
        for model in (self.model, updated.model):
            model.zero_grad(set_to_none=True)


class Peer:
    """Another system, at α = 0."""

    alphas: Sequence[float] = (0.0,)

    def __init__(
        self, name: str, model: nn.Module, loss: Callable[[dict[str, Tensor]], Tensor], device: torch.device
    ) -> None:
        self.name, self.model, self._loss = name, model.to(device).train(), loss
        self.optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True
        )

    def loss(self, batch: dict[str, Tensor], alpha: float) -> Tensor:
        """See `System.loss`."""
        del alpha
        return self._loss(batch)

    def update(self) -> None:
        """See `System.update`."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.model.zero_grad(set_to_none=True)


def transformers_peer(device: torch.device) -> Peer:
    """Wav2Vec2ForPreTraining; masks and negatives are drawn once, since its collator draws them."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining  # noqa: PLC0415 - a development dependency
    from transformers.models.wav2vec2 import modeling_wav2vec2 as wav2vec2  # noqa: PLC0415

    config = Wav2Vec2Config(layerdrop=0.0)
    model: Any = Wav2Vec2ForPreTraining(config)
    drawn: dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor]] = {}

    def loss(batch: dict[str, Tensor]) -> Tensor:
        shape = tuple(batch["waveforms"].shape)
        if shape not in drawn:
            lengths, width = batch["num_samples"], shape[1]
            attention_mask = (torch.arange(width) < lengths[:, None]).long()
            frames = int(model._get_feat_extract_output_lengths(width))  # noqa: SLF001 - as its examples do
            reduced = model._get_feature_vector_attention_mask(frames, attention_mask)  # noqa: SLF001
            where = (shape[0], frames)
            spans = wav2vec2._compute_mask_indices(where, 0.65, 10, attention_mask=reduced, min_masks=2)  # noqa: SLF001
            negatives = wav2vec2._sample_negative_indices(where, config.num_negatives, spans)  # noqa: SLF001
            tensors = attention_mask, torch.from_numpy(spans), torch.from_numpy(negatives)
            drawn[shape] = tuple(tensor.to(device) for tensor in tensors)  # type: ignore[assignment]
        attention_mask, mask, negatives = drawn[shape]
        output = model(
            batch["waveforms"],
            attention_mask=attention_mask,
            mask_time_indices=mask,
            sampled_negative_indices=negatives,
        )
        total: Tensor = output.loss / mask.sum()
        return total

    return Peer("transformers", model, loss, device)


def masked_frames(batch: dict[str, Tensor], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Draw frames to mask for the peers below: (B, T) bool, (B, M) indices, and the attention mask."""
    frames = (batch["waveforms"].shape[1] - 400) // 320 + 1
    lengths = (batch["num_samples"] - 400) // 320 + 1
    mask = trim_to_shortest(span_mask(lengths, frames, probability=0.65, span=10))
    indices = mask.nonzero()[:, 1].view(len(lengths), -1)
    attention_mask = lengths_to_mask(lengths, frames)[:, None, None]
    return mask.to(device), indices.to(device), attention_mask.to(device)


def minimal_hubert_peer(device: torch.device) -> Peer:
    """HuBERT base with random labels; masks are drawn once, since its collator draws them."""
    from minimal_hubert.model import HuBERTPretrain  # noqa: PLC0415 - optional

    model: Any = HuBERTPretrain(HUBERT_CLUSTERS)
    drawn: dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor]] = {}

    def loss(batch: dict[str, Tensor]) -> Tensor:
        shape = tuple(batch["waveforms"].shape)
        if shape not in drawn:
            mask, _, attention_mask = masked_frames(batch, device)
            drawn[shape] = mask, torch.randint(HUBERT_CLUSTERS, mask.shape, device=device), attention_mask
        mask, labels, attention_mask = drawn[shape]
        total, _ = model(batch["waveforms"], labels, mask=mask, attention_mask=attention_mask)
        summed: Tensor = total.sum()
        return summed / mask.sum()

    return Peer("minimal_hubert", model, loss, device)


def spidr_peer(device: torch.device) -> Peer:
    """SpidR base with its teacher; masks are drawn once, since its collator draws them."""
    from spidr.models import SpidR  # noqa: PLC0415 - optional

    model: Any = SpidR()
    drawn: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    steps = iter(range(1, 10**9))

    def loss(batch: dict[str, Tensor]) -> Tensor:
        shape = tuple(batch["waveforms"].shape)
        if shape not in drawn:
            drawn[shape] = masked_frames(batch, device)[1:]
        indices, attention_mask = drawn[shape]
        model.update_ema(next(steps))
        total, _ = model(batch["waveforms"], mask_indices=indices, attention_mask=attention_mask)
        mean: Tensor = total.mean()
        return mean

    return Peer("spidr", model, loss, device)


def open_systems(size: str, names: Sequence[str], device: torch.device) -> list[System]:
    """Build the systems of a size; other systems have the paper's size only."""
    torch.manual_seed(0)
    config = load_config(size, ["corpus=synthetic"])
    ours = Ours("vgsplus", config, device)
    systems: list[System] = [ours]
    if "compiled" in names:
        systems.append(Ours("compiled", config, device, twin=ours))
    if "rectangle" in names:
        published = load_config(size, ["corpus=synthetic", "model.padding=published"])
        systems.append(Ours("rectangle", published, device, twin=ours))
    peers = {"transformers": transformers_peer, "minimal_hubert": minimal_hubert_peer, "spidr": spidr_peer}
    if size == "paper":
        systems += [build(device) for name, build in peers.items() if name in names and _installed(name)]
    return systems


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


# ---- timing -----------------------------------------------------------------------------------------------


def step(system: System, batch: dict[str, Tensor], alpha: float, precision: str) -> float:
    """Run one training step and return the seconds it took."""
    device = batch["waveforms"].device
    synchronise(device)
    start = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = system.loss(batch, alpha)
    loss.backward()  # type: ignore[no-untyped-call] # of torch
    system.update()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_operations(system: System, batch: dict[str, Tensor], alpha: float) -> float:
    """Count the floating-point operations in products of one step."""
    in_place = {torch.ops.aten.addmm_: _addmm_flops}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        step(system, batch, alpha, "fp32")
    return float(counter.get_total_flops())


def _addmm_flops(_: object, a: Sequence[int], b: Sequence[int], **__: object) -> int:
    return 2 * a[0] * a[1] * b[1]


def measure(
    systems: Sequence[System],
    size: str,
    alpha: float,
    precision: str,
    captions: int,
    *,
    repeats: int,
    warmup: int = 1,
    seed: int = 0,
    device: torch.device,
) -> list[Result]:
    """Time the systems by turns on `repeats` batches, after `warmup` steps that do not count."""
    feature_dim = load_config(size, ["corpus=synthetic"]).model.feature_dim
    systems = [system for system in systems if alpha in system.alphas]
    times: dict[str, list[float]] = {system.name: [] for system in systems}
    memory: dict[str, float] = dict.fromkeys(times, 0.0)
    audio_seconds, shares = [], []
    for repeat in range(-warmup, repeats):
        # Lengths differ from batch to batch, and with them what padding costs.
        num_samples = draw_num_samples(captions, seed + max(repeat, 0))
        batch = make_batch(num_samples, feature_dim, seed, device)
        operations = count_operations(systems[0], batch, alpha) if repeat >= 0 else 0.0
        for system in systems:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds = step(system, batch, alpha, precision)
            if repeat >= 0:
                times[system.name].append(seconds)
            if device.type == "cuda":
                memory[system.name] = max(memory[system.name], torch.cuda.max_memory_allocated(device) / 1e9)
        if repeat >= 0:
            audio_seconds.append(float(num_samples.sum()) / SAMPLE_RATE)
            shares.append(operations / matrix_rate(device.type, PRECISIONS[precision]))
    results = []
    for name, taken in times.items():
        median = statistics.median(taken)
        ratios = [theirs / ours for theirs, ours in zip(taken, times["vgsplus"], strict=True)]
        results.append(
            Result(
                size=size,
                alpha=alpha,
                precision=precision,
                system=name,
                captions=captions,
                audio_seconds=statistics.mean(audio_seconds),
                step_seconds=median,
                captions_per_second=captions * len(taken) / sum(taken),
                hours_per_hour=sum(audio_seconds) / sum(taken),
                matrix_share=sum(shares) / sum(taken),
                gigabytes=memory[name] or None,
                times_as_long=statistics.median(ratios),
            )
        )
    return results


# ---- command ----------------------------------------------------------------------------------------------


def show(results: Sequence[Result]) -> None:
    """Print a line for each result."""
    print(
        f"{'size':<6} {'α':>4} {'precision':<9} {'batch':>5} {'system':<15} {'s/step':>8} {'captions/s':>10} "
        f"{'hours/h':>8} {'matrix':>7} {'GB':>6} {'times ours':>10}"
    )
    for r in results:
        gigabytes = "" if r.gigabytes is None else f"{r.gigabytes:.1f}"
        print(
            f"{r.size:<6} {r.alpha:>4g} {r.precision:<9} {r.captions:>5} {r.system:<15} "
            f"{r.step_seconds:>8.3f} {r.captions_per_second:>10.2f} {r.hours_per_hour:>8.1f} "
            f"{100 * r.matrix_share:>5.0f} % {gigabytes:>6} {r.times_as_long:>10.2f}"
        )


def machine(device: torch.device) -> dict[str, str | int]:
    """Describe what the numbers were taken on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": device.type,
        "name": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="presets to time")
    parser.add_argument("--alphas", nargs="+", type=float, default=list(ALPHAS), help="weights of grounding")
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[6, 16], help="captions in a batch")
    parser.add_argument(
        "--systems",
        nargs="*",
        default=["rectangle", "transformers", "minimal_hubert", "spidr"],
        help="what to compare with",
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each system")
    parser.add_argument("--warmup", type=int, default=1, help="steps of each system before timing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the results here too")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    return arguments


def main() -> None:
    """Time what is asked for, print a table, and write JSON where asked."""
    arguments = parse_arguments()
    device = torch.device(arguments.device)
    tune_process()
    results: list[Result] = []
    for size in arguments.sizes:
        systems = open_systems(size, arguments.systems, device)
        for captions in arguments.batch_sizes:
            for precision in arguments.precisions:
                for alpha in arguments.alphas:
                    results += measure(
                        systems,
                        size,
                        alpha,
                        precision,
                        captions,
                        repeats=arguments.repeats,
                        warmup=arguments.warmup,
                        seed=arguments.seed,
                        device=device,
                    )
    show(results)
    write_json(arguments.json, machine=machine(device), repeats=arguments.repeats, results=results)


if __name__ == "__main__":
    main()
