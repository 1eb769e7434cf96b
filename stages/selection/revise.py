"""Revised soft labels: computed from the teacher's logits of all views, and written."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.artefacts import soft_labels as soft_format
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.soft_labels import SoftLabelIdentity
from pipeline.influence.repair import RepairedCache, TeacherRows
from pipeline.methods.label_revision import soft_labels
from pipeline.methods.logit_distillation import standardised
from pipeline.methods.sparse_labels import pack
from pipeline.runtime.progress import Progress, progress
from stages.text import counted

logger = logging.getLogger(__name__)


def revise_views(
    path: Path,
    identity: SoftLabelIdentity,
    cached: TeacherRows,
    dataset: Dataset,
    *,
    eta: float,
) -> None:
    """Write the soft labels of all views."""
    labels = torch.from_numpy(dataset.train.samples.labels)
    revising = _Revising(identity=identity, cached=cached, labels=labels, eta=eta)
    with progress(
        "revise labels", total=len(identity.views) * cached.num_samples, unit="labels"
    ) as bar:
        soft_format.write(
            path,
            identity=identity,
            views=(revising.view(view, bar) for view in identity.views),
            size=(cached.num_samples, dataset.num_classes),
            repaired=cached.report if isinstance(cached, RepairedCache) else None,
        )
    logger.debug(
        "%s: soft labels of %s in %s",
        path,
        counted(cached.num_samples, "sample"),
        counted(len(identity.views), "view"),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Revising:
    """The teacher's rows, the true labels, and the strength of revision."""

    identity: SoftLabelIdentity
    cached: TeacherRows
    labels: Tensor
    """Labels of the data set, (N,) int64."""
    eta: float

    def view(self, view: int, bar: Progress) -> Iterator[NDArray[np.float16] | NDArray[np.uint16]]:
        """The soft labels of one view, revised in float32; hard labels where the cache has none."""
        identity, known = self.identity, torch.from_numpy(self.cached.joined.known)
        for block in self.cached.logit_blocks(view, temperature=identity.revise_at):
            own, seen = self.labels[block.samples], known[block.samples]
            revised = F.one_hot(own, block.logits.shape[1]).float()
            logits = block.logits[seen]
            revised[seen] = soft_labels(
                standardised(logits) if identity.standardise else logits,
                own[seen],
                revision=identity.revision,
                eta=self.eta,
                temperature=identity.revise_at,
            )
            if block.classes is None:
                yield revised.half().numpy()
            else:
                yield pack(revised, block.classes, own).numpy()
            bar.advance(len(own))
