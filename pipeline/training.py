"""One epoch of training, and what it is made of: loss, optimiser, schedule.

Images arrive as uint8 and are normalised here; matrix products run in the runtime's precision,
losses and weights stay in float32.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
)

from pipeline.data.loaders import Batch
from pipeline.errors import PipelineError
from pipeline.methods.distillation import distillation_loss
from pipeline.methods.sparse_labels import unpack
from pipeline.runtime import Runtime

BatchLoss: TypeAlias = Callable[[Tensor, Batch], Tensor]
"""Mean loss of a batch from the student's logits, (B, C), and the batch."""


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """Means over the samples of an epoch, taken while the weights moved."""

    loss: float
    accuracy: float
    num_samples: int


class Normaliser:
    """(B, 3, H, W) uint8 to float32 on a device: ``(pixels / 255 - mean) / std``."""

    def __init__(
        self, *, mean: Iterable[float], std: Iterable[float], device: torch.device
    ) -> None:
        self._device = device
        std_tensor = torch.tensor(list(std), dtype=torch.float64).view(1, 3, 1, 1)
        mean_tensor = torch.tensor(list(mean), dtype=torch.float64).view(1, 3, 1, 1)
        self._scale = (1.0 / (255.0 * std_tensor)).float().to(device)
        self._shift = (-mean_tensor / std_tensor).float().to(device)

    def __call__(self, images: Tensor) -> Tensor:
        return torch.addcmul(self._shift, images.to(self._device).float(), self._scale)


def plain_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy with the labels: nothing is distilled."""
    return nn.functional.cross_entropy(logits.float(), batch.labels.to(logits.device))


def three_term_loss(*, lambda_ce: float, lambda_kd: float, temperature: float) -> BatchLoss:
    """`distillation_loss` of a batch that carries soft labels and flags."""

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        assert batch.soft_labels is not None
        assert batch.selected is not None
        return distillation_loss(
            logits,
            batch.labels.to(logits.device),
            soft_labels=_dense(batch.soft_labels.to(logits.device), num_classes=logits.shape[1]),
            selected=batch.selected.to(logits.device),
            lambda_ce=lambda_ce,
            lambda_kd=lambda_kd,
            temperature=temperature,
        )

    return loss


def _dense(soft_labels: Tensor, *, num_classes: int) -> Tensor:
    """(B, C) probabilities of rows as stored; packed ones become dense on the device."""
    if soft_labels.is_floating_point():
        return soft_labels
    return unpack(soft_labels, num_classes)


def train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    loss: BatchLoss,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    normalise: Normaliser,
    runtime: Runtime,
    on_batch: Callable[[int], None] = lambda _: None,
) -> EpochMetrics:
    """Go once over ``batches``; the schedule advances by one step per batch.

    Raises:
        PipelineError: if the loss is not finite at the end of the epoch.
    """
    model.train()
    total_loss = torch.zeros((), dtype=torch.float64, device=runtime.device)
    num_correct = torch.zeros((), dtype=torch.int64, device=runtime.device)
    num_samples = 0
    for batch in batches:
        with runtime.autocast():
            logits = model(normalise(batch.images))
        batch_loss = loss(logits, batch)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(batch_loss)
        optimizer.step()
        schedule.step()
        labels = batch.labels.to(runtime.device)
        total_loss += batch_loss.detach() * len(batch)
        num_correct += (logits.detach().argmax(dim=1) == labels).sum()
        num_samples += len(batch)
        on_batch(len(batch))
    mean_loss = total_loss.item() / num_samples
    if not torch.isfinite(total_loss):
        raise PipelineError(
            f"the training loss became {mean_loss} (expected a finite number). "
            "Lower `lr`, or raise `warmup`."
        )
    return EpochMetrics(
        loss=mean_loss, accuracy=num_correct.item() / num_samples, num_samples=num_samples
    )


def make_optimizer(
    model: nn.Module,
    *,
    kind: Literal["sgd", "adamw"],
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """SGD or AdamW over all weights."""
    if kind == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    return torch.optim.SGD(
        model.parameters(),
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
    )


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
