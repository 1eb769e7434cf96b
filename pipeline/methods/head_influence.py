"""Influence scores: how held-out loss would move if one sample were supervised otherwise.

Koh & Liang 2017, arXiv:1703.04730, exact for the refitted linear softmax head of
`head_problem`: with V = H^-1 dL_V one product per row scores every sample.

Sign convention: every score is the predicted change of the MEAN held-out cross-entropy, so
a negative score announces an improvement. The number of samples N in the objective stays
fixed, and so does the regulariser.

Shapes: N samples, M held-out samples, K views, D features, C classes, n samples of a chunk.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.methods.head_problem import Linearisation, centred
from pipeline.methods.head_rows import LinearRows, SoftSide, with_bias_input


@dataclass(frozen=True, kw_only=True, eq=False)
class RowScores:
    """One score of every sample."""

    mean: Tensor
    """Mean over views, which is the score of the sample, (N,) float64."""

    std: Tensor
    """Standard deviation over views (of the K views themselves: 0 for one), (N,) float64."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadScores:
    """Predicted changes of mean held-out cross-entropy; see `score_rows` for the formulas."""

    dloss_remove: RowScores
    """If the sample were left out. Positive: it helps where it is."""

    dloss_swap: RowScores | None
    """If the sample went from its hard label to distillation. Negative: distil it.
    Meant for the all-hard point (s = 0). None without soft labels."""

    dloss_undistill: RowScores | None
    """If the sample went from distillation to its hard label. Positive: distil it.
    Meant for the all-distilled point (s = 1). None without soft labels."""


def heldout_gradient(
    weight: Tensor, features: Tensor, labels: Tensor, *, rows_per_chunk: int = 4096
) -> Tensor:
    """Gradient of the mean held-out cross-entropy on hard labels.

        dL_V = (1/M) sum_j (softmax(W h~_j) - y_j) h~_j^T

    Args:
        weight: W, (C, D + 1), bias last.
        features: of the clean view, (M, D), any floating dtype.
        labels: (M,) int64 in [0, C).
        rows_per_chunk: samples read at once; changes the result by rounding only.

    Returns:
        (C, D + 1) float64, centred over classes, on the device of ``weight``.

    Raises:
        ValueError: if the shapes do not fit together or there are no rows.
    """
    if features.ndim != 2 or len(labels) != len(features) or len(labels) == 0:
        raise ValueError(
            f"features and labels must be (M, D) and (M,), got {tuple(features.shape)} "
            f"and {tuple(labels.shape)}"
        )
    weight = weight.double()
    total = torch.zeros_like(weight)
    for start in range(0, len(labels), rows_per_chunk):
        rows = slice(start, start + rows_per_chunk)
        inputs = with_bias_input(features[rows].to(weight.device, torch.float64))
        column = labels[rows].to(weight.device)[:, None]
        residuals = torch.softmax(inputs @ weight.T, dim=1)
        residuals = residuals.scatter_add(1, column, -torch.ones_like(residuals[:, :1]))
        total += residuals.T @ inputs
    return centred(total / len(labels))


def score_rows(linear: Linearisation, solution: Tensor) -> HeadScores:
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

    Returns:
        Scores of all N samples, float64; see the fields for what their signs mean.
    """
    remove, swap = [], []
    for chunk in linear.chunks():
        scale = 1.0 / linear.problem.num_samples
        pulls = scale * (chunk.rows.inputs @ solution.double().T)
        remove.append(_per_view((chunk.residuals() * pulls).sum(dim=1), linear=linear))
        if chunk.rows.soft is not None:
            deltas = _swap_residuals(chunk, soft=chunk.rows.soft, linear=linear)
            swap.append(_per_view(-(deltas * pulls).sum(dim=1), linear=linear))
    swapped = _over_views(torch.cat(swap, dim=1)) if swap else None
    return HeadScores(
        dloss_remove=_over_views(torch.cat(remove, dim=1)),
        dloss_swap=swapped,
        dloss_undistill=(
            None if swapped is None else RowScores(mean=-swapped.mean, std=swapped.std)
        ),
    )


def sum_rule_error(scores: HeadScores, *, linear: Linearisation, solution: Tensor) -> float:
    """Relative error of an identity that holds at every minimum.

        sum_i dloss_remove_i = -l2 < V, m o W >

    It follows from dJ = 0 and checks sign, scale, bias and regulariser at once. It also
    says that the sign of `dloss_remove` alone finds no harmful samples: the sum is tiny.

    Args:
        scores: what `score_rows` returned for ``linear`` and ``solution``.
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


def _swap_residuals(chunk: LinearRows, *, soft: SoftSide, linear: Linearisation) -> Tensor:
    """delta: what distilling adds to a row's logit gradient, (M, C)."""
    return linear.problem.kd_weight * (chunk.soft_residuals(soft) - chunk.hard_residuals())


def _per_view(values: Tensor, *, linear: Linearisation) -> Tensor:
    """(K n,) to (K, n)."""
    return values.reshape(linear.problem.num_views, -1)


def _over_views(values: Tensor) -> RowScores:
    return RowScores(mean=values.mean(dim=0), std=values.std(dim=0, correction=0))
