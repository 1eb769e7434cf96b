"""Influence scores: predicted change of held-out loss if one sample's supervision changes.

Koh & Liang 2017, arXiv:1703.04730, exact for the refitted linear softmax head of
`head.problem`: with V = H^-1 dL_V one product per row scores every sample.

Sign convention: every score is the predicted change of the MEAN held-out cross-entropy, so
a negative score means an improvement. The number of samples N in the objective stays fixed,
and so does the regulariser.

Shapes: N samples, M held-out samples, K views, D features, C classes, G groups, n samples of a
chunk.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.methods.head.data import Rows, read_rows, runs
from pipeline.methods.head.problem import Linearisation, centred
from pipeline.methods.head.rows import LinearRows, with_bias_input
from pipeline.methods.rank_sums import NOT_SHARED, Sharing, largest, led, summed

SILENT = 1e-6
"""Largest difference in probability at which soft labels count as the head's own outputs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RowScores:
    """One score for every sample."""

    mean: Tensor
    """Mean over views, which is the score of the sample, (N,) float64."""

    std: Tensor
    """Standard deviation over views (of the K views themselves: 0 for one), (N,) float64."""

    error: Tensor | None = None
    """Standard error over the groups of held-out samples, (N,) float64; None without groups."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadScores:
    """Predicted changes of mean held-out cross-entropy; see `score_rows` for the formulas."""

    dloss_remove: RowScores
    """Change if the sample were left out. Positive: the sample helps."""

    dloss_swap: RowScores | None
    """Change if the sample went from its hard label to distillation. Negative: distil it.
    For the all-hard point (s = 0). None without soft labels."""

    dloss_undistill: RowScores | None
    """Change if the sample went from distillation to its hard label. Positive: distil it.
    For the all-distilled point (s = 1). None without soft labels."""


def heldout_gradient(
    weight: Tensor,
    features: Rows,
    labels: Tensor,
    *,
    rows_per_chunk: int = 4096,
    sharing: Sharing = NOT_SHARED,
) -> Tensor:
    """Gradient of the mean held-out cross-entropy on hard labels.

        dL_V = (1/M) sum_j (softmax(W h~_j) - y_j) h~_j^T

    Args:
        weight: W, (C, D + 1), bias last.
        features: features of the clean view, (M, D) or (1, M, D), any floating dtype.
        labels: (M,) int64 in [0, C).
        rows_per_chunk: samples read at once; changes the result by rounding only.
        sharing: processes that each read a part of the samples.

    Returns:
        (C, D + 1) float64, centred over classes, on the device of ``weight``.

    Raises:
        ValueError: if the shapes do not fit together or there are no rows.
    """
    if isinstance(features, Tensor) and features.ndim == 2:
        features = features[None]
    shape = tuple(features.shape)
    if len(shape) != 3 or shape[0] != 1 or len(labels) != shape[1] or len(labels) == 0:
        raise ValueError(
            f"features and labels must be (M, D) and (M,), got {shape} and {tuple(labels.shape)}"
        )
    weight, own = led(sharing, weight.double()), sharing.part(len(labels))
    total = torch.zeros_like(weight)
    for rows in runs(own, size=rows_per_chunk):
        inputs = with_bias_input(read_rows(features, rows)[0].to(weight.device, torch.float64))
        column = labels[rows].to(weight.device)[:, None]
        residuals = torch.softmax(inputs @ weight.T, dim=1)
        residuals = residuals.scatter_add(1, column, -torch.ones_like(residuals[:, :1]))
        total += residuals.T @ inputs
    return centred(summed(sharing, total) / len(labels))


def score_rows(
    linear: Linearisation, solution: Tensor, *, group_solutions: Tensor | None = None
) -> HeadScores:
    """Score every sample in one pass.

        dloss_remove_i    =  (1/N) mean_k < r_ik h~_ik^T, V >
        delta_ik          =  w [ tau (p^tau_ik - t_ik) - (p_ik - y_i) ]
        dloss_swap_i      = -(1/N) mean_k < delta_ik h~_ik^T, V >
        dloss_undistill_i = +(1/N) mean_k < delta_ik h~_ik^T, V >

    r_ik is the sample's own residual in the objective: its weight goes from 1 to 0 while
    1/N and the regulariser stay. The last two are derivatives with respect to s_i, taken at
    the problem's own s.

    Args:
        linear: the problem at its minimum.
        solution: V = H^-1 dL_V there, (C, D + 1).
        group_solutions: V of G equal parts of the held-out samples, (G, C, D + 1), for standard
            errors: the deviation of the G scores of a sample divided by the root of G.

    Returns:
        Scores of all N samples, float64; the fields explain their signs.
    """
    solutions = _all_solutions(solution, group_solutions, sharing=linear.problem.sharing)
    remove = _Collected(linear, num_groups=len(solutions) - 1)
    swap = _Collected(linear, num_groups=len(solutions) - 1)
    for chunk in linear.chunks():
        residuals = chunk.residuals()
        deltas = None if chunk.rows.soft is None else swap_residuals(chunk, linear=linear)
        for group, part in enumerate(solutions):
            pulls = chunk.rows.inputs @ part.to(chunk.rows.inputs).T
            remove.add((residuals * pulls).sum(dim=1), group=group)
            if deltas is not None:
                swap.add(-(deltas * pulls).sum(dim=1), group=group)
    swapped = None if linear.problem.soft_labels is None else swap.scores()
    return HeadScores(
        dloss_remove=remove.scores(),
        dloss_swap=swapped,
        dloss_undistill=(
            None
            if swapped is None
            else RowScores(mean=-swapped.mean, std=swapped.std, error=swapped.error)
        ),
    )


def score_added(linear: Linearisation, solution: Tensor) -> RowScores:
    """Predicted change if a distillation term were added to a sample's loss.

        dloss_add_i = -(1/N) mean_k < w tau (p^tau_ik - t_ik) h~_ik^T, V >

    Negative: distil it. The weight w is the problem's ``kd_weight``.

    Args:
        linear: the problem at its minimum.
        solution: V = H^-1 dL_V there, (C, D + 1).

    Raises:
        ValueError: without soft labels; or if they are the head's own outputs, as at the teacher's
            head, where the added term has no gradient and every score would be 0.
    """
    if linear.problem.soft_labels is None:
        raise ValueError("soft_labels are missing: adding a term needs them")
    sharing = linear.problem.sharing
    collected, loudest, solution = _Collected(linear), 0.0, led(sharing, solution)
    for chunk in linear.chunks():
        assert chunk.rows.soft is not None, "the problem has soft labels"
        residuals = chunk.soft_residuals(chunk.rows.soft)
        loudest = max(loudest, float(residuals.abs().max()) / linear.problem.temperature)
        pulls = chunk.rows.inputs @ solution.to(chunk.rows.inputs).T
        collected.add(-linear.problem.kd_weight * (residuals * pulls).sum(dim=1))
    loudest = largest(sharing, loudest)
    if loudest < SILENT:
        raise ValueError(
            "the soft labels are the head's own outputs (the largest difference is "
            f"{loudest:.1e}), so adding them has no gradient. Refit the head first."
        )
    return collected.scores()


def swap_residuals(chunk: LinearRows, *, linear: Linearisation) -> Tensor:
    """delta of `score_rows`: change of a row's logit gradient by distillation, (M, C)."""
    soft = chunk.rows.soft
    assert soft is not None, "the problem has soft labels"
    return linear.problem.kd_weight * (chunk.soft_residuals(soft) - chunk.hard_residuals())


