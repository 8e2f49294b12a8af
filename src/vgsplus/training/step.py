"""One optimiser update: losses at α, gradients, clipping and the new weights."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from vgsplus.config import RunConfig
from vgsplus.losses import Losses
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.schedule import PhaseSteps
from vgsplus.training.data import Batch, move
from vgsplus.training.log import PendingScalars, Record, log_record, loss_terms, merge_terms
from vgsplus.training.optimizer import norms_by_part
from vgsplus.training.processes import Processes
from vgsplus.training.runtime import RandomStream, indexed_seed


class TrainingStep:
    """Computes the updates of a model."""

    def __init__(self, model: VGSPlus, config: RunConfig, processes: Processes) -> None:
        self.model, self.config, self.processes = model, config, processes
        self.fabric = processes.fabric
        self.scaler = getattr(processes.precision, "scaler", None)

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

    def _accumulate_gradient(
        self, batch: Batch, alpha: float, seed: int, *, weight: float = 1.0, update_temperature: bool = True
    ) -> dict[str, Tensor]:
        """Backpropagate weight · total; batches run one after the other, to hold one set of activations."""
        losses = self.losses(batch, alpha, seed, update_temperature=update_temperature)
        self.fabric.backward(weight * losses.total)
        return loss_terms(losses)
