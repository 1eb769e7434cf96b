"""How an epoch is cut into batches and steps, and what is counted in it."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from pipeline.runtime.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """Means over the samples of an epoch, taken while the weights moved."""

    loss: float
    accuracy: float
    num_samples: int


@dataclass(frozen=True, kw_only=True)
class EpochSize:
    """How an epoch is cut."""

    num_samples: int
    batch_size: int


class Totals:
    """Running sums of an epoch, kept on the device; a checkpoint holds them.

    Loss and right answers are of this rank's rows, the counts of all ranks'.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.num_correct = torch.zeros((), dtype=torch.int64, device=device)
        self.num_samples = 0
        self.num_batches = 0
        self.seconds = 0.0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, *, num_samples: int) -> None:
        """Count one more batch: this rank's rows of it, and the samples of all ranks."""
        self.loss += loss * len(labels)
        self.num_correct += (logits.argmax(dim=1) == labels).sum()
        self.num_samples += num_samples
        self.num_batches += 1

    def metrics(self, ranks: Ranks) -> EpochMetrics:
        """Of the samples of all ranks."""
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
    """A batch among those of a step; samples of all ranks."""

    num_in_batch: int
    num_in_step: int
    is_last: bool

    @classmethod
    def of(cls, totals: Totals, begun: int, *, size: EpochSize, accumulate: int) -> "Place":
        """The next batch's, where the step began after ``begun`` samples."""
        num_in_batch = min(size.batch_size, size.num_samples - totals.num_samples)
        num_in_step = min(accumulate * size.batch_size, size.num_samples - begun)
        return cls(
            num_in_batch=num_in_batch,
            num_in_step=num_in_step,
            is_last=totals.num_samples + num_in_batch - begun == num_in_step,
        )
