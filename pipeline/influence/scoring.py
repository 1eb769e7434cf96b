"""Influence of a cache's training rows: refit the head, solve once, score every row.

Two heads are fitted on the cached features, one with every row distilled and one with none. The
scores at each head are exact first derivatives of the held-out loss there. l2 is chosen by the
held-out loss of a head on hard labels. The distilled head's own loss would favour an l2 that
softens an overconfident teacher (CIFAR-10, resnet56: 1e-2 instead of 1e-4, and an AUC for wrong
rows of 0.79 instead of 0.92).

Shapes: N scored samples, K views, D features, C classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.artefacts.scores import TRUSTED_SHARE, SolveRecord
from pipeline.errors import PipelineError
from pipeline.influence.cross_fit import (
    choose_l2,
    issue_columns,
    l2_grid,
    simplest_within_error,
)
from pipeline.influence.guess import gains_over_guess, mean_and_error
from pipeline.influence.head_progress import HeadProgress
from pipeline.influence.inputs import InfluenceSettings, ScoredRows, Target, Targets
from pipeline.influence.points import (
    ScoredPoint,
    ScoreSums,
    placed,
    score_point,
    undistil_scores,
)
from pipeline.methods.head.difficulty import difficulty
from pipeline.methods.head.ekfac import ekfac
from pipeline.methods.head.influence import score_added
from pipeline.methods.head.parameter_change import undistil_order
from pipeline.methods.head.problem import HeadProblem
from pipeline.methods.head.set_effects import undistil_effect
from pipeline.methods.head.solver import (
    HeadFit,
    NotConverged,
    fit,
    least_gradient,
    rough_gradient,
    with_precision,
)
from pipeline.methods.rank_sums import agreed
from pipeline.runtime.progress import progress

STABILITY_ROWS: Final = 50_000
STABILITY_FACTORS: Final = {"l2 / 3": 1 / 3, "3 l2": 3.0}
_WORTH_WHILE: Final = 25
"""Newton steps after which a larger l2 is tried; about six are usual."""
_STRONGEST: Final = 1.0
"""An l2 at which every fit is easy."""


@dataclass(frozen=True, kw_only=True)
class Details:
    """Diagnostics at the all-distilled head; `artefacts.scores.Diagnostics` describes them."""

    target_weight_cosine: float
    rank_stability: dict[str, float] = field(default_factory=dict)
    second_order_gain: float | None = None


@dataclass(frozen=True, kw_only=True)
class Influence:
    """Scores of the training rows, in their order."""

    columns: dict[str, NDArray[np.generic]]
    """Columns of `artefacts.scores`, (N,)."""
    solves: list[SolveRecord]
    l2_grid: list[tuple[float, float]]
    gain_over_guess: tuple[float, float]
    """Mean loss of a guess minus that of the head on hard labels, and its standard error."""
    is_exact: bool
    """True if self_influence and leverage are exact; else they are EK-FAC's."""
    details: Details


def score_influence(rows: ScoredRows, targets: Targets, settings: InfluenceSettings) -> Influence:
    """Score every training row against the target.

    Raises:
        PipelineError: if a head cannot be fitted or solved to tolerance.
    """
    heads = num_heads(rows, targets, settings)
    with progress("influence", total=heads, unit="heads") as bar:
        try:
            return _Run(rows, targets, settings, HeadProgress(bar)).influence()
        except (NotConverged, ValueError) as error:
            if isinstance(error, PipelineError):
                raise
            raise PipelineError(f"influence: {error}") from error


def num_heads(rows: ScoredRows, targets: Targets, settings: InfluenceSettings) -> int:
    """Heads that a scoring fits, if no l2 has to be raised; the path to l2 may end earlier."""
    path = 0 if settings.l2 is not None else len(_grid(rows, settings))
    folds = 0 if rows.folds is None else int(rows.folds.max()) + 1
    return (
        path
        + (settings.l2 is None)
        + targets.num * (2 + settings.rounds)
        + settings.label_issues * (folds + 1)
        + settings.diagnostics * len(STABILITY_FACTORS)
        + settings.param_change
    )


def _grid(rows: ScoredRows, settings: InfluenceSettings) -> tuple[float, ...]:
    """L2 weights of the path, on ``hessian_subsample`` samples if that is set."""
    num_views, num_samples, num_features = rows.features.shape
    num_samples = min(num_samples, settings.hessian_subsample or num_samples)
    return l2_grid(num_views * num_samples, num_classes=len(rows.start), num_features=num_features)


