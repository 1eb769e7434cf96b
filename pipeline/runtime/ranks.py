"""The processes of one job: the rank of this one, and the exchange between them.

torchrun starts the processes and numbers them by environment variables. In a single process every
method here is the identity, and torch.distributed is not used. Tensors travel by NCCL between GPUs
and by gloo between CPUs; all other messages use gloo.
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
"""Time to wait for a rank that works on its own; a dead rank is noticed at once."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among the ``world`` processes of its job, rank 0 to ``world - 1``."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """True for the one process that writes shared files and prints results."""
        return self.rank == 0

    @property
    def are_many(self) -> bool:
        return self.world > 1

    def part(self, total: int) -> slice:
        """Choose this rank's contiguous share of ``total`` rows; shares differ by at most one."""
        return part_of(total, rank=self.rank, world=self.world)

    def summed(self, values: Tensor) -> Tensor:
        """Sum the tensors of all ranks, of one shape, in place."""
        if self.are_many:
            dist.all_reduce(values)
        return values

    def each(self, values: Tensor) -> Tensor:
        """Stack the tensors of all ranks, of one shape: (world, ...)."""
        if not self.are_many:
            return values[None]
        found = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(found, values)
        return torch.stack(found)

    def gathered(self, rows: Tensor, *, total: int | None = None) -> Tensor:
        """Concatenate the rows of all ranks, in their order; each may have any number.

        If every rank has its `part` of ``total`` rows, their numbers need not be exchanged.
        """
        if not self.are_many:
            return rows
        counts = self._counts(len(rows), total)
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        return torch.cat([part[:n] for part, n in zip(self.each(padded), counts, strict=True)])

    def _counts(self, own: int, total: int | None) -> list[int]:
        """Count the rows of every rank."""
        if total is None:
            return [int(count) for count in self.each(torch.tensor(own))]
        parts = [part_of(total, rank=rank, world=self.world) for rank in range(self.world)]
        return [part.stop - part.start for part in parts]

    def any(self, flag: bool) -> bool:
        """Return True if the flag of any rank is set; all ranks must call this."""
        if not self.are_many:
            return flag
        return bool(self.summed(torch.tensor(int(flag))))

    def wait(self) -> None:
        """Wait until every rank is here."""
        self.any(False)

    def first_before_others(self, make: Callable[[], Made]) -> Made:
        """Call ``make`` on the first rank, then on the others, which find its files."""
        if not self.is_first:
            self.wait()
            return make()
        made = make()
        self.wait()
        return made


ALONE: Final = Ranks()


def part_of(total: int, *, rank: int, world: int) -> slice:
    """Choose the rows of one rank: contiguous; the first ranks have one more where needed."""
    least, more = divmod(total, world)
    start = rank * least + min(rank, more)
    return slice(start, start + least + (rank < more))


class Poll:
    """Question to all ranks, asked at every step and answered at the next one.

    So the ranks agree on a step at which all of them act, and none waits for the slowest. In a
    single process the answer comes at once.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._asked: tuple[Tensor, dist.Work] | None = None

    def answers(self, *flags: bool) -> tuple[bool, ...]:
        """Return the answers to the flags of the step before; all ranks must ask equally many."""
        if not self._ranks.are_many:
            return flags
        earlier = self.last() or (False,) * len(flags)
        asked = torch.tensor([int(flag) for flag in flags])
        self._asked = asked, dist.all_reduce(asked, async_op=True)
        return earlier

    def last(self) -> tuple[bool, ...]:
        """Return the answers that are still outstanding, if any."""
        if self._asked is None:
            return ()
        (asked, work), self._asked = self._asked, None
        work.wait()
        return tuple(bool(count) for count in asked.tolist())


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Connect the ranks that torchrun started, for a while; `ALONE` without torchrun.

    Raises:
        ConfigError: if the address of the other ranks is not set.
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
        if not _is_of_a_peer(error):
            raise
        raise PeerLost(
            "the connection to another rank broke: it has ended (expected all to continue). Look "
            "for its error, then run the same command to resume."
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _require_address(world: int) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise ConfigError(
                f"WORLD_SIZE is {world}, but {name} is not set (expected both, as torchrun sets "
                "them). Start the ranks with `heartcut launch` or torchrun, or unset WORLD_SIZE."
            )


def _is_of_a_peer(error: RuntimeError) -> bool:
    """Recognise an error of the connection between ranks; gloo's have no type of their own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
