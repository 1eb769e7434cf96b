"""The objective of a linear softmax head on cached features, with exact derivatives.

With h~ = [h; 1], z = W h~, p = softmax(z), p^tau = softmax(z / tau), mixing weight w
(``kd_weight``), s_i (``distilled``), soft labels t, l2 and the mask m of regularised columns:

    J(W) = (1/N) sum_i (1/K) sum_k [ (1 - w s_i) CE(y_i, z_ik)
                                     + w s_i tau^2 KL(t_ik || p^tau_ik) ] + (l2/2) ||m o W||^2
    residual   r = (1 - w s_i)(p - y) + w s_i tau (p^tau - t)
    curvature  S = (1 - w s_i) S(p)   + w s_i S(p^tau),      S(p) = diag p - p p^T
    dJ  = (1/NK) sum r h~^T + l2 m o W,    H V = (1/NK) sum S (V h~) h~^T + l2 m o V

The softmax makes the Hessian exact without autograd (it is the Gauss-Newton matrix and the
true Fisher), and a product with it costs two matrix products. Views of a sample are averaged
as losses; averaging p or h first would be another objective.

Losses, gradients and scores are computed in ``dtype``, Hessian products in ``products``; sums over
chunks are always float64. With float32 products the solver measures its residual in ``dtype`` and
refines, so the result has the accuracy of ``dtype``.

Several processes can divide the samples (`rank_sums`): each passes over its own part, and sums over
rows include all processes. Each process caches the linearisation of its part, so more processes
have room for a larger one.

Shapes: N samples, K views, D features, C classes, M = K n rows of a chunk of n samples.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from pipeline.methods.head.data import PickedRows, Rows, SamplePositions, read_rows
from pipeline.methods.head.rows import BentRows, HeadRows, LinearRows, SoftSide, with_bias_input
from pipeline.methods.rank_sums import (
    NOT_SHARED,
    Sharing,
    largest_share,
    led,
    summed,
    summed_numbers,
)

CACHE_BYTES = 2**30  # a process; 50,000 samples, 100 classes, 256 features: 71 MB in float32


class Watch(Protocol):
    """Observer of long work on a problem, such as a progress bar."""

    def passed(self) -> None:
        """One more pass over the samples has been made."""

    def fitted(self) -> None:
        """One more head has been fitted."""


class _Unwatched:
    """No observer."""

    def passed(self) -> None:
        """Ignore the pass."""

    def fitted(self) -> None:
        """Ignore the head."""


UNWATCHED: Watch = _Unwatched()
"""Nobody looks at the work."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadProblem:
    """Cached features and the supervision of each sample; see the module for the objective.

    Rows are read a chunk at a time and moved to the device of the weights, so the features may be
    float16, on the disk or on another device. The weights are W, (C, D + 1), bias last.
    """

    features: Rows
    """Input of the head, (K, N, D), any floating dtype."""

    labels: Tensor
    """Ground-truth class ids, (N,) int64."""

    soft_labels: Rows | None = None
    """(K, N, C), rows sum to 1 (normalised again); None if nothing is distilled."""

    distilled: Tensor | None = None
    """s, (N,) in [0, 1]: 1 where a sample is distilled; None is 0 everywhere."""

    kd_weight: float = 0.0
    """w, in [0, 1]."""

    temperature: float = 1.0
    l2: float
    regularise_bias: bool = False
    rows_per_chunk: int = 4096
    """Samples read at once; changes the result by rounding only."""

    hessian_samples: Tensor | None = None
    """Positions of the samples that the curvature is computed on, ascending; None: all."""

    dtype: torch.dtype = torch.float64
    """Type of losses, gradients and scores."""

    products: torch.dtype = torch.float64
    """Type of Hessian products."""

    sharing: Sharing = NOT_SHARED
    """The processes that divide the samples; all results here are over all samples."""

    watch: Watch = UNWATCHED
    """Observer of passes and fits; it changes no result."""

    def __post_init__(self) -> None:
        _require_shapes(self)
        _require_settings(self)

    @property
    def num_views(self) -> int:
        return self.features.shape[0]

    @property
    def num_samples(self) -> int:
        return self.features.shape[1]

    @property
    def num_rows(self) -> int:
        """K N."""
        return self.num_views * self.num_samples

    @property
    def own(self) -> slice:
        """The samples whose rows this process reads; empty if there are fewer than processes."""
        return self.sharing.part(self.num_samples)

    @property
    def curvature(self) -> "HeadProblem":
        """The problem whose Hessian is used for this one: itself, or a part of it."""
        return self if self.hessian_samples is None else self.part(self.hessian_samples)

    @property
    def bending(self) -> "HeadProblem":
        """The smallest problem with the same Hessian: at temperature 1, without soft labels."""
        if self.temperature != 1.0:
            return self.curvature
        return replace(self.curvature, soft_labels=None, distilled=None)

    def part(self, samples: Tensor) -> "HeadProblem":
        """The same objective over some of the samples (positions, ascending)."""
        soft, distilled = self.soft_labels, self.distilled
        return replace(
            self,
            features=PickedRows(rows=self.features, samples=samples),
            labels=self.labels[samples],
            soft_labels=None if soft is None else PickedRows(rows=soft, samples=samples),
            distilled=None if distilled is None else distilled[samples],
            hessian_samples=None,
        )

    def loss(self, weight: Tensor) -> float:
        """J(W)."""
        weight = self._fitting(weight)
        own = sum(float(rows.losses(weight).sum()) for rows in self.chunks(weight.device))
        return self._mean_loss(own, weight)

    def gradient(self, weight: Tensor) -> Tensor:
        """dJ(W), (C, D + 1) float64; its columns sum to 0 where those of W do."""
        return self.linearise(weight, cache_bytes=0).gradient()

    def hvp(self, weight: Tensor, direction: Tensor) -> Tensor:
        """H(W) V, (C, D + 1) float64; `linearise` is cheaper for many directions."""
        return self.linearise(weight, cache_bytes=0).hvp(direction)

    def linearise(self, weight: Tensor, *, cache_bytes: int = CACHE_BYTES) -> "Linearisation":
        """Loss and derivatives at W, in one pass; softmax rows are kept if they fit."""
        weight = self._fitting(weight)
        keeps = self.curvature.curvature_bytes(weight) <= cache_bytes
        kept: list[BentRows] = []
        total, losses = torch.zeros_like(weight), 0.0
        for chunk in self.linear_chunks(weight):
            losses += float(chunk.losses().double().sum())
            total += (chunk.residuals().T @ chunk.rows.inputs).double()
            if keeps and self.curvature is self:
                kept.append(chunk.bends().to(self.products))
        if keeps and self.curvature is not self:
            kept = [
                chunk.bends().to(self.products) for chunk in self.curvature.linear_chunks(weight)
            ]
        self.watch.passed()
        return Linearisation(
            problem=self,
            weight=weight,
            loss=self._mean_loss(losses, weight),
            slope=summed(self.sharing, total) / self.num_rows
            + self.l2 * self.mask(weight) * weight,
            kept=tuple(kept) if keeps else None,
        )

    def curvature_bytes(self, weight: Tensor) -> int:
        """Memory in bytes that a process needs to keep a linearisation."""
        num_classes, num_inputs = weight.shape
        softmaxes = 1 if self.soft_labels is None or self.temperature == 1.0 else 2
        columns = num_inputs + softmaxes * (num_classes + 1)
        share = largest_share(self.sharing, self.num_samples)
        return self.products.itemsize * columns * self.num_views * share

    def chunks(self, device: torch.device) -> Iterator[HeadRows]:
        """This process's samples in order, ``rows_per_chunk`` at a time, in ``dtype``."""
        own = self.own
        for start in range(own.start, own.stop, self.rows_per_chunk):
            stop = min(start + self.rows_per_chunk, own.stop)
            yield self._rows(slice(start, stop), device=device)

    def linear_chunks(self, weight: Tensor) -> Iterator[LinearRows]:
        """The chunks at W."""
        for rows in self.chunks(weight.device):
            yield rows.linearise(weight)

    def mask(self, weight: Tensor) -> Tensor:
        """m, (1, D + 1): 1 in the columns that are regularised."""
        mask = torch.ones_like(weight[:1])
        mask[:, -1] = float(self.regularise_bias)
        return mask

    def _fitting(self, weight: Tensor) -> Tensor:
        """W in float64, the same in every process; ValueError if it does not fit the data."""
        _require_weight(self, weight)
        return led(self.sharing, weight.double())

    def _mean_loss(self, own: float, weight: Tensor) -> float:
        """J from this process's sum over its rows; the same number on every process."""
        penalty = self._penalty(weight) if self.sharing.rank == 0 else 0.0
        total, penalty = summed_numbers(self.sharing, own, penalty)
        return total / self.num_rows + penalty

    def _penalty(self, weight: Tensor) -> float:
        return 0.5 * self.l2 * float((self.mask(weight) * weight).square().sum())

    def _rows(self, samples: SamplePositions, *, device: torch.device) -> HeadRows:
        labels = self.labels[samples].to(device).repeat(self.num_views)
        inputs = with_bias_input(self._flat(self.features, samples, device=device))
        if self.soft_labels is None:
            return HeadRows(inputs=inputs, labels=labels, soft=None, temperature=1.0)
        none = torch.zeros_like(self.labels[samples])
        distilled = none if self.distilled is None else self.distilled[samples]
        share = self.kd_weight * distilled.to(device, self.dtype)
        targets = self._flat(self.soft_labels, samples, device=device)
        soft = SoftSide(
            share=share.repeat(self.num_views)[:, None],
            # Rows that do not sum to 1 would leave a bias gradient that no head can remove.
            targets=targets / targets.sum(dim=1, keepdim=True),
        )
        return HeadRows(inputs=inputs, labels=labels, soft=soft, temperature=self.temperature)

    def _flat(self, rows: Rows, samples: SamplePositions, *, device: torch.device) -> Tensor:
        """Read rows (K, n, X) of any dtype as (K n, X)."""
        return read_rows(rows, samples).to(device, self.dtype).reshape(-1, rows.shape[2])


