"""Scores at one head: fit it, solve once against a target, score every row.

Shapes: N samples, C classes, D features.
"""

import logging
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from pipeline.artefacts.scores import SolveRecord
from pipeline.errors import PipelineError
from pipeline.influence.inputs import Solver, Target
from pipeline.methods.head.conjugate_gradients import HeadSolution
from pipeline.methods.head.dense_inverse import DenseInverse, dense_inverse
from pipeline.methods.head.effective_parameters import effective_parameters
from pipeline.methods.head.ekfac import Ekfac, ekfac
from pipeline.methods.head.influence import HeadScores, RowScores, score_rows, sum_rule_error
from pipeline.methods.head.preconditioner import Preconditioner, preconditioner
from pipeline.methods.head.problem import HeadProblem, Linearisation, centred
from pipeline.methods.head.solver import (
    NotConverged,
    describe_precision,
    fit,
    least_gradient,
    least_residual,
    solve,
)

logger = logging.getLogger(__name__)

_GROUP_RTOL: Final = 1e-2  # a standard error needs two digits
_RANK_RTOL: Final = 1e-3  # rankings agree from here on


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredPoint:
    """A head, and the scores of the rows at it."""

    linear: Linearisation
    dense: DenseInverse | None
    """The exact inverse Hessian; None if the head is too large for it."""
    solution: Tensor
    """V, (C, D + 1) float64."""
    scores: HeadScores
    record: SolveRecord

    @property
    def cosine(self) -> float:
        """cos<V, W>"""
        sizes = torch.linalg.vector_norm(self.solution) * torch.linalg.vector_norm(
            self.linear.weight
        )
        return float((self.solution * self.linear.weight).sum() / sizes) if sizes > 0 else 0.0


def score_point(
    problem: HeadProblem, target: Target, *, start: Tensor, name: str, solver: Solver
) -> ScoredPoint:
    """Fit a problem's head and score its rows against a target.

    Args:
        problem: the problem to fit; all of its rows are scored.
        target: rows outside the problem.
        start: initial W, (C, D + 1).
        name: name of the head, for records and messages.
        solver: conjugate gradients to tolerance, or EK-FAC alone.
    Raises:
        PipelineError: if the head cannot be fitted or the system solved to tolerance.
    """
    try:
        fitted = fit(problem, start=start, gtol=least_gradient(problem))
        linear, dense = fitted.linear, dense_inverse(fitted.linear)
        gradient = target.gradient(linear.weight)
        inverse = _InverseHessian(
            linear=linear,
            solver=solver,
            preconditioner=fitted.preconditioner or preconditioner(linear),
        )
        solved = inverse.solved(gradient, rtol=least_residual(problem))
        groups = target.group_gradients(linear.weight)
        if groups is not None:
            groups = inverse.solved(groups, rtol=_GROUP_RTOL).solution
        effective = effective_parameters(linear, dense, preconditioner=inverse.preconditioner)
    except NotConverged as error:
        more = "" if problem.hessian_samples is None else " or `select.influence.hessian_subsample`"
        raise PipelineError(
            f"influence with {name} rows: {error} Set a larger `select.influence.l2`{more}."
        ) from error
    except ValueError as error:
        raise PipelineError(f"influence with {name} rows: {error}") from error
    scores = score_rows(linear, solved.solution, group_solutions=groups)
    record = SolveRecord(
        linearised_at=name,
        l2=problem.l2,
        gradient_norm=fitted.gradient_norm,
        newton_iterations=fitted.iterations,
        solver="EK-FAC" if solver == "ekfac" else "preconditioned conjugate gradients",
        precision=describe_precision(problem),
        residual=solved.relative_residual,
        iterations=solved.iterations,
        num_rows=problem.num_rows,
        hessian_rows=problem.curvature.num_rows,
        effective_parameters=effective.value / problem.num_samples,
        effective_parameters_error=effective.error / problem.num_samples,
        sum_rule_error=sum_rule_error(scores, linear=linear, solution=solved.solution),
        held_out_loss=target.loss(linear.weight),
        held_out_gradient_norm=float(torch.linalg.vector_norm(gradient)),
    )
    _log(record)
    return ScoredPoint(
        linear=linear, dense=dense, solution=solved.solution, scores=scores, record=record
    )


