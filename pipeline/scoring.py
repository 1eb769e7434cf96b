"""Influence of a cache's training rows: refit the head, solve once, score every row.

Two heads are fitted on the cached features, one with every row distilled and one with none; each is
the point at which its scores are exact first derivatives of the held-out loss.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.artefacts.hydration import HydratedCache
from pipeline.artefacts.selection import SolveRecord
from pipeline.errors import PipelineError
from pipeline.methods.head_influence import (
    HeadScores,
    heldout_gradient,
    score_rows,
    sum_rule_error,
)
from pipeline.methods.head_problem import HeadProblem
from pipeline.methods.head_rows import with_bias_input
from pipeline.methods.head_solver import NotConverged, ekfac, fit, solve

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """The scores of the training rows at one head."""

    scores: HeadScores
    record: SolveRecord


@dataclass(frozen=True, kw_only=True, eq=False)
class Influence:
    """Scores of the training rows, in their order."""

    distilled: Scored
    """At the head that is fitted with everything distilled: read `dloss_undistill`."""
    hard: Scored
    """At the head that is fitted with nothing distilled: read `dloss_swap`, `dloss_remove`."""


def score_influence(
    cached: HydratedCache,
    *,
    labels: Tensor,
    training: Tensor,
    held_out: Tensor,
    soft_labels: Tensor,
    views: tuple[int, ...],
    kd_weight: float,
    temperature: float,
    l2: float,
) -> Influence:
    """Score every training row against the held-out rows.

    Args:
        cached: a teacher cache with features, in the order of the data set.
        labels: of all samples, int64.
        training: sample indices to score, (N,) int64.
        held_out: sample indices whose loss is predicted, (M,) int64; none of them is scored.
        soft_labels: the teacher's labels of ``training`` in each view, (K, N, C) float32.
        views: the K views whose features are used for ``training``.
        kd_weight: weight of the soft label where a row is distilled, in (0, 1].
        temperature: of the soft labels and of the distillation term.
        l2: weight of the L2 term of both heads.
    Raises:
        PipelineError: if a head cannot be fitted or solved to tolerance.
    """
    assert not set(training.tolist()) & set(held_out.tolist()), "the target is never scored"
    weight, bias = cached.cache.head
    start = torch.cat([torch.from_numpy(weight), torch.from_numpy(bias)[:, None]], dim=1).double()
    features = torch.stack([torch.from_numpy(cached.features(view))[training] for view in views])
    target = _Target(
        features=torch.from_numpy(cached.features(0))[held_out], labels=labels[held_out]
    )

    def score(distilled: float, name: str) -> Scored:
        problem = HeadProblem(
            features=features,
            labels=labels[training],
            soft_labels=soft_labels,
            distilled=torch.full((len(training),), distilled),
            kd_weight=kd_weight,
            temperature=temperature,
            l2=l2,
        )
        return _score(problem, target, start=start, name=name)

    return Influence(distilled=score(1.0, "all distilled"), hard=score(0.0, "all hard"))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Target:
    """The held-out rows in the clean view."""

    features: Tensor
    labels: Tensor

    def loss(self, weight: Tensor) -> float:
        logits = with_bias_input(self.features.double()) @ weight.T
        return torch.nn.functional.cross_entropy(logits, self.labels).item()


def _score(
    problem: HeadProblem,
    target: _Target,
    *,
    start: Tensor,
    name: str,
) -> Scored:
    try:
        fitted = fit(problem, start=start)
        linear = problem.linearise(fitted.weight)
        gradient = heldout_gradient(fitted.weight, target.features, target.labels)
        preconditioner = ekfac(linear)
        solved = solve(linear, gradient, preconditioner=preconditioner)
    except NotConverged as error:
        raise PipelineError(
            f"influence with {name} rows: {error} Set a larger `select.influence.l2`."
        ) from error
    scores = score_rows(linear, solved.solution)
    record = SolveRecord(
        linearised_at=name,
        l2=problem.l2,
        gradient_norm=fitted.gradient_norm,
        newton_iterations=fitted.iterations,
        solver="conjugate gradients, EK-FAC preconditioner",
        residual=solved.relative_residual,
        iterations=solved.iterations,
        effective_parameters=preconditioner.effective_parameters / problem.num_samples,
        sum_rule_error=sum_rule_error(scores, linear=linear, solution=solved.solution),
        held_out_loss=target.loss(fitted.weight),
        held_out_gradient_norm=torch.linalg.vector_norm(gradient).item(),
    )
    logger.info(
        "head refitted %s: held-out loss %.4f, |gradient| %.4f, p_eff/N %.4f, %d Newton steps, "
        "%d iterations to %.0e",
        name,
        record.held_out_loss,
        record.held_out_gradient_norm,
        record.effective_parameters,
        record.newton_iterations,
        record.iterations,
        record.residual,
    )
    return Scored(scores=scores, record=record)
