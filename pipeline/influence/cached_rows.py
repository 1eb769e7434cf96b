"""Rows of a head problem that are read from a cache on request.

Shapes: K views, N samples of a problem, n samples that are read at once, D features, C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.influence.repair import TeacherRows
from pipeline.methods.catalogue import Revision
from pipeline.methods.head.data import SamplePositions
from pipeline.methods.label_revision import soft_labels


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedFeatures:
    """Penultimate features of some samples in some views."""

    views: tuple[Tensor, ...]
    """All samples of the data set in each view, (any, D), memory-mapped."""
    samples: Tensor
    """Sample indices of the problem's samples, (N,) int64."""

    @classmethod
    def of(cls, cached: TeacherRows, views: tuple[int, ...], samples: Tensor) -> "CachedFeatures":
        """The features of some samples of a cache.

        Raises:
            ArtefactMismatch: if the cache keeps no features.
        """
        mapped = tuple(torch.from_numpy(cached.features(view)) for view in views)
        return cls(views=mapped, samples=samples)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, N, D)"""
        return len(self.views), len(self.samples), self.views[0].shape[1]

    def read(self, samples: SamplePositions) -> Tensor:
        """(K, n, D) float16"""
        rows = self.samples[samples]
        return torch.stack([view[rows] for view in self.views])


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """Settings of the conversion from logits to soft labels."""

    revision: Revision
    eta: float
    temperature: float


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedSoftLabels:
    """The teacher's soft labels of some samples in some views, computed from its logits."""

    cached: TeacherRows
    views: tuple[int, ...]
    samples: Tensor
    """Sample indices of the problem's samples, (N,) int64."""
    labels: Tensor
    """Ground truth of all samples of the data set, int64."""
    labelling: Labelling

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, N, C)"""
        return len(self.views), len(self.samples), self.cached.cache.shape.num_classes

    def read(self, samples: SamplePositions) -> Tensor:
        """(K, n, C) float32"""
        rows, how = self.samples[samples], self.labelling
        return torch.stack(
            [
                soft_labels(
                    self.cached.logit_rows(view, rows, temperature=how.temperature),
                    self.labels[rows],
                    revision=how.revision,
                    eta=how.eta,
                    temperature=how.temperature,
                )
                for view in self.views
            ]
        )
