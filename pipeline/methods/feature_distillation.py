"""Distillation of penultimate features: distances of the student's from the teacher's.

FitNets' hint compares vectors, so the student's are first mapped to the teacher's dimension.
The others compare relations between the samples of a batch (distances, angles, similarities),
which needs no map: the two dimensions may differ. If a paper sums but the field's weight belongs
to a mean, the mean is taken and the docstring says so. Everything is computed in float32 at
least, even under autocast.

The direction of a zero vector, which is undefined, is taken as 0, and so is its gradient.

Shapes: B batch (1 or more), D_s and D_t dimensions of the student's and teacher's features.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pipeline.methods.precision import at_least_float32

CHUNK_ELEMENTS = 2**23  # of the tensors of `rkd_loss`: 32 MiB; smaller ones fragment glibc's heap
PKT_EPSILON = 1e-7  # keeps the logarithm finite if features point in opposite directions


def feature_map(student_dim: int, teacher_dim: int) -> nn.Linear:
    """The trainable map from the student's features to the dimension of the teacher's.

    Args:
        student_dim: D_s.
        teacher_dim: D_t.
    """
    return nn.Linear(student_dim, teacher_dim)


def fitnet_rows(mapped_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared difference of each row from the teacher's, a hint on the last feature.

        F_i = (1/D_t) |r(f^s_i) - f^t_i|^2               (Romero et al. 2015, arXiv:1412.6550)

    The paper has |.|^2 / 2, a convolution for r, and a hint from the middle of the network,
    in a stage of its own; the field's weight of 100 belongs to the mean over D_t.

    Args:
        mapped_features: r(f^s), (B, D_t): the student's features after `feature_map`.
        teacher_features: (B, D_t).

    Returns:
        (B,) float32 (float64 for float64 features), 0 where the student agrees.

    >>> fitnet_rows(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
    tensor([2.])
    """
    difference = at_least_float32(mapped_features) - at_least_float32(teacher_features)
    return difference.square().mean(dim=1)


def rkd_loss(student: Tensor, teacher: Tensor, *, distance: float, angle: float) -> Tensor:
    """Relational distillation: distances between pairs and angles within triplets agree.

        psi_ij = |f_i - f_j| / mu        mu the mean over the pairs that are not 0 apart
        psi_ijk = cos of the angle at i between j and k
        L = distance mean_ij h(psi^t_ij, psi^s_ij) + angle mean_ijk h(psi^t_ijk, psi^s_ijk)
        h(x, y) = (x - y)^2 / 2 where |x - y| <= 1, else |x - y| - 1/2
                                                           (Park et al. 2019, arXiv:1904.05068)

    The paper sums over tuples of distinct samples. Its published code takes means over all
    B^2 and B^3 tuples; the field's weights of 25 and 50 belong to these means, used here too.
    Memory for the backward pass: O(B^2); the rest is recomputed a chunk of vertices at a time.

    Args:
        student: (B, D_s).
        teacher: (B, D_t).
        distance: weight of the distances.
        angle: weight of the angles; 0 leaves out their B^3 cosines.

    Returns:
        Scalar, 0 for a shifted, rotated or scaled copy of the teacher.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    loss = distance * F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))
    if angle:
        loss = loss + angle * _angle_loss(student, teacher)
    return loss


def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Probabilistic transfer: each sample finds the others equally likely as neighbours.

        p_ij = k_ij / sum_j k_ij,   k_ij = (1 + cos(f_i, f_j)) / 2
        L = mean_ij p^t_ij log[ (p^t_ij + e) / (p^s_ij + e) ],   e = 1e-7
                                                (Passalis and Tefas 2018, arXiv:1803.10837)

    The paper sums over pairs of distinct samples. Its published code takes the mean over all
    B^2 pairs, including i = j; the field's weight of 30,000 belongs to this mean, used here too.

    Args:
        student: (B, D_s).
        teacher: (B, D_t).

    Returns:
        Scalar, 0 where all angles agree, for any lengths of the rows.
    """
    p_student, p_teacher = _neighbour_probs(student), _neighbour_probs(teacher)
    ratio = (p_teacher + PKT_EPSILON) / (p_student + PKT_EPSILON)
    return (p_teacher * ratio.log()).mean()


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity preserving: the rows of the two Gram matrices have the same directions.

        L = (1/B^2) |G^t - G^s|_F^2,   G_i = Q_i / |Q_i|,   Q = F F'
                                                    (Tung and Mori 2019, arXiv:1907.09682)

    The paper takes F before pooling; the field's weight is 3,000.

    Args:
        student: (B, D_s).
        teacher: (B, D_t).

    Returns:
        Scalar, 0 for a rotated or scaled copy of the teacher.
    """
    g_student = unit_rows(_gram(at_least_float32(student)))
    g_teacher = unit_rows(_gram(at_least_float32(teacher)))
    return F.mse_loss(g_student, g_teacher)


def cc_loss(student: Tensor, teacher: Tensor, *, gamma: float, order: int = 2) -> Tensor:
    """Correlation congruence: the kernel matrices of the two batches agree.

        L = (1/B^2) |C^t - C^s|_F^2
        C_ij = sum_{p <= order} exp(-2 gamma) (2 gamma)^p / p! (f_i . f_j)^p
                                                            (Peng et al. 2019, arXiv:1904.01802)

    C expands the Gaussian kernel exp(-gamma |f_i - f_j|^2), which is valid only for |f_i| = 1,
    so rows are scaled to length 1. Kernels are comparable without embeddings of one dimension.
    RepDistiller's `Correlation` is another formula, the mean over neighbours in the batch of
    |f^s_i - f^t_i| . |f^s_{i+1} - f^t_{i+1}| after two trained embeddings, which depends on
    the order of the batch: its weight of 0.02 does not fit this one, for which 100 is found.

    Args:
        student: (B, D_s).
        teacher: (B, D_t).
        gamma: width parameter of the kernel, above 0; 0.4 in the field.
        order: order P of the expansion; 2 in the field.

    Returns:
        Scalar, 0 where all angles agree, for any lengths of the rows.
    """
    c_student = _expanded_kernel(_cosines(student), gamma, order)
    c_teacher = _expanded_kernel(_cosines(teacher), gamma, order)
    return F.mse_loss(c_student, c_teacher)


def unit_rows(vectors: Tensor) -> Tensor:
    """Scale vectors to length 1 along the last dimension; zero vectors stay, without gradient.

    Args:
        vectors: (..., D), float32 or float64.

    >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / lengths.masked_fill(lengths == 0, math.inf)


