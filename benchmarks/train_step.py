"""How fast a training step is: captions and seconds of audio a second, on synthetic batches.

Compares α = 0, 0.5 and 1, float32 and bfloat16 autocast, and three ways of padding: to a fixed 8 s (as
published), to the longest caption of the batch, and in chunks of captions of like length (ours). A step is
forward, backward, clipping and the optimiser's update; reading and moving data is left out. Memory and
kernels are kept from step to step as in training. All settings of a size take turns in each repeat, so that a
machine that slows down slows all of them; the medians over the repeats are reported.

    python benchmarks/train_step.py --sizes toy --repeats 5 --json times.json
"""

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vgsplus.config import load_config
from vgsplus.models.published import build_model
from vgsplus.training.optimizer import build_optimizer
from vgsplus.training.runtime import disable_malloc_trim, enlarge_onednn_cache

SAMPLE_RATE = 16_000
FIXED_SECONDS = 8.0
MEAN_SECONDS, DEVIATION_SECONDS, SHORTEST_SECONDS = 4.4, 1.3, 1.0
REGIONS = 36

SIZES = ("toy", "paper")
ALPHAS = (0.0, 0.5, 1.0)
PRECISIONS = ("fp32", "bf16")
PADDINGS = ("fixed", "longest", "chunks")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is timed: one weight of the losses, one precision, one way of padding."""

    alpha: float
    precision: str
    padding: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """The speed of one setting.

    Attributes:
        captions: in a batch.
        audio_seconds: of speech in a batch, padding not counted.
        padded_seconds: length that the batch's longest caption was padded to.
        step_seconds: median time of a step.
        captions_per_second: captions over step_seconds.
        audio_seconds_per_second: audio_seconds over step_seconds.
    """

    size: str
    alpha: float
    precision: str
    padding: str
    captions: int
    audio_seconds: float
    padded_seconds: float
    step_seconds: float
    captions_per_second: float
    audio_seconds_per_second: float


# ---- batches ----------------------------------------------------------------------------------------------


def draw_num_samples(captions: int, seed: int) -> Tensor:
    """Lengths of captions, (B,) int64 samples, about 4.4 s in the mean and never over 8 s."""
    seconds = np.random.default_rng([seed, 0]).normal(MEAN_SECONDS, DEVIATION_SECONDS, captions)
    clipped = np.clip(seconds, SHORTEST_SECONDS, FIXED_SECONDS)
    return torch.from_numpy((clipped * SAMPLE_RATE).astype(np.int64))


def make_batch(
    num_samples: Tensor, padding: str, feature_dim: int, seed: int, device: torch.device
) -> dict[str, Tensor]:
    """A batch of noise: waveforms (B, S) zero-padded, features (B, R, F), boxes (B, R, 4), an image each."""
    generator = torch.Generator().manual_seed(seed)
    captions = len(num_samples)
    length = int(FIXED_SECONDS * SAMPLE_RATE) if padding == "fixed" else int(num_samples.max())
    waveforms = torch.randn(captions, length, generator=generator)
    waveforms[torch.arange(length) >= num_samples[:, None]] = 0.0
    low, high = torch.rand(2, captions, REGIONS, 2, generator=generator).sort(dim=0).values
    batch = {
        "waveforms": waveforms,
        "num_samples": num_samples,
        "features": torch.randn(captions, REGIONS, feature_dim, generator=generator),
        "boxes": torch.cat([low, high], dim=-1),
        "image_ids": torch.arange(captions),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def without_images(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch as training gives it at α = 0."""
    return {name: batch[name] for name in ("waveforms", "num_samples")}


# ---- timing -----------------------------------------------------------------------------------------------


