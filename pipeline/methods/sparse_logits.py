"""Sparse logits: the part of a row that a cache keeps if there are too many classes for all.

Kept are the top-k logits, the label's logit and the logarithm of the softmax's denominator at
every temperature of interest. So the probabilities of the label and of the top classes are exact,
and these are the inputs of label revision (Lan et al. 2024, arXiv:2404.03693). Of the other
classes only the total mass is known, and it is divided equally.

A label outside the top-k is listed in addition. Its probability may be below that of a rest class.

Shapes: B batch, C classes, K kept classes, T temperatures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

SMALLEST_REST = 2.0**-20
"""Lower bound of the remaining mass in a reconstruction: the resolution of a float32 logsumexp. A
mass of 0 would give an infinite divergence."""


@dataclass(frozen=True, kw_only=True)
class SparseLogits:
    """Rows of logits without the logits of the rest classes."""

    classes: Tensor
    """The top-k class ids by descending logit, (B, K) int64."""
    logits: Tensor
    """Logits of the top-k classes, (B, K) float16."""
    target: Tensor
    """The label's logit, (B,) float16."""
    logsumexp: Tensor
    """log sum_j exp(z_j / tau) of all classes, (B, T) float32."""
    temperatures: tuple[float, ...]
    """tau of each column of ``logsumexp``."""

    def rows(self, stop: int) -> Self:
        """The first ``stop`` rows."""
        return replace(
            self,
            classes=self.classes[:stop],
            logits=self.logits[:stop],
            target=self.target[:stop],
            logsumexp=self.logsumexp[:stop],
        )


def summarise(
    logits: Tensor, labels: Tensor, *, top_k: int, temperatures: Sequence[float]
) -> SparseLogits:
    """Keep the part of each row that `reconstruct` needs.

    The logsumexp is of the logits as given, before the kept ones are rounded to float16.
    Given ``logits.half()``, the sums fit the rounded logits, as for a dense float16 row.

    Args:
        logits: (B, C), any floating dtype, finite.
        labels: ground-truth class ids, (B,) int64 in [0, C).
        top_k: K in [1, C]; equal logits rank by class id.
        temperatures: the temperatures at which rows can be reconstructed; finite, above 0.

    Raises:
        ValueError: if ``top_k``, a label or a temperature is out of range.
    """
    num_classes = logits.shape[1]
    if not 1 <= top_k <= num_classes:
        raise ValueError(f"top_k must be in [1, {num_classes}], got {top_k}")
    if not temperatures or not all(math.isfinite(tau) and tau > 0.0 for tau in temperatures):
        raise ValueError(f"temperatures must be finite and above 0, got {list(temperatures)}")
    _require_labels_in_range(labels, num_classes=num_classes)
    # torch.topk breaks ties in any order, a stable sort by class id
    ranked, classes = logits.sort(dim=1, descending=True, stable=True)
    exact = logits.double()
    sums = [torch.logsumexp(exact / tau, dim=1) for tau in temperatures]
    return SparseLogits(
        classes=classes[:, :top_k].contiguous(),
        logits=ranked[:, :top_k].half(),
        target=logits.gather(1, labels[:, None]).squeeze(1).half(),
        logsumexp=torch.stack(sums, dim=1).float(),
        temperatures=tuple(temperatures),
    )


def remaining_mass(sparse: SparseLogits, labels: Tensor, *, temperature: float) -> Tensor:
    """Total probability of the classes that are not listed.

        R_tau = 1 - sum_{j listed} exp(z_j / tau - logsumexp_tau)

    Args:
        sparse: rows of `summarise`.
        labels: the labels given to `summarise`, (B,) int64.
        temperature: tau, one of the stored ones.

    Returns:
        (B,) float64 in [0, 1]; 0 where the rounding of the listed logits exceeds the rest.

    Raises:
        ValueError: if nothing is stored for ``temperature``.
    """
    logsumexp = _logsumexp(sparse, temperature)
    top = (sparse.logits.double() / temperature - logsumexp[:, None]).exp().sum(dim=1)
    target = (sparse.target.double() / temperature - logsumexp).exp()
    listed = top + target.masked_fill(_label_in_top(sparse, labels), 0.0)
    return (1.0 - listed).clamp(min=0.0)


def reconstruct(
    sparse: SparseLogits, labels: Tensor, *, num_classes: int, temperature: float
) -> Tensor:
    """Dense logits that give the known probabilities at one temperature.

        z_j = the stored logit                             of a listed class
        r   = tau (log(R_tau / M) + logsumexp_tau)         of the M others

    Then softmax(z / tau) is exp(z_j / tau - logsumexp_tau) where listed and R_tau / M elsewhere.
    Effects of rounding are bounded: R_tau is at least `SMALLEST_REST`, and r is at most the last of
    the top-k logits, so no rest class outranks them. With K = C these are the float16 logits.

    Args:
        sparse: rows of `summarise`.
        labels: the labels given to `summarise`, (B,) int64.
        num_classes: C.
        temperature: tau, one of the stored ones.

    Returns:
        (B, C) float32, finite; meant for softmax at ``temperature`` only.

    Raises:
        ValueError: if nothing is stored for ``temperature``.
    """
    mass = remaining_mass(sparse, labels, temperature=temperature).clamp(min=SMALLEST_REST)
    num_listed = sparse.classes.shape[1] + (~_label_in_top(sparse, labels)).long()
    num_others = (num_classes - num_listed).clamp(min=1)  # without others, r is not used
    rest = temperature * ((mass / num_others).log() + _logsumexp(sparse, temperature))
    rest = rest.float().minimum(sparse.logits[:, -1].float())
    dense = rest[:, None].repeat(1, num_classes)
    dense.scatter_(1, labels[:, None], sparse.target[:, None].float())
    return dense.scatter_(1, sparse.classes, sparse.logits.float())


def _logsumexp(sparse: SparseLogits, temperature: float) -> Tensor:
    """The stored column of a temperature, (B,) float64."""
    if temperature not in sparse.temperatures:
        stored = ", ".join(f"{tau:g}" for tau in sparse.temperatures)
        raise ValueError(
            f"temperature must be one of those stored ({stored}), got {temperature:g}: the mass of "
            "the rest classes is not known at another"
        )
    return sparse.logsumexp[:, sparse.temperatures.index(temperature)].double()


def _label_in_top(sparse: SparseLogits, labels: Tensor) -> Tensor:
    """True if the label is in the top-k, (B,) bool."""
    return (sparse.classes == labels[:, None]).any(dim=1)


def _require_labels_in_range(labels: Tensor, *, num_classes: int) -> None:
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels must be in [0, {num_classes}), got {int(labels.min())} to {int(labels.max())}"
        )