def _gram(rows: Tensor) -> Tensor:
    """Inner products of the rows, (..., B, B); autocast would round them to half precision."""
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ rows.mT


def _cosines(features: Tensor) -> Tensor:
    return _gram(unit_rows(at_least_float32(features)))


def _neighbour_probs(features: Tensor) -> Tensor:
    """PKT's p, (B, B), rows sum to 1; rounding may take a cosine below -1."""
    kernel = ((1 + _cosines(features)) / 2).clamp(min=0)
    return kernel / kernel.sum(dim=1, keepdim=True)


def _expanded_kernel(cosines: Tensor, gamma: float, order: int) -> Tensor:
    """CC's C, (B, B): term p is term p - 1 times 2 gamma cos / p."""
    term = torch.full_like(cosines, math.exp(-2 * gamma))
    kernel = term
    for p in range(1, order + 1):
        term = term * cosines * (2 * gamma / p)
        kernel = kernel + term
    return kernel


def _relative_distances(features: Tensor) -> Tensor:
    """RKD's psi_ij, (B, B); zeros where all samples coincide."""
    chunks = _vertex_chunks(features)
    distances = torch.cat([_recomputed(_distances_from, features, chunk) for chunk in chunks])
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / mean.masked_fill(mean == 0, math.inf)


def _distances_from(features: Tensor, vertices: Tensor) -> Tensor:
    distances: Tensor = torch.linalg.vector_norm(_differences(features, vertices), dim=-1)
    return distances


def _angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    wider = student if student.shape[1] > teacher.shape[1] else teacher
    total = student.new_zeros(())
    for vertices in _vertex_chunks(wider):
        total = total + _recomputed(_angle_sum, student, vertices, teacher)
    return total / len(student) ** 3


def _angle_sum(student: Tensor, vertices: Tensor, teacher: Tensor) -> Tensor:
    """Sum of h over the triplets at some vertices."""
    of_student = _gram(unit_rows(_differences(student, vertices)))
    of_teacher = _gram(unit_rows(_differences(teacher, vertices)))
    return F.smooth_l1_loss(of_student, of_teacher, reduction="sum")


def _differences(features: Tensor, vertices: Tensor) -> Tensor:
    """Differences from some samples to all, (V, B, D); a Gram matrix would lose precision."""
    return features - features[vertices][:, None]


def _vertex_chunks(features: Tensor) -> list[Tensor]:
    """Indices of the batch in parts, each with (V, B, max(B, D)) within the limit."""
    batch_size, dim = features.shape
    size = max(1, CHUNK_ELEMENTS // (batch_size * max(batch_size, dim)))
    vertices = torch.arange(batch_size, device=features.device)
    return [vertices[start : start + size] for start in range(0, batch_size, size)]


def _recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Result of ``function``, whose intermediates are recomputed in the backward pass."""
    return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)
