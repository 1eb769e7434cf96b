"""The processes of one job: which one this is, and what they tell each other.

torchrun starts the processes and names them by environment variables; alone, every method here is
the identity and nothing of torch.distributed is touched. Numbers travel by NCCL between GPUs and by
gloo between CPUs; what the processes agree on besides always goes by gloo.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
from torch import Tensor
from torch import distributed as dist

LONGEST_WAIT: Final = timedelta(hours=12)
"""For a rank that is at work on its own; one that has died is noticed at once."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among the ``world`` processes of its job, rank 0 to ``world - 1``."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once, and tells what is told once."""
        return self.rank == 0

    @property
    def are_many(self) -> bool:
        return self.world > 1

    def part(self, total: int) -> slice:
        """This rank's contiguous share of ``total`` rows; shares differ by one row at most."""
        return part_of(total, rank=self.rank, world=self.world)

    def summed(self, values: Tensor) -> Tensor:
        """The sum of all ranks' tensors of one shape, in place."""
        if self.are_many:
            dist.all_reduce(values)
        return values

    def gathered(self, rows: Tensor) -> Tensor:
        """All ranks' rows one after the other, in the order of the ranks; any number from each."""
        if not self.are_many:
            return rows
        counts = torch.zeros(self.world, dtype=torch.int64, device=rows.device)
        counts[self.rank] = len(rows)
        most = int(self.summed(counts).max())
        padded = rows.new_zeros((most, *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; all must ask."""
        if not self.are_many:
            return flag
        return bool(self.summed(torch.tensor(int(flag))))

    def wait(self) -> None:
        """Until every rank is here."""
        self.any(False)


ALONE: Final = Ranks()


def part_of(total: int, *, rank: int, world: int) -> slice:
    """Rows of one rank among ``total``: contiguous, the first ranks have one more where needed."""
    least, more = divmod(total, world)
    start = rank * least + min(rank, more)
    return slice(start, start + least + (rank < more))


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The ranks that torchrun started, connected for a while; `ALONE` without torchrun."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=world, timeout=LONGEST_WAIT)
    try:
        yield Ranks(rank=rank, world=world)
    finally:
        dist.destroy_process_group()
