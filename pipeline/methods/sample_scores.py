"""Scores of each sample from the teacher's logits alone: the baselines of data selection.

EL2N and GraNd are from Paul et al. 2021, "Deep Learning on a Data Diet", arXiv:2107.07075,
computed for one trained teacher instead of many networks early in training.

Shapes: B batch, C classes, D features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleScores:
    """One value per sample, each (B,); p is the teacher's softmax at temperature 1."""

    teacher_class: Tensor
    """int64; the teacher's top class; the label if it ties for first."""

    teacher_correct: Tensor
    """bool; a tie for first place counts as right."""

    p_target: Tensor
    """float32; p of the label."""

    p_max: Tensor
    """float32; p of the top class."""

    cross_entropy: Tensor
    """float32, nats; -log p of the label."""

    el2n: Tensor
    """float32; ||p - onehot(y)||_2, in [0, sqrt 2]."""

    margin: Tensor
    """float32; p of the label minus the largest other p, in [-1, 1]."""

    entropy: Tensor
    """float32, nats; of p."""

    grand_head: Tensor | None
    """float32; norm of the cross-entropy's gradient in the head, or None without features."""


def score_samples(logits: Tensor, labels: Tensor, features: Tensor | None = None) -> SampleScores:
    """Score every sample of a batch from the teacher's logits.

        EL2N = ||p - y||_2     GraNd(head) = ||p - y||_2 sqrt(||h||_2^2 + 1)
                                                           (Paul et al. 2021, arXiv:2107.07075)

    Args:
        logits: teacher logits, (B, C), any floating dtype, C at least 2.
        labels: ground-truth class ids, (B,) int64 in [0, C).
        features: input of the teacher's head, (B, D); None leaves out ``grand_head``.

    Returns:
        One value per sample and score, on the device of ``logits``.

    Raises:
        ValueError: if there are fewer than two classes or a label is outside [0, C).

    >>> score_samples(torch.tensor([[2.0, 2.0]]), torch.tensor([1])).teacher_correct
    tensor([True])
    """
    logits = logits.float()
    _require_valid(labels, num_classes=logits.shape[1])
    label_column = labels[:, None]
    log_probs = torch.log_softmax(logits, dim=1)
    probs = log_probs.exp()
    p_target = probs.gather(1, label_column).squeeze(1)
    correct = logits.gather(1, label_column).squeeze(1) >= logits.amax(dim=1)
    residuals = probs.scatter_add(1, label_column, -torch.ones_like(p_target)[:, None])
    el2n = torch.linalg.vector_norm(residuals, dim=1)
    return SampleScores(
        teacher_class=torch.where(correct, labels, logits.argmax(dim=1)),
        teacher_correct=correct,
        p_target=p_target,
        p_max=probs.amax(dim=1),
        cross_entropy=-log_probs.gather(1, label_column).squeeze(1),
        el2n=el2n,
        margin=p_target - probs.scatter(1, label_column, -1.0).amax(dim=1),
        entropy=torch.special.entr(probs).sum(dim=1),
        grand_head=None if features is None else el2n * _input_norms(features),
    )


def _input_norms(features: Tensor) -> Tensor:
    """||[h; 1]||, (B,) float32: the bias reads a constant 1."""
    return (features.float().square().sum(dim=1) + 1.0).sqrt()


def _require_valid(labels: Tensor, *, num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(f"a margin needs at least 2 classes, got {num_classes}")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels must be in [0, {num_classes}), got {int(labels.min())} to {int(labels.max())}"
        )