class Stepper:
    """One model of a size and its optimiser, which all settings share."""

    def __init__(self, size: str, captions: int | None, seed: int, device: torch.device) -> None:
        config = load_config(size, ["corpus=synthetic"])
        torch.manual_seed(seed)
        self.size, self.device = size, device
        self.model = build_model(config.model).to(device).train()
        self.chunk = self.model.speech.bucket_samples
        self.optimizer = build_optimizer(self.model, config.schedule.phases[0].optimizer)
        self.clip = config.gradient_clip
        self.num_samples = draw_num_samples(captions or config.batch_size, seed)
        self.batches = {
            padding: make_batch(self.num_samples, padding, config.model.feature_dim, seed, device)
            for padding in PADDINGS
        }

    def step(self, setting: Setting) -> float:
        """Make one training step; returns the seconds it took."""
        batch = self.batches[setting.padding]
        self.model.speech.bucket_samples = (
            self.chunk if setting.padding == "chunks" else int(self.num_samples.sum())
        )
        batch = batch if setting.alpha > 0 else without_images(batch)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=setting.precision == "bf16")
        self._synchronise()
        start = time.perf_counter()
        with autocast:
            losses = self.model(batch, alpha=setting.alpha)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._synchronise()
        return time.perf_counter() - start

    def result(self, setting: Setting, times: Sequence[float]) -> Result:
        """The speed of a setting from the times of its steps."""
        median = statistics.median(times)
        audio_seconds = float(self.num_samples.sum()) / SAMPLE_RATE
        return Result(
            size=self.size,
            **asdict(setting),
            captions=len(self.num_samples),
            audio_seconds=audio_seconds,
            padded_seconds=self.batches[setting.padding]["waveforms"].shape[1] / SAMPLE_RATE,
            step_seconds=median,
            captions_per_second=len(self.num_samples) / median,
            audio_seconds_per_second=audio_seconds / median,
        )

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(stepper: Stepper, precisions: Sequence[str], repeats: int, warmup: int) -> list[Result]:
    """Time every setting, in turn, `repeats` times after `warmup` steps that do not count."""
    settings = [
        Setting(alpha=alpha, precision=precision, padding=padding)
        for alpha, precision, padding in itertools.product(ALPHAS, precisions, PADDINGS)
    ]
    times: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for repeat in range(warmup + repeats):
        for setting in settings:
            seconds = stepper.step(setting)
            if repeat >= warmup:
                times[setting].append(seconds)
    return [stepper.result(setting, times[setting]) for setting in settings]


# ---- command ----------------------------------------------------------------------------------------------


def show(results: Sequence[Result]) -> None:
    """Print a line a setting."""
    print(
        f"{'size':<6} {'α':>4} {'precision':<9} {'padding':<8} "
        f"{'ms/step':>9} {'captions/s':>11} {'audio s/s':>10}"
    )
    for r in results:
        print(
            f"{r.size:<6} {r.alpha:>4g} {r.precision:<9} {r.padding:<8} {1000 * r.step_seconds:>9.1f} "
            f"{r.captions_per_second:>11.1f} {r.audio_seconds_per_second:>10.1f}"
        )


def machine(device: torch.device) -> dict[str, str | int]:
    """What the numbers were taken on."""
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
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="arithmetic to time"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of a setting")
    parser.add_argument("--warmup", type=int, default=1, help="steps of a setting before timing")
    parser.add_argument(
        "--batch-size", type=int, default=None, help="captions in a batch; the preset's if not given"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the results here too")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    return arguments


def main() -> None:
    """Time the sizes asked for, print a table, and write JSON where asked."""
    arguments = parse_arguments()
    device = torch.device(arguments.device)
    if device.type == "cpu":
        disable_malloc_trim()
        enlarge_onednn_cache()
    results: list[Result] = []
    for size in arguments.sizes:
        stepper = Stepper(size, arguments.batch_size, arguments.seed, device)
        results += measure(stepper, arguments.precisions, arguments.repeats, arguments.warmup)
    show(results)
    if arguments.json is not None:
        content = {
            "machine": machine(device),
            "repeats": arguments.repeats,
            "results": [asdict(r) for r in results],
        }
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
