"""How well predictions agree with a truth: correlations and slope, with bootstrap intervals."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

RESAMPLES = 2000
Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A statistic and where 95 % of its bootstrap replicates lie."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{shown(self.value)} [{shown(self.low)}, {shown(self.high)}]"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of one predictor with one truth."""

    pearson: Interval
    spearman: Interval
    slope: Interval
    """Of truth on prediction, with an intercept: above 1 where the prediction is too small."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """True changes of the held-out loss, and what was predicted."""

    name: str
    effective: float
    """p_eff / N where the scores are read."""
    values: Numbers
    """(m,)"""
    predicted: dict[str, Numbers]
    refit_error: float
    """Change of a refit that is made ten times tighter, over the spread of ``values``."""

    @cached_property
    def agreements(self) -> dict[str, Agreement]:
        return {by: agreement(self.values, scores) for by, scores in self.predicted.items()}


def agreement(values: Numbers, predicted: Numbers) -> Agreement:
    """Agreement over the m refits; they are resampled in pairs."""
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
    """As many digits as say something: correlations near 1 and slopes of any size."""
    if 0.99 <= abs(value) < 1.0:
        return f"{value:.5f}"
    return f"{value:.3f}" if 0.01 <= abs(value) < 100 else f"{value:.2g}"


def _correlations(x: Numbers, y: Numbers) -> Numbers:
    """Of each row, (R,)."""
    x, y = (part - part.mean(axis=1, keepdims=True) for part in (x, y))
    return (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))


def _interval(replicates: Numbers) -> Interval:
    """The first one is of the sample itself."""
    low, high = np.percentile(replicates[1:], (2.5, 97.5))
    return Interval(value=float(replicates[0]), low=float(low), high=float(high))
