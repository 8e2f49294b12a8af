"""The optimisers: BertAdam, that of the published system, and AdamW."""

import math
from collections.abc import Callable, Iterable
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vgsplus.schedule import OptimizerSettings


class BertAdam(Optimizer):
    """Adam without bias correction and with decoupled weight decay on every parameter.

    m ← β₁m + (1 - β₁)g, v ← β₂v + (1 - β₂)g², p ← p - lr·(m / (√v + ε) + λp). A parameter without
    a gradient is not updated, not even by weight decay. Clipping and the learning-rate schedule are not part
    of it. PyTorch's fused kernel of AdamW computes it, called with step = ∞, where bias correction is 1: it
    reads and writes each tensor once, where one operation after the other takes 3.5 times as long on a CPU.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: λ.

    Attributes:
        found_inf: a scalar on the device of the parameters; if it is 1, nothing is updated. None: always
            update. PyTorch's fused AdamW has the same attribute.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override] # torch overloads it
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        grads = [p.grad for p in params if p.grad is not None]
        beta1, beta2 = group["betas"]
        infinite_step = torch.full((), math.inf, device=params[0].device)
        torch._fused_adamw_(
            params,
            grads,
            [self.state[p]["exp_avg"] for p in params],
            [self.state[p]["exp_avg_sq"] for p in params],
            [],
            [infinite_step] * len(params),
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            found_inf=self.found_inf,
        )


def build_optimizer(model: nn.Module, settings: OptimizerSettings, *, scaled: bool = False) -> Optimizer:
    """Build the optimiser of a phase for all trainable parameters of a model, on its current device.

    Unless gradients are scaled, the optimiser must update nothing where its `found_inf`, which the trainer
    sets, is 1.

    Args:
        model: the model.
        settings: of the phase.
        scaled: whether a gradient scaler is used, as in 16-mixed. The fused AdamW unscales gradients itself,
            so that they could not be clipped; the update is then skipped by the scaler, not by `found_inf`.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    lr, betas, eps, decay = settings.lr, settings.betas, settings.eps, settings.weight_decay
    match settings.name:
        case "bertadam":
            return BertAdam(parameters, lr, betas, eps, decay)
        case "adamw":
            return torch.optim.AdamW(parameters, lr, betas, eps, decay, fused=not scaled)
        case _:
            assert_never(settings.name)


@torch.no_grad()
def norms_by_part(model: nn.Module, norm: Tensor, clip: float) -> dict[str, Tensor]:
    """Return the gradient norm of each part of a model before clipping, by "grad_norm/" and its name.

    Args:
        model: its parts are its submodules; those without a gradient are left out.
        norm: norm of the complete gradient before it was clipped.
        clip: norm to which it was clipped.
    """
    clipped_by = (norm / clip).clamp(min=1)
    parts = {
        name: [p.grad for p in part.parameters() if p.grad is not None]
        for name, part in model.named_children()
    }
    return {
        f"grad_norm/{name}": torch.nn.utils.get_total_norm(grads) * clipped_by
        for name, grads in parts.items()
        if grads
    }


def named_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return state tensors by "key/parameter name"; parameters without a gradient so far have no state."""
    return {
        f"{key}/{name}": value
        for name, p in model.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
    }


def load_named_state(optimizer: Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load what `named_state` returned. All state must be tensors; the caller must check names and shapes."""
    state: dict[int, dict[str, Tensor]] = {}
    positions = {id(p): i for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    index = {name: positions[id(p)] for name, p in model.named_parameters() if id(p) in positions}
    for full_name, tensor in tensors.items():
        key, name = full_name.split("/", 1)
        # A copy, because the optimiser writes in place and the tensor may be a view of its file.
        state.setdefault(index[name], {})[key] = tensor.clone()
    # load_state_dict moves each tensor to the device of its parameter.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
