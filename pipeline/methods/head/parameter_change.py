"""An order in which samples can lose their soft labels while the head changes least.

Yang et al. 2023, "Dataset Pruning", arXiv:2205.09329, adapted: there a sample is removed, here it
goes from distillation to its hard label. No held-out rows are needed. Vectors are summed, not
their lengths: samples that pull in opposite directions cancel.

    delta_ik  =  w [ tau (p^tau_ik - t_ik) - (p_ik - y_i) ]
    G_i       =  mean_k delta_ik h~_ik^T
    dW_i      =  (1/N) H^-1 G_i        moves the head if sample i goes to its hard label

H is EK-FAC: the exact Hessian would need a linear solve per sample. 1/N does not change the order
and is left out.

Shapes: N samples, K views, D features, C classes, M = K n rows of a chunk of n samples.
"""

import torch
from torch import Tensor

from pipeline.methods.head.ekfac import Ekfac
from pipeline.methods.head.problem import Linearisation
from pipeline.methods.head.rows import LinearRows
from pipeline.methods.rank_sums import led, summed


def undistil_order(linear: Linearisation, *, factors: Ekfac, block: int | None = None) -> Tensor:
    """Position of each sample in an order of removing soft labels, the most dispensable first.

    Greedy: with R = sum of H^-1 G_j over the samples before, the next one has the least

        || R + H^-1 G_i ||^2 - || R ||^2  =  2 < G_i, H^-1 R > + || H^-1 G_i ||^2

    A block takes the best samples at once, with one pass over the data and another over the
    block's samples; the matrices G_i are never stored. A block ignores interactions between its
    samples. On 1,000 digits the norm of the default is at most 13 % above that of block = 1
    from the 50th sample on (400 random samples: up to twice in the first fifth, 11 % from a half
    on); random halves reach three times as much.

    Args:
        linear: the problem at its minimum with every sample distilled (s = 1).
        factors: EK-FAC of ``linear``.
        block: samples that are taken at once, at least 1; 1 is the exact greedy order, None is
            N / 100.

    Returns:
        (N,) int64 on the CPU, a permutation of 0 ... N - 1; equal samples in order of position.

    Raises:
        ValueError: if there are no soft labels or ``block`` is less than 1.
    """
    num_samples = linear.problem.num_samples
    block = max(1, num_samples // 100) if block is None else block
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    if linear.problem.soft_labels is None:
        raise ValueError("soft_labels must be set, got None: nothing is distilled")
    lengths = _squared_changes(linear, factors)
    places = torch.full((num_samples,), num_samples)
    total = torch.zeros_like(linear.weight)
    for start in range(0, num_samples, block):
        costs = lengths + 2.0 * _products(linear, factors.inverse(factors.inverse(total)))
        costs[places < num_samples] = torch.inf
        best = costs.argsort(stable=True)[: min(block, num_samples - start)]
        places[best] = torch.arange(start, start + len(best))
        total += _sum_of(linear, best.sort().values)
    return places


def _squared_changes(linear: Linearisation, factors: Ekfac) -> Tensor:
    """|| H^-1 G_i ||^2 of every sample, (N,) float64.

    In EK-FAC's basis H^-1 scales the entries of a_i b_i^T, with a = U^T delta and b = Q^T h~, so
    views k and l contribute sum_cj scale_cj^2 (a_k a_l)_c (b_k b_l)_j.
    """
    scales = (factors.eigenvalues + factors.l2).square().reciprocal()
    lengths = []
    for chunk in linear.chunks():
        a = _per_view(_deltas(chunk, linear) @ factors.class_basis.to(chunk.probs), linear)
        b = _per_view(chunk.rows.inputs @ factors.input_basis.to(chunk.probs), linear)
        total = torch.zeros_like(a[0, :, 0])
        for k in range(len(a)):
            for other in range(k + 1):
                pair = ((a[k] * a[other]) @ scales.to(a) * (b[k] * b[other])).sum(dim=1)
                total += pair if k == other else 2.0 * pair
        lengths.append(total.double() / len(a) ** 2)
    return _gathered(lengths, linear)


def _products(linear: Linearisation, direction: Tensor) -> Tensor:
    """< G_i, direction > of every sample, (N,) float64."""
    products, direction = [], led(linear.problem.sharing, direction)
    for chunk in linear.chunks():
        pulls = chunk.rows.inputs @ direction.to(chunk.probs).T
        rows = (_deltas(chunk, linear) * pulls).sum(dim=1)
        products.append(_per_view(rows[:, None], linear).mean(dim=0).squeeze(1).double())
    return _gathered(products, linear)


def _gathered(parts: list[Tensor], linear: Linearisation) -> Tensor:
    """One number for every sample, (N,) float64 on the CPU; a process may have no sample."""
    own = torch.cat([linear.weight.new_empty(0), *parts])
    return linear.problem.sharing.gathered(own).cpu()


def _sum_of(linear: Linearisation, samples: Tensor) -> Tensor:
    """Sum of G_i over some samples (positions, ascending), (C, D + 1) float64."""
    total = torch.zeros_like(linear.weight)
    for chunk in linear.problem.part(samples).linear_chunks(linear.weight):
        total += (_deltas(chunk, linear).T @ chunk.rows.inputs).double()
    return summed(linear.problem.sharing, total) / linear.problem.num_views


def _deltas(chunk: LinearRows, linear: Linearisation) -> Tensor:
    """delta: change of a row's logit gradient by distillation, (M, C)."""
    assert chunk.rows.soft is not None
    return linear.problem.kd_weight * (
        chunk.soft_residuals(chunk.rows.soft) - chunk.hard_residuals()
    )


def _per_view(rows: Tensor, linear: Linearisation) -> Tensor:
    """Reshape (K n, X) to (K, n, X)."""
    return rows.reshape(linear.problem.num_views, -1, rows.shape[1])
