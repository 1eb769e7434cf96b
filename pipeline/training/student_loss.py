"""The loss of a student: its labels, the teacher's soft labels, the teacher's features.

    L = (1/B) sum_i [ (1 - s_i) CE_i + s_i (lambda_ce CE_i + lambda_kd T_i) ]
        + lambda_feature (n_s / B) F                       (Lan et al. 2024, arXiv:2404.03693)

s marks the n_s rows of the batch that are distilled. T is a method's term of the logits and F its
term of the features, both over the distilled rows only. A term that compares the rows of a batch
counts as the mean of its rows, so every method is weighted by the share of distilled rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.supervision import Batch
from pipeline.methods.distillation import distillation_loss, kd_loss_rows, supervised_loss
from pipeline.methods.logit_distillation import (
    dist_loss,
    dkd_rows,
    mlkd_loss,
    nkd_rows,
    standardised,
)
from pipeline.methods.precision import at_least_float32
from pipeline.methods.sparse_labels import unpack
from pipeline.training.feature_terms import FeatureTerm

MethodSettings: TypeAlias = Mapping[str, float | int | tuple[float, ...]]
"""Settings of a method's own table, by name."""

RowTerm: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits (B, C), soft labels (B, C) and labels (B,) to a loss for each row, (B,)."""
BatchTerm: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Two tensors with a row for each distilled sample to a scalar."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Outputs of a network for a batch."""

    logits: Tensor
    """(B, C)"""
    features: Tensor
    """The input of its classifier, (B, D)."""


class StudentLoss(nn.Module):
    """A loss, with the parameters that it trains in addition to the student's, if any."""

    @property
    def compares_rows(self) -> bool:
        """True if it is not a mean over the rows of a batch and so needs all of them at once."""
        return False

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0, because some weights rise with it."""

    def forward(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The mean loss of the batch, a scalar, float32 (float64 for float64 logits)."""
        raise NotImplementedError


class PlainLoss(StudentLoss):
    """Cross-entropy with the labels, without distillation.

    Args:
        label_smoothing: in [0, 1).
        labels: class ids by sample index, (N,) int64, that replace the images' own; None: do not.
    """

    def __init__(self, *, label_smoothing: float = 0.0, labels: Tensor | None = None) -> None:
        super().__init__()
        self._smoothing = label_smoothing
        self._labels = labels

    def forward(self, outputs: Outputs, batch: Batch) -> Tensor:
        logits = at_least_float32(outputs.logits)
        labels = batch.labels if self._labels is None else self._labels[batch.indices.cpu()]
        labels = labels.to(logits.device)
        return F.cross_entropy(logits, labels, label_smoothing=self._smoothing)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of the terms of the loss, on distilled rows."""

    ce: float
    kd: float
    feature: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DistillationSettings:
    """A method with its settings."""

    method: str = "kd"
    """Name in the catalogue."""
    own: MethodSettings = field(default_factory=dict)
    """Settings of the method's own table."""
    weights: Weights
    temperature: float
    standardise: bool = False
    """Standardise the student's logits, as was done for the soft labels."""
    label_smoothing: float = 0.0


