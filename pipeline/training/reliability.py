"""How sure a network is against how often it is right, in bins of its confidence."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CALIBRATION_BINS = 15


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Equal bins of confidence, (B,) each; means of an empty bin are NaN."""

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    """Mean of the samples in the bin."""
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
    """Bins (b / B, (b + 1) / B] of the confidence, as `evaluation.calibration_error` has them.

    Args:
        confidence: probability of the predicted class, (N,).
        correct: whether that is the label, (N,).
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
