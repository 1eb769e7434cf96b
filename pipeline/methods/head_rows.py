"""A run of samples in the objective of a softmax head: losses, residuals and curvature per row.

The symbols are those of `head_problem`.

Shapes: M rows (all views of a run of samples), D features, C classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True, eq=False)
class SoftSide:
    """The distilled part of a chunk."""

    share: Tensor
    """w s_i, (M, 1)."""

    targets: Tensor
    """t, (M, C)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadRows:
    """A chunk in float64, the views one after the other."""

    inputs: Tensor
    """h~, (M, D + 1)."""

    labels: Tensor
    """(M,) int64."""

    soft: SoftSide | None
    temperature: float

    def losses(self, weight: Tensor) -> Tensor:
        """The data term of every row at W, (M,)."""
        logits = self.inputs @ weight.T
        hard = F.cross_entropy(logits, self.labels, reduction="none")
        if self.soft is None:
            return hard
        log_tempered = torch.log_softmax(logits / self.temperature, dim=1)
        divergence = F.kl_div(log_tempered, self.soft.targets, reduction="none").sum(dim=1)
        return torch.lerp(hard, self.temperature**2 * divergence, self.soft.share.squeeze(1))

    def linearise(self, weight: Tensor) -> "LinearRows":
        """The chunk's softmax rows at W."""
        logits = self.inputs @ weight.T
        probs = torch.softmax(logits, dim=1)
        same = self.soft is None or self.temperature == 1.0
        tempered = probs if same else torch.softmax(logits / self.temperature, dim=1)
        return LinearRows(rows=self, probs=probs, tempered=tempered)


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearRows:
    """A chunk at a fixed W."""

    rows: HeadRows
    probs: Tensor
    """p, (M, C)."""

    tempered: Tensor
    """p^tau, (M, C); the same tensor as ``probs`` where tau is 1."""

    def hard_residuals(self) -> Tensor:
        """p - y, (M, C): the logit gradient of the cross-entropy."""
        column = self.rows.labels[:, None]
        return self.probs.scatter_add(1, column, -torch.ones_like(self.probs[:, :1]))

    def soft_residuals(self, soft: SoftSide) -> Tensor:
        """tau (p^tau - t), (M, C): the logit gradient of tau^2 KL."""
        return self.rows.temperature * (self.tempered - soft.targets)

    def residuals(self) -> Tensor:
        """r, (M, C): the logit gradient of the mixture."""
        soft = self.rows.soft
        if soft is None:
            return self.hard_residuals()
        return torch.lerp(self.hard_residuals(), self.soft_residuals(soft), soft.share)

    def curvatures(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(weight (M, 1), probabilities (M, C)) of each softmax that bends the objective."""
        ones = torch.ones_like(self.probs[:, :1])
        if self.rows.soft is None or self.tempered is self.probs:
            yield ones, self.probs
        else:
            yield 1.0 - self.rows.soft.share, self.probs
            yield self.rows.soft.share, self.tempered

    def curvature_product(self, logits: Tensor) -> Tensor:
        """S_i z_i for every row, (M, C)."""
        product = torch.zeros_like(logits)
        for share, probs in self.curvatures():
            pull = share * probs
            product += pull * (logits - (probs * logits).sum(dim=1, keepdim=True))
        return product


def with_bias_input(features: Tensor) -> Tensor:
    """h~ = [h; 1] in float64, (M, D + 1)."""
    return F.pad(features.double(), (0, 1), value=1.0)
