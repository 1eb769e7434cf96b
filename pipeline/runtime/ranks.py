"""The processes of one job: which one this is, and what they tell each other.

torchrun starts the processes and names them by environment variables; alone, every method here is
the identity and nothing of torch.distributed is touched. Numbers travel by NCCL between GPUs and by
gloo between CPUs; what the processes agree on besides always goes by gloo.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from pipeline.errors import ConfigError, PeerLost

Made = TypeVar("Made")

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

    def each(self, values: Tensor) -> Tensor:
        """All ranks' tensors of one shape, (world, ...)."""
        if not self.are_many:
            return values[None]
        found = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(found, values)
        return torch.stack(found)

    def gathered(self, rows: Tensor, *, total: int | None = None) -> Tensor:
        """All ranks' rows one after the other, in the order of the ranks; any number from each.

        Where every rank has its `part` of ``total`` rows, they need not ask each other how many.
        """
        if not self.are_many:
            return rows
        counts = self._counts(len(rows), total)
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        return torch.cat([part[:n] for part, n in zip(self.each(padded), counts, strict=True)])

    def _counts(self, own: int, total: int | None) -> list[int]:
        """Rows of every rank."""
        if total is None:
            return [int(count) for count in self.each(torch.tensor(own))]
        parts = [part_of(total, rank=rank, world=self.world) for rank in range(self.world)]
        return [part.stop - part.start for part in parts]

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; all must ask."""
        if not self.are_many:
            return flag
        return bool(self.summed(torch.tensor(int(flag))))

    def wait(self) -> None:
        """Until every rank is here."""
        self.any(False)

    def first_before_others(self, make: Callable[[], Made]) -> Made:
        """What ``make`` gives on every rank, where the others find the files of the first one."""
        if not self.is_first:
            self.wait()
            return make()
        made = make()
        self.wait()
        return made


ALONE: Final = Ranks()


def part_of(total: int, *, rank: int, world: int) -> slice:
    """Rows of one rank among ``total``: contiguous, the first ranks have one more where needed."""
    least, more = divmod(total, world)
    start = rank * least + min(rank, more)
    return slice(start, start + least + (rank < more))


class Poll:
    """Whether any rank says so, asked at every step and answered at the next one.

    So the ranks agree on a step at which all of them act, and none waits for the slowest. Alone,
    the answer is what was asked.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._asked: tuple[Tensor, dist.Work] | None = None

    def answers(self, *flags: bool) -> tuple[bool, ...]:
        """The answers to the flags of the step before; all ranks must ask as many."""
        if not self._ranks.are_many:
            return flags
        earlier = self.last() or (False,) * len(flags)
        asked = torch.tensor([int(flag) for flag in flags])
        self._asked = asked, dist.all_reduce(asked, async_op=True)
        return earlier

    def last(self) -> tuple[bool, ...]:
        """The answers that were not told yet, if any."""
        if self._asked is None:
            return ()
        (asked, work), self._asked = self._asked, None
        work.wait()
        return tuple(bool(count) for count in asked.tolist())


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The ranks that torchrun started, connected for a while; `ALONE` without torchrun.

    Raises:
        ConfigError: if it is not told where the others are.
        PeerLost: if another rank has ended, or cannot be reached.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    _require_address(world)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, rank=rank, world_size=world, timeout=LONGEST_WAIT)
        yield Ranks(rank=rank, world=world)
    except RuntimeError as error:
        if not _tells_of_a_peer(error):
            raise
        raise PeerLost(
            "the connection to another rank broke: it has ended (expected all to go on). Look for "
            "its error, then run the same command again to go on."
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _require_address(world: int) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise ConfigError(
                f"WORLD_SIZE is {world}, but {name} is not set (expected both, as torchrun sets "
                "them). Start the processes by `heartcut launch` or torchrun, or unset WORLD_SIZE."
            )


def _tells_of_a_peer(error: RuntimeError) -> bool:
    """Whether the error is of the connection between ranks; gloo's have no type of their own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
