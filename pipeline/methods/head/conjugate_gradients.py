"""Conjugate gradients on a head's Hessian, for several right sides at once.

Adding the same row to every class changes no softmax, so all vectors are kept centred over classes,
where the Hessian is positive definite.

Shapes: C classes, D features, G right sides that are solved together.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.methods.head.preconditioner import Preconditioner
from pipeline.methods.head.problem import Linearisation, centred
from pipeline.methods.rank_sums import agreed, decided, led

CYCLE = 1e-5  # float32 products reduce a residual no further; then it is recomputed


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadSolution:
    """An approximate solution of H V = R."""

    solution: Tensor
    """V, ([G,] C, D + 1) float64, centred over classes."""

    relative_residual: float
    """||R - H V|| / ||R||, recomputed at the end; the largest of the G."""

    iterations: int


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """Conditions at which a solution is accepted or the iteration is given up."""

    rtol: float
    """Upper bound of ||R - H V|| / ||R||."""

    max_iterations: int
    """Hessian products allowed."""

    certain: bool
    """Recompute the residual in the problem's dtype before a solution is accepted.

    The solver continues from that residual, which removes the rounding of float32 products."""


def conjugate_gradients(
    linear: Linearisation,
    right_side: Tensor,
    *,
    preconditioner: Preconditioner,
    stopping: StoppingRule,
) -> HeadSolution:
    """Return the best solution within the allowed products, converged or not.

    Args:
        linear: the problem at fixed weights, which defines H.
        right_side: R, ([G,] C, D + 1), centred over classes.
        preconditioner: an approximate inverse of H.
        stopping: tolerance and number of products.
    """
    sharing, exact = linear.problem.sharing, linear.problem.products == linear.problem.dtype
    norms = _norms(right_side)
    bound = stopping.rtol * norms
    solution = torch.zeros_like(right_side)
    residual, measured = right_side, norms
    direction, energy = None, torch.ones_like(norms)
    iterations = 0
    while True:
        cycle = bound if exact else torch.maximum(bound, CYCLE * measured)
        is_spent = iterations == stopping.max_iterations
        if _all_below(residual, cycle, linear) or is_spent:
            if not stopping.certain:
                break
            residual, direction = centred(right_side - linear.certain_hvp(solution)), None
            measured = _norms(residual)
            if _all_below(residual, bound, linear) or is_spent:
                break
        step = centred(preconditioner.inverse(residual))
        previous, energy = energy, _dots(residual, step)
        direction = step if direction is None else step + _ratio(energy, previous) * direction
        product = linear.hvp(direction)
        length = _ratio(energy, _dots(direction, product))
        solution = centred(solution + length * direction)
        residual = centred(residual - length * product)
        iterations += 1
    return HeadSolution(
        solution=led(sharing, solution),
        relative_residual=agreed(sharing, float(_ratio(_norms(residual), norms).max())),
        iterations=iterations,
    )


def _all_below(residual: Tensor, bound: Tensor, linear: Linearisation) -> bool:
    """True if every right side is solved, decided by rank 0."""
    return decided(linear.problem.sharing, bool((_norms(residual) <= bound).all()))


def _norms(vectors: Tensor) -> Tensor:
    """||.|| of each right side, ([G,] 1, 1)."""
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=(-2, -1), keepdim=True)
    return norms


def _dots(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(dim=(-2, -1), keepdim=True)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Quotient of two tensors; 0 where the denominator is 0."""
    return torch.where(below == 0, 0.0, above / torch.where(below == 0, 1.0, below))