def sum_rule_error(scores: HeadScores, *, linear: Linearisation, solution: Tensor) -> float:
    """Relative error of an identity that holds at every minimum.

        sum_i dloss_remove_i = -l2 < V, m o W >

    It follows from dJ = 0 and checks sign, scale, bias and regulariser at once. It also shows
    that the sign of `dloss_remove` alone does not find harmful samples: the sum is near 0.

    Args:
        scores: result of `score_rows` for ``linear`` and ``solution``.
        linear: the problem at its minimum.
        solution: V, (C, D + 1).

    Returns:
        |left - right| / max(|left|, |right|); 0 where both are 0.
    """
    problem, weight = linear.problem, linear.weight
    left = float(scores.dloss_remove.mean.sum())
    right = -problem.l2 * float((solution * problem.mask(weight) * weight).sum())
    size = max(abs(left), abs(right))
    return abs(left - right) / size if size else 0.0


class _Collected:
    """A score of this process's samples, chunk by chunk: all held-out samples, then each group."""

    def __init__(self, linear: Linearisation, *, num_groups: int = 0) -> None:
        self._linear, self._problem, self._num_groups = linear, linear.problem, num_groups
        self._means: list[Tensor] = []
        self._stds: list[Tensor] = []
        self._groups: list[list[Tensor]] = []

    def add(self, values: Tensor, *, group: int = 0) -> None:
        """Add one value for every row of a chunk, (K n,); group 0 is all held-out samples."""
        scaled = values.double() / self._problem.num_samples
        views = scaled.view(self._problem.num_views, -1)
        if group == 0:
            self._means.append(views.mean(dim=0))
            self._stds.append(views.std(dim=0, correction=0))
            self._groups.append([])
        else:
            self._groups[-1].append(views.mean(dim=0))

    def scores(self) -> RowScores:
        """Scores of the samples of all processes."""
        error = None
        if self._num_groups:
            errors = [torch.stack(groups).std(dim=0) for groups in self._groups]
            error = self._gathered(errors) / self._num_groups**0.5
        return RowScores(
            mean=self._gathered(self._means), std=self._gathered(self._stds), error=error
        )

    def _gathered(self, parts: list[Tensor]) -> Tensor:
        own = torch.cat([self._linear.weight.new_empty(0), *parts])  # a process may have no sample
        return self._problem.sharing.gathered(own)


def _all_solutions(solution: Tensor, groups: Tensor | None, *, sharing: Sharing) -> list[Tensor]:
    if groups is None:
        return [led(sharing, solution)]
    return [led(sharing, solution), *led(sharing, groups)]
