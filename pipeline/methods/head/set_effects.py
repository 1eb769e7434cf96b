"""Change of held-out loss when a set of samples loses its soft labels.

Scores are first derivatives and add up. A large set moves the head so far that the curvature of the
held-out loss matters. The second-order term costs one more linear solve.

Shapes: N samples, C classes, D features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.methods.head.influence import swap_residuals
from pipeline.methods.head.problem import HeadProblem, Linearisation
from pipeline.methods.head.solver import solve
from pipeline.methods.rank_sums import summed


@dataclass(frozen=True, kw_only=True)
class SetEffect:
    """Predicted change of mean held-out cross-entropy."""

    first_order: float
    """The sum of the samples' scores, times the step."""

    second_order: float
    """The same with the curvature of the held-out loss: first order + (1/2) <dW, H_V dW>."""


def undistil_effect(
    linear: Linearisation,
    undistilled: Tensor,
    *,
    target: HeadProblem,
    step: float = 1.0,
    rtol: float = 1e-4,
) -> SetEffect:
    """Predict the effect of supervising a set of samples by their hard labels.

        dW = H^-1 (step / N) sum_i mean_k delta_ik h~_ik^T      over the set
        dL = <dL_V, dW> + (1/2) <dW, H_V dW>

    Args:
        linear: the problem at its minimum with the samples distilled.
        undistilled: the set, (N,) bool.
        target: the held-out samples as a problem of their own; only its data term is used.
        step: degree to which the samples were distilled, in [0, 1].
        rtol: tolerance of the linear solve.

    Raises:
        NotConverged: if the solve does not meet ``rtol``.
        ValueError: if there are no soft labels.
    """
    if linear.problem.soft_labels is None:
        raise ValueError("soft_labels are missing: nothing is distilled")
    pull = step * _summed_pull(linear, undistilled.to(linear.weight.device))
    moved = solve(linear, pull, rtol=rtol).solution
    there = target.linearise(linear.weight)
    regulariser = target.l2 * target.mask(linear.weight)
    slope = there.gradient() - regulariser * linear.weight
    bend = there.hvp(moved) - regulariser * moved
    first = float((slope * moved).sum())
    return SetEffect(first_order=first, second_order=first + 0.5 * float((moved * bend).sum()))


def _summed_pull(linear: Linearisation, chosen: Tensor) -> Tensor:
    """(1/N) sum_i mean_k delta_ik h~_ik^T over the chosen samples, (C, D + 1) float64."""
    problem = linear.problem
    total, start = torch.zeros_like(linear.weight), problem.own.start
    for chunk in linear.chunks():
        num_samples = len(chunk.rows.inputs) // problem.num_views
        own = chosen[start : start + num_samples].repeat(problem.num_views)
        deltas = swap_residuals(chunk, linear=linear)[own]
        total += (deltas.T @ chunk.rows.inputs[own]).double()
        start += num_samples
    return summed(problem.sharing, total) / problem.num_rows
