"""Inputs of influence: the samples to score, the solver's settings, and the target.

The target is the loss that influence predicts, on rows that the refitted head is not fitted to.

Shapes: N scored samples, M samples of the target, G groups, K views, D features, C classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.methods.head.data import PickedRows, Rows, read_rows, runs
from pipeline.methods.head.influence import heldout_gradient
from pipeline.methods.head.problem import HeadProblem
from pipeline.methods.head.rows import with_bias_input
from pipeline.runtime.ranks import ALONE, Ranks

Solver: TypeAlias = Literal["exact", "ekfac"]

_ROWS = 16_384


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """Held-out samples in the clean view."""

    features: Rows
    """(1, M, D)"""
    labels: Tensor
    """(M,) int64"""
    groups: Tensor | None = None
    """Equal parts for standard errors, (M,) int64 in [0, G); None: no errors."""
    ranks: Ranks = ALONE
    """Ranks that each read a part of the samples; all results are over all samples."""

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, samples: Tensor) -> "Target":
        """Some of the samples (positions, ascending)."""
        return Target(
            features=PickedRows(rows=self.features, samples=samples),
            labels=self.labels[samples],
            groups=None if self.groups is None else self.groups[samples],
            ranks=self.ranks,
        )

    def losses(self, weight: Tensor) -> Tensor:
        """Cross-entropy of every sample at W, nats, (M,) float64."""
        parts = [torch.zeros(0, dtype=torch.float64)]
        for rows in runs(self.ranks.part(len(self)), size=_ROWS):
            inputs = with_bias_input(read_rows(self.features, rows)[0].double())
            logits = inputs @ weight.cpu().T
            parts.append(F.cross_entropy(logits, self.labels[rows], reduction="none"))
        return self.ranks.gathered(torch.cat(parts))

    def loss(self, weight: Tensor) -> float:
        """Mean cross-entropy at W, nats."""
        return float(self.losses(weight).mean())

    def gradient(self, weight: Tensor) -> Tensor:
        """Gradient of the loss at W, (C, D + 1) float64."""
        return heldout_gradient(weight, self.features, self.labels, sharing=self.ranks)

    def group_gradients(self, weight: Tensor) -> Tensor | None:
        """Gradient of the loss of each group, (G, C, D + 1) float64; None without groups."""
        if self.groups is None:
            return None
        members = [(self.groups == group).nonzero().squeeze(1) for group in self._group_names()]
        parts = [self.part(rows) for rows in members]
        return torch.stack([part.gradient(weight) for part in parts])

    def as_problem(self) -> HeadProblem:
        """The target's loss as an objective, with a negligible regulariser."""
        return HeadProblem(features=self.features, labels=self.labels, l2=1e-30, sharing=self.ranks)

    def _group_names(self) -> list[int]:
        assert self.groups is not None, "callers check that there are groups"
        names: list[int] = torch.unique(self.groups).tolist()
        return names


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """Targets of the scored rows: one target for all, or each fold for the rows of the others."""

    target: Target
    """All target samples; for a cross-fit, the scored rows themselves."""
    folds: Tensor | None = None
    """Fold of each scored row, (N,) int64; None: the target has other samples."""
    choosing: Target
    """Samples that l2 is chosen on; the scores do not use them."""

    @property
    def num(self) -> int:
        """Number of targets that `each` yields."""
        return 1 if self.folds is None else int(self.folds.max()) + 1

    def each(self, num_scored: int) -> Iterator[tuple[Tensor, Target]]:
        """Yield positions of rows to fit and score, and their target: all rows once, or for each
        fold the rows of the others."""
        if self.folds is None:
            yield torch.arange(num_scored), self.target
            return
        for fold in range(self.num):
            own = self.folds == fold
            yield (~own).nonzero().squeeze(1), self.target.part(own.nonzero().squeeze(1))


@dataclass(frozen=True, kw_only=True)
class InfluenceSettings:
    """Settings of influence; see `stages.config.select.InfluenceConfig`."""

    l2: float | None
    kd_weight: float
    temperature: float
    distilled: float
    rounds: int
    hessian_subsample: int | None
    solver: Solver
    label_issues: bool
    diagnostics: bool
    param_change: bool
    seed: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredRows:
    """The training rows of a cache."""

    features: Rows
    """(K, N, D)"""
    soft_labels: Rows
    """(K, N, C)"""
    labels: Tensor
    """(N,) int64"""
    start: Tensor
    """Initial head, (C, D + 1)."""
    clean: Rows
    """Features of the clean view, (1, N, D)."""
    folds: Tensor | None
    """Folds of a cross-fit for label issues, (N,) int64; None: no cross-fit."""
    ranks: Ranks = ALONE
    """Ranks that each read a part of the rows; every rank gets the scores of all rows."""
