"""Fitting a head to its problem and solving with its Hessian.

Both are conjugate gradients on exact Hessian products, preconditioned by `head.preconditioner`.
Adding the same row to every class changes no softmax, so all vectors are kept centred over classes,
where the Hessian is positive definite. The size of a problem decides the precision of its products
and how far its gradient and residual are reduced.

Shapes: C classes, D features, G right sides that are solved together.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from pipeline.methods.head.conjugate_gradients import (
    HeadSolution,
    StoppingRule,
    conjugate_gradients,
)
from pipeline.methods.head.preconditioner import Preconditioner
from pipeline.methods.head.preconditioner import preconditioner as made_for
from pipeline.methods.head.problem import HeadProblem, Linearisation, centred
from pipeline.methods.head.quasi_newton import QuasiNewton, line_search
from pipeline.methods.rank_sums import agreed

FIRST_PART = 8  # a fit starts on every eighth sample, at an eighth of the cost of a step
WORTH_A_PART = 16_384
NEAR = 1e-3  # a smaller gradient is a warm start, which a fit to a part would only spoil
MOST_ROUGH_STEPS = 50
SHRINKAGES = 10
STALE_AFTER = 20  # products; a preconditioner that needs more is recomputed


class NotConverged(ValueError):
    """An iteration ended above its tolerance; the message has the residual and the count."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadFit:
    """The minimum of a problem."""

    linear: Linearisation
    """The problem at the minimum."""

    gradient_norm: float
    iterations: int
    """Newton steps with all samples."""

    preconditioner: Preconditioner | None
    """Preconditioner of the last steps, usable for solves at the minimum; None if none was made."""

    @property
    def weight(self) -> Tensor:
        """W, (C, D + 1) float64, centred over classes."""
        return self.linear.weight

    @property
    def loss(self) -> float:
        return self.linear.loss


def solve(
    linear: Linearisation,
    right_side: Tensor,
    *,
    preconditioner: Preconditioner | None = None,
    rtol: float = 1e-10,
    max_iterations: int = 500,
) -> HeadSolution:
    """Solve H V = R by preconditioned conjugate gradients.

    Args:
        linear: the problem at the weights whose Hessian is inverted.
        right_side: R, ([G,] C, D + 1), centred over classes as every data gradient is.
        preconditioner: an approximate inverse of the same Hessian; None: computed here.
        rtol: bound of ||R - H V|| / ||R||, for each of the G.
        max_iterations: Hessian products allowed.

    Raises:
        NotConverged: if ``rtol`` is not met within ``max_iterations``.
        ValueError: if ``right_side`` has another shape or is not centred.
    """
    right_side = right_side.double()
    _require_right_side(right_side, linear=linear)
    found = conjugate_gradients(
        linear,
        centred(right_side),
        preconditioner=made_for(linear) if preconditioner is None else preconditioner,
        stopping=StoppingRule(rtol=rtol, max_iterations=max_iterations, certain=True),
    )
    if not found.relative_residual <= rtol:
        raise NotConverged(
            f"solve did not converge: relative residual {found.relative_residual:.1e} after "
            f"{found.iterations} iterations (expected {rtol:.1e}). "
            "Raise l2 or max_iterations, or loosen rtol."
        )
    return found


def fit(
    problem: HeadProblem, *, start: Tensor, gtol: float = 1e-10, max_iterations: int = 200
) -> HeadFit:
    """Minimise J by Newton-CG with a backtracking line search (Armijo).

    A saturated start has almost no curvature, so the search begins at the multiple of
    ``start`` that has the lowest loss. Large problems are fitted to a part of the samples first.
    If the curvature is computed on some samples only, the steps are quasi-Newton steps.

    Args:
        problem: strictly convex over the centred weights, because l2 > 0.
        start: initial W, (C, D + 1), for example the teacher's head.
        gtol: bound of ||dJ||.
        max_iterations: Newton steps allowed.

    Raises:
        NotConverged: if ``gtol`` is not met within ``max_iterations``, or rounding stops it.
        ValueError: if the data or ``start`` are not finite.
    """
    linear = problem.linearise(centred(start.double()))
    if not _slope_norm(linear) <= NEAR:
        linear = problem.linearise(_first_guess(problem, linear.weight, gtol=gtol).weight)
    descend = _newton if problem.hessian_samples is None else _quasi_newton
    found = descend(linear, gtol=gtol, max_iterations=max_iterations)
    if not found.gradient_norm <= gtol:
        raise NotConverged(
            f"fit did not converge: gradient norm {found.gradient_norm:.1e} after "
            f"{found.iterations} iterations (expected {gtol:.1e}). "
            "Raise l2 or max_iterations, or loosen gtol."
        )
    problem.watch.fitted()
    return found


def _first_guess(problem: HeadProblem, start: Tensor, *, gtol: float) -> Linearisation:
    """The best multiple of ``start``; for a large problem, the minimum of a part of it."""
    small = _part(problem)
    linear = _best_multiple(small, start)
    if small is problem or problem.hessian_samples is not None:
        return linear  # the part for the curvature may be too small for a fit
    # The minima of parts differ by far more than this tolerance; all samples do the rest.
    rough = max(gtol, 1e-2 * _slope_norm(linear))
    return _newton(linear, gtol=rough, max_iterations=MOST_ROUGH_STEPS).linear


def _part(problem: HeadProblem) -> HeadProblem:
    """A problem of fewer samples if that saves time; otherwise the same problem."""
    if problem.hessian_samples is not None:
        return problem.curvature
    if problem.num_rows < WORTH_A_PART:
        return problem
    rows = torch.arange(0, problem.num_samples, FIRST_PART)
    return problem.part(rows)


