"""Heads that are not fitted to the samples that they predict, and the choice of an L2 weight.

The training rows are divided into folds; head f is fitted to the labels of all folds except f and
predicts the rows of fold f. Other rows, such as held-out rows, have fold -1 and are predicted by a
head of all training rows. Likely label errors are found with these heads.

Shapes: N samples, F folds, K views, C classes, D features.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.influence.inputs import ScoredRows
from pipeline.methods.head.data import read_rows, runs
from pipeline.methods.head.problem import HeadProblem, Watch
from pipeline.methods.head.rows import with_bias_input
from pipeline.methods.head.solver import (
    HeadFit,
    NotConverged,
    fit,
    least_gradient,
    product_flop,
    rough_gradient,
    with_precision,
)
from pipeline.methods.label_issues import confident_thresholds, label_issues
from pipeline.methods.rank_sums import agreed

logger = logging.getLogger(__name__)

L2_GRID: Final = tuple(10 ** (-power / 2) for power in range(2, 15))
"""L2 weights to try: 1e-1, 3e-2, ... 1e-7."""
_LONG_GRID: Final = L2_GRID[::2]
_LONG_FROM: Final = 1e10
"""Floating-point operations of a Hessian product that takes a tenth of a second or more."""
_ROWS: Final = 16_384


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossFit:
    """The heads of all folds."""

    weights: Tensor
    """Heads, (F, C, D + 1) float64; head f is not fitted to fold f."""

    overall: Tensor
    """The head that is fitted to every fold, (C, D + 1) float64."""

    gradient_norm: float
    """The largest ||dJ|| of all heads."""

    def logits_of(self, features: Tensor, folds: Tensor) -> Tensor:
        """Logits of each row by the head that is not fitted to it.

        Args:
            features: features of some samples in any view, (n, D), any floating dtype.
            folds: folds of these samples, (n,) int64 in [-1, F); -1 is predicted by `overall`.
        Returns:
            Logits, (n, C) float32, computed in float64.
        """
        heads = torch.cat([self.weights, self.overall[None]])
        logits = torch.empty(len(features), heads.shape[1], dtype=torch.float32)
        for start in range(0, len(features), _ROWS):
            rows = slice(start, start + _ROWS)
            inputs = with_bias_input(features[rows].double())
            for fold in torch.unique(folds[rows]).tolist():
                own = folds[rows] == fold
                logits[rows][own] = (inputs[own] @ heads[fold].T).float()
        return logits


def cross_fit(
    problem: HeadProblem, *, folds: Tensor, start: Tensor, is_rough: bool = False
) -> CrossFit:
    """Fit one head without each fold, and one with all folds.

        J_f(W) = mean over the rows outside f of CE(y_i, W h~_i) + (l2/2) ||W without bias||^2

    Every head starts at ``start``, so that no head depends on its own fold, even by rounding.

    Args:
        problem: the problem of all N rows; the losses of several views of a sample are averaged.
            It is fitted in the precision that its size allows.
        folds: fold of each row, (N,) int64; rows of fold -1 are not read.
        start: initial W, (C, D + 1), for example the teacher's head.
        is_rough: fit large problems only as precisely as probabilities need.
    Raises:
        NotConverged: if a head cannot be fitted to tolerance.
        ValueError: if there are fewer than two folds, or one of them is empty.
    """
    counts = torch.bincount(folds[folds >= 0])
    if len(counts) < 2 or bool((counts == 0).any()):
        raise ValueError(f"folds must be 2 or more with rows in each, got {counts.tolist()} rows")
    problem = with_precision(problem, num_classes=len(start))

    def fitted(rows: Tensor) -> HeadFit:
        part = problem.part(rows.nonzero().squeeze(1))
        gtol = least_gradient(part)
        if is_rough and part.products == torch.float32:
            gtol = max(gtol, 0.1 * rough_gradient(part))  # within 1e-7 nats of the minimum
        return fit(part, start=start, gtol=gtol)

    heads = [fitted((folds >= 0) & (folds != fold)) for fold in range(len(counts))]
    overall = fitted(folds >= 0)
    return CrossFit(
        weights=torch.stack([head.weight for head in heads]),
        overall=overall.weight,
        gradient_norm=max(head.gradient_norm for head in [*heads, overall]),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class L2Choice:
    """The L2 weight of the head with the lowest loss on a target."""

    l2: float

    weight: Tensor
    """The problem's minimum at this l2, (C, D + 1) float64."""

    losses: list[tuple[float, float]]
    """(l2, target loss) of each l2 that was tried, from large to small."""


def l2_grid(num_rows: int, *, num_classes: int, num_features: int) -> tuple[float, ...]:
    """L2 weights to try: half decades, or whole ones if a Hessian product takes long."""
    flop = product_flop(num_rows, num_classes=num_classes, num_features=num_features)
    return _LONG_GRID if flop > _LONG_FROM else L2_GRID


