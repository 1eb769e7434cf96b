"""Sums and decisions of several processes that divide the samples among themselves.

Every process knows the whole problem, reads its own contiguous part of the rows, and sums or
gathers results with the others. Rank 0 leads: all processes multiply rows with its bit-identical
numbers (`led`) and follow its decisions (`decided`). So processes whose machines round differently
still take the same steps, and none waits for one that has finished.

Every function here must be called by all processes, in the same order. With a single process, each
returns its argument.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Sharing(Protocol):
    """Rank of this process, and communication with the others."""

    @property
    def rank(self) -> int:
        """Rank of this process, in [0, ``world``)."""

    @property
    def world(self) -> int:
        """Number of processes."""

    def part(self, total: int) -> slice:
        """This process's contiguous share of ``total`` rows; it may be empty."""

    def summed(self, values: Tensor) -> Tensor:
        """The sum of all processes' contiguous tensors of one shape; may be in place."""

    def gathered(self, rows: Tensor) -> Tensor:
        """All processes' rows one after the other, in the order of the ranks."""


@dataclass(frozen=True, kw_only=True)
class _NotShared:
    rank: int = 0
    world: int = 1

    def part(self, total: int) -> slice:
        return slice(0, total)

    def summed(self, values: Tensor) -> Tensor:
        return values

    def gathered(self, rows: Tensor) -> Tensor:
        return rows


NOT_SHARED: Sharing = _NotShared()
"""One process that has all samples."""


def summed(sharing: Sharing, values: Tensor) -> Tensor:
    """Sum of all processes' tensors, bit-identical on all of them."""
    return values if sharing.world == 1 else sharing.summed(values.contiguous())


def summed_numbers(sharing: Sharing, *numbers: float) -> list[float]:
    """Sum of each number over all processes, in float64."""
    if sharing.world == 1:
        return list(numbers)
    sums: list[float] = sharing.summed(torch.tensor(numbers, dtype=torch.float64)).tolist()
    return sums


def led(sharing: Sharing, values: Tensor) -> Tensor:
    """Rank 0's tensor; all processes pass the same shape and dtype."""
    if sharing.world == 1:
        return values
    if sharing.rank == 0:
        return sharing.summed(values.clone(memory_format=torch.contiguous_format))
    return sharing.summed(torch.zeros(values.shape, dtype=values.dtype, device=values.device))


def agreed(sharing: Sharing, number: float) -> float:
    """Rank 0's number."""
    return summed_numbers(sharing, number if sharing.rank == 0 else 0.0)[0]


def decided(sharing: Sharing, flag: bool) -> bool:
    """Rank 0's flag."""
    return flag if sharing.world == 1 else bool(agreed(sharing, float(flag)))


def largest(sharing: Sharing, number: float) -> float:
    """The largest of all processes' numbers."""
    if sharing.world == 1:
        return number
    return float(sharing.gathered(torch.tensor([number], dtype=torch.float64)).max())


def largest_share(sharing: Sharing, total: int) -> int:
    """Rows of the process with the most rows."""
    return -(-total // sharing.world)
