"""Statistics of repeated trainings: means, spreads, and paired differences with intervals.

Sums are exact (`math.fsum`), so no number depends on the order of the runs.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The same measurement repeated."""

    num: int
    mean: float | None
    """None without values."""
    std: float | None
    """Sample standard deviation, with num - 1 in the denominator; None below two values."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference between one setting and another under the same seeds."""

    num: int
    """Seeds that both have."""
    mean: float | None
    """Mean difference, positive = more than the baseline; None without a common seed."""
    low: float | None
    """Confidence interval of the mean; None below two common seeds."""
    high: float | None


def spread(values: Iterable[float]) -> Spread:
    """Mean and sample standard deviation.

    Raises:
        ValueError: if a value is not finite.
    """
    numbers = list(values)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"values must be finite, got {numbers}")
    num = len(numbers)
    if num == 0:
        return Spread(num=0, mean=None, std=None)
    mean = math.fsum(numbers) / num
    if num == 1:
        return Spread(num=1, mean=mean, std=None)
    squares = math.fsum((number - mean) ** 2 for number in numbers)
    return Spread(num=num, mean=mean, std=math.sqrt(squares / (num - 1)))


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], *, confidence: float = 0.95
) -> Difference:
    """Mean difference to the baseline over common seeds, with an interval by Student's t.

        d_s = x_s - b_s,   mean(d) -+ t_{(1 + confidence) / 2, n - 1} std(d) / sqrt(n)

    Runs are paired by seed, which fixes the initial weights and the order of the samples, so its
    common effect on both cancels. If all differences are equal, the interval has width 0.

    Args:
        values: one number for each seed.
        baseline: one number for each seed, of the setting to compare with.
        confidence: probability that the interval covers the expected difference, in (0, 1), if the
            differences are normal.
    """
    # The quantile function of scipy.stats.t, which takes a second longer to import.
    from scipy.special import stdtrit

    found = spread(values[seed] - baseline[seed] for seed in values.keys() & baseline.keys())
    if found.mean is None or found.std is None:
        return Difference(num=found.num, mean=found.mean, low=None, high=None)
    quantile = float(stdtrit(found.num - 1, (1.0 + confidence) / 2.0))
    half = quantile * found.std / math.sqrt(found.num)
    return Difference(num=found.num, mean=found.mean, low=found.mean - half, high=found.mean + half)