@dataclass(frozen=True, kw_only=True, eq=False)
class Linearisation:
    """A problem at a fixed W, the input of the solver and of the scores."""

    problem: HeadProblem
    weight: Tensor
    """(C, D + 1) float64."""

    loss: float
    """J(W)."""

    slope: Tensor
    """dJ(W), (C, D + 1) float64."""

    kept: tuple[BentRows, ...] | None
    """The curvature of every own chunk if memory allows; None: recomputed on each pass."""

    def chunks(self) -> Iterator[LinearRows]:
        """This process's chunks in order of the samples."""
        return self.problem.linear_chunks(self.weight)

    def bends(self) -> Iterator[BentRows]:
        """The own chunks' shares of the Hessian, in the precision of products."""
        if self.kept is not None:
            yield from self.kept
            return
        bending = self.problem.bending
        for chunk in bending.linear_chunks(self.weight):
            yield chunk.bends().to(bending.products)

    def gradient(self) -> Tensor:
        """dJ(W), (C, D + 1)."""
        return self.slope

    def hvp(self, direction: Tensor) -> Tensor:
        """H(W) V, ([G,] C, D + 1) float64; 4 G K N C (D + 1) flop."""
        return self._product(direction, self.bends())

    def certain_hvp(self, direction: Tensor) -> Tensor:
        """`hvp` with products in the problem's ``dtype``, for measuring residuals."""
        problem = self.problem
        if problem.products == problem.dtype:
            return self.hvp(direction)
        chunks = problem.bending.linear_chunks(self.weight)
        return self._product(direction, (chunk.bends() for chunk in chunks))

    def _product(self, direction: Tensor, bends: Iterator[BentRows]) -> Tensor:
        problem = self.problem
        stacked = led(problem.sharing, direction.double().reshape(-1, *self.weight.shape))
        total = torch.zeros_like(stacked)
        for chunk in bends:
            total += chunk.product(stacked).double()
        problem.watch.passed()
        mean = summed(problem.sharing, total) / problem.curvature.num_rows
        return (mean + problem.l2 * problem.mask(self.weight) * stacked).view(direction.shape)


