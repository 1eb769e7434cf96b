"""The optimiser, and its learning rate for every step."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
)


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """The optimiser and its constants."""

    kind: Literal["sgd", "adamw"]
    lr: float
    """Peak learning rate."""
    momentum: float
    """Momentum; only SGD reads it and `nesterov`."""
    nesterov: bool
    weight_decay: float
    decay_norms: bool = True
    """False: parameters of one dimension do not decay."""


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """Schedule of the learning rate."""

    kind: Literal["one-cycle", "cosine", "multi-step", "constant"]
    epochs: int
    steps_per_epoch: int
    warmup: float
    """Share of the steps in which one-cycle raises the rate."""
    milestones: tuple[int, ...]
    """Epochs after which multi-step multiplies the rate by `gamma`."""
    gamma: float


def make_optimizer(
    modules: Iterable[nn.Module], settings: OptimiserSettings
) -> torch.optim.Optimizer:
    """SGD or AdamW over all trainable parameters."""
    lr, weight_decay = settings.lr, settings.weight_decay
    groups = weight_groups(modules, weight_decay=weight_decay, decay_norms=settings.decay_norms)
    if settings.kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
    return torch.optim.SGD(
        groups,
        lr=lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=weight_decay,
    )


def weight_groups(
    modules: Iterable[nn.Module], *, weight_decay: float, decay_norms: bool
) -> list[dict[str, Any]]:
    """All trainable parameters in one group, or those of one dimension apart and without decay.

    Parameters of one dimension are biases and the scales and shifts of normalisation.
    """
    weights = [w for module in modules for w in module.parameters() if w.requires_grad]
    if decay_norms:
        return [{"params": weights}]
    matrices = [weight for weight in weights if weight.ndim > 1]
    others = [weight for weight in weights if weight.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def make_schedule(optimizer: torch.optim.Optimizer, settings: ScheduleSettings) -> LRScheduler:
    """A learning rate for every step; the optimiser's rate is the peak."""
    kind, steps = settings.kind, settings.epochs * settings.steps_per_epoch
    peak = optimizer.param_groups[0]["lr"]
    if kind == "one-cycle":
        # OneCycleLR divides by zero if it raises the rate for a single step.
        climb = max(settings.warmup, 2 / (steps + 1))
        return OneCycleLR(
            optimizer, max_lr=peak, total_steps=steps + 1, pct_start=climb, cycle_momentum=False
        )
    if kind == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    if kind == "multi-step":
        boundaries = [epoch * settings.steps_per_epoch for epoch in settings.milestones]
        return MultiStepLR(optimizer, milestones=boundaries, gamma=settings.gamma)
    return ConstantLR(optimizer, factor=1.0, total_iters=0)
