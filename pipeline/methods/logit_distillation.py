"""Distillation from soft labels beyond vanilla: by parts, by correlations, on several levels.

The teacher's outputs are probabilities at one temperature; if a formula needs another one, the
probabilities are raised to a power, see `at_temperature`. Everything is computed in float32 at
least, even under autocast. Gradients are finite for every soft label, with or without zeros.

Shapes: B batch (1 or more), C classes (2 or more).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.methods.distillation import kd_loss_rows
from pipeline.methods.feature_distillation import unit_rows
from pipeline.methods.precision import at_least_float32

DIST_EPSILON = 1e-8  # of DIST's published code; damps classes whose probability hardly varies


def dkd_rows(
    student_logits: Tensor,
    soft_labels: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    alpha: float,
    beta: float,
) -> Tensor:
    """Decoupled distillation: the label against the other classes, and these among themselves.

        DKD_i = temperature^2 (alpha TCKD_i + beta NCKD_i)
        TCKD = KL([p_y, 1 - p_y] || [q_y, 1 - q_y]),   q = softmax(z / temperature)
        NCKD = KL(p^ || q^),   p^_j = p_j / (1 - p_y) for j != y, and q^ alike
                                                            (Zhao et al. 2022, arXiv:2203.08679)

    Vanilla distillation is TCKD + (1 - p_y) NCKD. NCKD is 0 for a row whose other classes have
    probability 0, such as a one-hot label. The published code removes the label from q^ by
    subtracting 1000 from its logit; here it is left out. Weights in the field: alpha 1, beta 2, 6
    or 8 by pair.

    Args:
        student_logits: z, (B, C), any floating dtype.
        soft_labels: p, (B, C), rows sum to 1; zeros are allowed.
        labels: y, ground-truth class ids, (B,) int64 in [0, C).
        temperature: temperature of ``soft_labels``, above 0.
        alpha: weight of TCKD.
        beta: weight of NCKD.

    Returns:
        (B,) float32 (float64 for float64 logits), 0 where the student agrees.

    >>> p, y = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([0])
    >>> dkd_rows(torch.zeros(1, 3), p, y, temperature=1.0, alpha=0.0, beta=1.0)
    tensor([0.6931])
    """
    logits = at_least_float32(student_logits) / temperature
    probs, is_label = soft_labels.to(logits.dtype), _is_label(logits, labels)
    margins = _margins(logits, is_label)
    log_q = torch.stack([F.logsigmoid(margins), F.logsigmoid(-margins)], dim=1)
    of_label = probs.where(is_label, 0.0).sum(dim=1)
    of_others = probs.masked_fill(is_label, 0.0).sum(dim=1)
    tckd = _kl_rows(log_q, torch.stack([of_label, of_others], dim=1))
    nckd = _kl_rows(_others_log_softmax(logits, is_label), _others_probs(probs, is_label))
    return temperature**2 * (alpha * tckd + beta * nckd)


def nkd_rows(
    student_logits: Tensor,
    soft_labels: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    gamma: float,
) -> Tensor:
    """Normalised distillation: the label weighted by the teacher's confidence, the rest normalised.

        NKD_i = -p1_y log q1_y - gamma temperature^2 sum_{j != y} p^_j log q^_j
        p1, q1 at temperature 1;   p^_j = p_j / (1 - p_y), and q^ alike, at temperature
                                                            (Yang et al. 2023, arXiv:2303.13005)

    These are cross-entropies, not divergences: a student that equals its teacher has a loss above
    0, and the first term has the gradient p1_y (q1 - onehot(y)); the second has none there. The
    second term is 0 for a row whose other classes have probability 0. Published settings: gamma
    1.5 at temperature 1 for ImageNet, 3.5 at temperature 3 for CIFAR-100.

    Args:
        student_logits: z, (B, C), any floating dtype.
        soft_labels: p, (B, C), rows sum to 1; zeros are allowed.
        labels: y, ground-truth class ids, (B,) int64 in [0, C).
        temperature: temperature of ``soft_labels``, above 0.
        gamma: weight of the other classes.

    Returns:
        (B,) float32 (float64 for float64 logits), 0 or more.
    """
    logits = at_least_float32(student_logits)
    probs, is_label = soft_labels.to(logits.dtype), _is_label(logits, labels)
    trust = at_temperature(probs, found=temperature, wanted=1.0).gather(1, labels[:, None])
    of_label = -trust.squeeze(1) * F.logsigmoid(_margins(logits, is_label))
    log_q = _others_log_softmax(logits / temperature, is_label)
    of_others = -(_others_probs(probs, is_label) * log_q).sum(dim=1)
    return of_label + gamma * temperature**2 * of_others


def dist_loss(
    student_logits: Tensor,
    soft_labels: Tensor,
    *,
    temperature: float,
    beta: float,
    gamma: float,
) -> Tensor:
    """Distillation from a stronger teacher: correlation instead of equality.

        L = temperature^2 [ beta mean_i (1 - r(q_i, p_i)) + gamma mean_c (1 - r(q_.c, p_.c)) ]
        r(u, v) = u' . v' / (|u'| |v'| + 1e-8),   u' = u - mean(u),   q = softmax(z / temperature)
                                                           (Huang et al. 2022, arXiv:2205.10536)

    r is Pearson's correlation, over the classes of a sample and over the samples of a class. If a
    vector is constant, as every class in a batch of one, r = 0 adds a constant and no gradient.
    Published settings: both weights 2 (1 if lambda_kd is 2), temperature 4 for CIFAR-100 and 1
    for ImageNet.

    Args:
        student_logits: z, (B, C), any floating dtype.
        soft_labels: p, (B, C), rows sum to 1; zeros are allowed.
        temperature: temperature of ``soft_labels``, above 0.
        beta: weight of the correlation over classes.
        gamma: weight of the correlation over samples.

    Returns:
        Scalar, float32 (float64 for float64 logits); 0, but for the 1e-8, where q = p.
    """
    student = torch.softmax(at_least_float32(student_logits) / temperature, dim=1)
    teacher = soft_labels.to(student.dtype)
    over_classes = 1 - _correlations(student, teacher).mean()
    over_samples = 1 - _correlations(student.T, teacher.T).mean()
    return temperature**2 * (beta * over_classes + gamma * over_samples)


def mlkd_loss(
    student_logits: Tensor,
    soft_labels: Tensor,
    *,
    temperature: float,
    temperatures: tuple[float, ...],
) -> Tensor:
    """Multi-level distillation: samples, pairs of samples and pairs of classes agree.

        L = sum_T [ T^2 mean_i KL(p_i || q_i) + |P P' - Q Q'|_F^2 / B + |P' P - Q' Q|_F^2 / C ]
        Q of the rows q_i = softmax(z_i / T), P of the rows p_i at temperature T
                                                            (Jin et al. 2023, CVPR, 24276-24285)

    This is the logit part. The published code adds the same loss for a second, strongly augmented
    view, and restricts the levels to samples and classes by the teacher's confidence. For
    CIFAR-100 it uses T in 2, 3, 4, 5, 6, and weights 0.9 for the sum and 0.1 for cross-entropy.

    Args:
        student_logits: z, (B, C), any floating dtype.
        soft_labels: (B, C), rows sum to 1; zeros are allowed.
        temperature: temperature of ``soft_labels``, above 0.
        temperatures: T, one or more, above 0.

    Returns:
        Scalar, float32 (float64 for float64 logits), 0 where the student agrees.
    """
    logits = at_least_float32(student_logits)
    probs = soft_labels.to(logits.dtype)
    levels = [
        _three_levels(logits, at_temperature(probs, found=temperature, wanted=tau), tau)
        for tau in temperatures
    ]
    return torch.stack(levels).sum()


def standardised(logits: Tensor) -> Tensor:
    """Logits with mean 0 and standard deviation 1 in every row.

        (z - mean(z)) / std(z),   std^2 = (1/C) sum_c (z_c - mean(z))^2
                                                             (Sun et al. 2024, arXiv:2403.01427)

    Applied to teacher and student before softmax(. / temperature), so that the student learns the
    relations between classes independently of the scale of its logits. The published code has
    1 / (C - 1), a temperature larger by sqrt(C / (C - 1)), and adds 1e-7. Its settings are
    temperature 2 and 9 times the weight of distillation for KD, 9 times alpha and beta for DKD.

    Args:
        logits: z, (B, C), any floating dtype.

    Returns:
        (B, C) float32 (float64 for float64 logits), within sqrt(C - 1) of 0; a row of equal
        logits gives 0, without gradient.

    >>> standardised(torch.tensor([[3.0, 1.0], [5.0, 5.0]]))
    tensor([[ 1.0000, -1.0000],
            [ 0.0000,  0.0000]])
    """
    return math.sqrt(logits.shape[1]) * unit_rows(_centred(at_least_float32(logits)))


def at_temperature(probs: Tensor, *, found: float, wanted: float) -> Tensor:
    """Convert the probabilities of a softmax to another temperature.

        p_wanted proportional to p_found^(found / wanted)

    Zeros stay zeros. The result is exact for a softmax of logits, up to the precision of storage;
    revised rows become sharper or softer.

    Args:
        probs: (B, C), rows sum to 1.
        found: temperature of ``probs``, above 0.
        wanted: temperature of the result, above 0.

    Returns:
        (B, C) float32 or float64, rows sum to 1.

    >>> at_temperature(torch.tensor([[0.8, 0.2, 0.0]]), found=1.0, wanted=0.5)
    tensor([[0.9412, 0.0588, 0.0000]])
    """
    probs = at_least_float32(probs)
    # relative to the largest, because a high power of small values would underflow
    powers = (probs / probs.amax(dim=1, keepdim=True)) ** (found / wanted)
    return powers / powers.sum(dim=1, keepdim=True)


def _is_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Mask of each row's label, (B, C) bool."""
    return labels[:, None] == torch.arange(logits.shape[1], device=logits.device)


