"""Descent of a head's objective: line search, and quasi-Newton directions.

A Hessian of few samples has too little curvature where only other samples contribute, and Newton
steps with it overshoot forever. Limited-memory BFGS (Nocedal & Wright 2006, algorithm 7.5) starts
with the same preconditioner and learns the missing curvature from the gradients of all samples.

Shapes: C classes, D features.
"""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.methods.head.preconditioner import Preconditioner
from pipeline.methods.head.problem import Linearisation, centred
from pipeline.methods.rank_sums import agreed, decided

SMALLEST_STEP = 2.0**-40
SUFFICIENT_DECREASE = 1e-4  # Armijo's constant, the customary value
ROUNDING = 1e-14  # of a mean of float64 losses; a smaller decrease cannot be measured
ROUNDING_FLOAT32 = 1e-7
MEMORY = 20  # pairs of (C, D + 1) matrices


def line_search(linear: Linearisation, direction: Tensor) -> Linearisation | None:
    """The problem at the largest 2^-j step that lowers the loss enough (Armijo), or None."""
    rounding = ROUNDING if linear.problem.dtype == torch.float64 else ROUNDING_FLOAT32
    slope = float((linear.slope * direction).sum())
    slack = rounding * max(1.0, abs(linear.loss))
    step = 1.0
    while step >= SMALLEST_STEP:
        reached = linear.problem.linearise(centred(linear.weight + step * direction))
        lowers = reached.loss <= linear.loss + SUFFICIENT_DECREASE * step * slope + slack
        if decided(linear.problem.sharing, lowers):
            return reached
        step /= 2.0
    return None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pair:
    """A step and the change of the gradient by it, both (C, D + 1)."""

    step: Tensor
    change: Tensor
    product: float
    """Their inner product, positive."""


class QuasiNewton:
    """An approximate inverse of the Hessian of all samples that improves with every step."""

    def __init__(self, preconditioner: Preconditioner) -> None:
        self._preconditioner = preconditioner
        self._pairs: deque[_Pair] = deque(maxlen=MEMORY)

    def direction(self, slope: Tensor) -> Tensor:
        """Minus the inverse times the gradient."""
        rest, lengths = slope, []
        for pair in reversed(self._pairs):
            lengths.append(float((pair.step * rest).sum()) / pair.product)
            rest = rest - lengths[-1] * pair.change
        result = self._scale() * centred(self._preconditioner.inverse(rest))
        for pair, length in zip(self._pairs, reversed(lengths), strict=True):
            missing = length - float((pair.change * result).sum()) / pair.product
            result = result + missing * pair.step
        return -result

    def learn(self, before: Linearisation, after: Linearisation) -> None:
        """Update the inverse by a step from ``before`` to ``after``."""
        step, change = after.weight - before.weight, centred(after.slope - before.slope)
        product = agreed(after.problem.sharing, float((step * change).sum()))
        if product > 0.0:  # rounding can hide the curvature of a tiny step
            self._pairs.append(_Pair(step=step, change=change, product=product))

    def _scale(self) -> float:
        """Scale of the preconditioner, from the last step."""
        if not self._pairs:
            return 1.0
        last = self._pairs[-1]
        return last.product / float((last.change * self._preconditioner.inverse(last.change)).sum())
