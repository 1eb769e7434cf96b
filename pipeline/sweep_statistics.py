"""What repeated trainings tell: means, spreads, and paired differences with their uncertainty.

Sums are exact (`math.fsum`), so no number depends on the order of the runs.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_BISECTIONS = 100
"""Each halves an angle below pi / 2: the last ones are below the resolution of a float."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The same measurement repeated."""

    num: int
    mean: float | None
    """None where there is nothing."""
    std: float | None
    """Of the sample, with num - 1 in the denominator; None below two values."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much more one setting gives than another under the same seeds."""

    num: int
    """Seeds that both have."""
    mean: float | None
    """None without a common seed; positive = more than the baseline."""
    low: float | None
    """Confidence interval of the mean; None below two common seeds."""
    high: float | None


def spread(values: Iterable[float]) -> Spread:
    """Mean and standard deviation.

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

    The seed makes a pair: it fixes the initial weights and the order of the samples, so what it
    does to both cancels. Where all differences are equal the interval has no width.

    Args:
        values: one number for each seed.
        baseline: the same of the setting to compare with.
        confidence: probability that the interval covers the expected difference, in (0, 1), if the
            differences are normal.
    """
    found = spread(values[seed] - baseline[seed] for seed in values.keys() & baseline.keys())
    if found.mean is None or found.std is None:
        return Difference(num=found.num, mean=found.mean, low=None, high=None)
    half = t_quantile((1.0 + confidence) / 2.0, found.num - 1) * found.std / math.sqrt(found.num)
    return Difference(num=found.num, mean=found.mean, low=found.mean - half, high=found.mean + half)


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution with a whole number of degrees of freedom.

    A dozen lines instead of a dependency. With tan(a) = t / sqrt(degrees), P(|T| <= t) is a finite
    sum of powers of cos(a) (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4) and rises with a.

    Args:
        probability: in (0, 1).
        degrees: at least 1.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if not 0.0 < probability < 1.0:
        raise ValueError(f"probability must be in (0, 1), got {probability}")
    if degrees < 1:
        raise ValueError(f"degrees must be at least 1, got {degrees}")
    central = abs(2.0 * probability - 1.0)
    low, high = 0.0, math.pi / 2.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if _central(middle, degrees) > central else (middle, high)
    return math.copysign(math.sqrt(degrees) * math.tan(low), probability - 0.5)


def _central(angle: float, degrees: int) -> float:
    """P(|T| <= sqrt(degrees) tan(angle))"""
    is_odd = degrees % 2
    term = math.cos(angle) if is_odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + is_odd, degrees, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    if is_odd:
        return (angle + math.sin(angle) * total) * 2.0 / math.pi
    return math.sin(angle) * total
