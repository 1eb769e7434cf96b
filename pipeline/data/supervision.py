"""Batches, and the supervision joined to them by sample index: soft labels, flags, features."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.artefacts.dataset import Beton
from pipeline.data.gather_operations import Gather, LabelTable
from pipeline.data.view_specs import Views
from pipeline.errors import ArtefactMismatch
from pipeline.methods.sparse_labels import packed_width


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A borrowed batch of B samples. Indices are on the host, all else on the loader's device."""

    images: Tensor
    """(B, 3, H, W) uint8, channels_last in memory."""
    labels: Tensor
    """Class ids, (B,) int64."""
    indices: Tensor
    """Sample indices, (B,) int64."""
    soft_labels: Tensor | None
    """Rows of the loader's tables as stored: (B, C) float16 probabilities, or packed rows,
    (B, W) uint16, for `sparse_labels.unpack`; None if the loader has no tables."""
    selected: Tensor | None
    """True for samples to distil, (B,) bool."""
    features: Tensor | None = None
    """The teacher's features, (B, D) float16; None if the loader has none."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """Soft labels and flags to be joined to images by sample index."""

    soft_labels: Sequence[LabelTable]
    """Probabilities of V views, memory-mapped or not; row i is sample index i. (N, C) float16 each,
    or packed rows, (N, W) uint16."""
    selected: NDArray[np.bool_]
    """True for samples to distil, (N,)."""
    labels: NDArray[np.int64]
    """Class ids that the soft labels were made with, (N,); the first epoch checks each of them."""
    by_view: bool
    """True: slot v belongs to view v + 1; False: slot 0 is used for every view."""
    num_classes: int
    """C"""
    top_k: int = 0
    """Classes listed in a packed row in addition to the label; 0: rows are dense."""
    features: Sequence[NDArray[np.float16]] = ()
    """The teacher's penultimate features of the same views, (N, D) each; empty if not needed."""


def require_fitting(supervision: Supervision, beton: Beton, spec: Views) -> None:
    """Reject a supervision from which a gather by position would read wrong numbers.

    Raises:
        ArtefactMismatch: if rows, views, classes or the layout do not fit the beton and the views.
    """
    found = {len(table) for table in supervision.soft_labels}
    found |= {len(supervision.selected), len(supervision.labels)}
    found |= {len(table) for table in supervision.features}
    if found != {beton.num_samples}:
        rows = " and ".join(f"{count:,}" for count in sorted(found))
        raise ArtefactMismatch(
            f"the soft labels have {rows} rows (expected {beton.num_samples:,}, one per sample of "
            f"{beton.path}). Run `heartcut select` on this beton's cache."
        )
    _require_layout(supervision)
    num_tables, wanted = len(supervision.soft_labels), spec.num_views if supervision.by_view else 1
    assert len(supervision.features) in (0, num_tables), "features are of the soft labels' views"
    if num_tables != wanted:
        raise ArtefactMismatch(
            f"the soft labels are of {num_tables} views (expected {wanted}, as in {spec.name}). "
            "Run `heartcut select` with the views of the cache."
        )


def _require_layout(supervision: Supervision) -> None:
    """Reject rows of another layout, which would be misread because all hold 16-bit numbers."""
    top_k, num_classes = supervision.top_k, supervision.num_classes
    wanted = f"{packed_width(top_k)} uint16" if top_k else f"{num_classes} float16"
    found = {f"{table.shape[1]} {table.dtype}" for table in supervision.soft_labels}
    if found != {wanted}:
        layout = f"packed, top {top_k}" if top_k else "dense"
        raise ArtefactMismatch(
            f"a row of the soft labels has {' or '.join(sorted(found))} numbers (expected "
            f"{wanted}: {num_classes} classes, {layout}). Run `heartcut select` again."
        )
    if supervision.labels.max() >= num_classes:
        raise ArtefactMismatch(
            f"the soft labels have {num_classes} classes (expected more than "
            f"{supervision.labels.max()}, the largest label). Run `heartcut select` on this "
            "beton's cache."
        )


def gathers(supervision: Supervision | None) -> list[Gather]:
    """Gather operations: one for soft labels, and one for features if there are any."""
    if supervision is None:
        return []
    tables = [supervision.soft_labels] + ([supervision.features] if supervision.features else [])
    return [Gather(views_of_table) for views_of_table in tables]
