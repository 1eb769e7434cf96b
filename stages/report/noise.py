"""Gains in test accuracy, and whether they exceed what chance explains."""

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.methods.paired_differences import paired_difference
from stages.run_groups import Group
from stages.text import duration

NORMAL_QUANTILE: Final = 1.959964
"""The 97.5 % quantile of the standard normal distribution."""
SHORTEST_SECONDS: Final = 1.0
"""A shorter time is start-up more than work, so neither it nor a rate made of it is shown."""
TOO_SHORT: Final = "too short to measure"


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Difference of two test accuracies with its 95 % interval, as shares of 1."""

    mean: float
    low: float
    high: float
    num_pairs: int
    """Seeds that make the interval; 0: it is the binomial error of the test images."""

    @property
    def is_clear(self) -> bool:
        """The interval excludes zero."""
        return self.low > 0.0 or self.high < 0.0

    @property
    def word(self) -> str:
        return "clear" if self.is_clear else "within noise"


def gain_over(group: Group, reference: Group, *, num_test: int) -> Gain:
    """Test accuracy of one student minus that of another.

    With two or more common seeds the interval is that of the paired differences. Otherwise it is
    the binomial error of ``num_test`` images.
    """
    own, other = group.by_seed("test_accuracy"), reference.by_seed("test_accuracy")
    found = paired_difference(own, other)
    if found.mean is not None and found.low is not None and found.high is not None:
        return Gain(mean=found.mean, low=found.low, high=found.high, num_pairs=found.num)
    first, second = fmean(own.values()), fmean(other.values())
    if found.mean is not None:  # of the one seed that both have
        (seed,) = own.keys() & other.keys()
        first, second = own[seed], other[seed]
    return binomial_gain(first, second, num_test=num_test)


def binomial_gain(accuracy: float, reference: float, *, num_test: int) -> Gain:
    """Difference of two accuracies on the same number of images, with its binomial error.

    Mistakes on the same images are correlated, so the interval is wide rather than narrow.
    """
    half = float(binomial_half_width(np.array(accuracy), np.array(reference), np.array(num_test)))
    mean = accuracy - reference
    return Gain(mean=mean, low=mean - half, high=mean + half, num_pairs=0)


def binomial_half_width(
    accuracy: NDArray[np.float64], reference: NDArray[np.float64], num: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Half width of the 95 % interval of a difference of shares of ``num`` images each.

        z sqrt((p (1 - p) + q (1 - q)) / (n + 2)),   p = (n accuracy + 1) / (n + 2), q likewise

    The added success and failure keep the width above zero (Agresti and Caffo 2000,
    doi:10.1080/00031305.2000.10474560).
    """
    p, q = ((num * share + 1.0) / (num + 2.0) for share in (accuracy, reference))
    return NORMAL_QUANTILE * np.sqrt((p * (1.0 - p) + q * (1.0 - q)) / (num + 2.0))


def mean_accuracy(group: Group) -> float:
    """Test accuracy, the mean over seeds."""
    return fmean(group.by_seed("test_accuracy").values())


def detectable_points(accuracy: float, *, num_test: int) -> float:
    """Points by which two accuracies near this one differ by chance, at 95 %."""
    gain = binomial_gain(accuracy, accuracy, num_test=num_test)
    return 100.0 * gain.high


def is_measurable(seconds: float) -> bool:
    """Long enough to be shown."""
    return math.isfinite(seconds) and seconds >= SHORTEST_SECONDS


def seconds_text(seconds: float) -> str:
    """A time with as many digits as it is worth, or the reason why it has none."""
    if not is_measurable(seconds):
        return TOO_SHORT
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def rate_text(num: float, seconds: float) -> str:
    """Things per second, where the time can be measured."""
    return f"{num / seconds:,.0f}" if is_measurable(seconds) else TOO_SHORT
