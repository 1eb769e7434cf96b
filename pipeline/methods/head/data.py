"""Row sources of a head problem: tensors, or readers that return a run of rows on request.

The features of a large cache stay on the disk, and its soft labels are computed from the logits
when they are needed. So a problem holds readers and never the numbers themselves.

Shapes: K views, N samples, n samples that are read at once, X columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from pipeline.methods.rank_sums import NOT_SHARED, Sharing, led, summed

SamplePositions: TypeAlias = slice | Tensor
"""A run of samples, or their positions (n,) int64."""


def runs(part: slice, *, size: int) -> Iterator[slice]:
    """Split the samples of ``part`` into runs of at most ``size``."""
    for start in range(part.start, part.stop, size):
        yield slice(start, min(start + size, part.stop))


class RowReader(Protocol):
    """Rows of every sample in every view."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, N, X)"""

    def read(self, samples: SamplePositions) -> Tensor:
        """(K, n, X), any floating dtype and device."""


Rows: TypeAlias = Tensor | RowReader
"""(K, N, X) in memory, or a reader."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PickedRows:
    """Rows of some samples of another source."""

    rows: Rows
    samples: Tensor
    """Positions, (N,) int64, ascending: a file is read forwards."""

    @property
    def shape(self) -> tuple[int, int, int]:
        num_views, _, width = self.rows.shape
        return num_views, len(self.samples), width

    def read(self, samples: SamplePositions) -> Tensor:
        return read_rows(self.rows, self.samples[samples])


@dataclass(frozen=True, kw_only=True, eq=False)
class ProjectedRows:
    """Rows of another source projected to a subspace: (h - centre) basis."""

    rows: Rows
    centre: Tensor
    """(D,) float64."""

    basis: Tensor
    """(D, X) float64."""

    @property
    def shape(self) -> tuple[int, int, int]:
        num_views, num_samples, _ = self.rows.shape
        return num_views, num_samples, self.basis.shape[1]

    def read(self, samples: SamplePositions) -> Tensor:
        rows = read_rows(self.rows, samples).to(self.basis)
        return (rows - self.centre) @ self.basis


def read_rows(rows: Rows, samples: SamplePositions) -> Tensor:
    """Read the rows of some samples, (K, n, X)."""
    return rows[:, samples] if isinstance(rows, Tensor) else rows.read(samples)


def principal_components(
    rows: Rows,
    *,
    num_components: int,
    rows_per_chunk: int = 4096,
    sharing: Sharing = NOT_SHARED,
) -> tuple[Tensor, Tensor]:
    """Compute the mean and the leading eigenvectors of the covariance of all rows.

    Args:
        rows: (K, N, D), any floating dtype.
        num_components: X, in [1, D].
        rows_per_chunk: samples read at once; changes the result by rounding only.
        sharing: processes that each read a part of the samples.

    Returns:
        The centre (D,) and the basis (D, X) of `ProjectedRows`, float64; the columns are
        orthonormal, the largest variance first.

    Raises:
        ValueError: if ``num_components`` is outside [1, D].
    """
    num_views, num_samples, width = rows.shape
    if not 1 <= num_components <= width:
        raise ValueError(f"num_components must be in [1, {width}], got {num_components}")
    total = torch.zeros(width, dtype=torch.float64)
    products = torch.zeros(width, width, dtype=torch.float64)
    for samples in runs(sharing.part(num_samples), size=rows_per_chunk):
        part = read_rows(rows, samples).double().reshape(-1, width)
        total += part.sum(dim=0)
        products += part.T @ part
    centre = summed(sharing, total) / (num_views * num_samples)
    products = summed(sharing, products) / (num_views * num_samples)
    vectors = torch.linalg.eigh(products - torch.outer(centre, centre)).eigenvectors
    vectors = led(sharing, vectors)  # signs and rounding may differ between machines
    return centre, vectors.flip(1)[:, :num_components].contiguous()
