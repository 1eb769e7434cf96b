"""Samples that several processes share out between them.

Every process knows the whole problem, reads its own contiguous part of the rows, and adds up or
gathers with the others what all have found. Rank 0 leads: what the rows are multiplied with is its
numbers to the bit (`led`), and what is decided is its decision (`decided`). So processes whose
machines round differently still go through the same steps, and none waits for one that is done.

Every function here has to be called by all processes, in the same order. Alone, each is the
identity.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Sharing(Protocol):
    """Which process this is, and how it talks to the others."""

    @property
    def rank(self) -> int:
        """In [0, ``world``)."""

    @property
    def world(self) -> int:
        """Number of processes."""

    def part(self, total: int) -> slice:
        """This process's contiguous share of ``total`` rows; perhaps an empty one."""

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
    """The sum of all processes' tensors, bit for bit the same everywhere."""
    return values if sharing.world == 1 else sharing.summed(values.contiguous())


def summed_numbers(sharing: Sharing, *numbers: float) -> list[float]:
    """The sums of all processes' numbers, in float64."""
    if sharing.world == 1:
        return list(numbers)
    sums: list[float] = sharing.summed(torch.tensor(numbers, dtype=torch.float64)).tolist()
    return sums


def led(sharing: Sharing, values: Tensor) -> Tensor:
    """Rank 0's tensor; the others' has the same shape and dtype."""
    if sharing.world == 1:
        return values
    if sharing.rank == 0:
        return sharing.summed(values.clone(memory_format=torch.contiguous_format))
    return sharing.summed(torch.zeros(values.shape, dtype=values.dtype, device=values.device))


def agreed(sharing: Sharing, number: float) -> float:
    """Rank 0's number."""
    return summed_numbers(sharing, number if sharing.rank == 0 else 0.0)[0]


def decided(sharing: Sharing, flag: bool) -> bool:
    """What rank 0 says."""
    return flag if sharing.world == 1 else bool(agreed(sharing, float(flag)))


def largest(sharing: Sharing, number: float) -> float:
    """The largest of all processes' numbers."""
    if sharing.world == 1:
        return number
    return float(sharing.gathered(torch.tensor([number], dtype=torch.float64)).max())


def largest_share(sharing: Sharing, total: int) -> int:
    """Rows of the process that has most."""
    return -(-total // sharing.world)
