"""The student's loss: cross-entropy on every row, distillation on the selected ones.

Lan et al. 2024, arXiv:2404.03693, figure 1 (losses 1, 2 and 3), with the distillation term of
Hinton et al. 2015, arXiv:1503.02531. Computed in float32 even under autocast.

Shapes: B batch, C classes.
"""

from torch import Tensor
from torch.nn import functional as F

from pipeline.methods.precision import at_least_float32

IGNORED = -100  # label that F.nll_loss skips: the row adds nothing to the value or the gradient


def kd_loss_rows(student_logits: Tensor, soft_labels: Tensor, *, temperature: float) -> Tensor:
    """Divergence of the student from each row's soft label.

        KD_i = temperature^2 KL(t_i || softmax(z_i / temperature))
                                                           (Hinton et al. 2015, arXiv:1503.02531)

    Args:
        student_logits: (B, C), any floating dtype.
        soft_labels: (B, C), rows sum to 1; zeros are allowed.
        temperature: above 0.

    Returns:
        (B,) float32 (float64 for float64 logits), 0 where the student agrees.

    >>> import torch
    >>> t = torch.tensor([[1.0, 0.0]])
    >>> kd_loss_rows(torch.zeros(1, 2), t, temperature=1.0)
    tensor([0.6931])
    """
    elements = _kl_elements(student_logits, soft_labels, temperature=temperature)
    return temperature**2 * elements.sum(dim=1)


def distillation_loss(
    student_logits: Tensor,
    labels: Tensor,
    *,
    soft_labels: Tensor,
    selected: Tensor,
    lambda_ce: float,
    lambda_kd: float,
    temperature: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean loss of a batch in which only the selected rows are distilled.

        L = (1/B) sum_i [ (1 - s_i) CE_i + s_i (lambda_ce CE_i + lambda_kd KD_i) ]
                                                           (Lan et al. 2024, figure 1)

    Value and gradient are bit-identical (float32, CPU) to `F.cross_entropy` if nothing is
    selected, and to vanilla distillation if everything is. This needs the three masked sums:
    blending per row before summing would round differently.

    Args:
        student_logits: (B, C), any floating dtype.
        labels: ground-truth class ids, (B,) int64 in [0, C).
        soft_labels: (B, C), finite, rows sum to 1; rows that are not selected are not used.
        selected: s, (B,) bool.
        lambda_ce: weight of the cross-entropy of a selected row.
        lambda_kd: weight of its distillation term.
        temperature: temperature of ``soft_labels``, above 0.
        label_smoothing: smoothing of both cross-entropies, in [0, 1).

    Returns:
        Scalar, float32 (float64 for float64 logits).

    >>> import torch
    >>> z, y, t = torch.zeros(2, 2), torch.tensor([0, 1]), torch.full((2, 2), 0.5)
    >>> distillation_loss(z, y, soft_labels=t, selected=torch.tensor([True, False]),
    ...                   lambda_ce=0.0, lambda_kd=1.0, temperature=4.0)
    tensor(0.3466)
    """
    supervised = supervised_loss(
        student_logits,
        labels,
        selected=selected,
        lambda_ce=lambda_ce,
        label_smoothing=label_smoothing,
    )
    elements = _kl_elements(student_logits, soft_labels, temperature=temperature)
    kl = elements.masked_fill(~selected[:, None], 0.0).sum()
    return supervised + lambda_kd * temperature**2 * (kl / len(labels))


def supervised_loss(
    student_logits: Tensor,
    labels: Tensor,
    *,
    selected: Tensor,
    lambda_ce: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy part of `distillation_loss`: its first two sums.

        (1/B) sum_i [ (1 - s_i) CE_i + s_i lambda_ce CE_i ]

    Args:
        student_logits: (B, C), any floating dtype.
        labels: ground-truth class ids, (B,) int64 in [0, C).
        selected: s, (B,) bool.
        lambda_ce: weight of the cross-entropy of a selected row.
        label_smoothing: smoothing of both cross-entropies, in [0, 1).

    Returns:
        Scalar, float32 (float64 for float64 logits).
    """
    logits = at_least_float32(student_logits)

    def cross_entropy(without: Tensor) -> Tensor:
        return F.cross_entropy(
            logits,
            labels.masked_fill(without, IGNORED),
            reduction="sum",
            label_smoothing=label_smoothing,
        )

    batch_size = len(labels)
    return cross_entropy(selected) / batch_size + lambda_ce * (
        cross_entropy(~selected) / batch_size
    )


def _kl_elements(student_logits: Tensor, soft_labels: Tensor, *, temperature: float) -> Tensor:
    """t (log t - log p) per class, (B, C); 0 where t is 0."""
    log_probs = F.log_softmax(at_least_float32(student_logits) / temperature, dim=1)
    return F.kl_div(log_probs, soft_labels.to(log_probs.dtype), reduction="none")