def centred(weight: Tensor) -> Tensor:
    """W without the part that is equal for all classes, which does not change a softmax."""
    return weight - weight.mean(dim=-2, keepdim=True)


def _require_shapes(problem: HeadProblem) -> None:
    """Reject rows of inconsistent shapes."""
    if len(problem.features.shape) != 3 or 0 in problem.features.shape:
        raise ValueError(
            f"features must be (views, samples, features), got {tuple(problem.features.shape)}"
        )
    num_views, num_samples, _ = problem.features.shape
    if problem.labels.shape != (num_samples,):
        raise ValueError(f"labels must be ({num_samples},), got {tuple(problem.labels.shape)}")
    soft, distilled = problem.soft_labels, problem.distilled
    wanted = (num_views, num_samples)
    if soft is not None and (len(soft.shape) != 3 or tuple(soft.shape[:2]) != wanted):
        raise ValueError(
            f"soft_labels must be ({num_views}, {num_samples}, classes), got {tuple(soft.shape)}"
        )
    if distilled is not None and distilled.shape != (num_samples,):
        raise ValueError(f"distilled must be ({num_samples},), got {tuple(distilled.shape)}")


def _require_settings(problem: HeadProblem) -> None:
    """Reject numbers outside their range."""
    if not 0.0 <= problem.kd_weight <= 1.0:
        raise ValueError(f"kd_weight must be in [0, 1], got {problem.kd_weight}")
    if not (math.isfinite(problem.temperature) and problem.temperature > 0.0):
        raise ValueError(f"temperature must be finite and above 0, got {problem.temperature}")
    if not (math.isfinite(problem.l2) and problem.l2 > 0.0):
        raise ValueError(f"l2 must be finite and above 0, got {problem.l2}")
    if problem.rows_per_chunk < 1:
        raise ValueError(f"rows_per_chunk must be at least 1, got {problem.rows_per_chunk}")
    if int(problem.labels.min()) < 0:
        raise ValueError(f"labels must not be negative, got {int(problem.labels.min())}")
    distilled = problem.distilled
    if distilled is None:
        return
    if not bool(((distilled >= 0) & (distilled <= 1)).all()):
        raise ValueError("distilled must be in [0, 1], got a value outside")
    if problem.soft_labels is None and bool(distilled.any()):
        raise ValueError("soft_labels are missing: distilled rows need them")


def _require_weight(problem: HeadProblem, weight: Tensor) -> None:
    """Reject a W that does not fit the data."""
    num_classes, num_inputs = weight.shape
    wanted = problem.features.shape[2] + 1
    if num_inputs != wanted:
        raise ValueError(f"weight must have {wanted} columns (features and bias), got {num_inputs}")
    soft, highest = problem.soft_labels, int(problem.labels.max())
    if soft is not None and soft.shape[2] != num_classes:
        raise ValueError(f"weight must have {soft.shape[2]} rows (classes), got {num_classes}")
    if highest >= num_classes:
        raise ValueError(f"labels must be in [0, {num_classes}), got {highest}")
