"""EK-FAC of a softmax head: its Hessian, approximated as diagonal in a Kronecker-factored basis.

George et al. 2018, arXiv:1806.03884. For a softmax head it needs no sampled labels: with
A = mean h~ h~^T = Q a Q^T and G = mean S = U g U^T,

    Lambda_kj = mean_i (u_k^T S_i u_k) (q_j^T h~_i)^2
    (H + l2)^-1 R ~ U [(U^T R Q) / (Lambda + l2)] Q^T

Shapes: C classes, D features, M rows of a chunk.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.methods.head.problem import Linearisation
from pipeline.methods.rank_sums import led, summed


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
        """(EK-FAC + l2)^-1 R, ([G,] C, D + 1); l2 is on the bias column too."""
        rotated = self.class_basis.T @ right_side @ self.input_basis
        return self.class_basis @ (rotated / (self.eigenvalues + self.l2)) @ self.input_basis.T

    @property
    def effective_parameters(self) -> float:
        """p_eff = sum Lambda / (Lambda + l2): the parameters that the data, not l2, determine.

        First-order scores are unreliable unless this is well below the number of samples.
        """
        return float((self.eigenvalues / (self.eigenvalues + self.l2)).sum())


def ekfac(linear: Linearisation) -> Ekfac:
    """EK-FAC of the problem at the weights of ``linear``."""
    sharing = linear.problem.sharing
    classes = led(sharing, torch.linalg.eigh(_class_curvature(linear)).eigenvectors)
    inputs = led(sharing, torch.linalg.eigh(_input_covariance(linear)).eigenvectors)
    total = torch.zeros_like(linear.weight)
    for chunk in linear.bends():
        squares = (chunk.inputs @ inputs.to(chunk.inputs)).square()
        for share, probs in chunk.curvatures():
            variances = class_variances(probs, classes)
            total += ((share * variances).T @ squares).double()
    return Ekfac(
        class_basis=classes,
        input_basis=inputs,
        # Rounding can make a variance negative, and the inverse would be indefinite.
        eigenvalues=(summed(sharing, total) / linear.problem.curvature.num_rows).clamp(min=0.0),
        l2=linear.problem.l2,
    )


def class_variances(probs: Tensor, basis: Tensor) -> Tensor:
    """u_k^T S(p) u_k of every row and eigenvector, (M, C)."""
    basis = basis.to(probs)
    return probs @ basis.square() - (probs @ basis).square()


def _input_covariance(linear: Linearisation) -> Tensor:
    """A = mean h~ h~^T, (D + 1, D + 1)."""
    size = linear.weight.shape[1]
    total = linear.weight.new_zeros(size, size)
    for chunk in linear.bends():
        total += (chunk.inputs.T @ chunk.inputs).double()
    return summed(linear.problem.sharing, total) / linear.problem.curvature.num_rows


def _class_curvature(linear: Linearisation) -> Tensor:
    """G = mean S, (C, C)."""
    num_classes = linear.weight.shape[0]
    total = linear.weight.new_zeros(num_classes, num_classes)
    for chunk in linear.bends():
        for share, probs in chunk.curvatures():
            pull = share * probs
            total += (torch.diag(pull.sum(dim=0)) - pull.T @ probs).double()
    return summed(linear.problem.sharing, total) / linear.problem.curvature.num_rows
