"""One epoch of training: its batches, steps and sums, and the learner.

A loss that is not finite stops the training.

Images arrive as uint8 and are normalised here. Matrix products run in the runtime's precision;
losses and weights stay in float32, or in float64 if the runtime's precision is float64.
"""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.data.normalisation import Normaliser
from pipeline.data.supervision import Batch
from pipeline.errors import PipelineError
from pipeline.methods.precision import at_least_float32
from pipeline.models.networks.classifier import Classifier
from pipeline.runtime.device import Runtime
from pipeline.runtime.ranks import ALONE, Ranks
from pipeline.training.rank_batches import JointNetwork, average_gradients, whole_batch
from pipeline.training.student_loss import Outputs, StudentLoss

CHECK_EVERY = 50
"""Batches between two checks for a finite loss, because a check makes a device wait."""
SHOWN_SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """Means over the samples of an epoch, computed while the weights change."""

    loss: float
    accuracy: float
    num_samples: int


@dataclass(frozen=True, kw_only=True)
class EpochSize:
    """Size of an epoch and of its batches."""

    num_samples: int
    batch_size: int


class Totals:
    """Running sums of an epoch, kept on the device and stored in checkpoints.

    Loss and correct predictions are sums over this rank's rows, the counts over all ranks' rows.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.num_correct = torch.zeros((), dtype=torch.int64, device=device)
        self.num_samples = 0
        self.num_batches = 0
        self.seconds = 0.0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, *, num_samples: int) -> None:
        """Add a batch: this rank's rows of it, and its number of samples over all ranks."""
        self.loss += loss * len(labels)
        self.num_correct += (logits.argmax(dim=1) == labels).sum()
        self.num_samples += num_samples
        self.num_batches += 1

    def metrics(self, ranks: Ranks) -> EpochMetrics:
        """Metrics over the samples of all ranks."""
        return EpochMetrics(
            loss=ranks.summed(self.loss.clone()).item() / self.num_samples,
            accuracy=ranks.summed(self.num_correct.clone()).item() / self.num_samples,
            num_samples=self.num_samples,
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "loss": self.loss.item(),
            "num_correct": self.num_correct.item(),
            "num_samples": self.num_samples,
            "num_batches": self.num_batches,
            "seconds": self.seconds,
        }

    @classmethod
    def restored(cls, state: dict[str, Any], device: torch.device) -> Self:
        totals = cls(device)
        totals.loss += state["loss"]
        totals.num_correct += state["num_correct"]
        totals.num_samples, totals.num_batches = state["num_samples"], state["num_batches"]
        totals.seconds = state["seconds"]
        return totals


@dataclass(frozen=True, kw_only=True)
class Place:
    """Position of a batch within a step, in samples of all ranks."""

    num_in_batch: int
    num_in_step: int
    is_last: bool

    @classmethod
    def of(cls, totals: Totals, begun: int, *, size: EpochSize, accumulate: int) -> "Place":
        """Position of the next batch in a step that began after ``begun`` samples."""
        num_in_batch = min(size.batch_size, size.num_samples - totals.num_samples)
        num_in_step = min(accumulate * size.batch_size, size.num_samples - begun)
        return cls(
            num_in_batch=num_in_batch,
            num_in_step=num_in_step,
            is_last=totals.num_samples + num_in_batch - begun == num_in_step,
        )


@dataclass(frozen=True, kw_only=True)
class StepRules:
    """The rules of one step of the optimiser."""

    accumulate: int = 1
    """Batches per step; their gradients are averaged, weighted by samples."""
    clip_norm: float | None = None
    """Largest norm of the gradient over all weights; None: no limit."""
    ema_decay: float = 0.0
    """Decay of a moving average of the weights for evaluation; 0: no average."""
    compile: bool = False
    """Compile the forward pass."""


