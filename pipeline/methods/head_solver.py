"""Fitting a head to its problem and solving with its Hessian.

Both are conjugate gradients on exact Hessian products, preconditioned by the inverse of
EK-FAC (George et al. 2018, arXiv:1806.03884). For a softmax head EK-FAC needs no sampled
labels: with A = mean h~ h~^T = Q a Q^T and G = mean S = U g U^T,

    Lambda_kj = mean_i (u_k^T S_i u_k) (q_j^T h~_i)^2
    (H + l2)^-1 R ~ U [(U^T R Q) / (Lambda + l2)] Q^T

EK-FAC alone is not good enough as the answer; as a preconditioner it costs nothing in
accuracy. Adding the same row to every class changes no softmax, so all vectors are kept
centred over classes, where the Hessian is positive definite.

Shapes: C classes, D features.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.methods.head_problem import HeadProblem, Linearisation, centred

SMALLEST_STEP = 2.0**-40
SUFFICIENT_DECREASE = 1e-4  # Armijo's constant, the customary value
ROUNDING = 1e-14  # of a mean of float64 losses; a decrease below it cannot be seen


class NotConverged(ValueError):
    """An iteration ended above its tolerance; the message has the residual and the count."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ekfac:
    """The Hessian's data part, diagonal in a Kronecker-factored basis."""

    class_basis: Tensor
    """U, (C, C), eigenvectors in columns."""

    input_basis: Tensor
    """Q, (D + 1, D + 1), eigenvectors in columns."""

    eigenvalues: Tensor
    """Lambda, (C, D + 1), without l2."""

    l2: float

    def inverse(self, right_side: Tensor) -> Tensor:
        """(EK-FAC + l2)^-1 R, (C, D + 1); l2 is on the bias column too."""
        rotated = self.class_basis.T @ right_side @ self.input_basis
        return self.class_basis @ (rotated / (self.eigenvalues + self.l2)) @ self.input_basis.T

    @property
    def effective_parameters(self) -> float:
        """p_eff = sum Lambda / (Lambda + l2): what the data, not l2, decides.

        First-order scores mean little where this is not well below the number of samples.
        """
        return float((self.eigenvalues / (self.eigenvalues + self.l2)).sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadSolution:
    """H^-1 R."""

    solution: Tensor
    """V, (C, D + 1) float64, centred over classes."""

    relative_residual: float
    """||R - H V|| / ||R||, computed anew at the end."""

    iterations: int


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadFit:
    """The minimum of a problem."""

    weight: Tensor
    """W, (C, D + 1) float64, centred over classes."""

    gradient_norm: float
    iterations: int
    """Newton steps."""

    loss: float


def input_basis(problem: HeadProblem, *, device: torch.device) -> Tensor:
    """Q of EK-FAC, (D + 1, D + 1); it does not depend on the weights."""
    size = problem.features.shape[2] + 1
    total = torch.zeros(size, size, dtype=torch.float64, device=device)
    for rows in problem.chunks(device):
        total += rows.inputs.T @ rows.inputs
    covariance = total / (problem.num_views * problem.num_samples)
    vectors: Tensor = torch.linalg.eigh(covariance).eigenvectors
    return vectors


def ekfac(linear: Linearisation, *, basis: Tensor | None = None) -> Ekfac:
    """EK-FAC of the problem at the weights of ``linear``; ``basis`` is that of `input_basis`."""
    problem = linear.problem
    if basis is None:
        basis = input_basis(problem, device=linear.weight.device)
    _, classes = torch.linalg.eigh(_class_curvature(linear))
    total = torch.zeros_like(linear.weight)
    for chunk in linear.chunks():
        squares = (chunk.rows.inputs @ basis).square()
        for share, probs in chunk.curvatures():
            variances = probs @ classes.square() - (probs @ classes).square()
            total += (share * variances).T @ squares
    return Ekfac(
        class_basis=classes,
        input_basis=basis,
        # A variance that rounding made negative would make the inverse indefinite.
        eigenvalues=(total / (problem.num_views * problem.num_samples)).clamp(min=0.0),
        l2=problem.l2,
    )


def solve(
    linear: Linearisation,
    right_side: Tensor,
    *,
    preconditioner: Ekfac | None = None,
    rtol: float = 1e-10,
    max_iterations: int = 500,
) -> HeadSolution:
    """Solve H V = R by preconditioned conjugate gradients.

    Args:
        linear: the problem at the weights whose Hessian is inverted.
        right_side: R, (C, D + 1), centred over classes as every data gradient is.
        preconditioner: EK-FAC of the same problem; None computes it.
        rtol: bound of ||R - H V|| / ||R||.
        max_iterations: Hessian products allowed.

    Raises:
        NotConverged: if ``rtol`` is not met within ``max_iterations``.
        ValueError: if ``right_side`` has another shape or is not centred.
    """
    right_side = right_side.double()
    _require_right_side(right_side, linear=linear)
    found = _conjugate_gradients(
        linear,
        centred(right_side),
        preconditioner=ekfac(linear) if preconditioner is None else preconditioner,
        rtol=rtol,
        max_iterations=max_iterations,
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

    A saturated start has hardly any curvature, so the search begins at the multiple of
    ``start`` that has the lowest loss.

    Args:
        problem: strictly convex over the centred weights, because l2 > 0.
        start: W to begin at, (C, D + 1), e.g. the teacher's head.
        gtol: bound of ||dJ||.
        max_iterations: Newton steps allowed.

    Raises:
        NotConverged: if ``gtol`` is not met within ``max_iterations``, or rounding stops it.
        ValueError: if the data or ``start`` are not finite.
    """
    weight = _best_multiple(problem, centred(start.double()))
    loss = problem.loss(weight)
    if not math.isfinite(loss):
        raise ValueError(f"loss is not finite: {loss}. Features, soft labels or start are not.")
    basis = input_basis(problem, device=weight.device)
    for iteration in range(max_iterations + 1):
        linear = problem.linearise(weight)
        gradient = linear.gradient()
        norm = float(torch.linalg.vector_norm(gradient))
        if norm <= gtol:
            return HeadFit(weight=weight, gradient_norm=norm, iterations=iteration, loss=loss)
        if iteration == max_iterations:
            break
        direction = _newton_direction(linear, gradient, basis=basis)
        step = _line_search(linear, gradient, direction=direction, loss=loss)
        if step is None:
            break
        weight = centred(weight + step * direction)
        loss = problem.loss(weight)
    raise NotConverged(
        f"fit did not converge: gradient norm {norm:.1e} after {iteration} iterations "
        f"(expected {gtol:.1e}). Raise l2 or max_iterations, or loosen gtol."
    )


def _conjugate_gradients(
    linear: Linearisation,
    right_side: Tensor,
    *,
    preconditioner: Ekfac,
    rtol: float,
    max_iterations: int,
) -> HeadSolution:
    """The best solution within the allowed products, converged or not."""
    solution = torch.zeros_like(right_side)
    bound = rtol * float(torch.linalg.vector_norm(right_side))
    residual, direction, energy = right_side, None, 1.0
    for iteration in range(max_iterations):
        if float(torch.linalg.vector_norm(residual)) <= bound:
            # The recurrence drifts; begin again from the true residual if it was too kind.
            residual, direction = centred(right_side - linear.hvp(solution)), None
            if float(torch.linalg.vector_norm(residual)) <= bound:
                return _measured(solution, residual, right_side, iterations=iteration)
        step = centred(preconditioner.inverse(residual))
        previous, energy = energy, float((residual * step).sum())
        direction = step if direction is None else step + (energy / previous) * direction
        product = linear.hvp(direction)
        length = energy / float((direction * product).sum())
        solution = centred(solution + length * direction)
        residual = centred(residual - length * product)
    residual = right_side - linear.hvp(solution)
    return _measured(solution, residual, right_side, iterations=max_iterations)


def _measured(
    solution: Tensor, residual: Tensor, right_side: Tensor, *, iterations: int
) -> HeadSolution:
    norm = float(torch.linalg.vector_norm(right_side))
    relative = float(torch.linalg.vector_norm(residual)) / norm if norm else 0.0
    return HeadSolution(solution=solution, relative_residual=relative, iterations=iterations)


def _class_curvature(linear: Linearisation) -> Tensor:
    """G = mean S, (C, C)."""
    num_classes = linear.weight.shape[0]
    total = linear.weight.new_zeros(num_classes, num_classes)
    for chunk in linear.chunks():
        for share, probs in chunk.curvatures():
            pull = share * probs
            total += torch.diag(pull.sum(dim=0)) - pull.T @ probs
    return total / (linear.problem.num_views * linear.problem.num_samples)


def _newton_direction(linear: Linearisation, gradient: Tensor, *, basis: Tensor) -> Tensor:
    """-H^-1 dJ, solved only as well as the distance to the minimum deserves."""
    norm = float(torch.linalg.vector_norm(gradient))
    return -_conjugate_gradients(
        linear,
        centred(gradient),
        preconditioner=ekfac(linear, basis=basis),
        rtol=min(0.1, norm**0.5),
        max_iterations=250,
    ).solution


def _line_search(
    linear: Linearisation, gradient: Tensor, *, direction: Tensor, loss: float
) -> float | None:
    """The largest 2^-j that lowers the loss enough (Armijo), or None."""
    slope = float((gradient * direction).sum())
    slack = ROUNDING * max(1.0, abs(loss))
    step = 1.0
    while step >= SMALLEST_STEP:
        reached = linear.problem.loss(linear.weight + step * direction)
        if reached <= loss + SUFFICIENT_DECREASE * step * slope + slack:
            return step
        step /= 2.0
    return None


def _best_multiple(problem: HeadProblem, weight: Tensor) -> Tensor:
    """W, W / 4, W / 16 ... or 0, whichever has the lowest loss."""
    multiples = [weight * 4.0**-power for power in range(8)] + [torch.zeros_like(weight)]
    return min(multiples, key=problem.loss)


def _require_right_side(right_side: Tensor, *, linear: Linearisation) -> None:
    if right_side.shape != linear.weight.shape:
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