class _Run:
    """One scoring, whose steps share rows, targets and a warm start."""

    def __init__(
        self, rows: ScoredRows, targets: Targets, settings: InfluenceSettings, bar: HeadProgress
    ) -> None:
        self._rows, self._targets, self._settings, self._bar = rows, targets, settings, bar
        self._num_rows, self._ranks = len(rows.labels), rows.ranks
        self._distilled = torch.full((self._num_rows,), settings.distilled)
        share = settings.distilled
        self._head = "all distilled" if share == 1.0 else f"{share:g} distilled"
        self._solves: list[SolveRecord] = []
        self._start = rows.start
        self._l2_grid: list[tuple[float, float]] = []
        self._l2 = settings.l2 if settings.l2 is not None else self._chosen_l2()

    def influence(self) -> Influence:
        undistil = ScoreSums()
        details = None
        for positions, target, point in self._points(self._distilled, self._head):
            undistil.add(point.scores.dloss_undistill, positions, self._num_rows)
            details = details or self._details(positions, target, point)
        assert details is not None, "there is at least one target"
        columns = {
            "dloss_undistill": undistil.mean.numpy(),
            "dloss_undistill_se": undistil.error.numpy(),
            "view_std": undistil.std.numpy(),
            **self._at_hard(),
            "dloss_current": self._current(undistil.mean).numpy(),
            **self._issues(),
            "undistil_order": self._order(),
        }
        return Influence(
            columns=columns,
            solves=self._solves,
            l2_grid=self._l2_grid,
            gain_over_guess=self._gain,
            is_exact=self._is_exact,
            details=details,
        )

    def _chosen_l2(self) -> float:
        """The largest l2 whose head on hard labels is within one standard error of the best, on
        the choosing rows. First-order scores are better at a larger l2."""
        every = self._problem(1.0, distilled=None)
        few = every.curvature  # hessian_subsample rows, if that is set
        grid = _grid(self._rows, self._settings)
        losses: list[Tensor] = []

        def problem_at(l2: float) -> HeadProblem:
            self._bar.begin(f"l2 {l2:.0e}")
            return replace(few, l2=l2)

        def mean_loss(weight: Tensor) -> float:
            losses.append(self._targets.choosing.losses(weight))
            return float(losses[-1].mean())

        tried = choose_l2(problem_at, mean_loss, self._start, grid=grid).losses
        self._bar.skip(len(grid) - len(tried))
        # A prior has a fixed weight against one row, so l2 times the number of rows is kept.
        scale = few.num_rows / every.num_rows
        self._l2_grid = [(l2 * scale, loss) for l2, loss in tried]
        simplest = int(agreed(self._ranks, simplest_within_error(losses)))
        return self._trusted(self._l2_grid[simplest][0])

    def _trusted(self, l2: float) -> float:
        """l2, or the first larger one whose head can be fitted and whose scores are reliable."""
        while True:
            self._bar.begin(f"{self._head}, l2 {l2:.0e}", counts=False)
            problem = self._problem(l2, distilled=self._distilled)
            try:
                # A rough head is enough to reject an l2, and costs half as much.
                enough = max(rough_gradient(problem), least_gradient(problem))
                fitted = self._fitted(problem, gtol=enough)
                if l2 > _STRONGEST or not self._is_loose(fitted):
                    if enough > least_gradient(problem):
                        self._fitted(problem, gtol=least_gradient(problem))
                    self._bar.skip(1)
                    return l2
                l2 *= 10**0.5
            except NotConverged:  # rows that a head separates with certainty add no curvature
                if l2 > _STRONGEST:
                    raise
                l2 *= 10.0

    def _fitted(self, problem: HeadProblem, *, gtol: float) -> HeadFit:
        found = fit(problem, start=self._start, gtol=gtol, max_iterations=_WORTH_WHILE)
        self._start = found.weight
        return found

    def _is_loose(self, fitted: HeadFit) -> bool:
        """True if l2 leaves too many parameters to the data for reliable first-order scores.

        EK-FAC counts a third more than there are, and restrains the biases too. The bound was
        measured with its numbers: by the exact ones, l2 is smaller and finds fewer wrong samples
        (digits: an AUC of 0.74 instead of 0.78).
        """
        decided = agreed(self._ranks, ekfac(fitted.linear).effective_parameters)
        return decided > TRUSTED_SHARE * self._num_rows

    def _problem(
        self, l2: float, *, distilled: Tensor | None, positions: Tensor | None = None
    ) -> HeadProblem:
        """The problem of all rows, or of some (positions, ascending), in a suitable precision."""
        rows, settings = self._rows, self._settings
        problem = HeadProblem(
            features=rows.features,
            labels=rows.labels,
            soft_labels=None if distilled is None else rows.soft_labels,
            distilled=distilled,
            kd_weight=0.0 if distilled is None else settings.kd_weight,
            temperature=settings.temperature,
            l2=l2,
            sharing=self._ranks,
            watch=self._bar,
        )
        if positions is not None and len(positions) < self._num_rows:
            problem = problem.part(positions)
        few = _subsample(problem.num_samples, settings.hessian_subsample)
        return with_precision(replace(problem, hessian_samples=few), num_classes=len(rows.start))

    def _points(self, distilled: Tensor, name: str) -> Iterator[tuple[Tensor, Target, ScoredPoint]]:
        """Positions of the rows that were scored, the target, the scores; for each target."""
        for positions, target in self._targets.each(self._num_rows):
            self._bar.begin(name)
            point = score_point(
                self._problem(self._l2, distilled=distilled, positions=positions),
                target,
                start=self._start,
                name=name,
                solver=self._settings.solver,
            )
            self._solves.append(point.record)
            self._start = point.linear.weight
            yield positions, target, point

    def _at_hard(self) -> dict[str, NDArray[np.generic]]:
        swap, remove, added = ScoreSums(), ScoreSums(), ScoreSums()
        own, leverage, gains = [], [], []
        for positions, target, point in self._points(torch.zeros(self._num_rows), "all hard"):
            swap.add(point.scores.dloss_swap, positions, self._num_rows)
            remove.add(point.scores.dloss_remove, positions, self._num_rows)
            added.add(score_added(point.linear, point.solution), positions, self._num_rows)
            gains.append(
                gains_over_guess(target, point.linear.weight, self._rows.labels[positions])
            )
            found = difficulty(point.linear, point.dense)
            own.append(placed(found.self_influence, positions, self._num_rows))
            leverage.append(placed(found.leverage, positions, self._num_rows))
            self._is_exact = point.dense is not None
        self._gain = mean_and_error(torch.cat(gains))
        return {
            "dloss_swap": swap.mean.numpy(),
            "dloss_swap_se": swap.error.numpy(),
            "dloss_remove": remove.mean.numpy(),
            "dloss_remove_se": remove.error.numpy(),
            "dloss_add": added.mean.numpy(),
            "self_influence": torch.stack(own).nanmean(dim=0).numpy(),
            "leverage": torch.stack(leverage).nanmean(dim=0).numpy(),
        }

    def _current(self, scores: Tensor) -> Tensor:
        """Scores after ``rounds`` rounds of selecting by them, refitting and scoring again."""
        current = torch.full_like(scores, torch.nan)
        for number in range(self._settings.rounds):
            sums, name = ScoreSums(), f"selected, round {number + 1}"
            for positions, _, point in self._points((scores > 0).double(), name):
                sums.add(point.scores.dloss_undistill, positions, self._num_rows)
            current = scores = sums.mean
        return current

    def _issues(self) -> dict[str, NDArray[np.generic]]:
        if not self._settings.label_issues:
            return {}
        self._bar.begin("label issues")
        return issue_columns(self._rows, l2=self._l2, watch=self._bar)

    def _order(self) -> NDArray[np.generic]:
        if not self._settings.param_change:
            return np.full(self._num_rows, -1)
        self._bar.begin("param-change")
        fitted = fit(
            self._problem(self._l2, distilled=self._distilled),
            start=self._start,
            gtol=1e-6,  # precise enough for an order of blocks
        )
        return undistil_order(fitted.linear, factors=ekfac(fitted.linear)).numpy()

    def _details(self, positions: Tensor, target: Target, point: ScoredPoint) -> Details:
        """Diagnostics of the first target, which stands for the others."""
        if not self._settings.diagnostics:
            return Details(target_weight_cosine=point.cosine)
        harmful = _undistilled(point) <= 0
        effect = undistil_effect(
            point.linear, harmful, target=target.as_problem(), step=self._settings.distilled
        )
        return Details(
            target_weight_cosine=point.cosine,
            rank_stability=self._stability(positions, target, point),
            second_order_gain=-effect.second_order,
        )

    def _stability(self, positions: Tensor, target: Target, point: ScoredPoint) -> dict[str, float]:
        """Spearman correlation of dloss_undistill with itself at other l2."""
        few = _subsample(len(positions), STABILITY_ROWS)
        here = None if few is not None else _undistilled(point)
        positions = positions if few is None else positions[few]
        target, weight = replace(target, groups=None), point.linear.weight

        def scores(factor: float) -> Tensor:
            problem = self._problem(
                self._l2 * factor, distilled=self._distilled, positions=positions
            )
            return undistil_scores(problem, target, start=weight)

        here = scores(1.0) if here is None else here
        found = {}
        for name, factor in STABILITY_FACTORS.items():
            self._bar.begin(name)
            found[name] = _spearman(here, scores(factor))
        return found


def _undistilled(point: ScoredPoint) -> Tensor:
    """dloss_undistill of the rows of a point."""
    assert point.scores.dloss_undistill is not None, "the rows have soft labels"
    return point.scores.dloss_undistill.mean


def _subsample(num_rows: int, wanted: int | None) -> Tensor | None:
    """Positions of about ``wanted`` rows, evenly spread; None for all."""
    if wanted is None or wanted >= num_rows:
        return None
    return (torch.arange(wanted) * num_rows) // wanted


def _spearman(one: Tensor, other: Tensor) -> float:
    ranks = torch.stack([values.argsort().argsort().double() for values in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])
