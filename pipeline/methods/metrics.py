"""Metrics of classification: accuracy, loss, calibration and agreement."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

CALIBRATION_BINS = 15


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Equal bins of confidence, (B,) each; means of an empty bin are NaN."""

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    """Mean confidence of the samples in the bin."""
    accuracy: NDArray[np.float64]

    @property
    def error(self) -> float:
        """Expected calibration error, in [0, 1].

        sum_b (n_b / N) |accuracy_b - confidence_b|          (Guo et al. 2017, arXiv:1706.04599)
        """
        seen = self.counts > 0
        gaps = np.abs(self.accuracy[seen] - self.confidence[seen])
        return float((self.counts[seen] * gaps).sum() / self.counts.sum())


def reliability(confidence: NDArray[np.floating], correct: NDArray[np.bool_]) -> Reliability:
    """Bins (b / B, (b + 1) / B] of the confidence, the same as in `calibration_error`.

    Args:
        confidence: probability of the predicted class, (N,).
        correct: True if the predicted class is the label, (N,).
    """
    exact = confidence.astype(np.float64)
    bins = np.clip(np.ceil(exact * CALIBRATION_BINS).astype(int), 1, CALIBRATION_BINS) - 1
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    with np.errstate(invalid="ignore"):
        return Reliability(
            counts=counts,
            confidence=np.bincount(bins, exact, CALIBRATION_BINS) / counts,
            accuracy=np.bincount(bins, correct, CALIBRATION_BINS) / counts,
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluation of one network on one set of N samples, in the clean view."""

    accuracy: float
    loss: float
    """Mean cross-entropy, nats."""
    calibration_error: float
    predicted: Tensor
    """Top class of every sample in the order of the loader, (N,) int64."""
    confidence: Tensor
    """Probability of the top class, (N,) float32."""
    cross_entropy: Tensor
    """Cross-entropy of the label, nats, (N,) float32."""


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
    """Share of samples with equal classes; samples with -1 in ``second`` are left out.

    Args:
        first: class ids, (N,) int64.
        second: class ids, (N,) int64; -1 where there is none, but not everywhere.
    """
    known = second >= 0
    return (first == second)[known].double().mean().item()
