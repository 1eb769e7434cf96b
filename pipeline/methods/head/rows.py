"""A run of samples in the objective of a softmax head: losses, residuals and curvature per row.

`head.problem` defines the symbols.

Shapes: M rows (all views of a run of samples), D features, C classes, G directions.
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
    """A chunk in one floating dtype, the views one after the other."""

    inputs: Tensor
    """h~, (M, D + 1)."""

    labels: Tensor
    """(M,) int64."""

    soft: SoftSide | None
    temperature: float

    def losses(self, weight: Tensor) -> Tensor:
        """The data term of every row at W, (M,)."""
        return self.linearise(weight).losses()

    def linearise(self, weight: Tensor) -> "LinearRows":
        """The chunk's softmax rows at W."""
        logits = self.inputs @ weight.to(self.inputs).T
        log_probs = torch.log_softmax(logits, dim=1)
        probs = log_probs.exp()
        if self.soft is None or self.temperature == 1.0:
            log_tempered, tempered = log_probs, probs
        else:
            log_tempered = torch.log_softmax(logits / self.temperature, dim=1)
            tempered = log_tempered.exp()
        return LinearRows(
            rows=self,
            log_probs=log_probs,
            probs=probs,
            log_tempered=log_tempered,
            tempered=tempered,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearRows:
    """A chunk at a fixed W."""

    rows: HeadRows
    log_probs: Tensor
    """log p, (M, C)."""

    probs: Tensor
    """p, (M, C)."""

    log_tempered: Tensor
    """log p^tau, (M, C)."""

    tempered: Tensor
    """p^tau, (M, C); the same tensor as ``probs`` where tau is 1."""

    def losses(self) -> Tensor:
        """The data term of every row, (M,)."""
        hard = -self.log_probs.gather(1, self.rows.labels[:, None]).squeeze(1)
        soft = self.rows.soft
        if soft is None:
            return hard
        divergence = F.kl_div(self.log_tempered, soft.targets, reduction="none").sum(dim=1)
        scale = self.rows.temperature**2
        return torch.lerp(hard, scale * divergence, soft.share.squeeze(1))

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

    def bends(self) -> "BentRows":
        """The part of the chunk that a Hessian product needs."""
        soft = self.rows.soft
        if soft is None or self.tempered is self.probs:
            curvatures: tuple[tuple[Tensor | None, Tensor], ...] = ((None, self.probs),)
        else:
            curvatures = ((1.0 - soft.share, self.probs), (soft.share, self.tempered))
        return BentRows(inputs=self.rows.inputs, softmaxes=curvatures)

    def curvatures(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(weight (M, 1), probabilities (M, C)) of each softmax with curvature."""
        yield from self.bends().curvatures()


@dataclass(frozen=True, kw_only=True, eq=False)
class BentRows:
    """A chunk's share of the Hessian."""

    inputs: Tensor
    """h~, (M, D + 1)."""

    softmaxes: tuple[tuple[Tensor | None, Tensor], ...]
    """(weight (M, 1) or None for 1, probabilities (M, C)) of each softmax."""

    def curvatures(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(weight (M, 1), probabilities (M, C)) of each softmax with curvature."""
        for share, probs in self.softmaxes:
            yield torch.ones_like(probs[:, :1]) if share is None else share, probs

    def to(self, dtype: torch.dtype) -> "BentRows":
        """The chunk in another precision."""
        return BentRows(
            inputs=self.inputs.to(dtype),
            softmaxes=tuple(
                (None if share is None else share.to(dtype), probs.to(dtype))
                for share, probs in self.softmaxes
            ),
        )

    def product(self, directions: Tensor) -> Tensor:
        """Sum over the rows of S_i (V h~_i) h~_i^T for V of (G, C, D + 1), the same shape."""
        groups, num_classes, num_inputs = directions.shape
        flat = directions.to(self.inputs).reshape(-1, num_inputs)
        logits = (self.inputs @ flat.T).view(-1, groups, num_classes)
        bent = None
        for share, probs in self.softmaxes:
            pull = (probs if share is None else share * probs)[:, None]
            # One direction is the usual case, and matmul avoids the copy that einsum makes.
            means = (logits * probs[:, None]).sum(dim=2, keepdim=True)
            part = (logits - means).mul_(pull)
            bent = part if bent is None else bent.add_(part)
        assert bent is not None, "a chunk has at least one softmax"
        total = bent.view(len(self.inputs), -1).T @ self.inputs
        return total.view(groups, num_classes, num_inputs)


def with_bias_input(features: Tensor) -> Tensor:
    """h~ = [h; 1], (M, D + 1), in the dtype of ``features``."""
    return F.pad(features, (0, 1), value=1.0)
