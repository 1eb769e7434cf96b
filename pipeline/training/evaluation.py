"""How good a network is: accuracy, loss, calibration, agreement with the teacher."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.batches import Batch
from pipeline.data.normalisation import Normaliser
from pipeline.runtime.device import Runtime
from pipeline.runtime.ranks import ALONE, Ranks
from pipeline.training.reliability import reliability


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Of one network on one set of samples, in the clean view."""

    accuracy: float
    loss: float
    """Mean cross-entropy, nats."""
    calibration_error: float
    predicted: Tensor
    """Top class of every sample in the order of the loader, (N,) int64."""
    confidence: Tensor
    """Its probability, (N,) float32."""
    cross_entropy: Tensor
    """Of the label, nats, (N,) float32."""


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    normalise: Normaliser,
    runtime: Runtime,
    on_batch: Callable[[int], None] = lambda _: None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Run a network over all samples once; several ranks have parts that follow each other."""
    model.eval()
    logits, labels = [], []
    for batch in batches:
        with runtime.autocast():
            out = model(normalise(batch.images))
        logits.append(out.float().cpu())
        labels.append(batch.labels.clone().cpu())
        on_batch(len(batch))
    return evaluate_logits(ranks.gathered(torch.cat(logits)), ranks.gathered(torch.cat(labels)))


def evaluate_logits(logits: Tensor, labels: Tensor) -> Evaluation:
    """Accuracy, loss and calibration of (N, C) float32 logits."""
    predicted = logits.argmax(dim=1)
    log_probs = logits.double().log_softmax(dim=1)
    probs = logits.softmax(dim=1)
    return Evaluation(
        accuracy=(predicted == labels).double().mean().item(),
        loss=F.nll_loss(log_probs, labels).item(),
        calibration_error=calibration_error(probs, labels),
        predicted=predicted,
        confidence=probs.amax(dim=1),
        cross_entropy=F.nll_loss(log_probs, labels, reduction="none").float(),
    )


def calibration_error(probs: Tensor, labels: Tensor) -> float:
    """Expected calibration error over equal bins of confidence.

        sum_b (n_b / N) |accuracy_b - confidence_b|          (Guo et al. 2017, arXiv:1706.04599)

    Args:
        probs: (N, C) float32, rows sum to 1.
        labels: (N,) int64.
    """
    confidence, predicted = probs.double().max(dim=1)
    return reliability(confidence.numpy(), (predicted == labels).numpy()).error


def agreement(first: Tensor, second: Tensor) -> float:
    """Share of samples to which both give the same class; ``second`` is -1 where it gives none,
    and gives one somewhere."""
    known = second >= 0
    return (first == second)[known].double().mean().item()
