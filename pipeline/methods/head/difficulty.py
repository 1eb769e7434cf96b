"""Difficulty of every sample by the curvature: self-influence and leverage.

Both need the inverse Hessian against every sample's own gradient. It is exact where the inverse can
be written out (`head.dense_inverse`), and EK-FAC's otherwise.

Shapes: N samples, K views, D features, C classes, n samples of a chunk.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.methods.head.dense_inverse import DenseInverse
from pipeline.methods.head.ekfac import Ekfac, class_variances, ekfac
from pipeline.methods.head.problem import Linearisation


@dataclass(frozen=True, kw_only=True, eq=False)
class Difficulty:
    """Self-influence and leverage of every sample."""

    self_influence: Tensor
    """Predicted rise of the sample's own loss if it were left out, (N,) float64, >= 0."""

    leverage: Tensor
    """Effective parameters that the sample determines, (N,) float64, >= 0; their sum is p_eff."""


def difficulty(linear: Linearisation, dense: DenseInverse | None) -> Difficulty:
    """Self-influence and leverage of every sample, exact if there is a dense inverse."""
    if dense is None:
        return score_difficulty(linear, ekfac(linear))
    return Difficulty(self_influence=dense.self_influence(), leverage=dense.leverage())


def score_difficulty(linear: Linearisation, factors: Ekfac) -> Difficulty:
    """Self-influence and leverage of every sample, by EK-FAC.

        self_influence_i = (1/N) <g_i, F^-1 g_i>,  g_i = mean_k r_ik h~_ik^T
        leverage_i       = (1/N) mean_k tr(S_ik (h~_ik^T F^-1 h~_ik))

    F is the EK-FAC Hessian, whose inverse is diagonal in its basis. With several views,
    self-influence has K^2 cross terms, because the mean is inside the product.

    Args:
        linear: the problem at its minimum.
        factors: EK-FAC of ``linear``.
    """
    problem = linear.problem
    inverse = (1.0 / (factors.eigenvalues + factors.l2)).T
    own, leverage = [linear.weight.new_empty(0)], [linear.weight.new_empty(0)]
    for chunk in linear.chunks():
        inputs = chunk.rows.inputs @ factors.input_basis.to(chunk.rows.inputs)
        stretch = inputs.square() @ inverse.to(inputs)
        bent = sum(
            (share * class_variances(probs, factors.class_basis) * stretch).sum(dim=1)
            for share, probs in chunk.curvatures()
        )
        assert isinstance(bent, Tensor), "a chunk has at least one softmax"
        leverage.append(bent.double().view(problem.num_views, -1).mean(dim=0))
        residuals = chunk.residuals() @ factors.class_basis.to(inputs)
        own.append(_squared_means(residuals, inputs, inverse.to(inputs), views=problem.num_views))
    return Difficulty(
        self_influence=problem.sharing.gathered(torch.cat(own)) / problem.num_samples,
        leverage=problem.sharing.gathered(torch.cat(leverage)) / problem.num_samples,
    )


def _squared_means(residuals: Tensor, inputs: Tensor, inverse: Tensor, *, views: int) -> Tensor:
    """sum_cd inverse_dc (mean_k residuals_kc inputs_kd)^2 of every sample, (n,) float64."""
    residuals = residuals.view(views, -1, residuals.shape[1])
    inputs = inputs.view(views, -1, inputs.shape[1])
    total = torch.zeros(residuals.shape[1], dtype=torch.float64, device=residuals.device)
    for one in range(views):
        for other in range(one, views):
            stretch = (inputs[one] * inputs[other]) @ inverse
            part = (residuals[one] * residuals[other] * stretch).sum(dim=1).double()
            total += part if one == other else 2.0 * part
    return total / views**2
