"""Agreement of predictions with a truth: correlations and slope, with bootstrap intervals."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

RESAMPLES = 2000
Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A statistic and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{shown(self.value)} [{shown(self.low)}, {shown(self.high)}]"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of one predictor with one truth."""

    pearson: Interval
    spearman: Interval
    slope: Interval
    """Slope of truth on prediction, with an intercept; above 1 if the prediction is too small."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """True changes of the held-out loss, and the predicted ones."""

    name: str
    effective: float
    """p_eff / N of the head that the scores are computed at."""
    values: Numbers
    """True changes, (m,)."""
    predicted: dict[str, Numbers]
    refit_error: float
    """Change of a refit with a ten times smaller tolerance, over the spread of ``values``."""

    @cached_property
    def agreements(self) -> dict[str, Agreement]:
        return {by: agreement(self.values, scores) for by, scores in self.predicted.items()}


def agreement(values: Numbers, predicted: Numbers) -> Agreement:
    """Compute the agreement over the m refits, resampled in pairs."""
    count = len(values)
    picks = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    picks = np.concatenate([np.arange(count)[None], picks])
    x, y = predicted[picks], values[picks]
    return Agreement(
        pearson=_interval(_correlations(x, y)),
        spearman=_interval(_correlations(rankdata(x, axis=1), rankdata(y, axis=1))),
        slope=_interval(_correlations(x, y) * y.std(axis=1) / x.std(axis=1)),
    )


def shown(value: float) -> str:
    """Format a number with its significant digits: correlations near 1, slopes of any size."""
    if 0.99 <= abs(value) < 1.0:
        return f"{value:.5f}"
    return f"{value:.3f}" if 0.01 <= abs(value) < 100 else f"{value:.2g}"


def _correlations(x: Numbers, y: Numbers) -> Numbers:
    """Correlation of each row, (R,)."""
    x, y = (part - part.mean(axis=1, keepdims=True) for part in (x, y))
    return (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))


def _interval(replicates: Numbers) -> Interval:
    """Interval of the replicates; the first one is the sample itself."""
    low, high = np.percentile(replicates[1:], (2.5, 97.5))
    return Interval(value=float(replicates[0]), low=float(low), high=float(high))
