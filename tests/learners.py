"""Learners of small networks, for tests of training."""

from collections.abc import Iterator
from typing import Any

import torch

from pipeline.artefacts.dataset import Dataset
from pipeline.data.loaders import Batch, BatchLoader
from pipeline.data.normalisation import Normaliser
from pipeline.models.networks.classifier import Classifier
from pipeline.runtime.device import Runtime
from pipeline.training.learner import EpochMetrics, EpochSize, Learner, Totals
from pipeline.training.optimisation import make_optimizer, make_schedule
from pipeline.training.student_loss import DistillationLoss, PlainLoss, StudentLoss, Weights

CPU = torch.device("cpu")
FP32 = Runtime(device=CPU, precision="fp32")


def kd_loss(**settings: Any) -> DistillationLoss:
    """Vanilla distillation with the field's weights."""
    weights = Weights(ce=0.1, kd=0.9)
    return DistillationLoss("kd", weights=weights, temperature=4.0, **settings)


def optimizer_of(*modules: torch.nn.Module, kind: Any = "sgd", lr: float = 0.1, **settings: Any):
    """SGD with Nesterov momentum, or AdamW."""
    defaults = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.0}
    return make_optimizer(modules, kind=kind, lr=lr, **(defaults | settings))


def schedule_of(optimizer, *, kind="constant", epochs=3, steps_per_epoch=7, **settings: Any):
    """A schedule of three epochs of seven steps."""
    defaults = {"warmup": 0.3, "milestones": (), "gamma": 0.1}
    return make_schedule(
        optimizer,
        kind=kind,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        **(defaults | settings),
    )


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
        optimizer=optimizer,
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
