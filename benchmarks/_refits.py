"""Heads that are really refitted, as the truth for predicted influence.

Many changed problems are refitted. A refit takes chord Newton steps with the gradient of the
changed problem and a dense Hessian that is computed once, at the average of all changes. It stops
when the gradient is below `GTOL`, so the Hessian affects the speed and not the result.
`head.solver` is used only if the steps do not converge.

Shapes: N samples, C classes, D features, P = C (D + 1).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.methods.head.problem import HeadProblem, Linearisation
from pipeline.methods.head.rows import with_bias_input
from pipeline.methods.head.solver import fit

GTOL = 1e-12
CHORD_STEPS = 60
LARGEST_DENSE = 4096  # parameters; the Hessian takes 134 MB there
DIRECTIONS = 64  # Hessian products at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """The held-out samples, whose mean cross-entropy is predicted and measured."""

    features: Tensor
    """(M, D) float64."""
    labels: Tensor

    def loss(self, weight: Tensor) -> float:
        logits = with_bias_input(self.features) @ weight.T
        return torch.nn.functional.cross_entropy(logits, self.labels).item()


@dataclass(frozen=True, kw_only=True, eq=False)
class Centre:
    """A fitted head and its Hessian, from which similar problems are refitted."""

    linear: Linearisation
    hessian: Tensor | None
    """Hessian of the data term, (P, P); None if it is too large to be dense."""
    factor: Tensor | None
    """Cholesky factor of the Hessian with l2."""

    @classmethod
    def of(cls, problem: HeadProblem, *, start: Tensor) -> "Centre":
        linear = fit(problem, start=start, gtol=GTOL).linear
        if linear.weight.numel() > LARGEST_DENSE:
            return cls(linear=linear, hessian=None, factor=None)
        hessian = _data_hessian(linear)
        return cls(linear=linear, hessian=hessian, factor=_factor(hessian, linear, share=1.0))

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    def refit(self, problem: HeadProblem) -> Tensor:
        """The minimum of a problem near this one, (C, D + 1)."""
        weight = self.weight
        for _ in range(CHORD_STEPS if self.factor is not None else 0):
            gradient = problem.gradient(weight)
            norm = float(torch.linalg.vector_norm(gradient))
            if norm <= GTOL:
                return weight
            if not norm < 1e6:
                break
            weight = weight - _solved(gradient, self.factor)
        return fit(problem, start=self.weight, gtol=GTOL).weight

    def solve(self, right_sides: Tensor, *, share: float = 1.0) -> Tensor:
        """(share H_data + l2)^-1 R for each of R (G, C, D + 1)."""
        if self.hessian is None:
            raise ValueError(f"{self.weight.numel()} parameters are too many for a dense Hessian")
        return _solved(right_sides, _factor(self.hessian, self.linear, share=share))


def without(problem: HeadProblem, removed: Tensor) -> HeadProblem:
    """The same objective with some samples' weights at 0, and 1/N and l2 as they were.

    `HeadProblem` has no weights, but (n / N) times the objective over the n kept samples with
    l2 N / n is the same function:

        (n/N) [ (1/n) sum_kept loss_i + (l2 N/n)/2 |m o W|^2 ]
            = (1/N) sum_kept loss_i + l2/2 |m o W|^2

    >>> rows = torch.randn(1, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> whole = HeadProblem(features=rows, labels=torch.tensor([0, 1, 2, 0, 1, 2]), l2=0.3)
    >>> weight = rows[0, :3].repeat(1, 2)[:, :3]
    >>> alone = whole.part(torch.tensor([4]))
    >>> left = (5 / 6) * without(whole, torch.tensor([4])).loss(weight)
    >>> right = whole.loss(weight) - (alone.loss(weight) - alone._penalty(weight)) / 6
    >>> abs(left - right) < 1e-15
    True
    """
    kept = torch.ones(problem.num_samples, dtype=torch.bool)
    kept[removed] = False
    rows = kept.nonzero().squeeze(1)
    return replace(problem.part(rows), l2=problem.l2 * problem.num_samples / len(rows))


def _data_hessian(linear: Linearisation) -> Tensor:
    size = linear.weight.numel()
    units = torch.eye(size, dtype=torch.float64).view(size, *linear.weight.shape)
    columns = torch.cat([linear.hvp(units[i : i + DIRECTIONS]) for i in range(0, size, DIRECTIONS)])
    return columns.view(size, size) - torch.diag(_ridge(linear))


def _ridge(linear: Linearisation) -> Tensor:
    """l2 of every parameter, (P,)."""
    problem = linear.problem
    return (problem.l2 * problem.mask(linear.weight)).expand_as(linear.weight).reshape(-1)


def _factor(hessian: Tensor, linear: Linearisation, *, share: float) -> Tensor:
    num_classes, num_inputs = linear.weight.shape
    # Adding the same row to every class does not change the loss; all vectors here are centred.
    null = torch.full((num_classes, num_classes), 1.0 / num_classes, dtype=torch.float64)
    filled = torch.kron(null, torch.eye(num_inputs, dtype=torch.float64))
    return torch.linalg.cholesky(share * hessian + torch.diag(_ridge(linear)) + filled)


def _solved(right_sides: Tensor, factor: Tensor | None) -> Tensor:
    assert factor is not None, "there is a dense Hessian"
    size = len(factor)
    return torch.cholesky_solve(right_sides.reshape(-1, size).T, factor).T.reshape(
        right_sides.shape
    )
