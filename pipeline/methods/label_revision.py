"""Label revision: move the teacher towards the label, in every row or only where it is wrong.

Lan et al. 2024, "Improve Knowledge Distillation via Label Revision and Data
Selection", arXiv:2404.03693. The baselines `swap_labels` (Wen et al. 2019,
arXiv:1911.07471) and `drop_wrong` are here too, for comparison.

A tie for first place counts as right, so no result depends on how argmax breaks ties.
Everything is computed in float32 at least: in float16 the margin 1 - eta can be lost.

Shapes: B batch, C classes.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.methods.catalogue import Revision
from pipeline.methods.precision import at_least_float32


def softened_probs(logits: Tensor, *, temperature: float) -> Tensor:
    """Softmax of the logits at a temperature.

        p = softmax(z / temperature)                       (Hinton et al. 2015, arXiv:1503.02531)

    Args:
        logits: (B, C), any floating dtype.
        temperature: finite, above 0; 1 leaves the logits unchanged.

    Returns:
        Probabilities, (B, C) float32 (float64 for float64 logits), rows sum to 1.

    Raises:
        ValueError: if ``temperature`` is not finite or not above 0.

    >>> softened_probs(torch.tensor([[0.0, 0.0]]), temperature=4.0)
    tensor([[0.5000, 0.5000]])
    """
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise ValueError(f"temperature must be finite and above 0, got {temperature}")
    return torch.softmax(at_least_float32(logits) / temperature, dim=1)


def revision_beta(probs: Tensor, labels: Tensor, *, eta: float) -> Tensor:
    """Share of the teacher's probabilities in a revised row.

        beta = eta / (p_max - p_y + 1)                     (Lan et al. 2024, arXiv:2404.03693)

    The label ranks first for every beta < 1 / (p_max - p_y + 1), hence for every eta
    in (0, 1). A row that the teacher got right has p_max = p_y, so beta = eta.

    Args:
        probs: teacher probabilities, (B, C), rows sum to 1.
        labels: ground-truth class ids, (B,) int64 in [0, C).
        eta: fraction of the largest admissible beta, in (0, 1).

    Returns:
        (B,) float32 or float64, in (0, eta].

    Raises:
        ValueError: if ``eta`` is outside (0, 1) or a label outside [0, C).
    """
    if not 0.0 < eta < 1.0:
        raise ValueError(f"eta must be in (0, 1), got {eta}")
    p_max, p_label = _top_and_label(at_least_float32(probs), labels)
    return (eta / (p_max - p_label + 1.0)).squeeze(1)


def revise_labels(
    probs: Tensor, labels: Tensor, *, eta: float, rows: Literal["wrong", "all"] = "wrong"
) -> Tensor:
    """Mix teacher rows with their one-hot labels until the label ranks first.

        p = beta p_teacher + (1 - beta) onehot(y)          (Lan et al. 2024, arXiv:2404.03693)

    In a wrong row the label then leads the best other class by exactly 1 - eta.

    Args:
        probs: teacher probabilities, (B, C), rows sum to 1.
        labels: ground-truth class ids, (B,) int64 in [0, C).
        eta: fraction of the largest admissible beta, in (0, 1).
        rows: revise only the rows that the teacher got "wrong", or "all" rows, the default of
            `select`; right rows have beta = eta under "all" and are returned unchanged under
            "wrong".

    Returns:
        Revised probabilities, (B, C) float32 or float64, rows sum to 1.

    Raises:
        ValueError: if ``eta`` is outside (0, 1), a label outside [0, C) or ``rows`` unknown.
    """
    if rows not in ("wrong", "all"):
        raise ValueError(f'rows must be "wrong" or "all", got {rows!r}')
    probs = at_least_float32(probs)
    beta = revision_beta(probs, labels, eta=eta)[:, None]
    revised = (beta * probs).scatter_add(1, labels[:, None], 1.0 - beta)
    return revised if rows == "all" else torch.where(_is_wrong(probs, labels), revised, probs)


def swap_labels(probs: Tensor, labels: Tensor) -> Tensor:
    """Exchange the label's probability with the top one in every wrong row.

        p'_y = p_max,   p'_argmax = p_y                    (Wen et al. 2019, arXiv:1911.07471)

    Args:
        probs: teacher probabilities, (B, C), rows sum to 1.
        labels: ground-truth class ids, (B,) int64 in [0, C).

    Returns:
        (B, C) float32 or float64; every row is a permutation of its input.

    Raises:
        ValueError: if a label is outside [0, C).
    """
    probs = at_least_float32(probs)
    p_max, p_label = _top_and_label(probs, labels)
    swapped = probs.scatter(1, probs.argmax(dim=1, keepdim=True), p_label)
    swapped = swapped.scatter(1, labels[:, None], p_max)
    return torch.where(p_label < p_max, swapped, probs)


def drop_wrong(probs: Tensor, labels: Tensor) -> Tensor:
    """Replace every wrong row by its one-hot label.

    Args:
        probs: teacher probabilities, (B, C), rows sum to 1.
        labels: ground-truth class ids, (B,) int64 in [0, C).

    Returns:
        (B, C) float32 or float64, rows sum to 1.

    Raises:
        ValueError: if a label is outside [0, C).
    """
    probs = at_least_float32(probs)
    wrong = _is_wrong(probs, labels)
    return torch.where(wrong, F.one_hot(labels, probs.shape[1]).to(probs.dtype), probs)


def soft_labels(
    logits: Tensor, labels: Tensor, *, revision: Revision, eta: float, temperature: float
) -> Tensor:
    """Convert teacher logits to the soft labels that a student is distilled from.

    Args:
        logits: teacher logits, (B, C), any floating dtype.
        labels: ground-truth class ids, (B,) int64 in [0, C).
        revision: "none" changes nothing; "wrong" and "all" revise those rows; "swap" and
            "drop-wrong" are baselines.
        eta: in (0, 1), see `revise_labels`; the other revisions do not read it.
        temperature: temperature of the probabilities that are revised.

    Returns:
        Soft labels, (B, C) float32 (float64 for float64 logits), rows sum to 1.

    Raises:
        ValueError: if a setting or a label is out of range, or ``revision`` is unknown.

    >>> z, y = torch.tensor([[2.0, 0.0]]).log(), torch.tensor([1])
    >>> soft_labels(z, y, revision="wrong", eta=0.8, temperature=1.0)
    tensor([[0.4000, 0.6000]])
    """
    probs = softened_probs(logits, temperature=temperature)
    _require_labels_in_range(labels, num_classes=probs.shape[1])
    match revision:
        case "none":
            return probs
        case "wrong" | "all":
            return revise_labels(probs, labels, eta=eta, rows=revision)
        case "swap":
            return swap_labels(probs, labels)
        case "drop-wrong":
            return drop_wrong(probs, labels)
    raise ValueError(
        f'revision must be "none", "wrong", "all", "swap" or "drop-wrong", got {revision!r}'
    )


def _is_wrong(probs: Tensor, labels: Tensor) -> Tensor:
    """Rows whose label is not at the top, (B, 1) bool."""
    p_max, p_label = _top_and_label(probs, labels)
    return p_label < p_max


def _top_and_label(probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Top probability and probability of the label, each (B, 1)."""
    _require_labels_in_range(labels, num_classes=probs.shape[1])
    return probs.amax(dim=1, keepdim=True), probs.gather(1, labels[:, None])


def _require_labels_in_range(labels: Tensor, *, num_classes: int) -> None:
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels must be in [0, {num_classes}), got {int(labels.min())} to {int(labels.max())}"
        )
