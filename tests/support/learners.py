"""Learners of small networks, for tests of training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from pipeline.artefacts.dataset import Dataset
from pipeline.data.loaders import BatchLoader
from pipeline.data.normalisation import Normaliser
from pipeline.data.supervision import Batch
from pipeline.errors import Terminated
from pipeline.models.networks.classifier import Classifier
from pipeline.runtime.device import Runtime
from pipeline.training.learner import EpochMetrics, EpochSize, Learner, Totals
from pipeline.training.optimisation import (
    OptimiserSettings,
    ScheduleSettings,
    make_optimizer,
    make_schedule,
)
from pipeline.training.student_loss import (
    DistillationLoss,
    DistillationSettings,
    PlainLoss,
    StudentLoss,
    Weights,
)
from stages.training import trainer

CPU = torch.device("cpu")
FP32 = Runtime(device=CPU, precision="fp32")


def kd_loss(**settings: Any) -> DistillationLoss:
    """Vanilla distillation with the field's weights."""
    weights = Weights(ce=0.1, kd=0.9)
    return DistillationLoss(DistillationSettings(weights=weights, temperature=4.0, **settings))


def optimizer_of(*modules: torch.nn.Module, kind: Any = "sgd", lr: float = 0.1, **settings: Any):
    """SGD with Nesterov momentum, or AdamW."""
    defaults = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.0}
    made = OptimiserSettings(kind=kind, lr=lr, **(defaults | settings))
    return make_optimizer(modules, made)


def schedule_of(optimizer, *, kind="constant", epochs=3, steps_per_epoch=7, **settings: Any):
    """A schedule of three epochs of seven steps."""
    defaults = {"warmup": 0.3, "milestones": (), "gamma": 0.1}
    made = ScheduleSettings(
        kind=kind, epochs=epochs, steps_per_epoch=steps_per_epoch, **(defaults | settings)
    )
    return make_schedule(optimizer, made)


def normaliser_of(dataset: Dataset) -> Normaliser:
    return Normaliser(mean=dataset.record.mean, std=dataset.record.std, device=CPU)


def learner_of(
    model: Classifier,
    dataset: Dataset,
    loss: StudentLoss | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    runtime: Runtime = FP32,
    **settings: Any,
) -> Learner:
    """A learner at a constant rate."""
    loss = loss or PlainLoss()
    optimizer = optimizer or optimizer_of(model, loss)
    return Learner(
        model,
        loss,
        schedule=schedule_of(optimizer),
        normalise=normaliser_of(dataset),
        runtime=runtime,
        **settings,
    )


def size_of(loader: BatchLoader, batch_size: int) -> EpochSize:
    return EpochSize(num_samples=loader.num_samples, batch_size=batch_size)


def train_epoch(
    learner: Learner,
    batches: Iterator[Batch],
    *,
    num_samples: int,
    batch_size: int,
    **settings: Any,
) -> EpochMetrics:
    """A whole epoch."""
    size = EpochSize(num_samples=num_samples, batch_size=batch_size)
    return learner.epoch(batches, Totals(learner.runtime.device), size=size, **settings)


class StopsAfter:
    """A request to stop that comes after some steps."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    @property
    def is_there(self) -> bool:
        return self._left <= 0

    def raise_if_stopped(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Terminated("stopped by the test")


@contextmanager
def stopping_after(steps: int) -> Iterator[None]:
    """Every training within raises `Terminated` after ``steps`` steps, and keeps a checkpoint."""

    @contextmanager
    def requests() -> Iterator[StopsAfter]:
        yield StopsAfter(steps)

    with patch.object(trainer, "catching_stop_signals", requests):
        yield
