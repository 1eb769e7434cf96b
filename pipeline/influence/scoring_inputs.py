"""What influence is predicted from: the rows of a cache, and how.

Shapes: N scored samples, K views, D features, C classes.
"""

from dataclasses import dataclass

from torch import Tensor

from pipeline.influence.points import Solver
from pipeline.methods.head.data import Rows
from pipeline.runtime.ranks import ALONE, Ranks


@dataclass(frozen=True, kw_only=True)
class InfluenceSettings:
    """How influence is predicted; `stages.config.root.InfluenceConfig` tells what each one is."""

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
    """A head to begin at, (C, D + 1)."""
    clean: Rows
    """Features of the clean view, (1, N, D)."""
    folds: Tensor | None
    """Of heads that are to predict rows that they have not seen, (N,) int64; None: none are."""
    ranks: Ranks = ALONE
    """Each reads a part of the rows; every one has the scores of all."""
