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

Shapes: N samples, K views, D features, C classes, M = K n rows of a chunk of n samples.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.methods.head_rows import HeadRows, LinearRows, SoftSide, with_bias_input

CACHE_BYTES = 2**30  # 36,000 samples, 10 classes and 64 features need 22 MB per view


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadProblem:
    """Cached features and what supervises each sample; see the module for the objective.

    Chunks are read in float64 and on the device of the weights, so that the features may be
    float16, memory-mapped or on another device. The weights are W, (C, D + 1), bias last.
    """

    features: Tensor
    """What the head reads, (K, N, D), any floating dtype."""

    labels: Tensor
    """Ground-truth class ids, (N,) int64."""

    soft_labels: Tensor | None = None
    """(K, N, C), rows sum to 1 (normalised again in float64); None if nothing is distilled."""

    distilled: Tensor | None = None
    """s, (N,) in [0, 1]: 1 where a sample is distilled; None is 0 everywhere."""

    kd_weight: float = 0.0
    """w, in [0, 1]."""

    temperature: float = 1.0
    l2: float
    regularise_bias: bool = False
    rows_per_chunk: int = 4096
    """Samples read at once; changes the result by rounding only."""

    def __post_init__(self) -> None:
        _require_shapes(self)
        _require_settings(self)

    @property
    def num_views(self) -> int:
        return self.features.shape[0]

    @property
    def num_samples(self) -> int:
        return self.features.shape[1]

    def loss(self, weight: Tensor) -> float:
        """J(W)."""
        weight = self._checked(weight)
        data = sum(float(rows.losses(weight).sum()) for rows in self.chunks(weight.device))
        penalty = 0.5 * self.l2 * float((self.mask(weight) * weight).square().sum())
        return data / (self.num_views * self.num_samples) + penalty

    def gradient(self, weight: Tensor) -> Tensor:
        """dJ(W), (C, D + 1) float64; its columns sum to 0 where those of W do."""
        return self.linearise(weight, cache_bytes=0).gradient()

    def hvp(self, weight: Tensor, direction: Tensor) -> Tensor:
        """H(W) V, (C, D + 1) float64; `linearise` is cheaper for many directions."""
        return self.linearise(weight, cache_bytes=0).hvp(direction)

    def linearise(self, weight: Tensor, *, cache_bytes: int = CACHE_BYTES) -> "Linearisation":
        """The objective's derivatives at W; softmax rows are kept if they fit ``cache_bytes``."""
        weight = self._checked(weight)
        point = Linearisation(problem=self, weight=weight, kept=None)
        num_classes, num_inputs = weight.shape
        columns = num_inputs + 3 * num_classes  # h~, p, p^tau and t
        if 8 * columns * self.num_views * self.num_samples > cache_bytes:
            return point
        return Linearisation(problem=self, weight=weight, kept=tuple(point.chunks()))

    def chunks(self, device: torch.device) -> Iterator[HeadRows]:
        """All samples in order, ``rows_per_chunk`` at a time."""
        for start in range(0, self.num_samples, self.rows_per_chunk):
            yield self._rows(slice(start, start + self.rows_per_chunk), device=device)

    def mask(self, weight: Tensor) -> Tensor:
        """m, (1, D + 1): 1 in the columns that are regularised."""
        mask = torch.ones_like(weight[:1])
        mask[:, -1] = float(self.regularise_bias)
        return mask

    def _rows(self, samples: slice, *, device: torch.device) -> HeadRows:
        labels = self.labels[samples].to(device).repeat(self.num_views)
        inputs = with_bias_input(_flat(self.features[:, samples], device=device))
        if self.soft_labels is None:
            return HeadRows(inputs=inputs, labels=labels, soft=None, temperature=1.0)
        none = torch.zeros_like(self.labels[samples])
        distilled = none if self.distilled is None else self.distilled[samples]
        share = self.kd_weight * distilled.to(device, torch.float64)
        targets = _flat(self.soft_labels[:, samples], device=device)
        soft = SoftSide(
            share=share.repeat(self.num_views)[:, None],
            # Rounded rows would leave a gradient along the bias that no head can remove.
            targets=targets / targets.sum(dim=1, keepdim=True),
        )
        return HeadRows(inputs=inputs, labels=labels, soft=soft, temperature=self.temperature)

    def _checked(self, weight: Tensor) -> Tensor:
        """W in float64, or an error if it does not fit the data."""
        num_classes, num_inputs = weight.shape
        if num_inputs != self.features.shape[2] + 1:
            raise ValueError(
                f"weight must have {self.features.shape[2] + 1} columns (features and bias), "
                f"got {num_inputs}"
            )
        if self.soft_labels is not None and self.soft_labels.shape[2] != num_classes:
            raise ValueError(
                f"weight must have {self.soft_labels.shape[2]} rows (classes), got {num_classes}"
            )
        if int(self.labels.max()) >= num_classes:
            raise ValueError(f"labels must be in [0, {num_classes}), got {int(self.labels.max())}")
        return weight.double()


