"""Label issues: samples whose label a model that has not seen them confidently contradicts.

Confident learning: Northcutt et al. 2021, "Confident Learning: Estimating Uncertainty in Dataset
Labels", arXiv:1911.00068.

    t_j   = mean of p_ij over the samples labelled j          the usual confidence of class j
    guess = j   if p_ij >= t_j for this class only            the only confident class
    guess = argmax_j p_ij   if for several

These are exactly the rules of cleanlab's ``filter_by="confident_learning"``: probabilities within
1e-6 are equal, a threshold is at least 2e-6, a class without samples is never the guess, and a
sample whose label is at the top of its row is not an issue. With several confident classes the
guess is the top of the whole row, not only of these; here cleanlab differs from the paper.

Shapes: N samples, C classes.
"""

import torch
from torch import Tensor

CLOSE = 1e-6
SMALLEST_THRESHOLD = 2e-6
_UNREACHABLE = 2.0  # a threshold that no probability reaches
_ROWS = 65_536  # 0.5 GB in float64 at 1000 classes


def confident_thresholds(label_probs: Tensor, labels: Tensor, *, num_classes: int) -> Tensor:
    """Mean probability of the label over the samples of each class; 2 for a class without samples.

    Args:
        label_probs: p of the label, (N,), any floating dtype; from a model not trained on the row.
        labels: class ids, (N,) int64 in [0, C).
        num_classes: C.
    Returns:
        t, (C,) float64.
    Raises:
        ValueError: if a label is out of range or a probability is not finite.

    >>> confident_thresholds(torch.tensor([0.5, 1.0]), torch.tensor([1, 1]), num_classes=2)
    tensor([2.0000, 0.7500], dtype=torch.float64)
    """
    _require(label_probs, labels, num_classes=num_classes)
    counts = torch.bincount(labels, minlength=num_classes)
    total = torch.zeros(num_classes, dtype=torch.float64)
    total.index_add_(0, labels, label_probs.double())
    means = (total / counts.clamp(min=1)).clamp(min=SMALLEST_THRESHOLD)
    return torch.where(counts > 0, means, _UNREACHABLE)


def label_issues(probs: Tensor, labels: Tensor, *, thresholds: Tensor | None = None) -> Tensor:
    """Samples whose confident guess is another class than their label.

    Args:
        probs: (N, C), any floating dtype, rows sum to 1; from a model not trained on the row.
        labels: class ids, (N,) int64 in [0, C).
        thresholds: t, (C,), of all rows if ``probs`` are only a part of them; None: computed here.
    Returns:
        (N,) bool.
    Raises:
        ValueError: if a label is out of range or a probability is not finite.
    """
    thresholds = _thresholds(probs, labels, thresholds)
    issues = []
    for start in range(0, len(labels), _ROWS):
        own = labels[start : start + _ROWS]
        wide = probs[start : start + _ROWS].double()
        guess = _guess(wide, thresholds)
        raised = wide.scatter_add(1, own[:, None], torch.full_like(wide[:, :1], CLOSE))
        issues.append((guess >= 0) & (guess != own) & (raised.argmax(dim=1) != own))
    return torch.cat(issues) if issues else torch.zeros(0, dtype=torch.bool)


def _guess(probs: Tensor, thresholds: Tensor) -> Tensor:
    """The confident class of each row, (N,) int64; -1 where there is none."""
    confident = probs >= thresholds - CLOSE
    count = confident.sum(dim=1)
    guess = torch.where(count > 1, probs.argmax(dim=1), confident.byte().argmax(dim=1))
    return torch.where(count > 0, guess, -1)


def _thresholds(probs: Tensor, labels: Tensor, given: Tensor | None) -> Tensor:
    _require(probs, labels, num_classes=probs.shape[1])
    if given is not None:
        return given.double()
    own = probs.gather(1, labels[:, None]).squeeze(1)
    return confident_thresholds(own, labels, num_classes=probs.shape[1])


def _require(probs: Tensor, labels: Tensor, *, num_classes: int) -> None:
    if len(labels) != len(probs):
        raise ValueError(f"labels must be ({len(probs)},), got {tuple(labels.shape)}")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels must be in [0, {num_classes}), got {int(labels.min())} to {int(labels.max())}"
        )
    if not torch.isfinite(probs).all():
        raise ValueError("probabilities must be finite, got NaN or infinity")
