"""The number of effective parameters of a head, which shows if first-order scores are reliable.

    p_eff = tr[H_0 H^+],   H = H_0 + l2 diag(m),   H^+ the inverse on centred weights

It is exact where `head.dense_inverse` fits. Otherwise it is Hutchinson's estimate (1990) from
probes v of independent random signs, centred over classes:

    p_eff = E[v^T v - l2 <diag(m) v, H^+ v>]

The estimate's variance is at most 2 p_eff / n for n probes: two are enough for many parameters.

Shapes: C classes, D features, n probes.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch

from pipeline.methods.head.conjugate_gradients import StoppingRule, conjugate_gradients
from pipeline.methods.head.dense_inverse import DenseInverse
from pipeline.methods.head.preconditioner import Preconditioner
from pipeline.methods.head.problem import Linearisation, centred
from pipeline.methods.rank_sums import led

PROBES: Final = 2
RTOL: Final = 3e-2
"""Residual of a probe's solve: its error in p_eff is about the square of this."""


@dataclass(frozen=True, kw_only=True)
class EffectiveParameters:
    """p_eff, and its standard error."""

    value: float
    error: float
    """0 where the value is exact; else the bound sqrt(2 p_eff / n) of n probes."""


def effective_parameters(
    linear: Linearisation, dense: DenseInverse | None, *, preconditioner: Preconditioner
) -> EffectiveParameters:
    """Compute p_eff at the weights of ``linear``.

    Args:
        linear: the problem at any weights.
        dense: `head.dense_inverse.dense_inverse` of ``linear``; p_eff is exact if there is one.
        preconditioner: an approximate inverse of the same Hessian, for the estimate.
    """
    if dense is not None:
        return EffectiveParameters(value=dense.effective_parameters, error=0.0)
    return _estimate(linear, preconditioner)


def _estimate(linear: Linearisation, preconditioner: Preconditioner) -> EffectiveParameters:
    problem, shape = linear.problem, linear.weight.shape
    signs = torch.randint(0, 2, (PROBES, *shape), generator=torch.Generator().manual_seed(0))
    probes = centred((2.0 * signs - 1.0).double().to(linear.weight.device))
    probes = led(problem.sharing, probes)
    solved = conjugate_gradients(
        linear,
        probes,
        preconditioner=preconditioner,
        stopping=StoppingRule(rtol=RTOL, max_iterations=250, certain=False),
    ).solution
    damped = problem.l2 * problem.mask(linear.weight) * probes
    found = (probes.square() - damped * solved).sum(dim=(1, 2))
    value = float(found.mean())
    return EffectiveParameters(value=value, error=math.sqrt(2.0 * max(value, 0.0) / PROBES))