class Learner:
    """A network with its loss, optimiser and schedule: everything that a step changes.

    Args:
        model: the network, on the runtime's device.
        loss: the loss to minimise.
        schedule: learning rates of an optimiser over the weights of both; advances every step.
        normalise: converter from uint8 images to the network's input.
        runtime: device and precision.
        rules: rules of a step.
        ranks: ranks that train together, each with its part of every batch.
    """

    # The parts are built separately; none of them contains another.
    def __init__(
        self,
        model: Classifier,
        loss: StudentLoss,
        *,
        schedule: LRScheduler,
        normalise: Normaliser,
        runtime: Runtime,
        rules: StepRules | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model, self.loss = model, loss
        self.optimizer, self.schedule = schedule.optimizer, schedule
        self.normalise, self.runtime = normalise, runtime
        self.rules = rules or StepRules()
        self.num_steps = 0
        self._scaler = torch.amp.GradScaler(
            runtime.device.type, enabled=runtime.precision == "fp16"
        )
        self._average = None
        if self.rules.ema_decay:
            average = get_ema_multi_avg_fn(self.rules.ema_decay)  # type: ignore[no-untyped-call]
            self._average = AveragedModel(model, multi_avg_fn=average)
        self._ranks = ranks
        forward = torch.compile(outputs_of) if self.rules.compile else outputs_of
        self._network = JointNetwork(model, forward, ranks)
        self._weights: list[Tensor] = [
            w for group in self.optimizer.param_groups for w in group["params"]
        ]
        self._unchecked: list[tuple[int, Tensor, Tensor]] = []

    @property
    def evaluated(self) -> Classifier:
        """The network to evaluate and to save: the average of the weights, if there is one."""
        return self.model if self._average is None else self._average.module  # type: ignore[return-value]

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def epoch(
        self,
        batches: Generator[Batch],
        totals: Totals,
        *,
        size: EpochSize,
        on_step: Callable[[int], None] = lambda _: None,
    ) -> EpochMetrics:
        """Take the rest of an epoch's batches.

        Args:
            batches: the batches that ``totals`` has not counted.
            totals: sums of the epoch so far.
            size: size of the whole epoch.
            on_step: called with the number of samples after every step, when the state is complete.

        Raises:
            PipelineError: if the loss is not finite.
        """
        self.model.train()
        started = time.monotonic() - totals.seconds
        begun = totals.num_samples
        with closing(batches):
            for batch in batches:
                place = Place.of(totals, begun, size=size, accumulate=self.rules.accumulate)
                num_samples = place.num_in_step
                self._backward(batch, totals, place)
                if place.is_last:
                    self._step()
                    begun = totals.num_samples
                    totals.seconds = time.monotonic() - started
                    on_step(num_samples)
        self.require_finite()
        return totals.metrics(self._ranks)

    def require_finite(self) -> None:
        """Check the losses that were not checked yet.

        Raises:
            PipelineError: if one is not finite; the message names its step and samples.
        """
        for step, loss, indices in self._unchecked:
            if not torch.isfinite(loss):
                raise PipelineError(_not_finite(step, loss, indices))
        self._unchecked.clear()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, except the position among the batches."""
        self.require_finite()
        return {
            "model": self.model.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "num_steps": self.num_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`."""
        self.model.load_state_dict(state["model"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
        self.num_steps = state["num_steps"]

    def _backward(self, batch: Batch, totals: Totals, place: Place) -> None:
        """Add a batch's gradient, weighted by its share of the step."""
        with self.runtime.autocast():
            outputs = self._network(self.normalise(batch.images), is_last=place.is_last)
        loss, share = self._loss(outputs, batch, place)
        self._watch(loss.detach(), batch)
        part = loss if share == 1.0 else share * loss
        torch.autograd.backward(self._scaler.scale(part))
        totals.add(
            loss.detach(),
            outputs.logits.detach(),
            batch.labels.to(self.runtime.device),
            num_samples=place.num_in_batch,
        )

    def _loss(self, outputs: Outputs, batch: Batch, place: Place) -> tuple[Tensor, float]:
        """A loss, and its weight in the step; the ranks' gradients are averaged later."""
        if self._ranks.are_many and self.loss.compares_rows:
            outputs, batch = whole_batch(
                outputs, batch, num_rows=place.num_in_batch, ranks=self._ranks
            )
            return self.loss(outputs, batch), len(batch) / place.num_in_step
        if len(batch) == 0:  # other ranks have rows, and average gradients with this one
            return at_least_float32(outputs.logits.sum() + outputs.features.sum()), 0.0
        return self.loss(outputs, batch), self._ranks.world * len(batch) / place.num_in_step

    def _watch(self, loss: Tensor, batch: Batch) -> None:
        self._unchecked.append((self.num_steps + 1, loss, batch.indices.clone()))
        if self.runtime.device.type == "cpu" or len(self._unchecked) >= CHECK_EVERY:
            self.require_finite()

    def _step(self) -> None:
        """Update the weights, their average and the learning rate."""
        average_gradients(list(self.loss.parameters()), self._ranks)
        if self.rules.clip_norm is not None:
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._weights, self.rules.clip_norm)
        scale = self._scaler.get_scale()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_steps += 1
        if self._scaler.get_scale() < scale:
            return  # float16 overflowed: the scaler skipped the step and halved the scale
        self.schedule.step()
        if self._average is not None:
            self._average.update_parameters(self.model)


def outputs_of(model: Classifier, images: Tensor) -> Outputs:
    """Logits (B, C) and the features (B, D) that they are computed from."""
    features = model.features(images)
    return Outputs(logits=model.head(features), features=features)


def _not_finite(step: int, loss: Tensor, indices: Tensor) -> str:
    shown = ", ".join(str(int(index)) for index in indices[:SHOWN_SAMPLES])
    more = f" and {len(indices) - SHOWN_SAMPLES} more" if len(indices) > SHOWN_SAMPLES else ""
    return (
        f"the training loss became {loss.item()} in step {step:,} (expected a finite number), on "
        f"samples {shown}{more}. Lower `lr`, raise `warmup`, or set `clip_norm`."
    )