class DistillationLoss(StudentLoss):
    """Labels, soft labels and features; see the module."""

    def __init__(
        self, settings: DistillationSettings, *, feature_term: FeatureTerm | None = None
    ) -> None:
        super().__init__()
        method, own, temperature = settings.method, settings.own, settings.temperature
        self._weights = settings.weights
        self._temperature = temperature
        self._standardise = settings.standardise
        self._smoothing = settings.label_smoothing
        self._rows = _row_term(method, own, temperature)
        self._over_batch = _batch_term(method, own, temperature)
        self._warmup = int(_number(own, "warmup_epochs", 0.0))
        self._scale = 1.0
        self.feature_term = feature_term

    @property
    def compares_rows(self) -> bool:
        return self._over_batch is not None or (
            self.feature_term is not None and self.feature_term.compares_rows
        )

    def begin_epoch(self, epoch: int) -> None:
        self._scale = min((epoch + 1) / self._warmup, 1.0) if self._warmup else 1.0

    def forward(self, outputs: Outputs, batch: Batch) -> Tensor:
        assert batch.selected is not None
        device = outputs.logits.device
        labels, selected = batch.labels.to(device), batch.selected.to(device)
        loss = self._of_logits(outputs.logits, labels, selected, batch)
        if self.feature_term is not None and self._weights.feature:
            term = self.feature_term(outputs.features, batch, labels, selected)
            loss = loss + self._weights.feature * term
        return loss

    def _of_logits(self, logits: Tensor, labels: Tensor, selected: Tensor, batch: Batch) -> Tensor:
        weight = self._weights.kd * self._scale
        if weight == 0.0:
            return self._supervised(logits, labels, selected)
        assert batch.soft_labels is not None
        soft_labels = dense(batch.soft_labels.to(logits.device), num_classes=logits.shape[1])
        if self._rows is None and self._over_batch is None and not self._standardise:
            return distillation_loss(
                logits,
                labels,
                soft_labels=soft_labels,
                selected=selected,
                lambda_ce=self._weights.ce,
                lambda_kd=weight,
                temperature=self._temperature,
                label_smoothing=self._smoothing,
            )
        term = self._method_term(at_least_float32(logits), soft_labels, labels, selected)
        return self._supervised(logits, labels, selected) + weight * term

    def _supervised(self, logits: Tensor, labels: Tensor, selected: Tensor) -> Tensor:
        return supervised_loss(
            logits,
            labels,
            selected=selected,
            lambda_ce=self._weights.ce,
            label_smoothing=self._smoothing,
        )

    def _method_term(
        self, logits: Tensor, soft_labels: Tensor, labels: Tensor, selected: Tensor
    ) -> Tensor:
        """The method's term of the logits, weighted by the share of distilled rows."""
        soft_labels = soft_labels.to(logits)
        if self._over_batch is not None:
            share = int(selected.sum()) / len(labels)
            if share == 0.0:
                return logits.sum() * 0.0  # keeps a gradient, of 0
            return share * self._over_batch(logits[selected], soft_labels[selected])
        if self._standardise:
            logits = standardised(logits)
        rows = self._rows or self._vanilla
        return rows(logits, soft_labels, labels).masked_fill(~selected, 0.0).sum() / len(labels)

    def _vanilla(self, logits: Tensor, soft_labels: Tensor, _: Tensor) -> Tensor:
        return kd_loss_rows(logits, soft_labels, temperature=self._temperature)


def dense(soft_labels: Tensor, *, num_classes: int) -> Tensor:
    """Probabilities (B, C) of stored rows; packed rows are unpacked on their device."""
    return soft_labels if soft_labels.is_floating_point() else unpack(soft_labels, num_classes)


def _row_term(method: str, settings: MethodSettings, temperature: float) -> RowTerm | None:
    """A method's own term for every row; None if it has none."""
    if method == "dkd":
        return lambda logits, soft, labels: dkd_rows(
            logits,
            soft,
            labels,
            temperature=temperature,
            alpha=_number(settings, "alpha"),
            beta=_number(settings, "beta"),
        )
    if method == "nkd":
        return lambda logits, soft, labels: nkd_rows(
            logits, soft, labels, temperature=temperature, gamma=_number(settings, "gamma")
        )
    return None


def _batch_term(method: str, settings: MethodSettings, temperature: float) -> BatchTerm | None:
    """A method's term for a batch of distilled rows; None if it has none."""
    if method == "dist":
        return lambda logits, soft: dist_loss(
            logits,
            soft,
            temperature=temperature,
            beta=_number(settings, "beta"),
            gamma=_number(settings, "gamma"),
        )
    if method == "mlkd":
        temperatures = settings["temperatures"]
        assert isinstance(temperatures, tuple)
        return lambda logits, soft: mlkd_loss(
            logits, soft, temperature=temperature, temperatures=temperatures
        )
    return None


def _number(settings: MethodSettings, name: str, default: float | None = None) -> float:
    value = settings[name] if default is None else settings.get(name, default)
    assert not isinstance(value, tuple)
    return float(value)
