"""Loss terms for the teacher's penultimate features, with the parameters that they train.

Every term uses only the distilled rows of a batch; `student_loss` weights it by their share.
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
"""Student and teacher features of the same rows, (n, D_s) and (n, D_t), to a scalar."""


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
    """Class ids, (n,) int64."""


class FeatureTerm(nn.Module):
    """A term of the loss from the features of the distilled rows of a batch."""

    compares_rows = False
    """True if it is not a mean over the rows."""

    def forward(self, features: Tensor, batch: Batch, labels: Tensor, selected: Tensor) -> Tensor:
        """Mean of the method's term over the distilled rows, times their share of the batch."""
        num_selected = int(selected.sum())
        if num_selected == 0:
            return features.sum() * 0.0  # keeps a gradient, of 0
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
    """FitNet: a trained linear map of the student's features matches the teacher's."""

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

    It is a mean over rows, but its banks and draws depend on the whole batch.
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
    """Build the feature term of ``method``; None if it has none.

    Args:
        method: name of the method in the catalogue.
        settings: settings of the method's own table.
        dims: feature dimensions of the student and of the teacher.
        labels: class ids of all samples of the data set, (N,) int64; -1: never distilled.
        seed: seed of random draws other than weights.
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
