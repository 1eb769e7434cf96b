"""What is trained on what: all that a training is told before it begins."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.run import Inputs
from pipeline.data.loaders import Supervision
from pipeline.data.view_specs import Views
from pipeline.models.networks.classifier import Classifier
from pipeline.provenance import Json
from pipeline.teacher.online import OnlineTeacher
from pipeline.training.student_loss import StudentLoss
from stages.config.training import OptimiserConfig


@dataclass(frozen=True, kw_only=True)
class TeacherClasses:
    """The teacher's top class in the clean view, to tell how far the student follows it."""

    held_out: Tensor | None
    """(M,) int64, in the order of the held-out rows."""
    test: Tensor | None
    """(K,) int64"""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What to train on what."""

    settings: OptimiserConfig
    identity: Mapping[str, Json]
    """Everything among the settings that the numbers depend on."""
    inputs: Inputs
    dataset: Dataset
    rows: NDArray[np.int64]
    """Sample indices that are trained on."""
    views: Views
    model: Classifier
    loss: StudentLoss
    supervision: Supervision | None
    num_distilled: int
    teacher: TeacherClasses
    method: str | None = None
    online: OnlineTeacher | None = None