def choose_l2(
    problem_at: Callable[[float], HeadProblem],
    target_loss: Callable[[Tensor], float],
    start: Tensor,
    *,
    grid: Sequence[float] = L2_GRID,
    gtol: float | None = None,
) -> L2Choice:
    """Fit a problem at decreasing l2 and keep the one with the lowest loss on a target.

    Each fit starts at the previous head. The path ends when the loss has risen twice in a row, or
    when a head cannot be fitted, because smaller l2 are even harder.

    Args:
        problem_at: function from l2 to the problem.
        target_loss: function from weights (C, D + 1) to the loss on rows outside the problem.
        start: initial W, (C, D + 1).
        grid: values of l2, decreasing.
        gtol: bound of each head's gradient; None: precise enough to compare losses.
    Raises:
        NotConverged: if even the first head cannot be fitted.
        ValueError: if the target's loss is not finite, or the grid is empty or does not fall.
    """
    if not grid or any(one <= other for one, other in pairwise(grid)):
        raise ValueError(f"grid must be falling and have a value, got {list(grid)}")
    losses: list[tuple[float, float]] = []
    best = weight = start
    for l2 in grid:
        try:
            problem = problem_at(l2)
            enough = rough_gradient(problem) if gtol is None else gtol
            weight = fit(problem, start=weight, gtol=enough).weight
        except NotConverged as error:
            if not losses:
                raise
            logger.info("l2 below %.1e is not tried: %s", losses[-1][0], error)
            break
        loss = agreed(problem.sharing, target_loss(weight))
        losses.append((l2, _finite(loss, l2=l2)))
        if losses[-1] == min(losses, key=_loss):
            best = weight
        if _has_risen([loss for _, loss in losses]):
            break
    return L2Choice(l2=min(losses, key=_loss)[0], weight=best, losses=losses)


def simplest_within_error(losses: Sequence[Tensor]) -> int:
    """The first of several models whose loss is within one standard error of the lowest.

    The one-standard-error rule (Breiman et al. 1984; Hastie et al. 2009, section 7.10) on paired
    differences: mean(d_i) <= sd(d_i) / sqrt(M), where d_i is the loss of model i minus the loss of
    the best model, row by row.

    Args:
        losses: losses of each model, the simplest first, on the same M rows, (M,) float64.
    Returns:
        Position of the model.
    """
    rows = torch.stack(list(losses))
    if rows.shape[1] < 2:  # one row has no standard error
        return int(rows.mean(dim=1).argmin())
    differences = rows - rows[rows.mean(dim=1).argmin()]
    errors = differences.std(dim=1) / differences.shape[1] ** 0.5
    within = differences.mean(dim=1) <= errors.nan_to_num()
    return int(within.int().argmax())


def _loss(tried: tuple[float, float]) -> float:
    return tried[1]


def _finite(loss: float, *, l2: float) -> float:
    if not math.isfinite(loss):
        raise ValueError(f"the target's loss is not finite: {loss} at l2 {l2:.1e}")
    return loss


def _has_risen(losses: list[float]) -> bool:
    """True if each of the last two losses is above the one before."""
    return len(losses) > 2 and losses[-3] < losses[-2] < losses[-1]


def issue_columns(rows: ScoredRows, *, l2: float, watch: Watch) -> dict[str, NDArray[np.generic]]:
    """Confident learning on cross-fitted probabilities: columns of `artefacts.scores`, (N,)."""
    folds, ranks = rows.folds, rows.ranks
    assert folds is not None, "label issues need folds"
    problem = HeadProblem(
        features=rows.clean, labels=rows.labels, l2=l2, sharing=ranks, watch=watch
    )
    heads = cross_fit(problem, folds=folds, start=rows.start, is_rough=True)

    def probs_of(part: slice) -> Tensor:
        return heads.logits_of(read_rows(rows.clean, part)[0], folds[part]).softmax(dim=1)

    # Two passes, because the probabilities of all rows may not fit into memory.
    parts = [(part, rows.labels[part]) for part in runs(ranks.part(len(rows.labels)), size=_ROWS)]
    probs = [probs_of(part).gather(1, labels[:, None]).squeeze(1) for part, labels in parts]
    own = ranks.gathered(torch.cat([torch.zeros(0), *probs]))
    usual = confident_thresholds(own, rows.labels, num_classes=len(rows.start))
    found = [label_issues(probs_of(part), labels, thresholds=usual) for part, labels in parts]
    issues = torch.cat([torch.zeros(0, dtype=torch.bool), *found]).byte()
    return {
        "label_issue": ranks.gathered(issues).bool().numpy(),
        "p_refit": own.numpy(),
    }
