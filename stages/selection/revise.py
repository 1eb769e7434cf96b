"""Revised soft labels: the teacher's logits of all views, mended and written down."""

import logging
from collections.abc import Iterator
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
    with progress(
        "revise labels", total=len(identity.views) * cached.num_samples, unit="rows"
    ) as bar:
        soft_format.write(
            path,
            identity=identity,
            views=(
                _revised(identity, cached, view, labels, eta=eta, bar=bar)
                for view in identity.views
            ),
            num_samples=cached.num_samples,
            num_classes=dataset.num_classes,
            repaired=cached.report if isinstance(cached, RepairedCache) else None,
        )
    logger.info("%s: %d views of %s labels", path, len(identity.views), f"{cached.num_samples:,}")


def _revised(
    identity: SoftLabelIdentity,
    cached: TeacherRows,
    view: int,
    labels: Tensor,
    *,
    eta: float,
    bar: Progress,
) -> Iterator[NDArray[np.float16] | NDArray[np.uint16]]:
    """The soft labels of one view, revised in float32; hard ones where the cache has none."""
    known = torch.from_numpy(cached.joined.known)
    for block in cached.logit_blocks(view, temperature=identity.revise_at):
        own, seen = labels[block.samples], known[block.samples]
        revised = F.one_hot(own, block.logits.shape[1]).float()
        logits = block.logits[seen]
        revised[seen] = soft_labels(
            standardised(logits) if identity.standardise else logits,
            own[seen],
            revision=identity.revision,
            eta=eta,
            temperature=identity.revise_at,
        )
        if block.classes is None:
            yield revised.half().numpy()
        else:
            yield pack(revised, block.classes, own).numpy()
        bar.advance(len(own))
