"""How weights move: the optimiser, and its learning rate for every step."""

from collections.abc import Iterable
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


def make_optimizer(
    modules: Iterable[nn.Module],
    *,
    kind: Literal["sgd", "adamw"],
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decay_norms: bool = True,
) -> torch.optim.Optimizer:
    """SGD or AdamW over all weights that are trained."""
    groups = weight_groups(modules, weight_decay=weight_decay, decay_norms=decay_norms)
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
    return torch.optim.SGD(
        groups, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )


def weight_groups(
    modules: Iterable[nn.Module], *, weight_decay: float, decay_norms: bool
) -> list[dict[str, Any]]:
    """All trained weights in one group, or those of one dimension apart and without decay.

    Biases and the scales and shifts of normalisation are the weights of one dimension.
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


def make_schedule(
    optimizer: torch.optim.Optimizer,
    *,
    kind: Literal["one-cycle", "cosine", "multi-step", "constant"],
    epochs: int,
    steps_per_epoch: int,
    warmup: float,
    milestones: Iterable[int],
    gamma: float,
) -> LRScheduler:
    """A learning rate for every step; the optimiser's rate is the peak."""
    steps = epochs * steps_per_epoch
    peak = optimizer.param_groups[0]["lr"]
    if kind == "one-cycle":
        climb = max(warmup, 2 / (steps + 1))  # where it is one step, OneCycleLR divides by zero
        return OneCycleLR(
            optimizer, max_lr=peak, total_steps=steps + 1, pct_start=climb, cycle_momentum=False
        )
    if kind == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    if kind == "multi-step":
        boundaries = [epoch * steps_per_epoch for epoch in milestones]
        return MultiStepLR(optimizer, milestones=boundaries, gamma=gamma)
    return ConstantLR(optimizer, factor=1.0, total_iters=0)
