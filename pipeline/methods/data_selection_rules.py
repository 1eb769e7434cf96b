"""Inputs of a selection: samples, and a rule for how much to keep.

A setting without effect is an error.

Shapes: N samples.
"""

import math
from dataclasses import dataclass

import numpy as np

from pipeline.methods.catalogue import Strategy
from pipeline.methods.data_selection_orders import Bools, Floats, Ints

NEEDS: dict[Strategy, frozenset[str]] = {
    "influence": frozenset({"scores"}),
    "class-balanced": frozenset({"scores", "fraction"}),
    "beta": frozenset({"scores", "fraction", "beta"}),
    "param-change": frozenset({"scores", "fraction"}),
    "label-issue-free": frozenset({"scores"}),
    "correct": frozenset({"scores"}),
    "el2n": frozenset({"scores"}),
    "random": frozenset({"fraction"}),
    "all": frozenset(),
    "none": frozenset(),
}
MAY_READ: dict[Strategy, frozenset[str]] = {
    "influence": frozenset({"errors", "num_errors", "fraction", "threshold"}),
    "label-issue-free": frozenset({"fraction"}),
    "correct": frozenset({"fraction"}),
    "el2n": frozenset({"fraction", "threshold"}),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectionCandidates:
    """The values of the samples that a strategy reads, each (N,)."""

    labels: Ints
    """Ground-truth class ids."""

    candidates: Bools
    """True for rows that may be selected; the others are held out."""

    scores: Floats | None = None
    """Scores, higher = keep. influence, class-balanced: predicted rise of the held-out loss if the
    row is not distilled. beta: self-influence. param-change: position in `undistil_order`.
    label-issue-free, correct: 1 or 0. el2n: minus EL2N. The others read no score."""

    errors: Floats | None = None
    """Standard errors of the scores, for influence with ``num_errors``."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Rule for how much a strategy keeps; a setting that it does not read is an error."""

    fraction: float | None = None
    """Share of the candidates, in (0, 1]; None keeps the rows above the strategy's threshold."""

    threshold: float | None = None
    """Threshold of the score for influence, of EL2N itself for el2n."""

    num_errors: float = 0.0
    """Standard errors that a score must be above the threshold. If negative, the score may be that
    far below it, so only clearly harmful samples are left out."""

    class_quota: float = 0.0
    """q, in [0, 1], see `data_selection`."""

    beta: tuple[float, float] | None = None
    """Mean, in (0, 1), and concentration, positive, of the percentiles of strategy beta."""


def require_readable(strategy: Strategy, samples: SelectionCandidates, *, rule: Rule) -> None:
    """Reject settings that are missing, without effect, out of range, NaN or of another shape.

    Raises:
        ValueError: with a message of one line that names the setting.
    """
    if strategy not in NEEDS:
        raise ValueError(f"strategy {strategy!r} is unknown (expected one of {', '.join(NEEDS)})")
    given = _given(samples, rule)
    for name in sorted(given - NEEDS[strategy] - MAY_READ.get(strategy, frozenset())):
        raise ValueError(f'{name} has no effect on strategy "{strategy}"; remove it')
    for name in sorted(NEEDS[strategy] - given):
        raise ValueError(f'strategy "{strategy}" needs {name}, got None')
    if strategy == "el2n" and not given & {"fraction", "threshold"}:
        raise ValueError('strategy "el2n" needs fraction or threshold, got None')
    _require_one_bound(given)
    _require_in_range(rule)
    _require_vectors(samples)


def _given(samples: SelectionCandidates, rule: Rule) -> frozenset[str]:
    """Names of the settings that are set."""
    values = {
        "scores": samples.scores,
        "errors": samples.errors,
        "fraction": rule.fraction,
        "threshold": rule.threshold,
        "num_errors": rule.num_errors or None,
        "beta": rule.beta,
    }
    return frozenset(name for name, value in values.items() if value is not None)


def _require_one_bound(given: frozenset[str]) -> None:
    """Require a fraction or a threshold but not both, and errors only with their number."""
    if "fraction" in given and given & {"threshold", "num_errors"}:
        raise ValueError("fraction excludes threshold and num_errors; remove one of them")
    if ("errors" in given) != ("num_errors" in given):
        missing = "num_errors" if "errors" in given else "errors"
        raise ValueError(f"errors and num_errors must be set together, got no {missing}")


def _require_in_range(rule: Rule) -> None:
    if rule.fraction is not None and not 0.0 < rule.fraction <= 1.0:
        raise ValueError(f"fraction must be in (0, 1], got {rule.fraction}")
    if rule.threshold is not None and not math.isfinite(rule.threshold):
        raise ValueError(f"threshold must be finite, got {rule.threshold}")
    if not math.isfinite(rule.num_errors):
        raise ValueError(f"num_errors must be finite, got {rule.num_errors}")
    if not 0.0 <= rule.class_quota <= 1.0:
        raise ValueError(f"class_quota must be in [0, 1], got {rule.class_quota}")
    if rule.beta is not None:
        mean, concentration = rule.beta
        if not (0.0 < mean < 1.0 and 0.0 < concentration < math.inf):
            raise ValueError(
                f"beta must be a mean in (0, 1) and a positive concentration, got {rule.beta}"
            )


def _require_vectors(samples: SelectionCandidates) -> None:
    """Require one value per sample, and no NaN where a value is read."""
    for values in (samples.candidates, samples.scores, samples.errors):
        if values is not None and values.shape != samples.labels.shape:
            raise ValueError(
                f"inputs must have one value per sample, got {values.shape} "
                f"for {samples.labels.shape} labels"
            )
    for name, numbers in (("scores", samples.scores), ("errors", samples.errors)):
        if numbers is not None and (missing := np.isnan(numbers[samples.candidates])).any():
            raise ValueError(f"{name} must be numbers, got {missing.sum()} NaN")
