"""Synthetic features of a fairly confident network: classes overlap, the spectrum decays.

They are the same in every run. Means and noise fall with the feature's number j as 1 / j^0.75, and
are rotated and rectified. Soft labels come from a head that was trained briefly.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.methods.head.data import SamplePositions

NOISE = 2.2
BLOCK = 1 << 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Synthetic:
    """Samples on the disk or in memory, and the teacher's head."""

    features: Tensor
    """(N, D) float16"""
    logits: Tensor
    """(N, C) float16"""
    labels: Tensor
    """(N,) int64"""
    head: Tensor
    """(C, D + 1) float32"""


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureRows:
    """One view of features, read on demand."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        return 1, *self.values.shape

    def read(self, samples: SamplePositions) -> Tensor:
        return self.values[samples][None]


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelRows:
    """The teacher's soft labels at temperature 1, computed from its logits on demand."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        return 1, *self.values.shape

    def read(self, samples: SamplePositions) -> Tensor:
        return self.values[samples].float().softmax(dim=1)[None]


def synthetic(
    folder: Path, *, num_samples: int, num_classes: int, num_features: int, seed: int = 0
) -> Synthetic:
    """Write features and logits as memory-mapped files below ``folder``."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, num_features + 1).float() ** -0.75
    means = 2.0 * spectrum * torch.randn(num_classes, num_features, generator=generator)
    rotation = torch.linalg.qr(torch.randn(num_features, num_features, generator=generator)).Q
    labels = torch.randint(num_classes, (num_samples,), generator=generator)
    features = _mapped(folder / "features.npy", (num_samples, num_features))
    for start in range(0, num_samples, BLOCK):
        own = labels[start : start + BLOCK]
        noise = torch.randn(len(own), num_features, generator=generator)
        rows = 3.0 * torch.relu((means[own] + NOISE * spectrum * noise) @ rotation)
        features[start : start + len(own)] = rows.half()
    head = _teacher(features, labels, num_classes=num_classes, generator=generator)
    logits = _mapped(folder / "logits.npy", (num_samples, num_classes))
    for start in range(0, num_samples, BLOCK):
        rows = F.pad(features[start : start + BLOCK].float(), (0, 1), value=1.0)
        logits[start : start + len(rows)] = (rows @ head.T).half()
    return Synthetic(features=features, logits=logits, labels=labels, head=head)


def _mapped(path: Path, shape: tuple[int, int]) -> Tensor:
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    return torch.from_numpy(mapped)


def _teacher(
    features: Tensor, labels: Tensor, *, num_classes: int, generator: torch.Generator
) -> Tensor:
    """A head after a hundred steps on small batches: it makes mistakes and is overconfident."""
    head = torch.zeros(num_classes, features.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.Adam([head], lr=0.02)
    for _ in range(100):
        rows = torch.randint(len(labels), (4096,), generator=generator).sort().values
        inputs = F.pad(features[rows].float(), (0, 1), value=1.0)
        loss = F.cross_entropy(inputs @ head.T, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.detach()