@dataclass(frozen=True, kw_only=True, eq=False)
class Linearisation:
    """A problem at a fixed W: what the solver and the scores read."""

    problem: HeadProblem
    weight: Tensor
    """(C, D + 1) float64."""

    kept: tuple[LinearRows, ...] | None
    """Every chunk, where memory allows; None recomputes them on each pass."""

    def chunks(self) -> Iterator[LinearRows]:
        """The chunks in order of the samples."""
        if self.kept is not None:
            yield from self.kept
            return
        for rows in self.problem.chunks(self.weight.device):
            yield rows.linearise(self.weight)

    def gradient(self) -> Tensor:
        """dJ(W), (C, D + 1)."""
        total = torch.zeros_like(self.weight)
        for chunk in self.chunks():
            total += chunk.residuals().T @ chunk.rows.inputs
        return self._mean_plus_penalty(total, self.weight)

    def hvp(self, direction: Tensor) -> Tensor:
        """H(W) V, (C, D + 1); 4 K N C (D + 1) flop."""
        direction = direction.double()
        total = torch.zeros_like(self.weight)
        for chunk in self.chunks():
            inputs = chunk.rows.inputs
            total += chunk.curvature_product(inputs @ direction.T).T @ inputs
        return self._mean_plus_penalty(total, direction)

    def _mean_plus_penalty(self, total: Tensor, penalised: Tensor) -> Tensor:
        problem = self.problem
        mean = total / (problem.num_views * problem.num_samples)
        return mean + problem.l2 * problem.mask(self.weight) * penalised


def centred(weight: Tensor) -> Tensor:
    """W without the part that adds the same to every class, which no softmax sees."""
    return weight - weight.mean(dim=0, keepdim=True)


def _flat(views: Tensor, *, device: torch.device) -> Tensor:
    """(K, n, X) of any dtype to (K n, X) float64."""
    return views.to(device, torch.float64).reshape(-1, views.shape[2])


def _require_shapes(problem: HeadProblem) -> None:
    if problem.features.ndim != 3 or problem.features.numel() == 0:
        raise ValueError(
            f"features must be (views, samples, features), got {tuple(problem.features.shape)}"
        )
    num_views, num_samples, _ = problem.features.shape
    if problem.labels.shape != (num_samples,):
        raise ValueError(f"labels must be ({num_samples},), got {tuple(problem.labels.shape)}")
    soft, distilled = problem.soft_labels, problem.distilled
    if soft is not None and (soft.ndim != 3 or soft.shape[:2] != (num_views, num_samples)):
        raise ValueError(
            f"soft_labels must be ({num_views}, {num_samples}, classes), got {tuple(soft.shape)}"
        )
    if distilled is not None and distilled.shape != (num_samples,):
        raise ValueError(f"distilled must be ({num_samples},), got {tuple(distilled.shape)}")


def _require_settings(problem: HeadProblem) -> None:
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