def undistil_scores(problem: HeadProblem, target: Target, *, start: Tensor) -> Tensor:
    """dloss_undistill of the rows of a problem, (N,), precise enough to rank them.

    Raises:
        NotConverged: if the head cannot be fitted or the system solved to tolerance.
    """
    is_small = problem.products == torch.float64
    gtol = least_gradient(problem) * (1.0 if is_small else 10.0)
    fitted = fit(problem, start=start, gtol=gtol)
    solution = solve(
        fitted.linear,
        target.gradient(fitted.weight),
        preconditioner=fitted.preconditioner,
        rtol=least_residual(problem) if is_small else _RANK_RTOL,
    ).solution
    scores = score_rows(fitted.linear, solution).dloss_undistill
    assert scores is not None, "the rows have soft labels"
    return scores.mean


@dataclass(frozen=True, kw_only=True, eq=False)
class _InverseHessian:
    """Solver for systems with the Hessian."""

    linear: Linearisation
    solver: Solver
    preconditioner: Preconditioner

    def solved(self, right_side: Tensor, *, rtol: float) -> HeadSolution:
        """H^-1 R; with EK-FAC alone, ``rtol`` is ignored."""
        if self.solver == "exact":
            return solve(self.linear, right_side, preconditioner=self.preconditioner, rtol=rtol)
        solution = centred(self._factors.inverse(right_side))
        residual = torch.linalg.vector_norm(right_side - self.linear.certain_hvp(solution))
        norm = torch.linalg.vector_norm(right_side)
        return HeadSolution(
            solution=solution,
            relative_residual=float(residual / norm) if norm > 0 else 0.0,
            iterations=0,
        )

    @cached_property
    def _factors(self) -> Ekfac:
        return ekfac(self.linear)


def _log(record: SolveRecord) -> None:
    logger.info(
        "head refitted %s: held-out loss %.4f, |gradient| %.4f, p_eff/N %.4f, %d Newton steps, "
        "%d iterations to %.0e",
        record.linearised_at,
        record.held_out_loss,
        record.held_out_gradient_norm,
        record.effective_parameters,
        record.newton_iterations,
        record.iterations,
        record.residual,
    )


@dataclass(kw_only=True)
class ScoreSums:
    """A score of every row, averaged over its targets."""

    means: list[Tensor] = field(default_factory=list)
    stds: list[Tensor] = field(default_factory=list)
    errors: list[Tensor] = field(default_factory=list)

    def add(self, scores: RowScores | None, positions: Tensor, num_rows: int) -> None:
        if scores is None:
            return
        self.means.append(placed(scores.mean, positions, num_rows))
        self.stds.append(placed(scores.std, positions, num_rows))
        if scores.error is not None:
            self.errors.append(placed(scores.error, positions, num_rows))

    @property
    def mean(self) -> Tensor:
        return torch.stack(self.means).nanmean(dim=0)

    @property
    def std(self) -> Tensor:
        return torch.stack(self.stds).nanmean(dim=0)

    @property
    def error(self) -> Tensor:
        """Standard error: over the groups of one target, or of the mean of independent targets."""
        if not self.errors:
            return torch.full_like(self.means[0], torch.nan)
        squares = torch.stack(self.errors).square()
        counts = (~squares.isnan()).sum(dim=0)
        return squares.nansum(dim=0).sqrt() / counts


def placed(values: Tensor, positions: Tensor, num_rows: int) -> Tensor:
    out = torch.full((num_rows,), torch.nan, dtype=torch.float64)
    out[positions] = values.cpu()
    return out
