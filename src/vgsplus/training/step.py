"""One optimiser update: losses at α, gradients, clipping and the new weights."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from vgsplus.config import RunConfig
from vgsplus.losses import Losses
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.schedule import PhaseSteps
from vgsplus.training.data import Batch, move
from vgsplus.training.log import BatchCounts, PendingScalars, Record, log_record, loss_terms, merge_terms
from vgsplus.training.optimizer import norms_by_part
from vgsplus.training.processes import Processes
from vgsplus.training.runtime import RandomStream, indexed_seed, matrix_rate

_matrix_rate = functools.cache(matrix_rate)


class TrainingStep:
    """Computes the updates of a model."""

    def __init__(self, model: VGSPlus, config: RunConfig, processes: Processes) -> None:
        self.model, self.config, self.processes = model, config, processes
        self.fabric = processes.fabric
        self.scaler = getattr(processes.precision, "scaler", None)
        self._measured: PhaseSteps | None = None
        self._seconds_per_sample = 0.0

    def update(
        self,
        phase: PhaseSteps,
        step: int,
        optimizer: Optimizer,
        batch: Batch,
        extra_batch: Batch | None = None,
    ) -> tuple[Record, PendingScalars]:
        """Run one optimiser update, unless a loss or the gradient is not finite.

        total = α · grounding + (1 - α) · ssl, plus weight · ssl of additional speech.

        Returns:
            The record of the step, and the losses by name, which the device may not have computed yet.
        """
        alpha, lr, weight = phase.alpha(step), phase.lr(step), phase.additional_weight
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        additional = {}
        if extra_batch is not None:
            seed = indexed_seed(self.config.seed, RandomStream.EXTRA_STEP, phase.index, step)
            # The Gumbel temperature advances once per update: with the captions if α < 1, else here.
            additional = self._accumulate_gradient(
                extra_batch, 0.0, seed, weight=weight, update_temperature=alpha == 1
            )
        seed = indexed_seed(self.config.seed, RandomStream.STEP, phase.index, step)
        losses = self._accumulate_gradient(batch, alpha, seed)
        self.processes.average_gradients(self.model)
        norm = self.fabric.clip_gradients(
            self.model, optimizer, max_norm=self.config.gradient_clip, error_if_nonfinite=False
        )
        assert norm is not None
        terms = merge_terms(losses, additional, weight) if additional else losses
        norms = norms_by_part(self.model, norm, self.config.gradient_clip)
        scalars = PendingScalars(terms | {"grad_norm": norm} | norms)
        if self.scaler is None:  # a scaler skips the update itself; Fabric wraps the optimiser
            found_inf = (~scalars.stacked.isfinite()).any().float()
            getattr(optimizer, "optimizer", optimizer).found_inf = found_inf  # type: ignore[union-attr]
        optimizer.step()
        return log_record("train", phase, step + 1) | {"alpha": alpha, "lr": lr}, scalars

    def losses(self, batch: Batch, alpha: float, seed: int, *, update_temperature: bool = True) -> Losses:
        """Compute the losses of a batch; `seed` is that of all random numbers."""
        # On a GPU dropout draws from the generator, which must differ between processes.
        torch.manual_seed((seed + self.processes.rank) % 2**64)
        moved = move(batch, self.fabric.device)
        with self.fabric.autocast():
            losses: Losses = self.model(moved, alpha, seed=seed, update_temperature=update_temperature)
        return losses

    def counts(self, phase: PhaseSteps, batches: tuple[Batch, ...], waited: float) -> BatchCounts:
        """Return what the batches of an update hold in all processes, which must call this together.

        Operations are counted once in a phase, at the α of its middle, and taken to grow with the samples.
        """
        samples = sum(int(batch["num_samples"].sum()) for batch in batches)
        if self._measured is not phase:
            names = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
            rate = _matrix_rate(self.fabric.device.type, names[self.config.precision])
            operations = self.count_operations(batches, phase.alpha(phase.steps // 2))
            self._measured, self._seconds_per_sample = phase, operations / rate / samples
        own = BatchCounts.of(batches, self.model, waited, self._seconds_per_sample * samples)
        return BatchCounts(*self.processes.sum(own))

    def count_operations(self, batches: Sequence[Batch], alpha: float) -> float:
        """Count the floating-point operations in the products of an update on the batches of this process.

        That is three times those of its forward pass: the gradients of the two factors of a product cost as
        much as the product, each. What checkpoints of activations compute again does not count. All
        processes must call this together. It changes neither the model nor its mode.
        """
        training = self.model.training
        self.model.eval()
        in_place = {torch.ops.aten.addmm_: _addmm_operations}
        with (
            FlopCounterMode(display=False, custom_mapping=in_place) as counter,
            sdpa_kernel(SDPBackend.MATH),  # the kernel for CPUs is not counted
            torch.compiler.set_stance("force_eager"),
            torch.no_grad(),
        ):
            for place, batch in enumerate(batches):  # captions, and additional speech
                self.losses(batch, 0.0 if place else alpha, seed=0, update_temperature=False)
        self.model.train(training)
        return 3.0 * float(counter.get_total_flops())

    def _accumulate_gradient(
        self, batch: Batch, alpha: float, seed: int, *, weight: float = 1.0, update_temperature: bool = True
    ) -> dict[str, Tensor]:
        """Backpropagate weight · total; batches run one after the other, to hold one set of activations."""
        losses = self.losses(batch, alpha, seed, update_temperature=update_temperature)
        self.fabric.backward(weight * losses.total)
        return loss_terms(losses)


def _addmm_operations(_: object, a: Sequence[int], b: Sequence[int], **__: object) -> int:
    return 2 * a[0] * a[1] * b[1]