def _slope_norm(linear: Linearisation) -> float:
    """||dJ||, the same number on every process."""
    return agreed(linear.problem.sharing, float(torch.linalg.vector_norm(linear.slope)))


def _newton(linear: Linearisation, *, gtol: float, max_iterations: int) -> HeadFit:
    """Newton steps until the gradient is small, the steps are used up or rounding stops them."""
    helper: Preconditioner | None = None
    for iteration in range(max_iterations + 1):
        norm = _slope_norm(linear)
        if norm <= gtol or iteration == max_iterations:
            break
        if helper is None:
            helper = made_for(linear)
        found = conjugate_gradients(
            linear,
            centred(linear.slope),
            preconditioner=helper,
            # The tolerance follows the distance to the minimum (inexact Newton).
            stopping=StoppingRule(
                rtol=max(min(0.1, norm**0.5), 0.1 * gtol / norm), max_iterations=250, certain=False
            ),
        )
        if found.iterations > STALE_AFTER:
            helper = None
        reached = line_search(linear, -found.solution)
        if reached is None:
            break
        linear = reached
    return HeadFit(linear=linear, gradient_norm=norm, iterations=iteration, preconditioner=helper)


def _quasi_newton(linear: Linearisation, *, gtol: float, max_iterations: int) -> HeadFit:
    """Steps that need the curvature of some samples only, until the gradient is small."""
    helper = made_for(linear)
    inverse = QuasiNewton(helper)
    for iteration in range(max_iterations + 1):
        norm = _slope_norm(linear)
        if norm <= gtol or iteration == max_iterations:
            break
        reached = line_search(linear, inverse.direction(linear.slope))
        if reached is None:
            break
        inverse.learn(linear, reached)
        linear = reached
    return HeadFit(linear=linear, gradient_norm=norm, iterations=iteration, preconditioner=helper)


def _best_multiple(problem: HeadProblem, weight: Tensor) -> Linearisation:
    """The problem at the best of W, W / 4, W / 16, ... by loss.

    The loss is convex along the ray, so the search ends at the first one that is not better.

    Raises:
        ValueError: if no loss is finite.
    """
    best = problem.linearise(weight)
    for _ in range(SHRINKAGES):
        smaller = problem.linearise(best.weight / 4.0)
        if not smaller.loss < best.loss and math.isfinite(best.loss):
            break
        best = smaller
    if not math.isfinite(best.loss):
        raise ValueError(
            f"loss is not finite: {best.loss}. Check features, soft labels and start for NaN and "
            "infinity."
        )
    return best


def _require_right_side(right_side: Tensor, *, linear: Linearisation) -> None:
    if right_side.shape[-2:] != linear.weight.shape or right_side.ndim not in (2, 3):
        raise ValueError(
            f"right_side must be {tuple(linear.weight.shape)}, got {tuple(right_side.shape)}"
        )
    norm = float(torch.linalg.vector_norm(right_side))
    offset = float(torch.linalg.vector_norm(right_side - centred(right_side)))
    if offset > 1e-8 * norm:
        raise ValueError(
            f"right_side must sum to 0 over classes, got an offset of {offset / norm:.1e} "
            "of its norm"
        )


_MIXED_FROM: Final = 1e9  # flop of a Hessian product; below it float32 saves nothing
_ROUGH_LOSS: Final = 1e-5  # nats above the minimum, far below a standard error of held-out losses
_SINGLE_FROM: Final = 1e12  # flop of a pass; above it float64 would take minutes


def with_precision(problem: HeadProblem, *, num_classes: int) -> HeadProblem:
    """The problem in the precision that its size allows.

    Small: float64. Large: Hessian products in float32, refined until the float64 residual is small
    enough. Very large: float32 within chunks, float64 between them.
    """
    num_features = problem.features.shape[2]
    flop = product_flop(problem.num_rows, num_classes=num_classes, num_features=num_features)
    if flop > _SINGLE_FROM:
        return replace(problem, dtype=torch.float32, products=torch.float32)
    if flop > _MIXED_FROM:
        return replace(problem, products=torch.float32)
    return problem


def product_flop(num_rows: int, *, num_classes: int, num_features: int) -> float:
    """Floating-point operations of a Hessian product."""
    return 4.0 * num_rows * num_classes * (num_features + 1)


def rough_gradient(problem: HeadProblem) -> float:
    """Norm of the gradient below which a fit is precise enough to compare held-out losses.

    J is l2-strongly convex, so ||dJ||^2 <= 2 l2 e bounds the distance to its minimum by e. Where
    products are cheap, the fit is as precise as the gradient of 1e-6 allows.
    """
    if problem.products == torch.float64:
        return 1e-6
    return max(1e-6, math.sqrt(2.0 * problem.l2 * _ROUGH_LOSS))


def least_gradient(problem: HeadProblem) -> float:
    """Norm of the gradient below which a fit in the problem's precision ends."""
    if problem.hessian_samples is not None:
        return 1e-4  # the curvature of some samples does not justify more
    return 1e-8 if problem.products == torch.float64 else 1e-6


def least_residual(problem: HeadProblem) -> float:
    """Relative residual below which a solve in the problem's precision ends."""
    if problem.dtype == torch.float32:
        return 1e-4
    return 1e-6 if problem.products == torch.float64 else 1e-5  # rankings agree from 1e-3 on


def describe_precision(problem: HeadProblem) -> str:
    """Describe the precision in words, for records."""
    if problem.dtype == torch.float32:
        return "float32"
    if problem.products == torch.float32:
        return "float64, float32 products refined"
    return "float64"