def _margins(logits: Tensor, is_label: Tensor) -> Tensor:
    """log q_y - log(1 - q_y), (B,): exact where 1 - q_y would round to 0."""
    of_label = logits.where(is_label, 0.0).sum(dim=1)
    return of_label - logits.masked_fill(is_label, -math.inf).logsumexp(dim=1)


def _others_log_softmax(logits: Tensor, is_label: Tensor) -> Tensor:
    """log q^ without the label's class, (B, C); 0 at the label, where p^ is 0."""
    others = logits.masked_fill(is_label, -math.inf)
    return F.log_softmax(others, dim=1).masked_fill(is_label, 0.0)


def _others_probs(probs: Tensor, is_label: Tensor) -> Tensor:
    """p^ without the label's class, (B, C): rows sum to 1, or are 0 if the others have no mass."""
    others = probs.masked_fill(is_label, 0.0)
    mass = others.sum(dim=1, keepdim=True)
    return others / mass.masked_fill(mass == 0, math.inf)


def _kl_rows(log_q: Tensor, p: Tensor) -> Tensor:
    return F.kl_div(log_q, p, reduction="none").sum(dim=1)


def _centred(rows: Tensor) -> Tensor:
    """Rows minus their means; exactly 0, without gradient, for a constant row."""
    is_constant = rows.amax(dim=1, keepdim=True) == rows.amin(dim=1, keepdim=True)
    return (rows - rows.mean(dim=1, keepdim=True)).masked_fill(is_constant, 0.0)


def _correlations(student: Tensor, teacher: Tensor) -> Tensor:
    """DIST's r, row by row, (R,)."""
    student, teacher = _centred(student), _centred(teacher)
    lengths: Tensor = torch.linalg.vector_norm(student, dim=1)
    lengths = lengths * torch.linalg.vector_norm(teacher, dim=1)
    return (student * teacher).sum(dim=1) / (lengths + DIST_EPSILON)


def _three_levels(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    student = torch.softmax(logits / temperature, dim=1)
    of_samples = kd_loss_rows(logits, teacher, temperature=temperature).mean()
    return of_samples + _gram_gap(student, teacher) + _gram_gap(student.T, teacher.T)


def _gram_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """|P P' - Q Q'|_F^2 / R for R rows; autocast would round the products to half precision."""
    with torch.autocast(student.device.type, enabled=False):
        gap: Tensor = teacher @ teacher.mT - student @ student.mT
    return gap.square().sum() / len(student)
