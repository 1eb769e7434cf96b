"""What a method of distillation adds for the teacher's penultimate features, and trains for it.

Every term takes the distilled rows of a batch alone; `student_loss` weighs it by their share.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.supervision import Batch
from pipeline.methods.contrastive_distillation import ContrastiveDistillation, ContrastSettings
from pipeline.methods.feature_distillation import (
    cc_loss,
    feature_map,
    fitnet_rows,
    pkt_loss,
    rkd_loss,
    sp_loss,
)
from pipeline.methods.precision import at_least_float32

Relation: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Of student and teacher features of the same rows, (n, D_s) and (n, D_t): a scalar."""


@dataclass(frozen=True, kw_only=True)
class DistilledRows:
    """The rows of a batch that are distilled; n of them."""

    student: Tensor
    """Features, (n, D_s) float32."""
    teacher: Tensor
    """Features, (n, D_t) float32."""
    indices: Tensor
    """Sample indices, (n,) int64."""
    labels: Tensor
    """(n,) int64"""


class FeatureTerm(nn.Module):
    """A term of the loss from the features of the distilled rows of a batch."""

    compares_rows = False
    """Whether it is not a mean over the rows."""

    def forward(self, features: Tensor, batch: Batch, labels: Tensor, selected: Tensor) -> Tensor:
        """The share of the rows that are distilled, times the method's mean over them."""
        num_selected = int(selected.sum())
        if num_selected == 0:
            return features.sum() * 0.0  # a gradient exists
        assert batch.features is not None
        student = at_least_float32(features)
        teacher = batch.features.to(student)
        rows = selected.nonzero().squeeze(1)
        indices = batch.indices.to(features.device)
        term = self.of_rows(
            DistilledRows(
                student=student[rows],
                teacher=teacher[rows],
                indices=indices[rows],
                labels=labels[rows],
            )
        )
        return term * (num_selected / len(labels))

    def of_rows(self, rows: DistilledRows) -> Tensor:
        """The method's formula, a scalar."""
        raise NotImplementedError


class Mapped(FeatureTerm):
    """FitNet: the teacher's features from a trained linear map of the student's."""

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.map = feature_map(student_dim, teacher_dim)

    def of_rows(self, rows: DistilledRows) -> Tensor:
        return fitnet_rows(self.map(rows.student), rows.teacher).mean()


class Equal(FeatureTerm):
    """SimKD: the student ends in a projection to the teacher's features and its classifier."""

    def of_rows(self, rows: DistilledRows) -> Tensor:
        return fitnet_rows(rows.student, rows.teacher).mean()


class Related(FeatureTerm):
    """A method that compares how the samples of a batch relate to each other."""

    compares_rows = True

    def __init__(self, relation: Relation) -> None:
        super().__init__()
        self._relation = relation

    def of_rows(self, rows: DistilledRows) -> Tensor:
        return self._relation(rows.student, rows.teacher)


class Contrasted(FeatureTerm):
    """CRD: embeddings of one sample agree, and differ from those of other classes.

    A mean over rows, but its banks and its draws move with the whole batch.
    """

    compares_rows = True

    def __init__(self, contrast: ContrastiveDistillation) -> None:
        super().__init__()
        self.contrast = contrast

    def of_rows(self, rows: DistilledRows) -> Tensor:
        loss: Tensor = self.contrast(rows.student, rows.teacher, rows.indices, rows.labels)
        return loss


def feature_term(
    method: str,
    settings: Mapping[str, Any],
    *,
    dims: tuple[int, int],
    labels: NDArray[np.int64],
    seed: int,
) -> FeatureTerm | None:
    """What ``method`` adds for features; None where it adds nothing.

    Args:
        method: its name in the catalogue.
        settings: its own.
        dims: features of the student, of the teacher.
        labels: of all samples of the data set, by sample index; -1: it is never distilled.
        seed: of what is drawn beside weights.
    """
    relations: dict[str, Callable[..., Tensor]] = {
        "rkd": rkd_loss,
        "pkt": pkt_loss,
        "sp": sp_loss,
        "cc": cc_loss,
    }
    if method in relations:
        return Related(partial(relations[method], **settings))
    if method == "fitnet":
        return Mapped(*dims)
    if method == "simkd":
        return Equal()
    if method == "crd":
        return Contrasted(
            ContrastiveDistillation(
                torch.from_numpy(labels),
                student_dim=dims[0],
                teacher_dim=dims[1],
                settings=ContrastSettings(**settings),
                seed=seed,
            )
        )
    return None
